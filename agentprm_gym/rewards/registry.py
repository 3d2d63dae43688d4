"""Process rewards by name, so that an environment's kwargs stay JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentprm_gym.rewards.base import ProcessReward
from agentprm_gym.rewards.rules import OutcomeReward, ProgressReward

RewardFactory = Callable[..., ProcessReward]

_PRM_PREFIX = "prm:"
_FACTORIES: dict[str, RewardFactory] = {"outcome": OutcomeReward, "progress": ProgressReward}


def register_reward(name: str, factory: RewardFactory) -> None:
    """Make a process reward available as ``reward=name``.

    With environments in worker processes, register in a module that the workers import too.

    Args:
        name: A new name, without ``:``.
        factory: Called with ``reward_kwargs``; returns a :class:`ProcessReward`.

    Raises:
        ValueError: The name is taken by another factory, or holds a ``:``.
    """
    if not name or ":" in name:
        raise ValueError(f"a reward's name must be non-empty and hold no ':', got {name!r}")
    if _FACTORIES.get(name, factory) is not factory:
        raise ValueError(f"there is a reward {name!r} already; choose another name")
    _FACTORIES[name] = factory


def reward_names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(_FACTORIES))


def make_reward(name: str, **kwargs: Any) -> ProcessReward:
    """Make a process reward.

    Args:
        name: A registered name, or ``"prm:<path>"`` for a process reward model saved there.
        **kwargs: Passed to the factory.

    Returns:
        The process reward.

    Raises:
        ValueError: The name is unknown, or the kwargs do not fit it.
        FileNotFoundError: There is no PRM at the path.
    """
    if name.startswith(_PRM_PREFIX):
        path = name.removeprefix(_PRM_PREFIX)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no saved process reward model at {path!r}: expected the zip that AgentPRM.save(path) wrote"
            )
        # Only here: a PRM is a language model, and loading torch takes seconds.
        from agentprm_gym.rewards.learned import PRMReward

        return PRMReward.load(path, **kwargs)
    if name not in _FACTORIES:
        raise ValueError(f"reward must be one of {', '.join(map(repr, reward_names()))} or 'prm:<path>', got {name!r}")
    try:
        return _FACTORIES[name](**kwargs)
    except TypeError as error:
        raise ValueError(f"reward_kwargs {kwargs!r} do not fit reward {name!r}: {error}") from error
