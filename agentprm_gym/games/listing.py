"""Finding games: real ones on disk in the official layout, or generated ones."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

from agentprm_gym.games.game import SPLITS, TASK_TYPES, BadGameError, Game, parse_game, read_game_file

#: The layout's version folder.
_LAYOUT = "json_2.1.1"
_FILE = "game.tw-pddl"
#: How many generated games each split has.
GENERATED_SIZES = {"train": 3000, "valid_seen": 400, "valid_unseen": 400}
_SOLVABLE = re.compile(rb'"solvable"\s*:\s*(true|false)')


class DataNotFoundError(FileNotFoundError):
    """There are no ALFWorld games where they were looked for."""


def data_root() -> Path:
    """Where real games are looked for: ``ALFWORLD_DATA``, else ALFWorld's own cache folder."""
    return Path(os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache" / "alfworld").expanduser()


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split below a root, which may be the data's root, the layout's folder or the splits' parent."""
    for candidate in (root / _LAYOUT / split, root / split):
        if candidate.is_dir():
            return candidate
    return None


def _is_unsolvable(path: Path) -> bool:
    """Read the flag off the file's end; parsing 110 kB for each of thousands of files would take a minute."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2048))
        match = _SOLVABLE.search(file.read())
    return match is not None and match[1] == b"false"


@lru_cache(32)
def _scan(folder: Path) -> tuple[tuple[str, str], ...]:
    """``(game id, path)`` of every playable-looking game below a split's folder, sorted by id."""
    found = []
    for path in folder.glob(f"*/*/{_FILE}"):
        task, trial = path.parent.parent.name, path.parent.name
        # Movable receptacles and sliced goals are no games of the text benchmark; ALFWorld skips them as well.
        if "movable" not in task and "Sliced" not in task and not _is_unsolvable(path):
            found.append((f"{task}/{trial}", str(path)))
    return tuple(sorted(found))


@lru_cache(8192)
def _load_file(path: str, game_id: str, split: str) -> Game:
    return parse_game(read_game_file(path), game_id=game_id, split=split, path=path)


@lru_cache(8192)
def _load_generated(split: str, index: int) -> Game:
    from agentprm_gym.games.generate import generate_game

    data = generate_game(split, index)
    return parse_game(data, game_id=data["game_id"], split=split)


class GameList(Sequence[Game]):
    """The games of a split in a fixed order; parsed when first used, and shared by all environments of the process.

    Attributes:
        source: ``"alfworld"``, ``"generated"``, or the folder.
        split: which split.
        game_ids: ids in order.
        bad_games: error by id of the games that were met and could not be played.
    """

    def __init__(self, source: str, split: str, entries: Sequence[tuple[str, str | int]]) -> None:
        """Make a list; users call :func:`find_games`.

        Args:
            source: where the games come from.
            split: which split.
            entries: id and path, or id and number of a generated game.
        """
        self.source, self.split = source, split
        self.game_ids = tuple(game_id for game_id, _ in entries)
        self.bad_games: dict[str, str] = {}
        self._entries = tuple(entries)
        self._index: dict[str, int] | None = None
        self._hash: str | None = None

    def __len__(self) -> int:
        """How many games."""
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Game: ...

    @overload
    def __getitem__(self, index: slice) -> list[Game]: ...

    def __getitem__(self, index: int | slice) -> Game | list[Game]:
        """Parse a game.

        Raises:
            BadGameError: if it cannot be played; it is then in ``bad_games`` too.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        game_id, where = self._entries[index]
        try:
            if isinstance(where, int):
                return _load_generated(self.split, where)
            return _load_file(where, game_id, self.split)
        except BadGameError as error:
            self.bad_games[game_id] = str(error)
            raise

    def __iter__(self) -> Iterator[Game]:
        """Parse all games in turn."""
        return (self[i] for i in range(len(self)))

    def playable(self, index: int) -> bool:
        """Whether a game can be played."""
        try:
            self[index]
        except BadGameError:
            return False
        return True

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """The index of a game given by index, id or path.

        Raises:
            ValueError: if there is no such game; a close match is named.
        """
        if isinstance(value, (int,)) and not isinstance(value, bool):
            if not 0 <= value < len(self):
                raise ValueError(f"game index {value} is out of range: {self.split} has {len(self)} games")
            return value
        name = os.fspath(value) if isinstance(value, (str, os.PathLike)) else repr(value)
        if self._index is None:
            self._index = {}
            for i, (game_id, where) in enumerate(self._entries):
                self._index[game_id] = i
                if isinstance(where, str):
                    self._index[where] = self._index[os.path.dirname(where)] = i
        found = self._index.get(str(name))
        if found is None:
            close = difflib.get_close_matches(str(name), self.game_ids, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; `agentprm games --list` prints the ids"
            raise ValueError(f"no game {name!r} in {self.split} ({self.source}){hint}")
        return found

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids and files, so that two reports can show that they played the same games."""
        if self._hash is None:
            digest = hashlib.sha256()
            for game_id, where in self._entries:
                digest.update(game_id.encode() + b"\x00")
                if isinstance(where, str):
                    digest.update(hashlib.sha256(Path(where).read_bytes()).digest())
            if self.source == "generated":
                from agentprm_gym.games.generate import GENERATOR_VERSION

                digest.update(f"generator {GENERATOR_VERSION}".encode())
            self._hash = digest.hexdigest()
        return self._hash


def find_games(
    split: str = "train",
    games: str | os.PathLike[str] = "auto",
    task_types: Sequence[str] | None = None,
    *,
    on_bad_game: str = "raise",
) -> GameList:
    """List the games of a split.

    Args:
        split: ``"train"``, ``"valid_seen"`` or ``"valid_unseen"``.
        games: ``"auto"`` (real games where there are some, else generated ones), ``"alfworld"``, ``"generated"``, or a folder:
            the data's root, its ``json_2.1.1``, or whatever holds the splits.
        task_types: only these.
        on_bad_game: ``"raise"`` or ``"skip"``; who plays the games decides what to do with a bad one, this is only checked.

    Raises:
        ValueError: for an unknown split, task type, source or ``on_bad_game``, listing the choices.
        DataNotFoundError: if real games are asked for and there are none.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {list(SPLITS)}")
    if on_bad_game not in ("raise", "skip"):
        raise ValueError(f"on_bad_game must be 'raise' or 'skip', got {on_bad_game!r}")
    if isinstance(task_types, str):
        raise ValueError(f"task_types must be a list of names, got the string {task_types!r}")
    unknown = [t for t in task_types or () if t not in TASK_TYPES]
    if unknown:
        raise ValueError(f"unknown task type {unknown[0]!r}: expected some of {list(TASK_TYPES)}")
    name = os.fspath(games)
    entries: Sequence[tuple[str, str | int]] = ()
    source = name
    if name in ("auto", "alfworld"):
        folder = _split_folder(data_root(), split)
        entries = _scan(folder) if folder is not None else ()
        source = "alfworld" if entries or name == "alfworld" else "generated"
        if name == "alfworld" and not entries:
            raise DataNotFoundError(
                f"no ALFWorld games of {split} in {data_root()}: set ALFWORLD_DATA to the folder that holds {_LAYOUT}, or run "
                "`alfworld-download`; games='generated' needs no data"
            )
    elif name != "generated":
        root = Path(name).expanduser()
        if not root.is_dir():
            raise ValueError(
                f"unknown games {name!r}: expected 'auto', 'alfworld', 'generated', or a folder with {_LAYOUT}/{split}"
            )
        folder = _split_folder(root, split)
        entries = _scan(folder) if folder is not None else ()
        if not entries:
            raise DataNotFoundError(
                f"no games of {split} below {root}: expected {_LAYOUT}/{split}/<task>/<trial>/{_FILE}"
            )
    if source == "generated":
        from agentprm_gym.games.generate import generated_game_id

        entries = [(generated_game_id(split, i), i) for i in range(GENERATED_SIZES[split])]
    if task_types is not None:
        entries = [entry for entry in entries if entry[0].split("-", 1)[0] in task_types]
    return GameList(source, split, entries)
