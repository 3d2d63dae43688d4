"""Finding games: real ones on disk in the official layout, or generated ones."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, overload

from agentprm_gym.games.game import Game, parse_game, read_game_file, unread_game
from agentprm_gym.games.generation.generate import GENERATOR_VERSION, generate_game, generated_game_id
from agentprm_gym.games.generation.knobs import GeneratorKwargs, Knobs, read_generator_kwargs
from agentprm_gym.games.names import GENERATED_SPLITS, SPLITS, TASK_TYPES, BadGameError, UnsupportedGameError
from agentprm_gym.games.wording import check_grammar

#: How many generated games each split has, unless ``n_games`` says it.
GENERATED_SIZES = {"train": 3000, "valid_seen": 400, "valid_unseen": 400}

_LAYOUT = "json_2.1.1"
_FILE = "game.tw-pddl"
_SOURCES = ("auto", "alfworld", "generated")
_ON_BAD_GAME = ("raise", "skip")
_SOLVABLE = re.compile(rb'"solvable"\s*:\s*(true|false)')
# More than the largest split has, so that a process parses each game once.
_MANY = 8192
# Lists of ids that a process keeps: an environment of a vector takes the list that another one made.
_N_LISTS = 32


class DataNotFoundError(FileNotFoundError):
    """No ALFWorld games were found in the place that was searched."""


def data_root() -> Path:
    """Return the folder that is searched for real games: ``ALFWORLD_DATA``, else ALFWorld's own cache folder."""
    return Path(os.environ.get("ALFWORLD_DATA") or Path.home() / ".cache" / "alfworld").expanduser()


