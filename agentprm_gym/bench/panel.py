"""Panels: states with labels in one file, with a version and a hash, so that two results are about the same thing.

A file is JSON Lines, gzipped. Its first row is the header: ``panel``, ``version``, ``format``, ``labels``, ``n_states``,
``texts``, ``grammar``, ``sha256``. Each further row is a state. The hash is that of the rows as they stand in the file. The
same states give the same bytes.

A panel of generated games holds its texts (``texts`` is true). A panel of ALFWorld's own games holds the names of the games,
the commands that were played, the labels, and a hash of each state's texts; :func:`read_panel` plays these commands on the
user's games, and compares the hashes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from agentprm_gym.bench.states import LABELS, BenchState, Labels
from agentprm_gym.engines import make_engine
from agentprm_gym.episodes import Turn
from agentprm_gym.games.game import Game
from agentprm_gym.games.listing import GameList, find_games
from agentprm_gym.hub import fetch, is_hub
from agentprm_gym.hub.remote import PANEL

#: The format of the files that this version reads and writes.
FORMAT = 1
#: The panels that come with the package, and the version of each that this version of the package is about.
SHIPPED: Mapping[str, int] = {"generated": 1, "real": 1}
_HEADER = {"panel": str, "version": int, "format": int, "labels": list, "n_states": int, "texts": bool, "sha256": str}


class PanelError(ValueError):
    """A file is not a panel, is damaged or of another version, or does not fit the user's games."""


