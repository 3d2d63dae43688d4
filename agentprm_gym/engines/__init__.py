"""Two ways to run a game: `"native"`, ours and fast, and `"textworld"`, stock and the judge."""

from __future__ import annotations

from agentprm_gym.engines.base import Engine, Frame

ENGINES = ("native", "textworld")

__all__ = ["ENGINES", "Engine", "Frame", "make_engine"]


def make_engine(name: str) -> Engine:
    """Make an engine by name.

    Raises:
        ValueError: Unknown name.
        ImportError: `"textworld"` is asked for and not installed.
    """
    # Imported here: the stock stack takes seconds to load, and few need it.
    if name == "native":
        from agentprm_gym.engines.native import NativeEngine

        return NativeEngine()
    if name == "textworld":
        from agentprm_gym.engines.textworld import TextWorldEngine

        return TextWorldEngine()
    raise ValueError(f"unknown engine {name!r}: choose from {', '.join(ENGINES)}")
