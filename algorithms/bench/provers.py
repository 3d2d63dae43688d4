"""A ranker's values as those of a best-of-K prover: ``prover:K:RANKER``; see :mod:`agentprm_gym.rewards.provers`.

The order within a state stays, since the map is monotone. What changes is the two terms of theorem 3.1 of Setlur et al. (arXiv
2410.08146), which the benchmark reports as ``pav_variance`` and ``pav_alignment``: they say before any training which K is a
prover that can help.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.ranker import Ranker, RankerError, scale_of, score_panel, values_of
from agentprm_gym.bench.states import BenchState
from agentprm_gym.checks import check_int
from agentprm_gym.rewards.provers import best_of_k


class ProverRanker:
    """``1 - (1 - Q)^K`` of another ranker's Q."""

    scale = "probability"

    def __init__(self, ranker: Ranker, k: int) -> None:
        """Make a ranker.

        Args:
            ranker: whose scores are probabilities or logits.
            k: 1 or more.

        Raises:
            ValueError: ``k`` is out of range.
            RankerError: the ranker's scores are an order only.
        """
        self.ranker, self.k = ranker, check_int("K", k, 1)
        if scale_of(ranker) not in ("probability", "logit"):
            raise RankerError(
                f"a prover needs chances of winning, and the scores of {ranker.name!r} are of scale {scale_of(ranker)!r}: "
                'expected "probability" or "logit", for example prm:SAVE of an AgentPRM'
            )
        self.name = f"prover:{k}:{ranker.name}"

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        rows = score_panel(self.ranker, states, batch_size=max(1, len(states)))
        return [best_of_k(row, self.k) for row in values_of(rows, scale_of(self.ranker))]
