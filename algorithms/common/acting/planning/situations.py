"""What the searches that plan ahead share: situations, worlds, what scores them, and how often each was asked.

A search asks three kinds of models, and counts every answer in ``calls``:

* ``"policy"``: a distribution over the commands of one situation, or one drawn response;
* ``"prm"``: the score of one command;
* ``"world"``: one imagined outcome of a command, by a learned model of the world.

The sum of these is the number of model calls by which searches are compared. ``"steps"`` counts commands that were tried in the
true game, which costs no model call and is privileged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.prefixes import PrefixCache
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.requests import Request

Floats = npt.NDArray[np.float64]
#: What counts as a model call.
MODELS = ("policy", "prm", "world")
#: Situations a forward pass.
_BATCH = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows a command, in truth or in imagination.

    Attributes:
        feedback: what the game says.
        admissible_commands: what is possible then.
        done: whether the game ended.
        reward: what the command was paid, in [0, 1]; 1 for a win.
    """

    feedback: str
    admissible_commands: tuple[str, ...]
    done: bool
    reward: float


@dataclass(frozen=True, slots=True)
class Situation:
    """A point of an episode at which a command is to be chosen, real or imagined.

    Attributes:
        task: the task in words.
        turns: what was played before.
        feedback: what the game just said.
        admissible_commands: what is possible now.
        path: the commands from the real situation to this one; empty in the real one.
    """

    task: str
    turns: tuple[Turn, ...]
    feedback: str
    admissible_commands: tuple[str, ...]
    path: tuple[str, ...] = ()

    def after(self, command: str, outcome: Outcome) -> Situation:
        """The situation behind a command."""
        turn = Turn(feedback=self.feedback, admissible_commands=self.admissible_commands, command=command)
        return Situation(
            self.task,
            (*self.turns, turn),
            outcome.feedback,
            outcome.admissible_commands,
            (*self.path, command),
        )

    def episode(self, command: str = "") -> Episode:
        """An episode whose last turn is this situation, with a command to be judged."""
        command = command or (self.admissible_commands[0] if self.admissible_commands else "")
        turn = Turn(feedback=self.feedback, admissible_commands=self.admissible_commands, command=command)
        turns = [*self.turns, turn]
        return Episode(game_id="", split="", task_type="", task=self.task, success=False, turns=turns)

    def told(self, note: str) -> Situation:
        """The same with a note behind what the game just said."""
        return replace(self, feedback=f"{self.feedback} {note}")


class Prior(Protocol):
    """A policy's distribution over the admissible commands."""

    calls: Counter[str]

    def log_probs(self, situations: Sequence[Situation]) -> list[Floats]:
        """For each situation (n_commands,) log-probabilities in nats; counts a ``"policy"`` call for each."""


class Scorer(Protocol):
    """What commands are worth."""

    calls: Counter[str]

    def score(self, situations: Sequence[Situation], commands: Sequence[Sequence[str]]) -> list[Floats]:
        """For each situation Q in [0, 1] of some commands; counts a ``"prm"`` call for each command."""


class World(Protocol):
    """What follows commands."""

    calls: Counter[str]
    #: Whether it is the true game.
    privileged: bool

    def step(self, request: Request, tried: Sequence[tuple[Situation, str]]) -> list[Outcome]:
        """Outcomes of commands in situations that were reached from a request's."""


class PolicyPrior:
    """A local policy that chooses among admissible commands."""

    def __init__(self, responder: Responder, adapter: str | None) -> None:
        """Make a prior.

        Args:
            responder: the model and its way to act.
            adapter: the policy's adapter; ``None`` is the bare base.

        Raises:
            ValueError: the policy writes freely, so it has no distribution over commands.
        """
        if responder.writes_freely:
            raise ValueError(
                "planning reads a policy's distribution over the admissible commands, and this policy writes freely: use "
                'action_mode="constrained" or "score" without reasons'
            )
        self.responder, self.adapter = responder, adapter
        self.calls: Counter[str] = Counter()
        self._prefixes = PrefixCache(responder.lm)

    def forget(self) -> None:
        """Drop what is kept of transcripts; to be called when the policy has been trained."""
        self._prefixes.forget()

    @torch.no_grad()
    def log_probs(self, situations: Sequence[Situation]) -> list[Floats]:
        """See :class:`Prior`."""
        self.calls["policy"] += len(situations)
        out: list[Floats] = []
        lm = self.responder.lm
        for i in range(0, len(situations), _BATCH):
            episodes = [s.episode() for s in situations[i : i + _BATCH]]
            with lm.active(self.adapter):
                which = [[len(e.turns) - 1] for e in episodes]
                rows = episode_log_probs(self.responder, episodes, which, prefixes=self._prefixes)
            out += [row[0].double().cpu().numpy() for row in rows]
        return out


