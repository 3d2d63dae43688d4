"""The stock TextWorld + ALFWorld stack behind our interface: slow, and the judge of the native engine."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentprm_gym.engines.base import Frame
from agentprm_gym.games.game import BadGameError, Game


class TextWorldEngine:
    """Runs one game at a time in TextWorld's PDDL environment, named by ALFWorld's demangler."""

    def __init__(self) -> None:
        """Load the stock stack.

        Raises:
            ImportError: if it is not installed.
        """
        argv = list(sys.argv)
        cache = Path(os.environ.get("ALFWORLD_DATA", tempfile.gettempdir()))
        previous = os.environ.get("ALFWORLD_DATA")
        # ALFWorld makes its cache folder when it is imported; it must not appear in the user's home for that.
        os.environ.setdefault("ALFWORLD_DATA", str(cache))
        try:
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
            from textworld.envs.pddl import PddlEnv
        except ImportError as error:
            raise ImportError(
                f'engine="textworld" needs the stock stack ({error}): pip install "alfworld>=0.4.2", '
                'which needs a C++ compiler and cmake; engine="native" needs neither'
            ) from error
        finally:
            sys.argv[:] = argv  # fast_downward overwrites it
            if previous is None:
                os.environ.pop("ALFWORLD_DATA", None)
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._env: Any = AlfredDemangler(PddlEnv(infos), shuffle=False)
        self._game: Game | None = None
        self._commands: list[str] = []

    def reset(self, game: Game) -> Frame:
        """Start a game.

        Raises:
            BadGameError: with the game's path, if the stock stack cannot load it.
        """
        try:
            if game is not self._game:
                self._load(game)
            state = self._env.reset()
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
            self._game = None
            raise BadGameError(
                f"{game.path or game.game_id}: TextWorld cannot play it ({type(error).__name__}: {error})"
            ) from error
        self._game, self._commands = game, []
        return self._frame(state)

    def _load(self, game: Game) -> None:
        argv = list(sys.argv)
        try:
            self._env.load(game.data())  # a dictionary: given a path, TextWorld leaves the file open
        finally:
            sys.argv[:] = argv

    def step(self, command: str) -> Frame:
        """Execute any string."""
        if self._game is None:
            raise RuntimeError("no game is loaded; call reset(game) first")
        self._commands.append(command)
        state, _, _ = self._env.step(command)
        return self._frame(state)

    def snapshot(self) -> tuple[str, ...]:
        """The commands so far: the stock stack cannot save its state, so restoring plays them again."""
        return tuple(self._commands)

    def restore(self, snapshot: object) -> Frame:
        """Play the snapshot's commands from the start; the feedback is empty."""
        if self._game is None or not isinstance(snapshot, tuple):
            raise ValueError(
                f"expected a snapshot of the loaded game, got {type(snapshot).__name__}; call reset(game) first"
            )
        frame = self.reset(self._game)
        for command in snapshot:
            frame = self.step(str(command))
        return frame._replace(feedback="")

    def close(self) -> None:
        """Release the game."""
        if self._game is not None:
            self._game = None
            self._env.close()

    @staticmethod
    def _frame(state: Any) -> Frame:
        return Frame(str(state["feedback"]), tuple(state["admissible_commands"]), bool(state["won"]))