@dataclass(frozen=True, slots=True)
class Panel:
    """States with labels.

    Attributes:
        name: the panel's name.
        version: its version, 1 or more.
        states: the states.
        sha256: of the rows of its file.
        grammar: the wording of the games' texts; ``None`` where each game has its own.
    """

    name: str
    version: int
    states: tuple[BenchState, ...]
    sha256: str
    grammar: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds of labels that every state has, in the order of :data:`~agentprm_gym.bench.states.LABELS`."""
        return tuple(kind for kind in LABELS if all(kind in state.labels for state in self.states))


def content_hash(task: str, history: Sequence[Turn]) -> str:
    """SHA-256 of what a player knows in a state: the task, and of every turn feedback, admissible commands and command.

    Args:
        task: the task in words.
        history: the turns; the last one is to be decided.

    Returns:
        64 hex digits.
    """
    told = [task, [[turn.feedback, list(turn.admissible_commands), turn.command] for turn in history]]
    return hashlib.sha256(_canonical(told).encode()).hexdigest()


# ---------------------------------------------------------------------- writing
def write_panel(
    path: str | os.PathLike[str],
    states: Sequence[BenchState],
    *,
    name: str,
    version: int = 1,
    texts: bool = True,
    grammar: str | None = None,
) -> str:
    """Write a panel; the same states give the same bytes, and the file appears whole or not at all.

    Args:
        path: the file, ``.jsonl.gz``; its folder is made where it is missing.
        states: the states, in the order that the file shall have.
        name: the panel's name.
        version: its version, 1 or more.
        texts: whether the texts are written; ``False`` writes hashes of them, for games that must not be passed on.
        grammar: the wording of the texts, see :func:`~agentprm_gym.games.find_games`; ``None``: each game's own.

    Returns:
        The hash of the rows.

    Raises:
        PanelError: two states have the same name, a state has labels or steps that do not fit its commands, or a number is not
            finite.
    """
    seen: set[str] = set()
    rows = []
    for state in states:
        if state.state_id in seen:
            raise PanelError(
                f"two states are called {state.state_id!r}: every state of a panel needs a name of its own"
            )
        seen.add(state.state_id)
        _check_counts(state)
        try:
            rows.append(_canonical(_row(state, texts)))
        except ValueError as error:
            raise PanelError(f"state {state.state_id!r} cannot be written as JSON: {error}") from error
    body = "".join(row + "\n" for row in rows).encode()
    digest = hashlib.sha256(body).hexdigest()
    header = {
        "panel": name,
        "version": version,
        "format": FORMAT,
        "labels": [kind for kind in LABELS if all(kind in state.labels for state in states)],
        "n_states": len(rows),
        "texts": texts,
        "grammar": grammar,
        "sha256": digest,
    }
    raw = io.BytesIO()
    # No name and no time in the gzip header.
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as stream:
        stream.write(_canonical(header).encode() + b"\n" + body)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    partial.write_bytes(raw.getvalue())
    partial.replace(file)
    return digest


def _canonical(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _row(state: BenchState, texts: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "state_id": state.state_id,
        "game_id": state.game_id,
        "split": state.split,
        "task_type": state.task_type,
        "player": state.player,
    }
    if texts:
        row["task"] = state.task
        row["history"] = [[turn.feedback, list(turn.admissible_commands), turn.command] for turn in state.history]
    else:
        row["played"] = list(state.played())
        row["content"] = content_hash(state.task, state.history)
    row["steps_to_go"] = list(state.steps_to_go)
    row["labels"] = {
        kind: {
            "values": list(state.labels[kind].values),
            "stderr": None if state.labels[kind].stderr is None else list(state.labels[kind].stderr or ()),
            "n": state.labels[kind].n,
        }
        for kind in LABELS
        if kind in state.labels
    }
    return row


def _check_counts(state: BenchState) -> None:
    """Refuse labels that are not one a command."""
    n = len(state.commands)
    counts = {"steps_to_go": len(state.steps_to_go)} if state.steps_to_go else {}
    for kind, labels in state.labels.items():
        counts[f"{kind} labels"] = len(labels.values)
        if labels.stderr is not None:
            counts[f"standard errors of {kind}"] = len(labels.stderr)
    for what, count in counts.items():
        if count != n:
            raise PanelError(f"state {state.state_id!r} has {count} {what} for {n} commands; expected one a command")


# ---------------------------------------------------------------------- reading
def read_panel(
    panel: str | os.PathLike[str],
    *,
    games: str | os.PathLike[str] = "alfworld",
    on_state: Callable[[int, int], None] | None = None,
) -> Panel:
    """Read a panel.

    Args:
        panel: ``"generated"`` or ``"real"``, which come with the package, a file that :func:`write_panel` wrote, or a
            repository of the hub that holds one, ``"hub:USER/NAME"``.
        games: where ALFWorld's games are, for a panel without texts; see :func:`~agentprm_gym.games.find_games`.
        on_state: called with the number of states that are done and of all, while texts are made again.

    Returns:
        The panel, with all texts.

    Raises:
        FileNotFoundError: the file is missing, or the panel needs ALFWorld's games and none are found.
        PanelError: the file is not a panel, is damaged, or has another version than expected; or a game of the user gives
            other texts than the one that was labelled. The message says what to do.
    """
    path, expected = _find(panel)
    header, rows = _read_file(path)
    if expected is not None and header["version"] != expected:
        raise PanelError(
            f"{path} is version {header['version']} of the panel {header['panel']!r}, and this version of agentprm-gym is "
            f"about version {expected}: install agentprm-gym again, so that both are of one release"
        )
    grammar = header.get("grammar")
    if header["texts"]:
        states = [_state_of(row, *_told(row, path), path) for row in rows]
    else:
        states = list(_regenerate(rows, games, grammar, path, on_state))
    return Panel(header["panel"], header["version"], tuple(states), header["sha256"], grammar)


def panel_file(panel: str | os.PathLike[str]) -> Path:
    """The file of a panel, which need not be whole.

    Args:
        panel: as in :func:`read_panel`.

    Raises:
        FileNotFoundError: it is missing.
    """
    return _find(panel)[0]


def _find(panel: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The file of a panel, and the version that it must have, for one that comes with the package."""
    name = os.fspath(panel)
    if is_hub(name):
        return fetch(name, PANEL, kind="dataset"), None
    if name in SHIPPED:
        version = SHIPPED[name]
        path = Path(str(resources.files("agentprm_gym.bench") / "panels" / f"{name}_v{version}.jsonl.gz"))
        if not path.is_file():
            raise FileNotFoundError(
                f"the panel {name!r} is not in this installation ({path.name} is missing): install agentprm-gym again, or "
                "name a file"
            )
        return path, version
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no panel {name!r}: expected {' or '.join(map(repr, SHIPPED))}, or a .jsonl.gz file that write_panel wrote"
        )
    return Path(name), None