class PRMScorer:
    """A process reward model."""

    def __init__(self, prm: ProcessRewardModel) -> None:
        """Make a scorer.

        Args:
            prm: the process reward model.
        """
        self.prm = prm
        self.calls: Counter[str] = Counter()
        self._prefixes = PrefixCache(prm.lm)

    def forget(self) -> None:
        """Drop what is kept of transcripts; to be called when the model has been trained."""
        self._prefixes.forget()

    def score(self, situations: Sequence[Situation], commands: Sequence[Sequence[str]]) -> list[Floats]:
        """See :class:`Scorer`."""
        self.calls["prm"] += sum(map(len, commands))
        out: list[Floats] = [np.zeros(0)] * len(situations)
        asked = [i for i, some in enumerate(commands) if len(some)]
        for k in range(0, len(asked), _BATCH):
            part = asked[k : k + _BATCH]
            # The last turn's own command must not be one that is judged as written down already.
            items = [
                (
                    situations[i].task,
                    situations[i].episode(commands[i][0]).turns,
                    [(len(situations[i].turns), commands[i])],
                )
                for i in part
            ]
            for i, rows in zip(part, self.prm.score(items, self._prefixes), strict=True):
                out[i] = rows[0].double().numpy()
        return out


class EngineWorld:
    """The true game as the perfect model of the world. Privileged: no agent outside a simulator has it."""

    privileged = True

    def __init__(self) -> None:
        """Make a world; requests bring the game."""
        self.calls: Counter[str] = Counter()

    def step(self, request: Request, tried: Sequence[tuple[Situation, str]]) -> list[Outcome]:
        """See :class:`World`.

        Raises:
            ValueError: the environment cannot look ahead.
        """
        if request.look_ahead is None:
            raise ValueError(
                "planning in the true game needs an environment with look_ahead(sequences), as those of this package have; "
                "name a file with a fitted model of the world instead"
            )
        self.calls["steps"] += len(tried)
        frames = request.look_ahead([(*situation.path, command) for situation, command in tried])
        return [Outcome(feedback, tuple(options), won, float(won)) for feedback, options, won in frames]


def model_calls(calls: Mapping[str, int]) -> int:
    """How many model calls were made, of all kinds."""
    return sum(calls.get(name, 0) for name in MODELS)


def draw(log_probs: Floats, n: int, rng: np.random.Generator, temperature: float = 1.0) -> list[int]:
    """Draw distinct commands from a distribution, without replacement (the Gumbel-top-k trick, Kool et al., arXiv 1903.06059).

    Args:
        log_probs: (n_commands,) in nats.
        n: how many at most, 1 or more.
        rng: random stream.
        temperature: of the draws; 0 takes the likeliest.

    Returns:
        Indices, in the order drawn.
    """
    if temperature == 0:
        return [int(i) for i in np.argsort(-log_probs, kind="stable")[:n]]
    keys = log_probs / temperature + rng.gumbel(size=len(log_probs))
    return [int(i) for i in np.argsort(-keys, kind="stable")[:n]]


def best_values(scorer: Scorer, situations: Sequence[Situation], outcomes: Sequence[Outcome]) -> list[float]:
    """What situations are worth: the reward of a game that is over, else the highest Q of the commands that are admissible.

    Args:
        scorer: scores commands.
        situations: the situations.
        outcomes: how each was reached.
    """
    open_ones = [i for i, o in enumerate(outcomes) if not o.done and o.admissible_commands]
    values = [o.reward for o in outcomes]
    chosen = [situations[i] for i in open_ones]
    scores = scorer.score(chosen, [s.admissible_commands for s in chosen]) if chosen else []
    for i, q in zip(open_ones, scores, strict=True):
        values[i] = float(q.max())
    return values


def add_up(*parts: Any) -> Counter[str]:
    """The calls of several models together; what has no ``calls`` counts nothing."""
    total: Counter[str] = Counter()
    for part in {id(p): p for p in parts}.values():
        total.update(getattr(part, "calls", {}))
    return total
