"""What a process reward is: turns in, one finite number for each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentprm_gym.episodes import Turn

#: What only the simulator knows and a process reward may ask for: fields of :class:`ScoredTurn`, each with the method of
#: an environment that tells it.
FACTS: Mapping[str, str] = MappingProxyType({"progress": "subgoals", "cost_to_go": "cost_to_go"})

_PROGRESS, _NOTHING = frozenset({"progress"}), frozenset[str]()


@dataclass(frozen=True, slots=True)
class ScoredTurn:
    """One executed turn, with everything that a process reward may look at.

    Attributes:
        task: The task in words.
        turns: The episode so far; the last turn is the one to score. Its ``reward`` is the
            environment's own.
        terminated: Whether the game ended with it.
        feedback: What the game said after it.
        admissible_commands: What is possible after it.
        progress: Share of the subgoals done (0 to 1) before and after the turn; None unless the
            reward asks for it, since it reads the true state.
        cost_to_go: Commands of the shortest way to win before and after the turn: 0.0 where the game is won,
            ``math.inf`` where it cannot be won any more; None unless the reward asks for it, likewise.
    """

    task: str
    turns: Sequence[Turn]
    terminated: bool
    feedback: str = ""
    admissible_commands: Sequence[str] = ()
    progress: tuple[float, float] | None = None
    cost_to_go: tuple[float, float] | None = None


@runtime_checkable
class ProcessReward(Protocol):
    """Anything that scores turns in batches.

    Attributes:
        name: For messages and logs.
        privileged: Whether it needs what only the simulator knows: ``ScoredTurn.progress``, unless an
            attribute ``needs`` names something else, a frozenset of :data:`FACTS` (see :func:`needs_of`).
    """

    name: str
    privileged: bool

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.floating[Any]]:
        """Score a batch of turns, each on its own.

        Args:
            turns: The batch, from any number of episodes.

        Returns:
            Shape ``(len(turns),)``, finite; it is *added* to the environment's reward.
        """


def needs_of(reward: ProcessReward) -> frozenset[str]:
    """Return which of :data:`FACTS` a process reward asks for; nobody computes the others.

    Args:
        reward: One with an attribute ``needs``, or without: then ``privileged`` stands for ``{"progress"}``.

    Raises:
        ValueError: ``needs`` names what there is not, or contradicts ``privileged``.
    """
    declared = getattr(reward, "needs", None)
    if declared is None:
        return _PROGRESS if reward.privileged else _NOTHING
    needs = frozenset(declared)
    unknown = needs - FACTS.keys()
    if unknown:
        raise ValueError(f"process reward {reward.name!r} needs {sorted(unknown)}: expected some of {list(FACTS)}")
    if bool(needs) != reward.privileged:
        raise ValueError(
            f"process reward {reward.name!r} has privileged={reward.privileged} and needs={sorted(needs)}: privileged must "
            "be True exactly where it needs something"
        )
    return needs


def scored(reward: ProcessReward, turns: Sequence[ScoredTurn]) -> tuple[NDArray[np.float64], list[dict[str, float]]]:
    """Score a batch and check what comes; see also what each part of a sum contributed.

    Args:
        reward: Where it has a method ``score_parts``, which returns the scores and a dict of arrays, as
            :class:`SumReward` has it, that is called.
        turns: The batch.

    Returns:
        Scores of shape ``(len(turns),)``, and for each turn its parts by name; empty for what is no sum.

    Raises:
        ValueError: A shape is not ``(len(turns),)``, or a value is not finite.
    """
    score_parts = getattr(reward, "score_parts", None)
    if score_parts is None:
        return checked(reward.score(turns), len(turns), reward.name), [{}] * len(turns)
    scores, parts = score_parts(turns)
    columns = {name: checked(part, len(turns), f"{reward.name}: {name}").tolist() for name, part in parts.items()}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(turns))]
    return checked(scores, len(turns), reward.name), rows


def score_infos(
    reward: ProcessReward, turns: Sequence[ScoredTurn], env_rewards: Sequence[float]
) -> list[dict[str, Any]]:
    """Score a batch; return for each turn what wrappers add to ``info``.

    Args:
        reward: The process reward.
        turns: The batch.
        env_rewards: What the environments themselves paid, one for each turn.

    Returns:
        ``"reward/env"`` (the environment's own reward) and ``"reward/prm"`` (the score); for a sum also
        ``"reward/parts"``, a dict with what each part contributed.

    Raises:
        ValueError: As :func:`scored` does.
    """
    scores, parts = scored(reward, turns)
    return [
        {"reward/env": float(env_reward), "reward/prm": score, **({"reward/parts": row} if row else {})}
        for env_reward, score, row in zip(env_rewards, scores.tolist(), parts, strict=True)
    ]


def checked(scores: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    """Return ``scores`` as float64 of shape ``(n,)``, or say which process reward broke the rule.

    Args:
        scores: What ``score`` returned.
        n: How many turns were scored.
        name: The process reward's name.

    Raises:
        ValueError: The shape is not ``(n,)``, or a value is not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"process reward {name!r} returned shape {array.shape} for {n} turns, expected ({n},)")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise ValueError(f"process reward {name!r} returned values that are not finite, for turns {bad} of {n}")
    return array


def check_coef(coef: float, name: str = "coef") -> None:
    """Complain about a weight that is no number.

    Raises:
        ValueError: It is not finite.
    """
    if not np.isfinite(coef):
        raise ValueError(f"{name} must be finite, got {coef!r}")