def _read_file(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and rows of a file, after its hash was checked."""
    again = "get the file again, or build the panel again"
    try:
        head, _, body = gzip.decompress(path.read_bytes()).partition(b"\n")
        header = json.loads(head)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise PanelError(
            f"{path} is not a panel ({error}): expected a .jsonl.gz file that write_panel wrote"
        ) from error
    if not isinstance(header, dict) or not all(type(header.get(key)) is kind for key, kind in _HEADER.items()):
        raise PanelError(f"{path} is not a panel: its first row must have {', '.join(_HEADER)}; {again}")
    if header["format"] != FORMAT:
        raise PanelError(
            f"{path} has format {header['format']}, and this version of agentprm-gym reads format {FORMAT}: install the "
            "version that the panel was made for"
        )
    digest = hashlib.sha256(body).hexdigest()
    if digest != header["sha256"]:
        raise PanelError(
            f"{path}: its states have the hash {digest[:16]}..., and its header says {header['sha256'][:16]}...; the file was "
            f"changed or cut off, so its numbers cannot be compared: {again}"
        )
    return header, [json.loads(line) for line in body.splitlines()]


def _told(row: Mapping[str, Any], path: Path) -> tuple[str, tuple[Turn, ...]]:
    """Task and history of a row with texts."""
    try:
        turns = tuple(Turn(feedback=f, admissible_commands=tuple(a), command=c) for f, a, c in row["history"])
        return row["task"], turns
    except (KeyError, TypeError, ValueError) as error:
        raise PanelError(f"{path}: a row is not a state ({error!r}); build the panel again") from error


def _state_of(row: Mapping[str, Any], task: str, history: tuple[Turn, ...], path: Path) -> BenchState:
    try:
        state = BenchState(
            state_id=row["state_id"],
            game_id=row["game_id"],
            split=row["split"],
            task_type=row["task_type"],
            player=row["player"],
            task=task,
            history=history,
            steps_to_go=tuple(row["steps_to_go"]),
            labels={
                kind: Labels(
                    values=tuple(found["values"]),
                    stderr=None if found["stderr"] is None else tuple(found["stderr"]),
                    n=found["n"],
                )
                for kind, found in row["labels"].items()
            },
        )
    except (KeyError, TypeError) as error:
        raise PanelError(f"{path}: a row is not a state ({error!r}); build the panel again") from error
    _check_counts(state)
    return state


# ---------------------------------------------------------------------- texts made again
def replay(game: Game, played: Sequence[str]) -> tuple[Turn, ...]:
    """Play commands from the start of a game.

    Args:
        game: the game.
        played: the commands.

    Returns:
        One turn for each command, and the turn to be decided then, whose command is empty.

    Raises:
        UnsupportedGameError: only the stock engine plays the game.
    """
    engine = make_engine("native")
    frame = engine.reset(game)
    turns = []
    for command in (*played, ""):
        turns.append(
            Turn(feedback=frame.feedback, admissible_commands=tuple(frame.admissible_commands), command=command)
        )
        if command:
            frame = engine.step(command)
    engine.close()
    return tuple(turns)


def _regenerate(
    rows: Sequence[Mapping[str, Any]],
    games: str | os.PathLike[str],
    grammar: str | None,
    path: Path,
    on_state: Callable[[int, int], None] | None,
) -> Iterable[BenchState]:
    lists: dict[str, GameList] = {}
    for i, row in enumerate(rows):
        split, game_id = row["split"], row["game_id"]
        if split not in lists:
            lists[split] = find_games(split, games, grammar=grammar)
        where = lists[split]
        if game_id not in where.game_ids:
            raise PanelError(
                f"the panel {path.name} needs the game {game_id!r} of split {split!r}, which is not among the {len(where)} "
                f"games of {where.source!r}: your ALFWorld data is incomplete or of another release; run alfworld-download, "
                "and set ALFWORLD_DATA to its folder"
            )
        game = where[where.index(game_id)]
        history = replay(game, row["played"])
        if content_hash(game.task, history) != row["content"]:
            raise PanelError(
                f"the game {game_id!r} of split {split!r} gives other texts here than where the panel {path.name} was labelled "
                f"(state {row['state_id']!r}): your file of this game is another one; get ALFWorld's data again with "
                "alfworld-download, and set ALFWORLD_DATA to its folder"
            )
        yield _state_of(row, game.task, history, path)
        if on_state is not None:
            on_state(i + 1, len(rows))
