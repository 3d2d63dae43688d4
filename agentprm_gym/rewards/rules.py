"""Process rewards that follow a rule instead of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.rewards.base import ScoredTurn, check_coef


class OutcomeReward:
    """No process reward: zero for every turn, so that only the environment's outcome remains; or that in another weight.

    Args:
        weight: Of the environment's own reward. With 0 it is taken away again, so that in a sum nothing but the other parts is
            learnt from: a process reward alone.

    Raises:
        ValueError: ``weight`` is not finite.
    """

    name = "outcome"
    privileged = False

    def __init__(self, weight: float = 1.0) -> None:
        check_coef(weight, "weight")
        self.weight = weight

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Return ``(weight - 1)`` times the environment's reward of each turn, shape ``(len(turns),)``."""
        if self.weight == 1.0:
            return np.zeros(len(turns), dtype=np.float64)
        return np.array([(self.weight - 1.0) * turn.turns[-1].reward for turn in turns], dtype=np.float64)


class ProgressReward:
    """Potential-based shaping on privileged progress: ``coef * (gamma * phi(s') - phi(s))``.

    ``phi`` is the share of the task's subgoals that are done. Where the game ends, ``phi(s')`` is
    0, won or not; this is what makes the shaping potential-based in an episodic task. The
    discounted sum over an episode that ends is then ``-coef * phi(s_0)``, the same whatever the
    agent did (usually 0): progress is paid in advance and settled on the last turn, and no policy
    gains or loses against another. An episode that the step limit cuts off has not ended: its sum
    keeps ``gamma ** T * phi(s_T)``, as it should where an algorithm bootstraps there.

    Args:
        gamma: The discount of the algorithm that learns from it, for the above to hold exactly.
            With 1.0, each turn's reward is simply the progress that it made.
        coef: Weight.

    Raises:
        ValueError: ``gamma`` is not in [0, 1], or ``coef`` is not finite.
    """

    name = "progress"
    privileged = True

    def __init__(self, gamma: float = 1.0, coef: float = 1.0) -> None:
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
        check_coef(coef)
        self.gamma = gamma
        self.coef = coef

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Score each turn by the progress that it made.

        Args:
            turns: The batch; every turn needs its ``progress``.

        Returns:
            Shape ``(len(turns),)``.

        Raises:
            ValueError: A turn comes without ``progress``.
        """
        return np.array([self._score(turn) for turn in turns], dtype=np.float64).reshape(len(turns))

    def _score(self, turn: ScoredTurn) -> float:
        if turn.progress is None:
            raise ValueError(
                "the reward 'progress' needs ScoredTurn.progress, the share of subgoals done "
                "before and after the turn; environments give it with subgoals()"
            )
        before, after = turn.progress
        return self.coef * (self.gamma * (0.0 if turn.terminated else after) - before)


class PenaltyReward:
    """Takes something away for turns that lead nowhere, as a player can see it; the sum of what applies.

    Two turns *show the same* where the feedback after them and the admissible commands after them are the same, string for
    string. It is what the player sees and not the true state: what lies in a closed drawer does not tell two turns apart,
    and "Nothing happens." is new when it is said for the first time.

    Args:
        inadmissible: Taken for a command that was not admissible.
        repeated_state: Taken where the turn shows what stood before the player earlier in the episode, its beginning
            included, unless the game ends with it.
        step: Taken for every turn.

    Raises:
        ValueError: One is negative or not finite.
    """

    name = "penalty"
    privileged = False

    def __init__(self, inadmissible: float = 0.1, repeated_state: float = 0.0, step: float = 0.0) -> None:
        for name, value in {"inadmissible": inadmissible, "repeated_state": repeated_state, "step": step}.items():
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} is subtracted and must be finite and 0 or more, got {value!r}")
        self.inadmissible = inadmissible
        self.repeated_state = repeated_state
        self.step = step

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Return what is taken away, 0 or less, shape ``(len(turns),)``.

        Raises:
            ValueError: A turn comes without its transcript.
        """
        return np.array([-self._penalty(turn) for turn in turns], dtype=np.float64).reshape(len(turns))

    def _penalty(self, turn: ScoredTurn) -> float:
        if not turn.turns:
            raise ValueError("the reward 'penalty' needs ScoredTurn.turns, whose last one is the turn to score")
        taken = self.step
        if not turn.turns[-1].is_admissible:
            taken += self.inadmissible
        if self.repeated_state and not turn.terminated:
            after = turn.feedback, tuple(turn.admissible_commands)
            if any((t.feedback, tuple(t.admissible_commands)) == after for t in turn.turns):
                taken += self.repeated_state
        return taken
