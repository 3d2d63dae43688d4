"""Two ways to run a game: ``"native"`` is ours and fast, ``"textworld"`` is the stock stack and the reference."""

from __future__ import annotations

from agentprm_gym.engines.base import Engine, Frame

ENGINES = ("native", "textworld")

__all__ = ["ENGINES", "Engine", "Frame", "make_engine"]


def make_engine(name: str, *, trust_games: bool = False) -> Engine:
    """Make an engine by name.

    Args:
        name: ``"native"`` or ``"textworld"``.
        trust_games: Whether ``"textworld"`` plays games whose grammar holds Python code, which then runs. The native engine
            runs no code of games.

    Raises:
        ValueError: The name is not known.
        ImportError: ``"textworld"`` is asked for and not installed.
    """
    # Imported here: the stock stack takes seconds to load, and few users need it.
    if name == "native":
        from agentprm_gym.engines.native import NativeEngine

        return NativeEngine()
    if name == "textworld":
        from agentprm_gym.engines.textworld import TextWorldEngine

        return TextWorldEngine(trust_games=trust_games)
    raise ValueError(f"unknown engine {name!r}: choose from {', '.join(ENGINES)}")
