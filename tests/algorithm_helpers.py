"""Small environments, demonstrations and settings that the tests of the algorithms share."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode
from agentprm_gym.games import demonstrations, find_games
from algorithms import SFT, AgentPRM

SMALL_SFT: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "seed": 0}
#: AgentPRM in a second or two; not enough to learn anything.
SMALL_AGENT_PRM: dict[str, Any] = {
    "n_iterations": 1,
    "n_games": 4,
    "n_repeats": 1,
    "n_branch_states": 4,
    "n_branch_candidates": 2,
    "n_updates": 2,
    "batch_size": 4,
    "n_validation_games": 2,
    "prm_n_epochs": 1,
    "seed": 0,
}


def make_toy(n_envs: int = 8, **kwargs: Any) -> VecEnv:
    return make_vec_env("TextIdentity-v0", n_envs=n_envs, seed=0, env_kwargs={"render_mode": None, **kwargs})


def make_alfworld(n_envs: int = 4, **kwargs: Any) -> VecEnv:
    return make_vec_env(
        "ALFWorld-v0", n_envs=n_envs, seed=0, env_kwargs={"render_mode": None, "games": "generated", **kwargs}
    )


def echo_demonstrations(**kwargs: Any) -> list[Episode]:
    """Play the toy as it should be played, once from every word."""
    env: Any = gym.make("TextIdentity-v0", **kwargs).unwrapped
    out = []
    for i in range(env.n_games):
        observation, _ = env.reset(options={"game": i})
        terminated = False
        while not terminated:
            word = observation["feedback"].removeprefix("You see ").removesuffix(".")
            observation, _, terminated, _, _ = env.step(word)
        out.append(env.episode(policy="expert:echo"))
    return out


def household_demonstrations(n: int = 6) -> list[Episode]:
    return demonstrations(find_games("train", "generated"), n)


def make_model(algorithm: type, base: str, env: VecEnv | None, **kwargs: Any) -> Any:
    """An algorithm with settings that take a second or two."""
    if algorithm is SFT:
        return SFT(base, env, **{**SMALL_SFT, "demonstrations": echo_demonstrations(), **kwargs})
    assert algorithm is AgentPRM
    return AgentPRM(base, env, **{**SMALL_AGENT_PRM, **kwargs})
