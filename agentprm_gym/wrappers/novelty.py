"""Visit counts on exact states of the game as a reward for exploring (RLSP, arXiv 2502.06773; URLB, arXiv 2110.15191).

    r(s_t, a_t) = coef / sqrt(N(s_{t+1}))        N: how often the state was reached, over all episodes that share the counts

The bonus is decoupled from the outcome: lost games are paid, too. The bonuses of an episode add up to ``max_bonus`` at most, so
a policy that only explores cannot beat a win where ``max_bonus`` is below 1. States are those of the engine, exactly, so this
is privileged; it is the optimum that other rewards for novelty come near to (:mod:`agentprm_gym.prm.novelty`).

``outcome=False`` is the first phase of URLB's protocol: the environment's own reward is not paid, and ``info["reward/env"]``
still has it. The second phase is the same policy in the environment without this wrapper.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import gymnasium as gym

from agentprm_gym.checks import check_bool, check_float
from agentprm_gym.envs.base import Observation


def state_digest(state: object) -> bytes:
    """A hash of a game's state, the same for equal states whatever the order of their mappings and sets.

    Args:
        state: what the environment's snapshot holds of the engine.
    """
    return hashlib.sha256(_plain(state).encode()).digest()


def _plain(value: object) -> str:
    """A text that is equal for equal values."""
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_plain(k)}:{_plain(v)}" for k, v in value.items())) + "}"
    if isinstance(value, Set):
        return "<" + ",".join(sorted(map(_plain, value))) + ">"
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(map(_plain, value)) + ")"
    return repr(value)


class VisitCounts:
    """How often each state was reached. Environments of one process may share one."""

    def __init__(self) -> None:
        """Make empty counts."""
        self.counts: Counter[tuple[str, bytes]] = Counter()

    def visit(self, game_id: str, state: object) -> int:
        """Count a visit; returns how many there are now, 1 or more."""
        key = game_id, state_digest(state)
        self.counts[key] += 1
        return self.counts[key]


class VisitRewardWrapper(gym.Wrapper[Observation, str, Observation, str]):
    """Add a bonus for states that were seldom reached, or pay nothing else.

    Each step leaves the parts in ``info``: ``"reward/env"`` and ``"reward/exploration"``.

    Example:
        >>> env = VisitRewardWrapper(gym.make("ALFWorld-v0", games="generated"), coef=0.1)
        >>> _ = env.reset(seed=0)
        >>> env.step("look")[1], env.step("look")[1]  # the state is that of the start both times
        (0.07071067811865475, 0.05773502691896258)
    """

    def __init__(
        self,
        env: gym.Env[Observation, str],
        *,
        coef: float = 0.05,
        max_bonus: float = 0.5,
        outcome: bool = True,
        counts: VisitCounts | None = None,
    ) -> None:
        """Wrap an environment.

        Args:
            env: an environment with ``snapshot()``, as those of this package.
            coef: bonus of a state at its first visit, 0 or more.
            max_bonus: what the bonuses of an episode add up to at most, 0 or more.
            outcome: whether the environment's own reward is paid, too.
            counts: shared with other environments; ``None``: of its own.

        Raises:
            TypeError: the environment has no snapshots.
            ValueError: a value is out of range; ``max_bonus`` would be worth a win where the outcome is paid.
        """
        if not env.has_wrapper_attr("snapshot"):
            raise TypeError(
                f"{env.unwrapped} has no snapshot(), by which states are counted: use ALFWorld-v0, or a learned reward"
            )
        super().__init__(env)
        self.coef, self.max_bonus = check_float("coef", coef, 0.0), check_float("max_bonus", max_bonus, 0.0)
        self.outcome = check_bool("outcome", outcome)
        if self.outcome and self.max_bonus >= 1.0:
            raise ValueError(
                f"max_bonus must be below 1 where the outcome is paid, or exploring is worth as much as a win, got {max_bonus}"
            )
        self.visits = counts if counts is not None else VisitCounts()
        self._left = self.max_bonus

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; its first state is counted and pays nothing.

        Args:
            seed: the environment's seed.
            options: the environment's options.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._left = self.max_bonus
        self._visit()
        return observation, info

    def _visit(self) -> int:
        state = self.env.get_wrapper_attr("snapshot")()
        return self.visits.visit(state.game_id, state.engine)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step, and pay for the state that is reached.

        Args:
            action: a command or a whole response.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        bonus = min(self._left, float(self.coef / self._visit() ** 0.5))
        self._left -= bonus
        # Another wrapper below may have told the environment's own already.
        info = {"reward/env": float(reward), **info, "reward/exploration": bonus}
        return observation, bonus + (float(reward) if self.outcome else 0.0), terminated, truncated, info
