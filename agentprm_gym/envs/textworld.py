"""Games that TextWorld makes: any ``.z8`` with the ``.json`` that ``tw-make`` writes beside it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from gymnasium import spaces

from agentprm_gym.engines.base import NOTHING_HAPPENS, Frame, whole_frame
from agentprm_gym.envs.base import GameCard, Observation, TextGameEnv
from agentprm_gym.envs.vector import TextVectorEnv
from agentprm_gym.games.names import BadGameError
from agentprm_gym.plain_text import whole
from agentprm_gym.readers import ParseFunction
from agentprm_gym.spaces import UnicodeText

#: The task of a game without an objective, which ``tw-make`` writes on request.
NO_OBJECTIVE = "play the game and win it."

# An objective may describe every step of a long quest.
_MAX_TASK = 16_384
# The standard's limit for a story, and far more than the description of a large game.
_MAX_STORY, _MAX_DESCRIPTION = 524_288, 50_000_000
_GAME_FILE = re.compile(r"\.z[1-8]$")
_OTHER_FILES = {
    ".json": "this is a game's description, which does not hold its texts: name the .z8 beside it",
    ".ulx": "TextWorld 1.7 does not play Glulx games: make the game again with `tw-make`, which writes a .z8",
    ".tw-pddl": 'this is a game of ALFWorld: gym.make("ALFWorld-v0", games=FOLDER) plays it',
}
# The title in letters of dollars and bars, the prompt, and a status line on the right: players are not told these.
_BANNER = re.compile(r"\A(?:[ \t$\\|/_<>]*\n)+")
_STATUS = re.compile(r"\s*>?[ \t]{8,}-=[^\n]*=-[^\n]*\s*\Z|\s*>\s*\Z")
_GAP = re.compile(r"\n(?:[ \t]*\n){2,}")


class TextWorldEnv(TextGameEnv):
    """Play games that TextWorld made.

    | item        | value                                                                       |
    |-------------|-----------------------------------------------------------------------------|
    | observation | as in ALFWorld-v0: ``task`` (the game's objective), ``feedback``,           |
    |             | ``admissible_commands`` (one a line, sorted)                                |
    | action      | UnicodeText, any string; read as in ALFWorld-v0                             |
    | unknown     | "Nothing happens.", a step is spent. It never reaches the interpreter, which |
    | command     | would also obey "quit" and "restore", and writes files on "save"            |
    | reward      | 1.0 on the winning step, else 0.0; the game's own score is in subgoals()    |
    | terminated  | the game is won or lost                                                     |
    | truncated   | never here; gym.make adds TimeLimit(max_episode_steps), 50 by default       |
    | reset       | as in ALFWorld-v0                                                           |
    | info        | as in ALFWorld-v0; game_id is the file's name without its suffix, within the |
    |             | folder that was named                                                       |
    | render      | "ansi" or "human"                                                           |
    | same bytes  | for the same seed, options and actions                                      |

    The interpreter cannot save its state, so ``snapshot()`` holds the episode's commands, and ``restore()`` plays them again,
    in about two milliseconds each.

    Example:
        >>> import gymnasium as gym, agentprm_gym
        >>> env = gym.make("TextWorld-v0", game="game.z8")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        game: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        on_bad_game: str = "raise",
        render_mode: str | None = None,
        parse: str | ParseFunction = "tolerant",
    ) -> None:
        """Make an environment.

        Args:
            game: A game file, a list of files and folders, or a folder, which is searched with its subfolders. To make a
                game: ``tw-make custom --world-size 2 --quest-length 3 --seed 1 --output game.z8``.
            on_bad_game: ``"raise"``, or ``"skip"``: draw the next playable game, warn once, and count the bad games.
            render_mode: ``None``, ``"ansi"`` or ``"human"``.
            parse: How actions are read, as in ALFWorld-v0.

        Raises:
            FileNotFoundError: The file or folder does not exist, or the folder does not hold a game.
            ValueError: A file is not a game that this class plays, two games have one id, or ``on_bad_game`` is not known.
        """
        super().__init__(render_mode, on_bad_game, parse)
        texts = dict(cast("spaces.Dict", self.observation_space).spaces)
        self.observation_space = cast(
            "spaces.Space[Observation]", spaces.Dict({**texts, "task": UnicodeText(_MAX_TASK)})
        )
        self._paths = _find(game)
        self._ids = list(self._paths)
        self._env: Any = None
        self._path: Path | None = None
        self._state: Any = None
        self._commands: list[str] = []

    @property
    def n_games(self) -> int:
        """The number of games to choose from."""
        return len(self._ids)

    def game_index(self, game: int | str) -> int:
        """Return the index of a game named by index, id or path.

        Raises:
            ValueError: The environment does not have this game.
        """
        if isinstance(game, int):
            if 0 <= game < len(self._ids):
                return game
        elif game in self._paths:
            return self._ids.index(game)
        elif Path(game) in (paths := list(self._paths.values())):
            return paths.index(Path(game))
        raise ValueError(
            f"no game {game!r}: expected an index below {len(self._ids)}, or one of {', '.join(self._ids[:5])}"
            + (", ..." if len(self._ids) > 5 else "")
        )

    def subgoals(self) -> tuple[int, int]:
        """Return the game's score and the highest score: both are equal exactly when the game is won.

        Raises:
            ResetNeeded: The environment was not reset before.
        """
        self._require_card()
        total = max(1, self._state.get("max_score") or 0)
        if self._state["won"]:
            return total, total
        # Some quests give points but are not needed to win, and a lost game may have a negative score.
        return min(max(0, self._state.get("score") or 0), total - 1), total

    def close(self) -> None:
        """Release the interpreter. A second call does nothing, and ``reset`` opens it again."""
        self._release()
        self._done = True

    def _release(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = self._path = None

    def _load(self, index: int, annotation: int | None) -> tuple[GameCard, Frame]:
        game_id = self._ids[index]
        path = self._paths[game_id]
        if self._path != path:
            self._release()
            self._env = _open(path)
            self._path = path
        frame = self._begin()
        task = whole((self._state.get("objective") or "").strip()) or NO_OBJECTIVE
        if len(task) > _MAX_TASK:
            raise BadGameError(f"{path}: expected an objective of at most {_MAX_TASK:,} characters, got {len(task):,}")
        return GameCard(index, game_id, "train", "textworld", task, "textworld"), frame

    def _begin(self) -> Frame:
        """Start the loaded game from the beginning."""
        try:
            self._state = self._env.reset()
        except Exception as error:
            path = self._path
            self._release()
            raise BadGameError(f"{path}: TextWorld cannot start it ({type(error).__name__}: {error})") from error
        self._commands = []
        if not self._state.get("admissible_commands"):
            path = self._path
            self._release()
            raise BadGameError(
                f"{path}: expected admissible commands, got none; take a game of `tw-make`, and keep the .json that it "
                "wrote in the same folder, under the same name"
            )
        return self._frame_now()

    def _apply(self, command: str) -> tuple[Frame, float, bool]:
        frame = self._frame_now()
        if command not in frame.admissible_commands:
            return frame._replace(feedback=NOTHING_HAPPENS), 0.0, False
        self._state, _, done = self._env.step(command)
        self._commands.append(command)
        frame = self._frame_now()
        return frame, float(frame.won), bool(done or frame.won or self._state.get("lost"))

    def _frame_now(self) -> Frame:
        text = _STATUS.sub("", _BANNER.sub("", self._state["feedback"]))
        text = _GAP.sub("\n\n", text).strip()
        frame = Frame(text, tuple(self._state["admissible_commands"]), bool(self._state["won"]))
        return whole_frame(frame, str(self._path))

    def _save(self) -> object:
        return tuple(self._commands)

    def _restore(self, state: object) -> None:
        assert isinstance(state, tuple)
        if self._env is None:
            self._load(self._require_card().index, None)
        if state != tuple(self._commands):
            self._begin()
            for command in state:
                self._apply(command)


class TextWorldVectorEnv(TextVectorEnv):
    """``TextWorld-v0`` as a vector environment; see :class:`TextVectorEnv` and :class:`TextWorldEnv`."""

    env_class = TextWorldEnv


def _find(game: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Find game files and give each an id; folders are searched in the order of their names."""
    found: dict[str, Path] = {}
    for name in [game] if isinstance(game, (str, os.PathLike)) else game:
        root = Path(name)
        if root.is_dir():
            games = {
                path.relative_to(root).with_suffix("").as_posix(): path
                for path in sorted(root.rglob("*.z[1-8]"))
                if path.is_file()
            }
            if not games:
                raise FileNotFoundError(f"no games in the folder {str(root)!r}: expected files such as game.z8")
        else:
            games = {root.stem: root}
            if not root.is_file():
                raise FileNotFoundError(
                    f"no game at {str(root)!r}; to make one: tw-make custom --world-size 2 --quest-length 3 --seed 1 "
                    f"--output {root.with_suffix('.z8')}"
                )
            if not _GAME_FILE.search(root.name):
                why = _OTHER_FILES.get(root.suffix, "expected a Z-machine game, such as `tw-make` writes: game.z8")
                raise ValueError(f"{str(root)!r} is not a TextWorld game: {why}")
        for game_id, path in games.items():
            if found.setdefault(game_id, path) != path:
                raise ValueError(
                    f"two games would have the id {game_id!r}: {str(found[game_id])!r} and {str(path)!r}; rename one, "
                    "or name the folder above both"
                )
    if not found:
        raise ValueError("game must name at least one game file, got an empty list")
    return found


def _open(path: Path) -> Any:
    """Open a game in TextWorld's own environment."""
    # Imported here: users of other environments need not wait for it.
    try:
        import textworld
        from jericho import UnsupportedGameWarning
    except ImportError as error:
        raise ImportError(f'TextWorld-v0 needs TextWorld ({error}); pip install "textworld>=1.7"') from error
    wanted = textworld.EnvInfos(
        feedback=True, objective=True, admissible_commands=True, won=True, lost=True, score=True, max_score=True
    )
    _check_story(path)
    try:
        with warnings.catch_warnings():
            # The interpreter knows the inside of a few classic games only; for these games TextWorld knows it.
            warnings.simplefilter("ignore", UnsupportedGameWarning)
            env = textworld.start(str(path), wanted)
    except Exception as error:
        raise BadGameError(f"{path}: TextWorld cannot open it ({type(error).__name__}: {error})") from error
    env.seed(0)  # so that a game with random events has the same ones when its commands are played again
    return env


def _check_story(path: Path) -> None:
    """Check a game's header as the Z-machine standard defines it: the interpreter exits the process on a broken file.

    Raises:
        BadGameError: It is not a Z-machine game, or a part of it is missing.
    """
    for file, most in ((path, _MAX_STORY), (path.with_suffix(".json"), _MAX_DESCRIPTION)):
        if file.is_file() and file.stat().st_size > most:
            raise BadGameError(f"{file}: expected at most {most:,} bytes, got {file.stat().st_size:,}")
    data = path.read_bytes()
    version = data[0] if len(data) >= 64 else 0
    if not 1 <= version <= 8:
        raise BadGameError(f"{path}: not a Z-machine game: expected a version of 1 to 8 in its header")
    length = int.from_bytes(data[0x1A:0x1C], "big") * (2 if version <= 3 else 4 if version <= 5 else 8)
    # The oldest games hold neither a length nor a checksum.
    if length and (length > len(data) or sum(data[0x40:length]) & 0xFFFF != int.from_bytes(data[0x1C:0x1E], "big")):
        raise BadGameError(f"{path}: broken: its length or checksum is not what its header says; copy or make it again")
