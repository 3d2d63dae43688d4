"""A process reward whose weight changes while a policy learns: the alpha of PAV, of shaping, of exploration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.checks import check_int
from agentprm_gym.rewards.base import ProcessReward, ScoredTurn, check_coef, checked, name_of, needs_of


class AnnealedReward:
    """``alpha(n) * score``: alpha goes from ``start`` to ``end`` along a line over the first ``n_turns`` turns.

    By name it is ``reward="annealed", reward_kwargs={"part": {"reward": "prm:agent.zip"}, "n_turns": 100_000}``. Turns are
    counted by this object: all environments of one vector share it, environments in worker processes do not. A save does not
    hold the count, and a score depends on how many were asked for before, as with ``normalize=True``. All turns of a batch get
    the same alpha.
    """

    def __init__(self, reward: ProcessReward, start: float = 1.0, end: float = 0.0, n_turns: int = 100_000) -> None:
        """Make a reward.

        Args:
            reward: what is paid.
            start: the first alpha; any finite number.
            end: the last alpha; any finite number.
            n_turns: after how many turns it is reached, 1 or more.

        Raises:
            ValueError: a number is out of range.
        """
        check_coef(start, "start")
        check_coef(end, "end")
        self.reward, self.start, self.end = reward, float(start), float(end)
        self.n_turns = check_int("n_turns", n_turns, 1)
        self.name, self.needs = name_of(reward), needs_of(reward)
        self.privileged = bool(self.needs)
        self._seen = 0

    @property
    def alpha(self) -> float:
        """The weight of the next turn."""
        share = min(1.0, self._seen / self.n_turns)
        return self.start + share * (self.end - self.start)

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Return the weighted scores.

        Args:
            turns: the batch.

        Returns:
            Shape ``(len(turns),)``.

        Raises:
            ValueError: the reward inside returned a wrong shape or a value that is not finite.
        """
        scores = self.alpha * checked(self.reward.score(turns), len(turns), self.name)
        self._seen += len(turns)
        return scores
