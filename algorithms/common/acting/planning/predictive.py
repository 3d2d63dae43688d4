"""Model-predictive reasoning (AgentPRM, arXiv 2502.10325, section 4.3): imagine futures, execute the first command of the best.

At each turn, for each of n candidate commands ``a`` that the policy draws:

    s_0 = s, a_0 = a;  s_{i+1} ~ M(s_i, a_i),  a_{i+1} ~ pi(s_{i+1})          a future of at most h steps, m of them
    value(a) = mean over futures of [ gamma^(k-1) r_k            where the game ends in step k <= h
                                    | gamma^h max_b Q(s_h, b)    else, by the process reward model ]

The first command of the best is executed, and the next turn plans anew. ``M`` is a model of the world: the base with another
adapter, fitted on transitions (:mod:`~algorithms.common.acting.planning.world_model`), or the engine, which is perfect and
privileged. The paper's body gives no formula; this is its text in the form of model-predictive control.
"""

from __future__ import annotations

import numpy as np

from agentprm_gym.checks import check_float, check_int
from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.situations import Outcome, Prior, Scorer, Situation, World, best_values, draw
from algorithms.common.acting.requests import Answer, Request, candidate_row


class PredictiveActor(PlanningActor):
    """Executes the first command of the best imagined future."""

    def __init__(
        self,
        prior: Prior,
        scorer: Scorer,
        world: World,
        *,
        n: int = 4,
        depth: int = 2,
        n_futures: int = 1,
        gamma: float = 0.95,
        temperature: float = 1.0,
    ) -> None:
        """Make an actor.

        Args:
            prior: draws candidates, and goes on in imagination.
            scorer: scores where a future ends.
            world: says what follows.
            n: candidates a turn, 1 or more, distinct.
            depth: steps of a future, h, 1 or more.
            n_futures: futures of each candidate, m, 1 or more; with one command to go on by and a world without dice they are
                equal.
            gamma: discount a step, in (0, 1].
            temperature: of the policy in imagination, 0 (greedy) or more. Candidates are always drawn at 1.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__(world, prior, scorer)
        self.prior, self.scorer, self.tried = prior, scorer, world
        self.n, self.depth = check_int("n", n, 1), check_int("depth", depth, 1)
        self.n_futures = check_int("n_futures", n_futures, 1)
        self.gamma = check_float("gamma", gamma, most=1.0, above=0.0)
        self.temperature = check_float("temperature", temperature, 0.0)

    def choose(self, request: Request, situation: Situation) -> Answer:
        """See :class:`PlanningActor`."""
        (log_probs,) = self.prior.log_probs([situation])
        options = draw(log_probs, self.n, request.rng)
        commands = [situation.admissible_commands[i] for i in options]
        values = self.values(request, situation, commands)
        best = int(np.argmax(values))
        rows = [candidate_row(c, v, float(log_probs[i])) for c, v, i in zip(commands, values, options, strict=True)]
        return Answer(commands[best], float(log_probs[options[best]]), rows)

    def values(self, request: Request, situation: Situation, commands: list[str]) -> list[float]:
        """The value of each command, by the formula of this module."""
        futures = [(k, situation, command) for k, command in enumerate(commands) for _ in range(self.n_futures)]
        totals = np.zeros(len(commands))
        for step in range(self.depth):
            outcomes = self.tried.step(request, [(s, c) for _, s, c in futures])
            reached = [s.after(c, o) for (_, s, c), o in zip(futures, outcomes, strict=True)]
            last = step + 1 == self.depth
            ends = [last or o.done or not o.admissible_commands for o in outcomes]
            ended = [i for i, end in enumerate(ends) if end]
            self._add(totals, futures, ended, reached, outcomes, step)
            going = [i for i in range(len(futures)) if not ends[i]]
            if not going:
                break
            following = self.prior.log_probs([reached[i] for i in going])
            futures = [
                (
                    futures[i][0],
                    reached[i],
                    reached[i].admissible_commands[draw(row, 1, request.rng, self.temperature)[0]],
                )
                for i, row in zip(going, following, strict=True)
            ]
        return (totals / self.n_futures).tolist()

    def _add(
        self,
        totals: np.ndarray,
        futures: list[tuple[int, Situation, str]],
        ended: list[int],
        reached: list[Situation],
        outcomes: list[Outcome],
        step: int,
    ) -> None:
        """Add what futures that end here are worth."""
        found = best_values(self.scorer, [reached[i] for i in ended], [outcomes[i] for i in ended])
        for i, value in zip(ended, found, strict=True):
            # A reward comes with the step, a value stands for what comes behind it.
            power = step if outcomes[i].done else step + 1
            totals[futures[i][0]] += self.gamma**power * value
