"""Beam search by the effective reward of PAV (Setlur et al., arXiv 2410.08146, section 4 and equation 5).

A beam of N partial plans; each draws B next commands from the policy, and the N best by

    Q^pi(s, a) + alpha A^mu(s, a)

are kept, h steps deep. The final pick is by ``Q^pi`` alone, as an outcome model would, and its first command is executed. The
prover is best-of-K of the policy, ``Q^mu(s, a) = 1 - (1 - Q^pi(s, a))^K`` (section 3.3), so only ``Q^pi`` is learnt; and

    A^mu(s, a) = Q^mu(s, a) - sum_b pi(b|s) Q^mu(s, b)          over the admissible commands

which is centred. The paper's ``(1 - V)^K - (1 - Q)^K`` has a mean of 0 or less (Jensen). The paper has alpha = 0.5, K = 4 and
B = 3. Plans are followed in a world; the engine is privileged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentprm_gym.checks import check_float, check_int
from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.situations import Floats, Prior, Scorer, Situation, World, draw
from algorithms.common.acting.requests import Answer, Request, candidate_row


def prover_advantages(q: Floats, log_probs: Floats, k: int) -> Floats:
    """``A^mu`` of every admissible command for the prover best-of-K; (n_commands,), with a mean of 0 under the policy.

    Args:
        q: (n_commands,) Q of the policy, in [0, 1].
        log_probs: (n_commands,) the policy's, in nats.
        k: K, 1 or more; with 1 the prover is the policy.
    """
    of_prover = 1.0 - (1.0 - q) ** k
    probs = np.exp(log_probs)
    return np.asarray(of_prover - (probs @ of_prover) / probs.sum())


@dataclass(slots=True)
class _Plan:
    """A partial plan.

    Attributes:
        situation: where its last command is chosen.
        command: that command.
        q: its Q, or the return of a game that it ended.
        worth: the effective reward.
        done: whether it has ended the game.
    """

    situation: Situation
    command: str
    q: float
    worth: float
    done: bool = False

    @property
    def first(self) -> str:
        """The plan's first command."""
        return (*self.situation.path, self.command)[0]


class BeamActor(PlanningActor):
    """Executes the first command of the best plan of a beam."""

    def __init__(
        self,
        prior: Prior,
        scorer: Scorer,
        world: World,
        *,
        beam: int = 4,
        n: int = 3,
        depth: int = 2,
        alpha: float = 0.5,
        prover_k: int = 4,
        gamma: float = 0.95,
    ) -> None:
        """Make an actor.

        Args:
            prior: draws next commands.
            scorer: Q of the policy.
            world: says what follows.
            beam: plans that are kept, N, 1 or more.
            n: next commands a plan, B, 1 or more, distinct.
            depth: steps, h, 1 or more; with 1 nothing is tried in the world.
            alpha: weight of the prover's advantage, 0 or more.
            prover_k: K of the prover, 1 or more.
            gamma: discount a step, in (0, 1]: Q of a later command is worth less.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__(world, prior, scorer)
        self.prior, self.scorer, self.tried = prior, scorer, world
        self.beam, self.n, self.depth = check_int("beam", beam, 1), check_int("n", n, 1), check_int("depth", depth, 1)
        self.alpha, self.prover_k = check_float("alpha", alpha, 0.0), check_int("prover_k", prover_k, 1)
        self.gamma = check_float("gamma", gamma, most=1.0, above=0.0)

    def choose(self, request: Request, situation: Situation) -> Answer:
        """See :class:`PlanningActor`."""
        plans = self._grown([situation], request)[: self.beam]
        seen = {plan.first: plan.q for plan in reversed(plans)}
        for _ in range(1, self.depth):
            going = [p for p in plans if not p.done]
            if not going:
                break
            outcomes = self.tried.step(request, [(p.situation, p.command) for p in going])
            ended = [p for p in plans if p.done]
            reached = []
            for plan, outcome in zip(going, outcomes, strict=True):
                if outcome.done or not outcome.admissible_commands:
                    plan.q = plan.worth = self.gamma ** len(plan.situation.path) * outcome.reward
                    plan.done = True
                    ended.append(plan)
                else:
                    reached.append(plan.situation.after(plan.command, outcome))
            plans = sorted([*ended, *self._grown(reached, request)], key=lambda p: -p.worth)[: self.beam]
            seen |= {plan.first: plan.q for plan in reversed(plans)}
        best = max(plans, key=lambda p: p.q)
        return Answer(best.first, float("nan"), [candidate_row(c, q, None) for c, q in seen.items()])

    def _grown(self, situations: list[Situation], request: Request) -> list[_Plan]:
        """Next commands of plans, the best by effective reward first."""
        if not situations:
            return []
        priors = self.prior.log_probs(situations)
        scores = self.scorer.score(situations, [s.admissible_commands for s in situations])
        plans = []
        for s, log_probs, q in zip(situations, priors, scores, strict=True):
            discount = self.gamma ** len(s.path)
            worth = discount * (q + self.alpha * prover_advantages(q, log_probs, self.prover_k))
            for i in draw(log_probs, self.n, request.rng):
                plans.append(_Plan(s, s.admissible_commands[i], discount * float(q[i]), float(worth[i])))
        return sorted(plans, key=lambda p: -p.worth)
