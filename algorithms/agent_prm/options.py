"""Options of AgentPRM's stages 1 and 2.

Those of stage 3 are in :mod:`algorithms.common.prm.options` and :mod:`algorithms.agent_prm.improve`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from agentprm_gym.checks import check_fields, check_float
from agentprm_gym.prm.model import FORMS
from algorithms.agent_prm.target_entropic import MAX_ETA
from algorithms.agent_prm.targets import DISCOUNTS, REWARD_RANGES
from algorithms.common.prm.options import INITS

#: How much a target counts by the number of its visits.
COUNT_WEIGHTS = ("visits", "sqrt", "equal")

#: Relative losses within a state.
RANK_LOSSES = ("pairs", "list")

#: Targets: the mean return of the visits, one step and a value model, both mixed, or a soft maximum of the returns.
TARGETS = ("monte_carlo", "td", "gae", "entropic")

#: What a target is measured from: nothing, or the commands that were tried in the same state.
CENTRES = ("none", "siblings")

#: How states to branch are drawn.
BRANCH_STATES = ("uniform", "entropy")

#: The paper's recipe, for :meth:`AgentPRM.paper`.
PAPER: dict[str, dict[str, Any]] = {
    "rollout": {
        "n_games": 128,
        "n_repeats": 16,
        "temperature": 0.3,
        "n_trunks": None,
        "n_branch_states": 0,
        "n_branch_candidates": 1,
    },
    "prm": {"form": "scalar", "init": "base", "rank_coef": 0.0},
    "improve": {
        "objective": "online_dpo",
        "n_updates": 400,
        "n_samples": 2,
        "temperature": 0.7,
        "beta": 0.03,
        "margin": 0.0,
        "prior_visits": None,
        "imitation_coef": 0.0,
    },
}


@dataclass(frozen=True)
class RolloutOptions:
    """Options of stage 1, :class:`~algorithms.agent_prm.rollout.RolloutStage`.

    Attributes:
        n_games: train games an iteration, 1 or more.
        n_repeats: episodes of each game, 1 or more.
        temperature: of the policy while it plays, 0 (greedy) or more.
        n_trunks: how many of the episodes the PRM is fitted to and branches start from; ``None`` takes all. The others only
            count as visits.
        n_branch_states: states an iteration at which commands are tried; 0 plays no branches, as in the paper. Environments
            without ``snapshot()`` and the reset option "snapshot" are never branched.
        n_branch_candidates: distinct commands that are weighed at each turn of a trunk, and tried at a branch state.
        n_branch_rollouts: how often each of these is tried, 1 or more; all commands of a state with the same random numbers.
        branch_states: how they are drawn: ``"uniform"``, or in proportion to the policy's ``"entropy"`` there, see
            :mod:`~algorithms.agent_prm.target_siblings`.
        n_peek_states: states at which commands are executed once and not played out, for ``prm.target`` ``"td"`` and ``"gae"``;
            0: none. See :mod:`~algorithms.agent_prm.peeks`.
    """

    n_games: int = 70
    n_repeats: int = 3
    temperature: float = 0.6
    n_trunks: int | None = 100
    n_branch_states: int = 35
    n_branch_candidates: int = 3
    n_branch_rollouts: int = 1
    branch_states: str = "uniform"
    n_peek_states: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"n_games": 1, "n_repeats": 1, "n_trunks": 1, "n_branch_candidates": 1, "n_branch_rollouts": 1}
        least |= {"n_branch_states": 0, "n_peek_states": 0}
        check_fields("rollout", self, ints=least, floats={"temperature": 0.0}, choices={"branch_states": BRANCH_STATES})
        if self.branch_states != "uniform" and not self.n_branch_states:
            raise ValueError('rollout.branch_states="entropy" has no effect with n_branch_states=0: leave it out')


@dataclass(frozen=True)
class FitOptions:
    """Options of stage 2, :class:`~algorithms.agent_prm.fit.FitStage`.

    Attributes:
        form: ``"log_prob"``, or ``"scalar"``, the paper's head; see :mod:`agentprm_gym.prm.model`.
        learning_rate: peak for the PRM's adapter and head, above 0; a short warm-up, then a linear decay to 0.
        n_epochs: passes over the episodes.
        batch_size: episodes an update.
        init: where each iteration's PRM starts: its adapter as the ``"policy"``'s or as the ``"base"`` (fresh, as in the
            paper), with a fresh head; or all of it as the ``"previous"`` iteration left it.
        read_reasons: whether the PRM reads the reasons before commands.
        discount: of the targets, one of :data:`~algorithms.agent_prm.targets.DISCOUNTS`.
        reward_range: of the targets, one of :data:`~algorithms.agent_prm.targets.REWARD_RANGES`.
        rank_coef: weight of the relative loss, 0 or more.
        rank_loss: the relative loss within a state, ``"pairs"`` or ``"list"``, see :mod:`algorithms.agent_prm.relative`.
        rank_scale: with ``"list"``: tau, which gap of values counts, above 0.
        count_weight: what a target counts: its ``"visits"``, their ``"sqrt"``, or ``"equal"``.
        aggregate: fit to the rollouts of all iterations instead of the last one's; Q of past policies is then mixed in.
        target: one of :data:`TARGETS`. ``"td"`` and ``"gae"`` first fit a value model, see
            :mod:`~algorithms.agent_prm.target_td`; for ``"entropic"`` see :mod:`~algorithms.agent_prm.target_entropic`.
        gae_lambda: with ``"gae"``: from 0 (trusts the value model) to 1 (trusts the returns).
        value_epochs: passes over the episodes that fit a value model, 1 or more; its rate and batches are the PRM's.
        progress_coef: with ``"td"`` and ``"gae"``: beta of ``L_Q + beta L_A``, 0 or more.
        eta: with ``"entropic"``: above 0 towards the maximum of the returns, below 0 towards the minimum, 0 the mean.
        centre: ``"siblings"`` measures a target from the other commands tried in its state, see
            :mod:`~algorithms.agent_prm.target_siblings`; ``"none"`` does not.
        shaping_coef: alpha of shaping with a reference policy in the first iteration, in [0, 1]; 0 leaves it out. See
            :mod:`~algorithms.agent_prm.target_reference`.
        shaping_decay: what alpha is multiplied with after each iteration, in [0, 1].
    """

    form: str = "log_prob"
    learning_rate: float = 1e-3
    n_epochs: int = 1
    batch_size: int = 8
    init: str = "policy"
    read_reasons: bool = True
    discount: str = "to_go"
    reward_range: str = "unit"
    rank_coef: float = 1.0
    rank_loss: str = "pairs"
    rank_scale: float = 0.05
    count_weight: str = "visits"
    aggregate: bool = False
    target: str = "monte_carlo"
    gae_lambda: float = 0.95
    value_epochs: int = 1
    progress_coef: float = 0.0
    eta: float = 1.0
    centre: str = "none"
    shaping_coef: float = 0.0
    shaping_decay: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        names = {"form": FORMS, "init": INITS, "count_weight": COUNT_WEIGHTS, "discount": DISCOUNTS}
        check_fields(
            "prm",
            self,
            choices={
                **names,
                "reward_range": REWARD_RANGES,
                "rank_loss": RANK_LOSSES,
                "target": TARGETS,
                "centre": CENTRES,
            },
            ints={"n_epochs": 1, "batch_size": 1, "value_epochs": 1},
            floats={"rank_coef": 0.0, "progress_coef": 0.0},
            positive=("learning_rate", "rank_scale"),
        )
        for name in ("gae_lambda", "shaping_coef", "shaping_decay"):
            check_float(f"prm.{name}", getattr(self, name), 0.0, 1.0)
        check_float("prm.eta", self.eta, -MAX_ETA, MAX_ETA)
        self._check_targets()

    def _check_targets(self) -> None:
        """Refuse options of targets that do not fit together."""
        bootstraps = self.target in ("td", "gae")
        if (bootstraps or self.shaping_coef > 0) and (self.discount, self.reward_range) != ("to_go", "unit"):
            raise ValueError(
                f"prm.discount={self.discount!r} with reward_range={self.reward_range!r} does not fit values of states, which "
                'target="td", target="gae" and shaping_coef need: use discount="to_go" and reward_range="unit"'
            )
        idle = {
            "gae_lambda": self.target != "gae",
            "progress_coef": not bootstraps,
            "value_epochs": not bootstraps and self.shaping_coef == 0,
            "eta": self.target != "entropic",
            "shaping_decay": self.shaping_coef == 0,
        }
        for option in fields(self):
            value = getattr(self, option.name)
            if idle.get(option.name) and value != option.default:
                raise ValueError(
                    f"prm.{option.name}={value!r} has no effect with target={self.target!r} and "
                    f"shaping_coef={self.shaping_coef!r}: leave it out"
                )
