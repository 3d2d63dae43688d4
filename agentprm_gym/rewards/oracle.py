"""Process rewards that know the shortest plan: how good a turn truly was, to compare what is learnt against.

They read ``ScoredTurn.cost_to_go``, which the planner of a household game computes exactly. The values are those of an
optimal player whose win is worth 1 on the winning turn, discounted by ``gamma`` for each turn before it, as AgentPRM's
Monte-Carlo targets are (paper section 3.1, stage 1: a turn of an episode that is won in ``T`` turns is worth
``gamma ** (T - 1 - t)``). Step limits are not looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.rewards.base import ScoredTurn, check_coef


class OracleReward(ABC):
    """What the oracles share: ``Q*``, ``V*`` and their arguments.

    Args:
        gamma: Discount of the values, in (0, 1].
        coef: Weight.

    Raises:
        ValueError: ``gamma`` is not in (0, 1], or ``coef`` is not finite.
    """

    name: str
    privileged = True
    needs = frozenset({"cost_to_go"})

    def __init__(self, gamma: float = 0.95, coef: float = 1.0) -> None:
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
        check_coef(coef)
        self.gamma = gamma
        self.coef = coef

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Score each turn by what the shortest plans before and after it say.

        Args:
            turns: The batch; every turn needs its ``cost_to_go``.

        Returns:
            Shape ``(len(turns),)``.

        Raises:
            ValueError: A turn comes without ``cost_to_go``.
        """
        return np.array([self.coef * self._value(turn) for turn in turns], dtype=np.float64).reshape(len(turns))

    @abstractmethod
    def _value(self, turn: ScoredTurn) -> float:
        """Say what a turn is worth, before the weight."""

    def _q(self, turn: ScoredTurn) -> float:
        """``Q*(s, a) = gamma ** cost(s')``: 1 for winning now, 0 where it cannot be won any more."""
        return self._discounted(self._costs(turn)[1])

    def _v_before(self, turn: ScoredTurn) -> float:
        """``V*(s) = max_a Q*(s, a) = gamma ** (cost(s) - 1)``: one command of the cost is the turn itself."""
        return self._discounted(self._costs(turn)[0] - 1)

    def _v_after(self, turn: ScoredTurn) -> float:
        """``V*(s')``; nothing comes after the end of a game."""
        return 0.0 if turn.terminated else self._discounted(self._costs(turn)[1] - 1)

    def _discounted(self, cost: float) -> float:
        # Said apart, since 1.0 ** inf is 1.0.
        return 0.0 if cost == inf else float(self.gamma**cost)

    def _costs(self, turn: ScoredTurn) -> tuple[float, float]:
        if turn.cost_to_go is None:
            raise ValueError(
                f"the reward {self.name!r} needs ScoredTurn.cost_to_go, the commands of the shortest plan before and after "
                "the turn; the household environments (ALFWorld-v0) give it with cost_to_go()"
            )
        return turn.cost_to_go


class OracleQReward(OracleReward):
    """``coef * Q*(s, a)``, the discounted win of an optimal player behind the turn, in [0, 1].

    It is paid on every turn and adds up: dawdling pays, and shaping by it changes what is best. It is a target to
    compare a PRM's ``form="value"`` with, rather than something to learn from.
    """

    name = "oracle_q"

    def _value(self, turn: ScoredTurn) -> float:
        return self._q(turn)


class OracleAdvantageReward(OracleReward):
    """``coef * (Q*(s, a) - V*(s))``: 0 for the best commands, negative for all others, never positive."""

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
