"""The stock TextWorld + ALFWorld stack behind our interface: slow, and the reference for the native engine."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from agentprm_gym.engines.base import Frame, whole_frame
from agentprm_gym.games.game import Game
from agentprm_gym.games.names import BadGameError

#: Environments of closed engines, without and with caches. Each has its own planner library, which must not be unloaded:
#: that crashes the interpreter when it ends. Environments are used again, so they do not leak either.
_IDLE: dict[bool, list[Any]] = {False: [], True: []}


class CommandSnapshot(NamedTuple):
    """The commands so far. The stock stack cannot save its state, so they are played again.

    Attributes:
        game_id: The game.
        commands: The commands since the reset.
    """

    game_id: str
    commands: tuple[str, ...]


@contextmanager
def _own_arguments() -> Iterator[None]:
    """Restore ``sys.argv``, which fast_downward replaces whenever it translates a problem."""
    arguments = sys.argv
    try:
        yield
    finally:
        sys.argv = arguments


class TextWorldEngine:
    """Runs one game at a time in TextWorld's PDDL environment, with ALFWorld's names.

    With the caches of :mod:`agentprm_gym.engines.textworld_cache` the first reset of a game takes some tenths of a second,
    and a step about a millisecond. Without them a reset takes seconds, and a step 0.1 to 0.3 seconds. The texts are the
    same.
    """

    def __init__(self, cached: bool = True, trust_games: bool = False) -> None:
        """Make an engine.

        Args:
            cached: Whether to keep what was parsed, translated and derived.
            trust_games: Whether to play grammars that hold Python code, which then runs; see
                :mod:`agentprm_gym.engines.textworld_safety`.

        Raises:
            ImportError: The stock stack is not installed.
        """
        try:
            with _own_arguments():
                import textworld
                from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
                from textworld.envs.pddl import PddlEnv

                from agentprm_gym.engines.textworld_safety import check_data

                if cached:
                    from agentprm_gym.engines.textworld_cache import CachedPddlEnv as PddlEnv
        except ImportError as error:
            raise ImportError(
                f'engine="textworld" needs the stock stack ({error}); install it with\n'
                '    pip install "alfworld>=0.4.2" "textworld>=1.7"\n'
                'which needs a C++ compiler and cmake; engine="native" needs neither'
            ) from error
        self._make: Callable[[], Any] = lambda: AlfredDemangler(
            PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False
        )
        self._check = None if trust_games else partial(check_data, cached=cached)
        self._idle = _IDLE[cached]
        self._env: Any = None
        self._game: Game | None = None
        self._commands: list[str] = []

    def reset(self, game: Game) -> Frame:
        """Start a game.

        Raises:
            BadGameError: The stock stack cannot play it; the message names its path.
        """
        if self._env is None:
            self._env = self._idle.pop() if self._idle else self._make()
            # It is handed back even if the engine is never closed.
            self._hand_back = weakref.finalize(self, self._idle.append, self._env)
        # An error or an interruption below leaves no game loaded.
        loaded, self._game = self._game, None
        try:
            with _own_arguments():
                if game is not loaded:
                    # A dictionary and not a path: TextWorld would leave the file open. And what was checked is what is
                    # loaded, even if the file is another one by now.
                    data = game.data()
                    if self._check is not None:
                        self._check(data, game.path or game.game_id)
                    self._env.load(data)
                frame = _frame(self._env.reset(), game)
        except BadGameError:
            raise
        # The translator exits the process, or asserts, where it does not understand a problem.
        except (Exception, SystemExit) as error:
            raise BadGameError(
                f"{game.path or game.game_id}: the stock engine cannot play it ({type(error).__name__}: {error})"
            ) from error
        self._game, self._commands = game, []
        return frame

    def step(self, command: str) -> Frame:
        """Execute any string; a string that is not an admissible command changes nothing, and the feedback says so.

        Raises:
            BadGameError: The stock stack fails; the message names the game's path. The game has to be reset then.
        """
        game, self._game = self._loaded(), None
        try:
            state, _, _ = self._env.step(command)
            frame = _frame(state, game)
        except BadGameError:
            raise
        except Exception as error:
            raise BadGameError(
                f"{game.path or game.game_id}: the stock engine failed at step {len(self._commands) + 1}, "
                f"{command!r} ({type(error).__name__}: {error}); reset it to play on"
            ) from error
        self._game = game
        self._commands.append(command)
        return frame

    def snapshot(self) -> CommandSnapshot:
        """Return the commands so far."""
        return CommandSnapshot(self._loaded().game_id, tuple(self._commands))

    def restore(self, snapshot: object) -> Frame:
        """Play a snapshot's commands from the start; the feedback of the frame is empty.

        Raises:
            ValueError: It is not a snapshot of the loaded game.
        """
        game = self._loaded()
        if not isinstance(snapshot, CommandSnapshot) or snapshot.game_id != game.game_id:
            got = getattr(snapshot, "game_id", type(snapshot).__name__)
            raise ValueError(
                f"expected a snapshot of the loaded game {game.game_id!r}, got {got!r}; call reset with its game first"
            )
        frame = self.reset(game)
        for command in snapshot.commands:
            frame = self.step(command)
        return frame._replace(feedback="")

    def close(self) -> None:
        """Hand the stock environment to the next engine. A second call does nothing, and ``reset`` takes one again."""
        if self._env is not None:
            self._env.close()
            self._hand_back()
            self._env = self._game = None

    def _loaded(self) -> Game:
        if self._game is None:
            raise RuntimeError("no game is loaded: call reset(game) first")
        return self._game


def _frame(state: Any, game: Game) -> Frame:
    frame = Frame(str(state["feedback"]), tuple(state["admissible_commands"]), bool(state["won"]))
    return whole_frame(frame, game.path or game.game_id)
