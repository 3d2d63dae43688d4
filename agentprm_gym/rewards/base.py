"""What a process reward is: turns in, one finite number for each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentprm_gym.episodes import Turn


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
            reward is ``privileged``, since it reads the true state.
    """

    task: str
    turns: Sequence[Turn]
    terminated: bool
    feedback: str = ""
    admissible_commands: Sequence[str] = ()
    progress: tuple[float, float] | None = None


@runtime_checkable
class ProcessReward(Protocol):
    """Anything that scores turns in batches.

    Attributes:
        name: For messages and logs.
        privileged: Whether it needs ``ScoredTurn.progress``.
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
