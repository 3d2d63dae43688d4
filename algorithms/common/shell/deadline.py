"""A callback that limits the time of training."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback

from agentprm_gym.checks import check_float
from algorithms.common.acting.ranks import ranks


class Deadline(BaseCallback):
    """Stop training after some minutes, as soon as the running iteration is over.

    An iteration is not cut in the middle, since its episodes would be lost. So the first one is always finished.

    Attributes:
        is_over: whether training was stopped by this.
    """

    def __init__(self, minutes: float) -> None:
        """Make the callback; the clock starts with ``learn``.

        Args:
            minutes: minutes of wall clock from the beginning of ``learn``, above 0.

        Raises:
            ValueError: the number is not above 0.
        """
        super().__init__()
        self.minutes = check_float("minutes", minutes, above=0)
        self.is_over = False
        self._end = 0.0
        self._has_begun = False

    def _on_training_start(self) -> None:
        self.is_over = self._has_begun = False
        self._end = time.monotonic() + 60 * self.minutes

    def _on_rollout_start(self) -> None:
        # SB3 asks at steps only: the next iteration ends at its first one, before anything is learnt from it.
        # Where several processes train together, the first one's clock counts.
        self.is_over = ranks().agreed(self._has_begun and time.monotonic() >= self._end)
        self._has_begun = True

    def _on_step(self) -> bool:
        return not self.is_over
