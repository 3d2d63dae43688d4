"""Rankers: whatever gives the commands of a state scores. What one must be, checks of what it returns, and the simple ones.

The whole of a ranker of your own::

    class Shortest:
        name = "shortest"

        def score(self, task, history, commands):
            return [-len(command) for command in commands]

Higher is better, and only the commands of one state are compared with each other. ``history`` is the turns so far. Its last
one is the turn to be decided: it has the feedback and the admissible commands that the player sees now, and its command is
empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.states import LABELS, BenchState
from agentprm_gym.checks import check_choice, check_float
from agentprm_gym.episodes import Turn

#: What the scores of a ranker are, beside an order; see :class:`Ranker`.
SCALES = ("order", "logit", "probability", "log_prob")
#: States that a ranker is given at once.
BATCH = 64


class RankerError(ValueError):
    """Something is not a ranker, or a ranker returned something else than one finite number for each command."""


@runtime_checkable
class Ranker(Protocol):
    """Anything with a name that scores the commands of a state.

    Two attributes may be added:

    * ``score_states(states)``, in place of ``score`` or beside it: takes a batch of :class:`BenchState` and returns one row of
      scores for each. It is called where it is there, for rankers that are fast in batches.
    * ``scale``: what the scores are beside an order. ``"probability"``: of winning, in [0, 1]. ``"logit"``: its logit.
      ``"log_prob"``: log-probabilities with which a policy draws the commands. ``"order"`` (or no such attribute): none of
      these, so there is no calibration to measure.
    """

    name: str

    def score(self, task: str, history: Sequence[Turn], commands: Sequence[str]) -> Sequence[float]:
        """Score the commands of a state.

        Args:
            task: the task in words.
            history: the turns so far; the last one is the turn to be decided.
            commands: the A commands that are possible there.

        Returns:
            A finite numbers, higher is better.
        """


def check_ranker(ranker: object) -> None:
    """Refuse what is not a ranker.

    Args:
        ranker: anything.

    Raises:
        RankerError: it has no name, no method ``score`` or ``score_states``, or an unknown scale; the message says which.
    """
    label = type(ranker).__name__
    if isinstance(ranker, type):
        raise RankerError(
            f"expected a ranker, got the class {ranker.__name__}: make an object of it, {ranker.__name__}(...)"
        )
    name = getattr(ranker, "name", None)
    if not isinstance(name, str) or not name:
        raise RankerError(
            f"the ranker of class {label} needs an attribute name, a text that is not empty, got {name!r}"
        )
    if not any(callable(getattr(ranker, method, None)) for method in ("score", "score_states")):
        raise RankerError(
            f"the ranker {name!r} has no method score(task, history, commands): expected one that returns a number for each "
            "command"
        )
    if scale_of(ranker) not in SCALES:
        raise RankerError(f"the ranker {name!r} has scale={scale_of(ranker)!r}: expected one of {', '.join(SCALES)}")


def scale_of(ranker: object) -> str:
    """Return what a ranker's scores are, one of :data:`SCALES`; ``"order"`` where it does not say.

    Args:
        ranker: the ranker.
    """
    return str(getattr(ranker, "scale", None) or "order")


def checked_scores(scores: object, state: BenchState, name: str) -> Floats:
    """Return the scores of one state as an array, or say what is wrong with them.

    Args:
        scores: what the ranker returned.
        state: the state.
        name: the ranker's name.

    Returns:
        (A,) float64, finite.

    Raises:
        RankerError: these are not numbers, not one for each command, or not finite. The message names the ranker and the state.
    """
    n = len(state.commands)
    where = f"ranker {name!r}, state {state.state_id!r}"
    try:
        array = np.asarray(scores)
        if array.dtype == object or array.dtype.kind not in "fiub":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise RankerError(
            f"{where}: expected {n} numbers, one for each command, got {type(scores).__name__}: {str(scores)[:80]}; return a "
            "list or an array of floats"
        ) from None
    if array.shape != (n,):
        got = f"{len(array)} numbers" if array.ndim == 1 else f"shape {array.shape}"
        raise RankerError(
            f"{where}: expected {n} scores, one for each command in their order, got {got}; score every command, also those "
            "that look pointless"
        )
    if not np.isfinite(array).all():
        i = int(np.flatnonzero(~np.isfinite(array))[0])
        raise RankerError(
            f"{where}: the score of {state.commands[i]!r} is {array[i]}, expected a finite number; a command that must never "
            "be chosen gets a low number, and a model that gives NaN has diverged"
        )
    return array


def score_panel(
    ranker: Ranker,
    states: Sequence[BenchState],
    *,
    batch_size: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> list[Floats]:
    """Score all commands of all states.

    Args:
        ranker: the ranker.
        states: the states. Those with long histories are scored with others of about the same length.
        batch_size: states that ``score_states`` is given at once, 1 or more.
        on_batch: called with the number of states that are done, after each batch.

    Returns:
        For each state, in the order given, (A,) scores.

    Raises:
        RankerError: it is not a ranker, or it returned something else than one finite number for each command.
    """
    check_ranker(ranker)
    # Models pad a batch to its longest row.
    order = sorted(range(len(states)), key=lambda i: _length(states[i]))
    out: list[Floats] = [np.zeros(0)] * len(states)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        rows = _score_batch(ranker, [states[i] for i in part])
        for i, row in zip(part, rows, strict=True):
            out[i] = checked_scores(row, states[i], ranker.name)
        if on_batch is not None:
            on_batch(start + len(part))
    return out


def _score_batch(ranker: Any, states: Sequence[BenchState]) -> Sequence[ArrayLike]:
    if not callable(getattr(ranker, "score_states", None)):
        return [ranker.score(s.task, s.history, s.commands) for s in states]
    rows = ranker.score_states(states)
    try:
        n = len(rows)
    except TypeError:
        n = -1
    if n != len(states):
        got = type(rows).__name__ if n < 0 else f"{n} rows"
        raise RankerError(
            f"ranker {ranker.name!r}: score_states got {len(states)} states, the first of them {states[0].state_id!r}, and "
            f"returned {got}; expected one row of scores for each state"
        )
    return list(rows)


def _length(state: BenchState) -> int:
    return sum(len(turn.feedback) + len(turn.command) for turn in state.history)


def values_of(scores: Sequence[Floats], scale: str) -> list[Floats]:
    """Return scores as values: logits become probabilities, all others stay as they are.

    Args:
        scores: one row a state.
        scale: one of :data:`SCALES`.
    """
    return [1 / (1 + np.exp(-np.clip(row, -500, 500))) for row in scores] if scale == "logit" else list(scores)


def probabilities_of(scores: Sequence[Floats]) -> list[Floats]:
    """Return log-probabilities as probabilities that sum to 1 in each state.

    Args:
        scores: one row of log-probabilities a state.
    """
    out = []
    for row in scores:
        odds = np.exp(row - row.max())
        out.append(odds / odds.sum())
    return out


# ---------------------------------------------------------------------- rankers that need no model
class UniformRanker:
    """Finds all commands alike: chance."""

    name = "uniform"

    def score(self, task: str, history: Sequence[Turn], commands: Sequence[str]) -> Sequence[float]:
        """Score the commands of a state; see :class:`Ranker`."""
        return [0.0] * len(commands)


class LengthRanker:
    """Prefers long commands, as judges and models often do: what a ranker must be better than to have read anything."""

    name = "length"

    def score(self, task: str, history: Sequence[Turn], commands: Sequence[str]) -> Sequence[float]:
        """Score the commands of a state; see :class:`Ranker`."""
        return [float(len(command)) for command in commands]


class LabelRanker:
    """Knows a panel's labels: the planner itself (``"oracle"``), or one kind of labels measured by another.

    ``noise`` adds Gaussian noise of that standard deviation to each label. It is drawn from the state's name and the seed, so
    it does not depend on which states are scored together.
    """

    scale = "order"

    def __init__(self, kind: str = "oracle", noise: float = 0.0, seed: int = 0) -> None:
        """Choose the labels.

        Args:
            kind: which labels, one of :data:`~agentprm_gym.bench.states.LABELS`.
            noise: standard deviation of the noise, 0 or more.
            seed: of the noise.

        Raises:
            ValueError: the labels are unknown or the noise is negative.
        """
        check_choice("labels", kind, LABELS)
        self.kind, self.noise, self.seed = kind, check_float("noise", noise, 0.0), seed
        plain = "oracle" if kind == "oracle" else f"labels:{kind}"
        self.name = plain if not noise else f"noise:{noise:g}" + ("" if kind == "oracle" else f"@{kind}")

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`Ranker`.

        Raises:
            RankerError: a state has no such labels.
        """
        out = []
        for state in states:
            labels = state.labels.get(self.kind)
            if labels is None:
                raise RankerError(
                    f"ranker {self.name!r}, state {state.state_id!r}: the panel has no {self.kind!r} labels, only "
                    f"{sorted(state.labels)}; leave this ranker out, or choose another panel"
                )
            out.append(np.array(labels.values) + self._drawn(state) * self.noise)
        return out

    def _drawn(self, state: BenchState) -> Floats:
        return _generator(state, self.seed).standard_normal(len(state.commands)) if self.noise else np.zeros(1)


