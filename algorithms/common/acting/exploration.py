"""Exploration while rolling out (AgentPRM, arXiv 2502.10325, section 4.1), as options of a policy's collector.

They are options of the policy, ``policy_kwargs={"explore": {...}}``, so every algorithm that rolls out takes them. They act
while training episodes are played, and at no other time: validation, evaluation and ``predict`` never explore.

| paper | options | what is played |
|---|---|---|
| 4.1 (1) reset distribution | ``reset_*``, ``expert`` | episodes that begin in states of ``rho = sum_k w_k rho_k`` |
| 4.1 (2) steered exploration | ``steer_share``, ``strategies`` | a strategy stands in the prompt that is sampled from |
| 4.1 (3) post-hoc rationalisation | ``hindsight_*`` | alternatives that hindsight proposes, kept by measured outcome |
| released code, ``SwitchAgent`` | ``deviation_share`` | one command of another policy, the policy's own before and after |

:mod:`algorithms.common.acting.explorer` plays them. Share 0 and 0 states, the defaults, change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from agentprm_gym.checks import check_choice, check_float, check_int

#: What the two examples of the released prompt say, and the opposite of the first.
STRATEGIES = (
    "Follow a strategy: search drawers and cabinets in order.",
    "Follow a strategy: look at open surfaces such as countertops, tables and shelves first.",
    "Follow a strategy: go where nobody would look first.",
)
#: Who proposes alternatives in hindsight.
PROPOSERS = ("policy", "planner")
#: Names of experts; any other string is a file of demonstrations.
EXPERTS = ("search", "planner")
#: Options that mean nothing while the option on the left is 0.
_NEEDS = {
    "reset_share": ("reset_expert", "reset_won", "reset_own"),
    "reset_expert": ("expert",),
    "steer_share": ("strategies",),
    "hindsight_states": ("hindsight_draws", "hindsight_rollouts", "hindsight_by"),
}


@dataclass(frozen=True)
class Exploration:
    """Options of exploration.

    Attributes:
        reset_share: share of the groups of episodes (of the games, where each is played once) that begin in a state of
            the reset distribution in place of the start, in [0, 1).
        reset_expert: weight of the expert's states in that distribution, 0 or more.
        reset_won: weight of the states of own episodes that were won, 0 or more.
        reset_own: weight of the states of all own episodes, 0 or more.
        expert: ``"search"``, ``"planner"`` (privileged), or a file of demonstrations, which are replayed.
        steer_share: chance that an episode is sampled with a strategy in its prompt; the paper's code has 0.5. Losses always
            read the plain prompt.
        strategies: the texts that are drawn from; each stands behind the task.
        deviation_share: share of the groups that begin with one command of a uniform policy in a state of the policy's own,
            the state's turn ``tau`` uniform, in [0, 1).
        hindsight_states: how many states an iteration hindsight looks at, 0 or more.
        hindsight_draws: alternatives that are drawn at each, 1 or more; those equal to what was played are dropped.
        hindsight_rollouts: how often each alternative is played, 1 or more.
        hindsight_by: ``"policy"``, which is told what the episode showed later, or ``"planner"`` (privileged).
        horizon: states are drawn from the first so many turns of an episode, 1 or more.
    """

    reset_share: float = 0.0
    reset_expert: float = 0.0
    reset_won: float = 0.0
    reset_own: float = 1.0
    expert: str = "search"
    steer_share: float = 0.0
    strategies: tuple[str, ...] = STRATEGIES
    deviation_share: float = 0.0
    hindsight_states: int = 0
    hindsight_draws: int = 2
    hindsight_rollouts: int = 2
    hindsight_by: str = "policy"
    horizon: int = 12

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range, or has no effect with the others.
        """
        object.__setattr__(self, "strategies", tuple(self.strategies))
        for name in ("reset_share", "steer_share", "deviation_share"):
            check_float(f"explore.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("reset_expert", "reset_won", "reset_own"):
            check_float(f"explore.{name}", getattr(self, name), 0.0)
        for name, least in (("hindsight_states", 0), ("hindsight_draws", 1), ("hindsight_rollouts", 1), ("horizon", 1)):
            check_int(f"explore.{name}", getattr(self, name), least)
        check_choice("explore.hindsight_by", self.hindsight_by, PROPOSERS)
        if not all(isinstance(text, str) and text.strip() for text in (*self.strategies, self.expert)):
            raise ValueError("explore.strategies and explore.expert must be texts that are not empty")
        if self.steer_share and not self.strategies:
            raise ValueError("explore.steer_share needs explore.strategies: one text or more")
        if self.reset_share + self.deviation_share >= 1.0:
            raise ValueError(
                "explore.reset_share and explore.deviation_share must add up to less than 1, since some episodes have to "
                f"begin at the start, got {self.reset_share} and {self.deviation_share}"
            )
        if self.reset_share and self.reset_expert + self.reset_won + self.reset_own == 0:
            raise ValueError(
                "explore.reset_share needs a weight above 0 among explore.reset_expert, reset_won and reset_own"
            )
        idle = [name for left, names in _NEEDS.items() if not getattr(self, left) for name in names if self._set(name)]
        if idle:
            raise ValueError(
                f"explore.{idle[0]} has no effect while explore.{next(k for k, v in _NEEDS.items() if idle[0] in v)} is 0"
            )

    def _set(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        (default,) = (f.default for f in fields(self) if f.name == name)
        return default is not MISSING and getattr(self, name) != default

    @property
    def uses_states(self) -> bool:
        """Whether episodes begin in the middle, which needs an environment with snapshots."""
        return bool(self.reset_share or self.deviation_share or self.hindsight_states)

    @classmethod
    def of(cls, options: Exploration | Mapping[str, Any] | None) -> Exploration | None:
        """Make options of what a user gives.

        Args:
            options: an instance, a mapping of its fields, or ``None``.

        Raises:
            ValueError: an option is unknown or does not fit.
        """
        if options is None or isinstance(options, cls):
            return options
        if not isinstance(options, Mapping):
            raise ValueError(f"explore must be a mapping of options, got {type(options).__name__}")
        for name in options:
            check_choice("an option of explore", name, [f.name for f in fields(cls)])
        return cls(**options)


def check_prompts_only(explore: Exploration | None, algorithm: str) -> None:
    """Refuse options that an algorithm cannot use, which learns from whole episodes of the policy itself.

    Args:
        explore: the options.
        algorithm: its name.

    Raises:
        ValueError: episodes would begin in the middle.
    """
    if explore is not None and explore.uses_states:
        raise ValueError(
            f"{algorithm} needs whole episodes of the policy itself: of explore it takes steer_share and strategies, got "
            f"reset_share={explore.reset_share}, deviation_share={explore.deviation_share} and "
            f"hindsight_states={explore.hindsight_states}"
        )