class GameList(Sequence[Game]):
    """The games of a split in a fixed order, parsed when first used.

    All lists of a process, and so all its environments, share the parsed games.

    Attributes:
        source: ``"alfworld"``, ``"generated"``, or the folder.
        split: The name of the split.
        grammar: The wording that was asked for; ``None`` for each game's own.
        bad_games: The error message by id, for the games that were read and cannot be played.
    """

    def __init__(
        self,
        source: str,
        split: str,
        entries: Sequence[tuple[str, str | int]],
        generator: GeneratorKwargs = GeneratorKwargs(),  # noqa: B008 - a tuple of constants
        grammar: str | None = None,
    ) -> None:
        """Make a list; :func:`find_games` calls this.

        Args:
            source: Where the games come from.
            split: The name of the split.
            entries: Id and path of each game, or id and number of a generated game, in order.
            generator: What generated games are like.
            grammar: The wording of all games; ``None`` for each game's own.
        """
        self.source, self.split, self.grammar = source, split, grammar
        self.bad_games: dict[str, str] = {}
        self._entries = tuple(entries)
        self._generator = generator
        self._indices: dict[str, int] | None = None
        self._hash: str | None = None

    @cached_property
    def game_ids(self) -> tuple[str, ...]:
        """The ids in order."""
        return tuple(game_id for game_id, _ in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Game: ...

    @overload
    def __getitem__(self, index: slice) -> list[Game]: ...

    def __getitem__(self, index: int | slice) -> Game | list[Game]:
        """Parse one game, or those of a slice.

        Raises:
            BadGameError: It cannot be played; from now on it is also in ``bad_games``.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        game_id, where = self._entries[index]
        try:
            if isinstance(where, int):
                return _generated_game(self.split, where, self._generator.seed, self._generator.knobs, self.grammar)
            return _game_of_file(where, game_id, self.split, _stamp(where), self.grammar)
        except BadGameError as error:
            self.bad_games[game_id] = str(error)
            raise

    def __iter__(self) -> Iterator[Game]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} {self.split} games of {self.source}>"

    def unread(self, index: int) -> Game:
        """Return a game for the stock engine, which also plays what the native engine does not support.

        Raises:
            BadGameError: The stock engine cannot play it either.
        """
        try:
            return self[index]
        except UnsupportedGameError as error:
            game_id, path = self._entries[index]
            assert isinstance(path, str)  # generated games are all supported
            game = _unread_game_of_file(path, game_id, self.split, error.what, _stamp(path)).in_grammar(self.grammar)
            self.bad_games.pop(game_id, None)
            return game

    def path(self, index: int) -> str | None:
        """Return the path of a game's file, without reading it; ``None`` for a generated game."""
        where = self._entries[index][1]
        return where if isinstance(where, str) else None

    def playable(self, index: int) -> bool:
        """Return whether a game can be played; if not, it is in ``bad_games`` afterwards."""
        try:
            self[index]
        except BadGameError:
            return False
        return True

    def index(self, value: object, start: int = 0, stop: int | None = None) -> int:
        """Return the index of a game.

        Args:
            value: Its index, its id, or the path of its file or folder.
            start: The first index that may be returned, as in every sequence.
            stop: The index behind the last one that may be returned.

        Raises:
            ValueError: The list does not have this game; the message names the closest id.
        """
        first, behind, _ = slice(start, stop).indices(len(self))
        if isinstance(value, int) and not isinstance(value, bool):
            if not first <= value < behind:
                raise ValueError(
                    f"no game {value} in {self.split} ({self.source}): expected an index from {first} to {behind - 1}"
                )
            return value
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError(f"expected a game's index, id or path, got {value!r}")
        name = os.fspath(value)
        found = self._index_of_name().get(str(name))
        if found is None or not first <= found < behind:
            close = difflib.get_close_matches(str(name), self.game_ids, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"they are like {self._example()!r}"
            raise ValueError(f"no game {name!r} in {self.split} ({self.source}): {hint}")
        return found

    @property
    def content_hash(self) -> str:
        """SHA-256 of the ids and files, to show that two reports are about the same games.

        The first call reads all files. Generated games are hashed by their ids and the generator's version. A wording
        that was asked for changes the hash.
        """
        if self._hash is None:
            digest = hashlib.sha256()
            if self.grammar is not None:
                digest.update(f"grammar {self.grammar}\0".encode())
            if any(isinstance(where, int) for _, where in self._entries):
                digest.update(f"generator {GENERATOR_VERSION}\0".encode())
            for game_id, where in self._entries:
                digest.update(f"{game_id}\0".encode())
                if isinstance(where, str):
                    digest.update(hashlib.sha256(Path(where).read_bytes()).digest())
            self._hash = digest.hexdigest()
        return self._hash

    def _example(self) -> str:
        return self.game_ids[0] if self.game_ids else ""

    def _index_of_name(self) -> dict[str, int]:
        if self._indices is None:
            self._indices = {}
            for i, (game_id, where) in enumerate(self._entries):
                self._indices[game_id] = i
                if isinstance(where, str):
                    self._indices[where] = self._indices[os.path.dirname(where)] = i
        return self._indices


def find_games(
    split: str = "train",
    games: str | os.PathLike[str] = "auto",
    task_types: Sequence[str] | None = None,
    *,
    on_bad_game: str = "raise",
    generator_kwargs: Mapping[str, Any] | None = None,
    grammar: str | None = None,
    subset: Mapping[str, int] | None = None,
) -> GameList:
    """List the games of a split: real games sorted by id, generated games by their number.

    As in ALFWorld, three kinds of games are left out: folders with "movable" or with "Sliced" in their names, and games
    whose file says that they cannot be solved.

    Args:
        split: ``"train"``, ``"valid_train"``, ``"valid_seen"`` or ``"valid_unseen"``. Only official data has
            ``"valid_train"``.
        games: ``"alfworld"``, ``"generated"``, ``"auto"`` (real games if some are found, else generated ones), or a
            folder: the root of the data, its ``json_2.1.1``, or the folder that holds the splits.
        task_types: Take only games of these types; default all six.
        on_bad_game: ``"raise"`` or ``"skip"``. It is only checked here: listing does not read the games, and a bad game
            always raises an error on access. Code that skips bad games asks :meth:`GameList.playable`.
        generator_kwargs: What generated games are like, as JSON may hold it: the attributes of
            :class:`agentprm_gym.games.generation.knobs.Knobs`, ``seed`` (0) and ``n_games`` (``GENERATED_SIZES``).
        grammar: The wording of texts and commands, whatever the files say: ``"2.1.1"`` ("put mug 1 in/on shelf 2"),
            ``"2.1.2"`` ("move mug 1 to shelf 2"), or ``None`` for each game's own. See
            :mod:`agentprm_gym.games.wording`.
        subset: Two parts of a split that have no game in common, to hold games out: ``{"every": 10, "leave_out": 0}`` takes
            the games but for every tenth, the first one among them, and ``{"every": 10, "keep": 0}`` those alone.

    Raises:
        ValueError: A split, source, task type, ``on_bad_game``, grammar, or key of ``generator_kwargs`` or ``subset`` is not
            known; or ``generator_kwargs`` describe impossible games, or are given for games that are not generated.
        DataNotFoundError: Real games, or those of a folder, are asked for and are not there; or generated games of
            ``"valid_train"``.
    """
    check_grammar(grammar)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if on_bad_game not in _ON_BAD_GAME:
        raise ValueError(f"unknown on_bad_game {on_bad_game!r}: choose from {', '.join(_ON_BAD_GAME)}")
    if isinstance(task_types, str):
        raise ValueError(f"expected a list of task types, got the string {task_types!r}")
    for task_type in task_types or ():
        if task_type not in TASK_TYPES:
            raise ValueError(f"unknown task type {task_type!r}: choose from {', '.join(TASK_TYPES)}")
    generator = read_generator_kwargs(generator_kwargs)
    source, entries = _entries(split, os.fspath(games), generator)
    if generator_kwargs and source != "generated":
        raise ValueError(
            f"generator_kwargs are about generated games, and games={os.fspath(games)!r} are those of {source!r}: "
            "say games='generated'"
        )
    if task_types is not None:
        entries = [entry for entry in entries if entry[0].split("-", 1)[0] in task_types]
    if subset is not None:
        every, place, keeps = _read_subset(subset)
        entries = [entry for i, entry in enumerate(entries) if (i % every == place) == keeps]
    return GameList(source, split, entries, generator, grammar)


def _read_subset(subset: Mapping[str, int]) -> tuple[int, int, bool]:
    """Each so many games, which of them is meant, and whether it is kept."""
    rest = {key: value for key, value in subset.items() if type(value) is int}
    every = rest.pop("every", 0)
    (name, place), *more = rest.items() or [("", -1)]
    if more or len(rest) + 1 != len(subset) or name not in ("keep", "leave_out") or not 0 <= place < every or every < 2:
        raise ValueError(
            'expected a subset such as {"every": 10, "keep": 0} or {"every": 10, "leave_out": 0}, the second number from 0 to '
            f"9, got {dict(subset)!r}"
        )
    return every, place, name == "keep"


def _entries(split: str, games: str, generator: GeneratorKwargs) -> tuple[str, Sequence[tuple[str, str | int]]]:
    """Return the source of the games, and their entries."""
    if games in ("auto", "alfworld"):
        found = _scan(data_root(), split)
        if found:
            return "alfworld", found
        if games == "alfworld":
            raise DataNotFoundError(
                f"no ALFWorld games of split {split!r} in {data_root()}: set ALFWORLD_DATA to the "
                f"folder that holds {_LAYOUT}, or run `alfworld-download` to get them; "
                "games='generated' needs no data"
            )
    elif games != "generated":
        folder = Path(games).expanduser()
        if not folder.is_dir():
            raise ValueError(f"unknown games {games!r}: choose from {', '.join(_SOURCES)}, or name a folder")
        found = _scan(folder, split)
        if not found:
            raise DataNotFoundError(
                f"no games of split {split!r} in {folder}: expected {_LAYOUT}/{split}/<task>/<trial>/{_FILE}"
            )
        return games, found
    if split not in GENERATED_SPLITS:
        raise DataNotFoundError(
            f"no games of split {split!r} in {data_root()}, and none are generated for it: choose from "
            f"{', '.join(GENERATED_SPLITS)}, or set ALFWORLD_DATA to official data that has this split"
        )
    return "generated", _generated_entries(split, generator)


@lru_cache(_N_LISTS)
def _generated_entries(split: str, generator: GeneratorKwargs) -> tuple[tuple[str, int], ...]:
    knobs, seed, n_games = generator
    n = GENERATED_SIZES[split] if n_games is None else n_games
    return tuple((generated_game_id(split, i, seed, knobs), i) for i in range(n))


def _scan(root: Path, split: str) -> tuple[tuple[str, str], ...]:
    """Return id and path of a split's games; the root is the data's root, or the folder that holds the splits."""
    for folder in (root / _LAYOUT / split, root / split):
        if folder.is_dir():
            return _scan_split(str(folder), folder.stat().st_mtime_ns)
    return ()


@lru_cache(_N_LISTS)
def _scan_split(folder: str, stamp: int) -> tuple[tuple[str, str], ...]:
    # The stamp is an argument for the cache: a folder that has changed is read again.
    found = []
    for path in Path(folder).glob(f"*/*/{_FILE}"):
        task, trial = path.parent.parent.name, path.parent.name
        if "movable" not in task and "Sliced" not in task and not _is_unsolvable(path):
            found.append((f"{task}/{trial}", str(path)))
    return tuple(sorted(found))


def _is_unsolvable(path: Path) -> bool:
    """Look for the flag at the end of the file, since the files of train have 380 MB."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2048))
            match = _SOLVABLE.search(file.read())
    except OSError:
        return False  # for example a folder; reading it later says what is wrong
    return match is not None and match[1] == b"false"


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


@lru_cache(_MANY)
def _game_of_file(path: str, game_id: str, split: str, stamp: tuple[int, int], grammar: str | None) -> Game:
    if grammar is not None:
        # Kept, too, so that engines meet the same object again; both share their tables.
        return _game_of_file(path, game_id, split, stamp, None).in_grammar(grammar)
    return parse_game(read_game_file(path), game_id=game_id, split=split, path=path)


@lru_cache(_MANY)
def _unread_game_of_file(path: str, game_id: str, split: str, why: str, stamp: tuple[int, int]) -> Game:
    return unread_game(read_game_file(path), game_id=game_id, split=split, why=why, path=path)


@lru_cache(_MANY)
def _generated_game(split: str, index: int, seed: int, knobs: Knobs, grammar: str | None) -> Game:
    if grammar is not None:
        return _generated_game(split, index, seed, knobs, None).in_grammar(grammar)
    make = partial(generate_game, split, index, seed, knobs)
    data = make()
    return parse_game(data, game_id=data["game_id"], split=split).without_text(make)
