"""The environments in frameworks of others, one module each; a module is loaded when its names are first used.

``openenv``: a server (``pip install agentprm-gym[openenv]``). ``trl``: the household games for TRL's ``GRPOTrainer``.
``verl_agent``: verl-agent's ALFWorld environments and manager on this package's engine. ``skyrl``: an environment of SkyRL's
gym. ``minari``: episodes as Farama's offline data sets.
``household`` makes the environment that ``openenv`` and ``trl`` play in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentprm_gym.integrations.minari import episodes_of_minari, save_minari
    from agentprm_gym.integrations.openenv import OpenEnvEnvironment, make_app
    from agentprm_gym.integrations.skyrl import SkyRLHousehold, register_skyrl, skyrl_rows
    from agentprm_gym.integrations.trl import (
        TextGame,
        TextGameRollouts,
        environment_factory,
        game_rows,
        summed_rewards,
    )
    from agentprm_gym.integrations.verl_agent import AlfworldManager, build_alfworld_envs

#: Public names and the modules that hold them.
_HOMES = {
    "AlfworldManager": "verl_agent",
    "OpenEnvEnvironment": "openenv",
    "SkyRLHousehold": "skyrl",
    "TextGame": "trl",
    "TextGameRollouts": "trl",
    "build_alfworld_envs": "verl_agent",
    "environment_factory": "trl",
    "episodes_of_minari": "minari",
    "game_rows": "trl",
    "make_app": "openenv",
    "register_skyrl": "skyrl",
    "save_minari": "minari",
    "skyrl_rows": "skyrl",
    "summed_rewards": "trl",
}

__all__ = [
    "AlfworldManager",
    "OpenEnvEnvironment",
    "SkyRLHousehold",
    "TextGame",
    "TextGameRollouts",
    "build_alfworld_envs",
    "environment_factory",
    "episodes_of_minari",
    "game_rows",
    "make_app",
    "register_skyrl",
    "save_minari",
    "skyrl_rows",
    "summed_rewards",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: each module needs packages of its own.

    Raises:
        AttributeError: this package does not have the name.
        ImportError: the framework is not installed; the message says how to get it.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