class ShuffledRanker:
    """The labels of each state dealt to its commands at random: the same numbers, and no knowledge."""

    name = "shuffled"

    def __init__(self, kind: str = "oracle", seed: int = 0) -> None:
        """Choose the labels.

        Args:
            kind: which labels, one of :data:`~agentprm_gym.bench.states.LABELS`.
            seed: of the dealing.

        Raises:
            ValueError: the labels are unknown.
        """
        self._labels, self.seed = LabelRanker(kind), seed

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`Ranker`.

        Raises:
            RankerError: a state has no such labels.
        """
        rows = self._labels.score_states(states)
        return [_generator(s, self.seed).permutation(row) for s, row in zip(states, rows, strict=True)]


class MeanRanker:
    """The mean of several rankers' scores, standardised within each state so that each has the same say.

    A state's scores less their mean, divided by their standard deviation; a ranker that scores all commands of a state alike
    has no say there.
    """

    def __init__(self, parts: Sequence[Ranker]) -> None:
        """Gather rankers.

        Args:
            parts: two or more.

        Raises:
            ValueError: there are fewer.
        """
        if len(parts) < 2:
            raise ValueError(f"a mean needs two rankers or more, got {len(parts)}: mean:A+B")
        for part in parts:
            check_ranker(part)
        self.parts = list(parts)
        self.name = "mean:" + "+".join(part.name for part in parts)

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`Ranker`.

        Raises:
            RankerError: one of the rankers returned something else than one finite number for each command.
        """
        total = [np.zeros(len(state.commands)) for state in states]
        for part in self.parts:
            for i, row in enumerate(score_panel(part, states, batch_size=max(1, len(states)))):
                spread = row.std()
                if spread > 0:
                    total[i] += (row - row.mean()) / spread / len(self.parts)
        return total


def _generator(state: BenchState, seed: int) -> np.random.Generator:
    """A random stream that belongs to a state."""
    digest = hashlib.sha256(f"{seed}\0{state.state_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
