"""Process rewards that know the shortest plan: how good a turn truly was, to compare what is learnt with.

They read ``ScoredTurn.cost_to_go``, which the planner of a household game computes exactly. The values are those of an
optimal player whose win is worth 1 on the winning turn, discounted by ``gamma`` for each turn before it, as AgentPRM's
Monte-Carlo targets are (paper section 2: a turn of an episode that is won in ``T`` turns is worth ``gamma ** (T - 1 - t)``).
Step limits are not looked at.
"""

from __future__ import annotations

from agentprm_gym.experts.planner import discounted
from agentprm_gym.rewards.base import FactReward, ScoredTurn


class OracleReward(FactReward):
    """What the oracles share: ``Q*`` and ``V*``."""

    fact = "cost_to_go"
    told = "the commands of the shortest plan"

    def __init__(self, gamma: float = 0.95, coef: float = 1.0) -> None:
        """Make a reward.

        Args:
            gamma: discount of the values a turn, in (0, 1].
            coef: weight; any finite number.

        Raises:
            ValueError: ``gamma`` is not in (0, 1], or ``coef`` is not finite.
        """
        super().__init__(gamma, coef, zero=False)

    def _q(self, turn: ScoredTurn) -> float:
        """``Q*(s, a) = gamma ** cost(s')``: 1 where the turn wins, 0 where the game cannot be won any more."""
        return self._discounted(self._facts(turn)[1])

    def _v_before(self, turn: ScoredTurn) -> float:
        """``V*(s) = max_a Q*(s, a) = gamma ** (cost(s) - 1)``: one command of the cost is the turn itself."""
        return self._discounted(self._facts(turn)[0] - 1)

    def _v_after(self, turn: ScoredTurn) -> float:
        """``V*(s')``; 0 where the game ended."""
        return 0.0 if turn.terminated else self._discounted(self._facts(turn)[1] - 1)

    def _discounted(self, cost: float) -> float:
        return discounted(cost, self.gamma)


class OracleQReward(OracleReward):
    """``coef * Q*(s, a)``, the discounted win of an optimal player behind the turn, in [0, 1] before the weight.

    It is paid on every turn and adds up, so it pays for delay, and shaping by it changes which policy is best. It is a target
    to compare a PRM's ``form="value"`` with, rather than something to learn from.
    """

    name = "oracle_q"

    def _value(self, turn: ScoredTurn) -> float:
        return self._q(turn)


class OracleAdvantageReward(OracleReward):
    """``coef * (Q*(s, a) - V*(s))``: 0 for the best commands, negative for all others, never positive (``coef`` above 0)."""

    name = "oracle_advantage"

    def _value(self, turn: ScoredTurn) -> float:
        return self._q(turn) - self._v_before(turn)


class OraclePotentialReward(OracleReward):
    """Potential-based shaping with ``phi = V*``: ``coef * (gamma * phi(s') - phi(s))``, ``phi`` 0 where the game ended.

    The discounted sum over an episode that ends is ``-coef * phi(s_0)``, whatever was done. As for ``"progress"``, an
    episode that the step limit cuts off keeps ``gamma ** T * phi(s_T)``.
    """

    name = "oracle_potential"

    def _value(self, turn: ScoredTurn) -> float:
        return self.gamma * self._v_after(turn) - self._v_before(turn)
