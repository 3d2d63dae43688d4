"""Ways to explore, by the steps they take to a fixed success: ``python -m benchmarks.exploration_study [--quick] [--jobs 2]``.

The bundled model as it is, with no demonstration, learns to play generated train games. Each way of exploring has the same
number of environment steps, all that it plays included, and the same three seeds. Every few hundred episodes the policy, which
then does not explore, plays 100 fixed ``valid_seen`` games, sampled at temperature 1. Two panels:

* RFT with each way to play train episodes: a reset distribution, a strategy in the prompt, hindsight, one deviation
  (:mod:`algorithms.common.acting.exploration`);
* GRPO with each reward for novelty beside the outcome: visit counts on exact states, RND, nearest neighbours, disagreement; and
  visit counts alone for the first quarter of the steps, then the outcome alone (URLB's two phases).

Curves are cut at the number of steps that each run has at least. ``steps_to_level``: the first evaluation with 60 % or more,
in environment steps; ``null`` where there is none. ``height``: mean of the curve. ``final``: at its end. Differences are to the
way without exploration, seed by seed. What was planned by the planner is privileged, and stands in the table as such.

Each run's curve is kept in ``--work``, so an interrupted study goes on; and so are those of the result file, so that
``--seeds 0 1 2`` adds a seed to the two that it has. A plot lies beside the result file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.rewards import make_reward
from agentprm_gym.wrappers.novelty import VisitCounts, VisitRewardWrapper
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import GRPO, RFT, GamesEvalCallback
from benchmarks import _ways
from benchmarks._ways import LEVEL, MAX_STEPS, Budget

#: The novelty of an episode is worth a quarter of a win at most: a policy that only explores stays worse than one that wins.
MAX_BONUS = 0.25
SHARED: dict[str, Any] = {"learning_rate": 1e-3, "verbose": 0, "device": "cpu"}
RFT_SETTINGS: dict[str, Any] = {"n_games": 100, "group_size": 2, "n_per_game": 1, **SHARED}
GRPO_SETTINGS: dict[str, Any] = {"n_games": 24, "group_size": 8, "batch_size": 64, **SHARED}


@dataclass(frozen=True)
class Way(_ways.Way):
    """One way of exploring.

    Attributes:
        explore: options of the policy's collector; RFT's panel.
        reward: reward for novelty: ``"visits"``, ``"two_phases"`` or the name of a class; GRPO's panel.
    """

    explore: dict[str, Any] | None = None
    reward: str | None = None


def rft(name: str, explore: dict[str, Any] | None = None, privileged: bool = False) -> Way:
    """RFT that explores in some way."""
    return Way(name, "rft", "RFT", privileged, explore=explore)


def grpo(name: str, reward: str | None = None, privileged: bool = False) -> Way:
    """GRPO with some reward for novelty."""
    return Way(name, "grpo", "GRPO", privileged, reward=reward)


WAYS = [
    rft("rft"),
    rft("rft_reset_own", {"reset_share": 0.5}),
    rft("rft_reset_won", {"reset_share": 0.5, "reset_own": 0.0, "reset_won": 1.0}),
    rft("rft_reset_expert", {"reset_share": 0.5, "reset_own": 0.0, "reset_expert": 1.0}, privileged=True),
    rft("rft_steer", {"steer_share": 0.5}),
    rft("rft_deviation", {"deviation_share": 0.5}),
    rft("rft_hindsight", {"hindsight_states": 40}),
    rft("rft_hindsight_planner", {"hindsight_states": 40, "hindsight_by": "planner"}, privileged=True),
    grpo("grpo"),
    grpo("grpo_visits", "visits", privileged=True),
    grpo("grpo_two_phases", "two_phases", privileged=True),
    grpo("grpo_rnd", "RNDReward"),
    grpo("grpo_nearest", "NearestReward"),
    grpo("grpo_disagreement", "DisagreementReward"),
]


QUICK = Budget(steps=600, every=200, games=6, settings={"n_games": 4, "group_size": 2})


def train_env(way: Way, *, outcome: bool = True) -> VecEnv:
    """Environments of generated train games, with the way's reward.

    Args:
        way: the way of exploring.
        outcome: whether the outcome is paid; it always is but in the first of two phases.
    """
    kwargs: dict[str, Any] = {"games": "generated", "split": "train", "max_episode_steps": MAX_STEPS}
    counts = VisitCounts()

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make("ALFWorld-v0", **kwargs)
        if way.reward == "visits" or not outcome:
            env = VisitRewardWrapper(env, max_bonus=MAX_BONUS, outcome=outcome, counts=counts)
        return env

    venv = make_vec_env(make, n_envs=64)
    if way.reward in (None, "visits", "two_phases"):
        return venv
    name = f"agentprm_gym.prm.novelty:{way.reward}"
    return VecProcessReward(venv, make_reward(name, max_reward=MAX_BONUS / MAX_STEPS))


def learn(way: Way, seed: int, budget: Budget, callback: GamesEvalCallback) -> int:
    """Let a way learn; nothing is spent before it is measured.

    Args:
        way: the way of exploring.
        seed: of everything.
        budget: how much is played.
        callback: measures it.
    """
    policy_kwargs = {"explore": way.explore} if way.explore else {}
    make, settings = (GRPO, GRPO_SETTINGS) if way.baseline == "grpo" else (RFT, RFT_SETTINGS)
    first = train_env(way, outcome=way.reward != "two_phases")
    model: Any = make("tiny", first, seed=seed, policy_kwargs=policy_kwargs, **{**settings, **budget.settings})
    if way.reward == "two_phases":
        model.learn(budget.steps // 4, callback=callback)
        model.set_env(train_env(way))
        model.learn(budget.steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    else:
        model.learn(budget.steps, callback=callback)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    _ways.study(
        "exploration_study",
        WAYS,
        learn,
        about=__doc__,
        title="Exploration from the base, valid_seen, T = 1",
        settings={"rft": RFT_SETTINGS, "grpo": GRPO_SETTINGS, "max_bonus": MAX_BONUS, "level": LEVEL},
        quick=QUICK,
        argv=argv,
    )


if __name__ == "__main__":
    main()
