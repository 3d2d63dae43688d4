"""The guard against reward hacking: has the policy learnt the PRM's mistakes?

Over a policy improvement, the PRM's mean score of played turns may rise further than the share of games that are won. How much
further is the divergence.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agentprm_gym.checks import check_choice, check_float
from agentprm_gym.episodes import Episode
from agentprm_gym.prm.model import ProcessRewardModel, executed
from algorithms.common.acting.policy import POLICY
from algorithms.common.learning.batches import pieces
from algorithms.common.prm.bandit import REFERENCE

if TYPE_CHECKING:
    from algorithms.common.prm.algorithm import PRMAlgorithm

ANSWERS = ("warn", "stop", "refit")
#: So many episodes tell the mean score; those of held-out games come first.
N_COMPARED = 64


def opinion(prm: ProcessRewardModel, episodes: Sequence[Episode], micro_batch_size: int) -> tuple[float, float]:
    """The PRM's mean score of what was done in some episodes, and the share of them that were won; both in [0, 1].

    Args:
        prm: the process reward model.
        episodes: one episode counts as much as another, however long it is; :data:`N_COMPARED` of them at most are read.
        micro_batch_size: episodes a forward pass.
    """
    episodes = episodes[:N_COMPARED]
    means = []
    for part in pieces(episodes, micro_batch_size):
        items = [(e.task, e.turns, executed(e.turns)) for e in part]
        means += [float(torch.cat(scores).mean()) for scores in prm.score(items)]
    return float(np.mean(means)), float(np.mean([e.success for e in episodes]))


@dataclass(frozen=True)
class Guard:
    """What is done where scores leave success behind.

    Attributes:
        answer: ``"warn"``; ``"stop"``: take the improvement back and end learning; ``"refit"``: take it back, add rollouts
            of the diverged policy to what the PRM is fitted to, and improve again.
        max_divergence: from which divergence on, a share in [0, 1].
    """

    answer: str = "warn"
    max_divergence: float = 0.25

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        check_choice("on_divergence", self.answer, ANSWERS)
        check_float("max_divergence", self.max_divergence, 0.0)

    def __call__(
        self,
        algorithm: PRMAlgorithm[Any],
        before: Sequence[Episode],
        after: Sequence[Episode],
        refit: Callable[[], None],
    ) -> bool:
        """Compare the PRM's opinion with success before and after an improvement, and do what :attr:`answer` says.

        Logs ``prm/score_after``, ``prm/gap_after`` and ``prm/divergence``.

        Args:
            algorithm: whose policy was improved; the adapter ``reference`` holds the policy from before.
            before: episodes of the policy that the PRM was fitted to.
            after: episodes of the improved policy.
            refit: fits the PRM also to what the policy plays now, takes the improvement back, and improves again.

        Returns:
            Whether learning goes on.
        """
        divergence = self._divergence(algorithm, before, after)
        if divergence is None:
            return True
        found = (
            f"iteration {algorithm.iteration + 1}: the PRM's score rose {divergence:.2f} further than true success, more than "
            f"max_divergence={self.max_divergence}: the policy has learnt the PRM's mistakes"
        )
        if self.answer == "warn":
            warnings.warn(found, stacklevel=2)
        elif self.answer == "stop":
            warnings.warn(f"{found}; the improvement is taken back, and learning ends", stacklevel=2)
            algorithm.lm.copy_adapter(REFERENCE, POLICY)
            algorithm.best.withdraw()
        else:
            what = "the PRM is fitted again, also to what the policy plays now, and the policy is improved again"
            warnings.warn(f"{found}; {what}", stacklevel=2)
            refit()
        return self.answer != "stop"

    def _divergence(
        self, algorithm: PRMAlgorithm[Any], before: Sequence[Episode], after: Sequence[Episode]
    ) -> float | None:
        """The divergence where it is above :attr:`max_divergence`, and above what chance explains; else ``None``."""
        if not before or not after:
            return None
        score, success = opinion(algorithm.prm, after, algorithm.micro_batch_size)
        old_score, old_success = opinion(algorithm.prm, before, algorithm.micro_batch_size)
        divergence = (score - success) - (old_score - old_success)
        algorithm.logger.record("prm/score_after", score)
        algorithm.logger.record("prm/gap_after", score - success)
        algorithm.logger.record("prm/divergence", divergence)
        # Shares of few episodes differ by chance: two standard errors of their difference at most.
        chance = math.sqrt(1 / min(len(before), N_COMPARED) + 1 / min(len(after), N_COMPARED))
        return divergence if divergence > max(self.max_divergence, chance) else None
