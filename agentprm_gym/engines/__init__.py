"""Two ways to run a game: ``"native"``, ours and fast, and ``"textworld"``, the stock stack and the judge."""

from __future__ import annotations

from agentprm_gym.engines.base import Engine, Frame

ENGINES = ("native", "textworld")

__all__ = ["ENGINES", "Engine", "Frame", "make_engine"]


def make_engine(name: str) -> Engine:
    """Make an engine by name.

    Raises:
        ValueError: for an unknown name, listing the choices.
        ImportError: if ``"textworld"`` is asked for and not installed.
    """
    if name == "native":
        from agentprm_gym.engines.native import NativeEngine

        return NativeEngine()
    if name == "textworld":
        from agentprm_gym.engines.textworld import TextWorldEngine

        return TextWorldEngine()
    raise ValueError(f"unknown engine {name!r}: expected one of {list(ENGINES)}")
