"""Reinforced advantage feedback (ReAd, Zhang et al., arXiv 2405.14314): refine until the advantage is high enough.

    A(s, a) = Q(s, a) - sum_b pi(b|s) Q(s, b)
    draw a ~ pi; accept where A(s, a) >= epsilon; else say so in the prompt and draw again, at most m times

In the paper several agents act in order and ``A^i`` is the difference that agent i's command makes; with one agent it is the
advantage over the policy. Where none is accepted the best of those drawn is executed. A refused command is not drawn again: a
small model does not heed what stands in its prompt. The paper does not exclude it. The prompt names the last
:data:`MAX_TOLD` of them, so that many draws fit into the model's context.
"""

from __future__ import annotations

import numpy as np

from agentprm_gym.checks import check_float, check_int
from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.situations import Prior, Scorer, Situation, draw
from algorithms.common.acting.requests import Answer, Request, candidate_row

#: How many refused commands stand in a prompt at most.
MAX_TOLD = 8


class RefineActor(PlanningActor):
    """Draws until a command is better than the policy's mean by epsilon."""

    def __init__(self, prior: Prior, scorer: Scorer, *, epsilon: float = 0.0, n: int = 4) -> None:
        """Make an actor.

        Args:
            prior: draws commands.
            scorer: Q of the policy.
            epsilon: the advantage that is enough, any finite number.
            n: draws a turn at most, m, 1 or more.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__(None, prior, scorer)
        self.prior, self.scorer = prior, scorer
        self.epsilon, self.n = check_float("epsilon", epsilon), check_int("n", n, 1)

    def choose(self, request: Request, situation: Situation) -> Answer:
        """See :class:`PlanningActor`; the candidates' scores are their advantages."""
        commands = situation.admissible_commands
        (log_probs,) = self.prior.log_probs([situation])
        plain = log_probs
        (q,) = self.scorer.score([situation], [commands])
        advantages = q - float(np.exp(log_probs) @ q)
        tried: list[int] = []
        while True:
            left = [i for i in range(len(commands)) if i not in tried]
            i = left[draw(log_probs[left], 1, request.rng)[0]]
            tried.append(i)
            if advantages[i] >= self.epsilon or len(tried) == min(self.n, len(commands)):
                break
            refused = (
                f"({commands[k]}: score {advantages[k]:+.2f}, choose another command.)" for k in tried[-MAX_TOLD:]
            )
            (log_probs,) = self.prior.log_probs([situation.told(" ".join(refused))])
        best = tried[-1] if advantages[tried[-1]] >= self.epsilon else max(tried, key=lambda k: advantages[k])
        rows = [candidate_row(commands[k], float(advantages[k]), float(plain[k])) for k in tried]
        return Answer(commands[best], float(plain[best]), rows)
