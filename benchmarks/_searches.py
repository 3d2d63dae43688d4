"""Every search of the toolkit with the largest setting that stays within a number of model calls a turn: rows of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agentprm_gym.rewards.credit import turn_credit
from agentprm_gym.rewards.ranking import EPISODE_SCORES, episode_score

#: Mean number of admissible commands of a turn, rounded; settings are computed with it, and calls are measured.
N_COMMANDS = 32
#: Not a search of the toolkit: whole episodes are compared, by these or by whether any was won.
EPISODES, ANY = "episodes", "any"
#: One number for an episode, of its turns' scores (T,).
EPISODE_VALUES: dict[str, Callable[[Sequence[float]], float]] = {
    **{how: partial(episode_score, how=how) for how in EPISODE_SCORES},
    "clip": lambda scores: float(turn_credit(scores, "clip", kappa=0.5).sum()),
    "min-form": lambda scores: float(turn_credit(scores, "min").sum()),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the study.

    Attributes:
        name: of the row.
        search: the search, as ``load_actor`` takes it.
        n: draws.
        depth: steps ahead.
        options: of the search; ``world="fitted"`` stands for the seed's model of the world, and ``prm="scalar"`` for a process
            reward model with the paper's head in place of the default's log-probabilities.
        privileged: whether the true game is looked at.
    """

    name: str
    search: str
    n: int = 1
    depth: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    privileged: bool = False


def best_episode(by: str, n: int) -> Setting:
    """The row of the best of n whole episodes by one number for each."""
    return Setting(f"best episode, {by}", EPISODES, n, 1, {"by": by}, True)


def settings(budget: int) -> list[Setting]:
    """Every search with the largest setting that is expected to stay within so many model calls a turn.

    Args:
        budget: model calls a turn, ``N_COMMANDS + 1`` or more.

    Raises:
        ValueError: the budget does not suffice to score one turn's commands.
    """
    one = N_COMMANDS + 1  # a distribution, and the scores of all commands
    if budget < one:
        raise ValueError(f"--budget must be {one} or more, the calls of one look at a turn, got {budget}")
    looks = budget // one
    half = max(1, budget // 2)
    scalar = {"prm": "scalar"}
    fitted, imagined = {"world": "fitted"}, max(1, (budget - 1) // (one + 1))
    return [
        Setting("none", "none"),
        Setting("best-of-n", "best-of-n", half),
        Setting("vote", "vote", budget),
        Setting("vote-similar", "vote-similar", min(budget, 32)),  # its own cost grows with the square
        Setting("vote-prm", "vote-prm", half),
        Setting("prm-greedy", "prm-greedy"),
        Setting("refine", "refine", max(1, budget - N_COMMANDS)),
        Setting("predictive, fitted world", "predictive", imagined, 1, fitted),
        Setting("beam, fitted world", "beam", 3, 2, {"beam": max(1, looks - 1), **fitted}),
        Setting("predictive, engine", "predictive", max(1, (budget - 1) // N_COMMANDS), 1, {}, True),
        Setting("beam, engine", "beam", 3, 2, {"beam": max(1, looks - 1)}, True),
        Setting("beam, engine, alpha 0", "beam", 3, 2, {"beam": max(1, looks - 1), "alpha": 0.0}, True),
        Setting("tree, PRM leaves", "tree", 4, 4, {"leaf": "prm", "n_iterations": max(1, looks - 1)}, True),
        Setting("tree, rollout leaves", "tree", 4, 15, {"n_iterations": max(1, budget // 15)}, True),
        Setting(
            "tree, rollouts, max backup", "tree", 4, 15, {"n_iterations": max(1, budget // 15), "backup": "max"}, True
        ),
        # These compare situations, of which the default's log-probabilities know little.
        Setting(
            "predictive, engine, scalar PRM", "predictive", max(1, (budget - 1) // N_COMMANDS), 1, {**scalar}, True
        ),
        Setting("beam, engine, scalar PRM", "beam", 3, 2, {"beam": max(1, looks - 1), **scalar}, True),
        Setting(
            "tree, scalar PRM leaves", "tree", 4, 4, {"leaf": "prm", "n_iterations": max(1, looks - 1), **scalar}, True
        ),
        Setting("prm-greedy, scalar PRM", "prm-greedy", 1, 1, {**scalar}),
        # It scores all commands behind each of all commands, some 1000 calls, and has no smaller setting.
        Setting("look-ahead (beyond the budget)", "look-ahead", 4, 1, {}, True),
        Setting("backtrack", "backtrack", 3, 30, {"max_steps": 100}, True),
        # An episode costs two calls a turn, and the one that is taken is shorter than most.
        *(best_episode(by, max(1, budget // 3)) for by in (*EPISODE_VALUES, ANY)),
    ]
