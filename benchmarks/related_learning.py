"""Ways to improve a policy, by the steps they take: ``python -m benchmarks.related_learning [--quick] [--jobs 2]``.

The bundled model as it is, with no demonstration, learns to play generated train games. Each way has the same number of
environment steps, all that it plays included, and the same three seeds. Every few thousand steps the policy plays 100 fixed
``valid_seen`` games, sampled at temperature 1. Two panels:

* from finished episodes and a process reward model, each against RFT, which imitates won episodes and has no such model:
  AgentPRM, and AgentPRM without its PRM (imitation alone), without imitation (the PRM alone), with advantage-weighted
  regression, with best-of-4 by the new PRM played and imitated, and with model-predictive search distilled; Online DPO on
  outcomes, and on the pairs of a tree search;
* by policy gradients, each against GRPO: GiGPO, HGPO, iStar with either loss, and GRPO with the rewards of a PAV: a process
  reward model is fitted to the base's own episodes first, whose steps count, and pays the advantage of the best of 4.

Steps of the true game inside a search (``agentprm_distilled``, ``online_dpo_tree``) are not counted, and so these ways stand as
privileged. Curves are cut at the number of steps that each run has at least. ``steps_to_level``: the first evaluation with 60 %
or more, in environment steps; ``null`` where there is none. ``height``: mean of the curve. ``final``: at its end. Differences
are to RFT or GRPO, seed by seed; these two are those of ``exploration_study`` where that has them.

Each run's curve is kept in ``--work``, so an interrupted study goes on; and so are those of the result file, so that
``--seeds 0 1 2`` adds a seed to the two that it has. A plot lies beside the result file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.rewards import make_reward
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import GRPO, RFT, AgentPRM, GamesEvalCallback, GiGPO, OnlineDPO
from algorithms.gigpo import HGPO
from algorithms.grpo import IStar
from benchmarks import _ways
from benchmarks._ways import LEVEL, MAX_STEPS, Budget
from benchmarks.exploration_study import GRPO_SETTINGS, RFT_SETTINGS, SHARED

AGENTPRM_SETTINGS: dict[str, Any] = {"n_validation_games": 0, **SHARED}
BEST_OF = 4
#: A tree plays 16 times to the end of a game, one step at a time, so an iteration can afford few.
TREE: dict[str, Any] = {"n_trees": 8, "n_iterations": 16}


@dataclass(frozen=True)
class Way(_ways.Way):
    """One way to learn.

    Attributes:
        algorithm: its class.
        settings: of the algorithm.
        pav: whether a process reward model pays, which is fitted to the base's own episodes first.
    """

    algorithm: type[Any] = RFT
    settings: Mapping[str, Any] = field(default_factory=dict)
    pav: bool = False


def against_rft(name: str, algorithm: type[Any], settings: Mapping[str, Any], privileged: bool = False) -> Way:
    """A way of the first panel."""
    return Way(name, "rft", "finished episodes", privileged, algorithm, settings)


def against_grpo(name: str, algorithm: type[Any], settings: Mapping[str, Any], pav: bool = False) -> Way:
    """A way of the second panel; its groups are GRPO's."""
    return Way(name, "grpo", "policy gradients", False, algorithm, {**GRPO_SETTINGS, **settings}, pav)


def improving(name: str, privileged: bool = False, **improve: Any) -> Way:
    """AgentPRM with other options of stage 3."""
    return against_rft(name, AgentPRM, {**AGENTPRM_SETTINGS, "improve": improve}, privileged)


WAYS = [
    against_rft("rft", RFT, RFT_SETTINGS),
    improving("agentprm"),
    improving("agentprm_without_prm", objective="imitation"),
    improving("agentprm_without_imitation", imitation_coef=0.0),
    improving("agentprm_awr", objective="awr"),
    improving("agentprm_searched", n_searched=100, search_best_of=BEST_OF),
    improving("agentprm_distilled", True, n_searched=50, searched_by="predictive"),
    against_rft("online_dpo", OnlineDPO, {**GRPO_SETTINGS}),
    against_rft("online_dpo_tree", OnlineDPO, {**GRPO_SETTINGS, "tree": TREE}, privileged=True),
    against_grpo("grpo", GRPO, {}),
    against_grpo("gigpo", GiGPO, {}),
    against_grpo("hgpo", HGPO, {}),
    against_grpo("istar", IStar, {"implicit_loss": "dpo"}),
    against_grpo("istar_bce", IStar, {"implicit_loss": "bce"}),
    against_grpo("grpo_pav", GRPO, {}, pav=True),
]

QUICK = Budget(steps=300, every=100, games=6)
#: What ``--quick`` changes, by the way's algorithm.
QUICK_SETTINGS: dict[type[Any], dict[str, Any]] = {
    AgentPRM: {"rollout": {"n_games": 8, "n_repeats": 1, "n_trunks": None, "n_branch_states": 4}},
    RFT: {"n_games": 4},
}


def train_env() -> VecEnv:
    """Environments of generated train games, which pay the outcome."""
    kwargs: dict[str, Any] = {"games": "generated", "split": "train", "max_episode_steps": MAX_STEPS}
    return make_vec_env(lambda: gym.make("ALFWorld-v0", **kwargs), n_envs=64)


def settings_of(way: Way, budget: Budget) -> dict[str, Any]:
    """Settings of a way's algorithm, smaller ones for a trial."""
    settings = dict(way.settings)
    if budget == QUICK:
        settings |= QUICK_SETTINGS.get(way.algorithm, {"n_games": 2, "group_size": 2})
    if budget == QUICK and "tree" in settings:
        settings["tree"] = {"n_trees": 1, "n_iterations": 2}
    if budget == QUICK and way.algorithm is AgentPRM:
        fewer = {"n_searched": 2} if settings["improve"].get("n_searched") else {}
        settings["improve"] = {**settings["improve"], "n_updates": 2, **fewer}
    return settings


def learn(way: Way, seed: int, budget: Budget, callback: GamesEvalCallback) -> int:
    """Let a way learn; returns the environment steps that were spent before it is measured.

    Args:
        way: the way to learn.
        seed: of everything.
        budget: how much is played.
        callback: measures it.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv, spent = paid_by_pav(seed, budget, Path(folder) / "prm.zip") if way.pav else (train_env(), 0)
        model = way.algorithm("tiny", venv, seed=seed, **settings_of(way, budget))
        model.learn(max(budget.steps - spent, 1), callback=callback)
    return spent


def paid_by_pav(seed: int, budget: Budget, path: Path) -> tuple[VecEnv, int]:
    """Environments that pay by a PRM fitted to the base's own episodes, and the steps that these took."""
    settings = {**settings_of(WAYS[1], budget), "n_iterations": 1, "improve": {"n_updates": 1}}
    fitted = AgentPRM("tiny", train_env(), seed=seed, **settings)
    fitted.learn()
    fitted.save(path)
    reward = make_reward(f"prm:{path}", form="advantage", best_of=BEST_OF)
    return VecProcessReward(train_env(), reward), fitted.num_timesteps


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    _ways.study(
        "related_learning",
        WAYS,
        learn,
        about=__doc__,
        title="Ways to improve the base, valid_seen, T = 1",
        settings={"rft": RFT_SETTINGS, "grpo": GRPO_SETTINGS, "agentprm": AGENTPRM_SETTINGS, "level": LEVEL},
        quick=QUICK,
        others={"exploration_study": ("rft", "grpo")},
        argv=argv,
    )


if __name__ == "__main__":
    main()
