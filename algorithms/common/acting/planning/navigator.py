"""Step-level reward as a navigator (HGS-PRM, Ma et al., arXiv 2310.10080): accept, resample, or go back.

Depth first. At a node a command is drawn and judged as one of three classes:

    positive   A(s, a) = Q(s, a) - sum_b pi(b|s) Q(s, b) >= 0      accepted: the search goes on behind it
    negative   Q(s, a) < delta                                     refused: another one is drawn
    neutral    else                                                kept: taken where no positive one is found

Where all of a node's commands are negative, the search goes back to the parent, and there draws again. The paper's model has
three classes of its own; the thresholds are this package's form of them, and so are the caps, which the paper does not give.

Going back needs snapshots of the true game: this is **planning with a simulator**, and is to be reported apart from players
that act once. ``calls["steps"]`` counts the commands that were tried there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agentprm_gym.checks import check_float, check_int
from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.situations import Prior, Scorer, Situation, World, draw
from algorithms.common.acting.requests import Answer, Request, candidate_row


@dataclass(slots=True)
class _Node:
    """A situation of the search, and the commands that may be tried in it, those to try next last."""

    situation: Situation
    options: list[tuple[str, float]] = field(default_factory=list)


class NavigatorActor(PlanningActor):
    """Searches depth first with accept, resample and backtrack, and plays the plan that it finds.

    Attributes:
        n_backtracks: how often a search has gone back.
    """

    def __init__(
        self,
        prior: Prior,
        scorer: Scorer,
        world: World,
        *,
        n: int = 3,
        delta: float = 0.05,
        depth: int = 30,
        max_steps: int = 100,
    ) -> None:
        """Make an actor.

        Args:
            prior: draws commands.
            scorer: Q of the policy.
            world: the true game.
            n: commands that are drawn at a node, 1 or more, distinct.
            delta: commands with a lower Q are negative, 0 or more.
            depth: the plan is not longer than this, 1 or more.
            max_steps: commands that a search tries, 1 or more.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__(world, prior, scorer)
        self.prior, self.scorer, self.tried = prior, scorer, world
        self.n, self.depth = check_int("n", n, 1), check_int("depth", depth, 1)
        self.max_steps, self.delta = check_int("max_steps", max_steps, 1), check_float("delta", delta, 0.0)
        self.n_backtracks = 0
        self._plans: dict[int, list[tuple[str, float]]] = {}

    def start(self, row: int, task: str, history: object) -> None:
        """See :class:`Actor`."""
        super().start(row, task, history)  # type: ignore[arg-type]
        self._plans.pop(row, None)

    def choose(self, request: Request, situation: Situation) -> Answer:
        """See :class:`PlanningActor`."""
        plan = self._plans.get(request.row)
        if not plan:
            plan = self._plans[request.row] = self.plan(request, situation)
        command, q = plan.pop(0)
        if command not in situation.admissible_commands:  # the world that was searched is not this one
            self._plans[request.row] = []
            return self.choose(request, situation)
        return Answer(command, float("nan"), [candidate_row(command, q, None)])

    def plan(self, request: Request, situation: Situation) -> list[tuple[str, float]]:
        """The plan that a search finds: to a win, else the deepest one; each command with its Q."""
        path: list[tuple[_Node, str, float]] = []
        node = self._node(request, situation, force=True)
        best: list[tuple[str, float]] = []
        for _ in range(self.max_steps):
            while not node.options and path:  # nothing is left here but negative ones: back to the parent
                node, _, _ = path.pop()
                self.n_backtracks += 1
            if not node.options:
                break
            command, q = node.options.pop()
            (outcome,) = self.tried.step(request, [(node.situation, command)])
            taken = [*((c, score) for _, c, score in path), (command, q)]
            if outcome.done and outcome.reward > 0:
                return taken
            best = taken if len(taken) > len(best) else best
            if outcome.done or not outcome.admissible_commands:
                continue
            if len(taken) == self.depth:
                break
            path.append((node, command, q))
            node = self._node(request, node.situation.after(command, outcome))
        return best

    def _node(self, request: Request, situation: Situation, force: bool = False) -> _Node:
        """A node with its commands that are not negative, positive ones in the order drawn and then neutral ones.

        Args:
            request: brings the random stream.
            situation: where.
            force: keep the best command where all are negative; at the root something has to be done.
        """
        (log_probs,) = self.prior.log_probs([situation])
        (q,) = self.scorer.score([situation], [situation.admissible_commands])
        value = float(np.exp(log_probs) @ q)
        drawn = draw(log_probs, self.n, request.rng)
        negative = [i for i in drawn if q[i] < self.delta]
        positive = [i for i in drawn if i not in negative and q[i] >= value]
        neutral = [i for i in drawn if i not in negative and i not in positive]
        order = [*positive, *neutral] or ([max(drawn, key=lambda i: q[i])] if force else [])
        return _Node(situation, [(situation.admissible_commands[i], float(q[i])) for i in reversed(order)])
