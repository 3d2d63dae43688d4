"""Turns and episodes, and the one file format for them: JSON Lines, plain or gzipped.

Rollouts, experts, PRM data, demonstrations and logs all read and write these rows. A row holds the
fields of :class:`Episode`, its ``turns`` the fields of :class:`Turn`; readers ignore other keys.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple


class ResponseTokens(NamedTuple):
    """The tokens of a response, and which of them were chosen how.

    Attributes:
        ids: All tokens, the end-of-turn token included.
        free_start: Index of the first token that the model chose among its whole vocabulary.
        free_end: Index behind the last such token.
        command_start: Index of the first token that was chosen among the admissible commands; None where the command
            was written freely, too.
        stopped: Whether the model itself ended the free part, rather than a limit on its length.
    """

    ids: tuple[int, ...]
    free_start: int
    free_end: int
    command_start: int | None
    stopped: bool


@dataclass(slots=True, kw_only=True)
class Turn:
    """One turn: what stood before the agent, what it did, what it got.

    Attributes:
        feedback: The text that stood before the action.
        admissible_commands: The commands that were possible then. Kept as a tuple.
        reason: What the agent said before its command; empty where it said nothing.
        command: What the game was told.
        response: The agent's whole text, from which reason and command were read.
        is_admissible: Whether ``command`` was among ``admissible_commands``.
        reward: The environment's reward after the action.
        candidates: Where a policy weighed several, one dict for each with the keys ``command``,
            ``response``, ``score`` and ``log_prob``; else None.
        log_prob: Log-probability of the response under the policy that gave it, in nats, at temperature 1;
            None where nobody knows.
        tokens: The response as the acting model wrote it, for that model's training; files do not keep it, since
            another model's tokens are others.
    """

    feedback: str
    admissible_commands: Sequence[str]
    reason: str = ""
    command: str
    response: str = ""
    is_admissible: bool = True
    reward: float = 0.0
    candidates: list[dict[str, Any]] | None = None
    log_prob: float | None = None
    tokens: ResponseTokens | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        # A tuple is shared, not copied, when the engine gives one: long runs hold many turns.
        self.admissible_commands = tuple(self.admissible_commands)

    def bare(self) -> Turn:
        """Return the turn as if nothing but its command had been said."""
        return replace(self, reason="", response=self.command, tokens=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the turn as JSON types, in the format's order of keys."""
        return {
            "feedback": self.feedback,
            "admissible_commands": list(self.admissible_commands),
            "reason": self.reason,
            "command": self.command,
            "response": self.response,
            "is_admissible": bool(self.is_admissible),
            "reward": float(self.reward),
            "candidates": self.candidates,
            **({} if self.log_prob is None else {"log_prob": float(self.log_prob)}),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Turn:
        """Build a turn from JSON types; unknown keys are ignored.

        Raises:
            ValueError: A key is missing or its value has the wrong type.
        """
        values = _known(row, _TURN_TYPES, required=("feedback", "admissible_commands", "command"))
        commands = values["admissible_commands"]
        if not all(isinstance(command, str) for command in commands):
            raise ValueError("'admissible_commands' must be a list of strings")
        # The same few hundred commands stand in every turn of a file: keep each once.
        values["admissible_commands"] = tuple(map(sys.intern, commands))
        return cls(**values)


@dataclass(slots=True, kw_only=True)
class Episode:
    """One episode of one game.

    Attributes:
        game_id: Which game, as in ``info["game_id"]``.
        split: ``"train"``, ``"valid_seen"`` or ``"valid_unseen"``.
        task_type: One of the six task types.
        task: The task in words.
        success: Whether the game was won.
        truncated: Whether the episode was cut off (step limit) rather than ended by the game.
        policy: Who acted, for example ``"expert:search"``.
        seed: The seed that the episode came from, if one matters.
        turns: The turns in order.
    """

    game_id: str
    split: str
    task_type: str
    task: str
    success: bool
    truncated: bool = False
    policy: str = ""
    seed: int | None = None
    turns: list[Turn] = field(default_factory=list)

    def bare(self) -> Episode:
        """Return the episode as if nothing but its commands had been said."""
        return replace(self, turns=[turn.bare() for turn in self.turns])

    def to_dict(self) -> dict[str, Any]:
        """Return the episode as JSON types, in the format's order of keys."""
        return {
            "game_id": self.game_id,
            "split": self.split,
            "task_type": self.task_type,
            "task": self.task,
            "success": bool(self.success),
            "truncated": bool(self.truncated),
            "policy": self.policy,
            "seed": None if self.seed is None else int(self.seed),
            "turns": [turn.to_dict() for turn in self.turns],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Episode:
        """Build an episode from JSON types; unknown keys are ignored.

        Raises:
            ValueError: A key is missing or its value has the wrong type.
        """
        required = ("game_id", "split", "task_type", "task", "success", "turns")
        values = _known(row, _EPISODE_TYPES, required=required)
        turns = []
        for i, turn in enumerate(values["turns"]):
            if not isinstance(turn, Mapping):
                raise ValueError(f"turn {i}: expected an object, got {type(turn).__name__}")
            try:
                turns.append(Turn.from_dict(turn))
            except ValueError as error:
                raise ValueError(f"turn {i}: {error}") from None
        values["turns"] = turns
        return cls(**values)


_Types = Mapping[str, tuple[type, ...]]
_TURN_TYPES: _Types = {
    "feedback": (str,),
    "admissible_commands": (list, tuple),
    "reason": (str,),
    "command": (str,),
    "response": (str,),
    "is_admissible": (bool,),
    "reward": (float, int),
    "candidates": (list, type(None)),
    "log_prob": (float, int, type(None)),
}
_EPISODE_TYPES: _Types = {
    "game_id": (str,),
    "split": (str,),
    "task_type": (str,),
    "task": (str,),
    "success": (bool,),
    "truncated": (bool,),
    "policy": (str,),
    "seed": (int, type(None)),
    "turns": (list, tuple),
}


def _known(row: Mapping[str, Any], types: _Types, required: tuple[str, ...]) -> dict[str, Any]:
    missing = [key for key in required if key not in row]
    if missing:
        raise ValueError(f"missing {', '.join(map(repr, missing))}")
    values = {key: row[key] for key in types if key in row}
    for key, value in values.items():
        if not isinstance(value, types[key]):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types[key])
            raise ValueError(f"{key!r} must be {names}, got {type(value).__name__}")
    return values


def read_episodes(path: str | os.PathLike[str]) -> Iterator[Episode]:
    """Read episodes one at a time, so that a file may be larger than memory.

    Args:
        path: A JSON Lines file; gzipped if its name ends in ``.gz``. Empty lines are skipped.

    Yields:
        The episodes in the order of the file.

    Raises:
        FileNotFoundError: There is no such file; raised at the call, not at the first episode.
        ValueError: A line is no episode; the message names the file and the line.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no episodes at {str(file)!r}: expected a .jsonl or .jsonl.gz file that write_episodes wrote"
        )
    return _read_lines(file)


def _read_lines(file: Path) -> Iterator[Episode]:
    opener = gzip.open if file.suffix == ".gz" else open
    number = 0
    with opener(file, "rt", encoding="utf-8", newline="\n") as stream:
        lines = iter(stream)
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except (EOFError, OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{file}, after line {number}: the file cannot be read on ({error}). It was "
                    "cut off or is no such file; write it anew, or keep its first lines only."
                ) from error
            number += 1
            if line.strip():
                yield _parse_line(line, file, number)


def _parse_line(line: str, file: Path, number: int) -> Episode:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"expected an object, got {type(row).__name__}")
        return Episode.from_dict(row)
    except ValueError as error:
        raise ValueError(
            f"{file}, line {number}: this is no episode: {error}. Expected one JSON object per "
            "line, as write_episodes writes it; delete the line or write the file anew."
        ) from None


def write_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode], *, append: bool = False) -> int:
    """Write episodes as JSON Lines; the same episodes give the same bytes.

    Without ``append`` the file appears in one step when all is written: whoever reads it sees the
    old content or the new, and an interrupted call leaves the old. With ``append`` the new rows are
    put behind the old ones in one write; a last line that an earlier crash tore off stays a line of
    its own.

    Args:
        path: Where to; gzipped if the name ends in ``.gz``. Missing folders are made.
        episodes: What to write; may be a generator.
        append: Add to an existing file instead of replacing it.

    Returns:
        How many episodes were written.

    Raises:
        ValueError: An episode holds what JSON cannot, such as NaN; the file is left as it was.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            count = _write_rows(raw, episodes, compress=file.suffix == ".gz")
            raw.flush()
            os.fsync(raw.fileno())
        if append and file.exists():
            _append_bytes(file, part.read_bytes())
        else:
            part.chmod(0o666 & ~_umask())
            part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return count


def _write_rows(raw: Any, episodes: Iterable[Episode], *, compress: bool) -> int:
    # No name and no time in the gzip header: the same episodes give the same bytes.
    stream = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if compress else raw
    count = 0
    for episode in episodes:
        try:
            line = json.dumps(episode.to_dict(), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"episode {count} (game {episode.game_id!r}) cannot be written as JSON: {error}"
            ) from error
        stream.write(line.encode("utf-8") + b"\n")
        count += 1
    if compress:
        stream.close()
    return count


def _append_bytes(file: Path, data: bytes) -> None:
    if file.suffix != ".gz" and file.stat().st_size > 0:
        with file.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                data = b"\n" + data
    # gzip allows members one after the other, so appending is the same for both.
    with file.open("ab") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _umask() -> int:
    # mkstemp makes private files; the result should be as readable as any other the user writes.
    mask = os.umask(0)
    os.umask(mask)
    return mask
