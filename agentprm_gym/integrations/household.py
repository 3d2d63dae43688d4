"""The environment that all integrations play in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import agentprm_gym  # noqa: F401  # registers the environments

#: Its process reward where nobody asks for one: none, so 1.0 for the win.
REWARD = "outcome"


def make_env(**env_kwargs: Any) -> gym.Env[Any, Any]:
    """Make ``ALFWorldPRM-v0``, by default without a process reward.

    Args:
        **env_kwargs: its arguments: ``split``, ``games``, ``reward``, ``max_episode_steps``, ...

    Raises:
        ValueError: the environment refuses its arguments.
        FileNotFoundError: games or a reward's file were not found.
    """
    return gym.make("ALFWorldPRM-v0", disable_env_checker=True, **{"reward": REWARD, **env_kwargs})
