"""Turns and episodes, and the one file format for them: JSON Lines, plain or gzipped.

Rollouts, experts, PRM data, demonstrations and logs all read and write these rows. A row holds the fields of
:class:`Episode`, and its ``turns`` the fields of :class:`Turn`; readers ignore other keys.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from agentprm_gym.episode_rows import EPISODE_TYPES, TURN_TYPES, known_values, whole_row
from agentprm_gym.plain_text import whole

#: Characters of one line: an episode of hundreds of turns, with all that was weighed, has some millions.
MAX_LINE = 20_000_000


class ResponseTokens(NamedTuple):
    """The tokens of a response, and how each of them was chosen.

    Attributes:
        ids: All tokens, the end-of-turn token included.
        free_start: Index of the first token that the model chose among its whole vocabulary.
        free_end: Index behind the last such token.
        command_start: Index of the first token that was chosen among the admissible commands; ``None`` where the command
            was also written freely.
        stopped: Whether the model itself ended the free part; ``False`` where a limit on its length did.
    """

    ids: tuple[int, ...]
    free_start: int
    free_end: int
    command_start: int | None
    stopped: bool


@dataclass(slots=True, kw_only=True)
class Turn:
    """One turn: what the agent read, what it did, and the reward.

    Attributes:
        feedback: The text that the agent read before its action.
        admissible_commands: The commands that were possible then. Kept as a tuple.
        reason: What the agent said before its command; may be empty.
        command: The command that the game got.
        response: The agent's whole text, from which reason and command were read.
        is_admissible: Whether ``command`` was among ``admissible_commands``.
        reward: The environment's reward after the action.
        candidates: Where a policy compared several commands, one dict for each with the keys ``command``, ``response``,
            ``score`` and ``log_prob``; else ``None``.
        log_prob: Log-probability of the response under the policy that gave it, in nats, at temperature 1; ``None`` where
            it is not known.
        tokens: The response as the acting model wrote it, for the training of this model. Files do not keep it, since
            other models have other tokens.
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
        """Return the turn as if the agent had said only its command."""
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
        values = known_values(row, TURN_TYPES, required=("feedback", "admissible_commands", "command"))
        commands = values["admissible_commands"]
        if not all(isinstance(command, str) for command in commands):
            raise ValueError("'admissible_commands' must be a list of strings")
        # The same few hundred commands occur in all turns of a file: keep each of them once.
        values["admissible_commands"] = tuple(map(sys.intern, commands))
        return cls(**values)


@dataclass(slots=True, kw_only=True)
class Episode:
    """One episode of one game.

    Attributes:
        game_id: The game, as in ``info["game_id"]``.
        split: ``"train"``, ``"valid_train"``, ``"valid_seen"`` or ``"valid_unseen"``.
        task_type: One of the six task types.
        task: The task in words.
        success: Whether the game was won.
        truncated: Whether the episode was cut off (step limit) rather than ended by the game.
        policy: The policy that acted, for example ``"expert:search"``.
        seed: The seed that the episode came from, if it had one.
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
        """Return the episode as if the agent had said only its commands."""
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
        values = known_values(row, EPISODE_TYPES, required=required)
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


def unlearnable_turns(episode: Episode) -> list[int]:
    """Return the indices of the turns that cannot teach a policy over admissible commands.

    Such a policy chooses one of the admissible commands, so it cannot learn a command that was not admissible, for example
    one in the wording of another release (``put mug 1 in/on shelf 2`` where the game says ``move mug 1 to shelf 2``).

    Args:
        episode: The episode.

    Example:
        >>> from agentprm_gym import Turn
        >>> turns = [Turn(feedback="", admissible_commands=["look"], command=c) for c in ("look", "dance")]
        >>> unlearnable_turns(Episode(game_id="g", split="train", task_type="", task="", success=True, turns=turns))
        [1]
    """
    return [i for i, turn in enumerate(episode.turns) if turn.command not in turn.admissible_commands]


def check_learnable(episodes: Iterable[Episode], what: str = "demonstrations") -> int:
    """Count the turns that :func:`unlearnable_turns` finds, and say so: nothing is left out in silence.

    Args:
        episodes: The episodes that will be learnt from.
        what: What the messages call them.

    Returns:
        The number of turns that cannot be learnt from. If it is not 0, a ``UserWarning`` names it and the first command.

    Raises:
        ValueError: Not one turn can be learnt from.
    """
    n_turns, n_lost, first = 0, 0, ""
    for episode in episodes:
        lost = unlearnable_turns(episode)
        n_turns, n_lost = n_turns + len(episode.turns), n_lost + len(lost)
        if lost and not first:
            turn = episode.turns[lost[0]]
            known = f"{len(turn.admissible_commands)} admissible commands"
            first = f"{turn.command!r} at turn {lost[0]} of {episode.game_id!r} is not one of {known}"
    if n_lost == n_turns:
        raise ValueError(
            f"expected {what} with commands that were admissible, got {n_turns} turns and not one of them has such a "
            f"command{f': {first}' if first else ''}; were they recorded in another wording? Look at the environment's "
            "option grammar"
        )
    if n_lost:
        warnings.warn(
            f"{n_lost} of {n_turns} turns in the {what} cannot be learnt from and are left out, the first: {first}",
            UserWarning,
            stacklevel=2,
        )
    return n_lost


def read_episodes(path: str | os.PathLike[str]) -> Iterator[Episode]:
    """Read episodes one at a time, so that a file may be larger than memory.

    Args:
        path: A JSON Lines file; gzipped if its name ends in ``.gz``. Empty lines are skipped.

    Yields:
        The episodes in the order of the file.

    Raises:
        FileNotFoundError: The file does not exist; raised at the call, not at the first episode.
        ValueError: A line is not an episode; the message names the file and the line.
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
        while True:
            try:
                line = stream.readline(MAX_LINE + 1)
            except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
                raise ValueError(
                    f"{file}, after line {number}: the rest of the file cannot be read ({error}). It was cut off, or it "
                    "is not such a file; write it again, or keep only its first lines."
                ) from error
            if not line:
                return
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{file}, line {number}: expected an episode of at most {MAX_LINE:,} characters; the file is not one that "
                    "write_episodes wrote"
                )
            if line.strip():
                yield _parse_line(line, file, number)


def _parse_line(line: str, file: Path, number: int) -> Episode:
    try:
        row = json.loads(line)
        if "\\ud" in line or "\\uD" in line:
            row = whole_row(row)
        if not isinstance(row, dict):
            raise ValueError(f"expected an object, got {type(row).__name__}")
        return Episode.from_dict(row)
    except RecursionError:
        raise ValueError(f"{file}, line {number}: this is not an episode: its JSON is nested too deep") from None
    except ValueError as error:
        raise ValueError(
            f"{file}, line {number}: this is not an episode: {error}. Expected one JSON object per "
            "line, as write_episodes writes it; delete the line, or write the file again."
        ) from None


def write_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode], *, append: bool = False) -> int:
    """Write episodes as JSON Lines; the same episodes give the same bytes.

    Without ``append`` the file is replaced in one step when everything is written: a reader sees the old content or the
    new one, and an interrupted call leaves the old one. With ``append`` the new rows are added in one write; a last line
    that an earlier crash cut off stays a separate line.

    Args:
        path: The file; gzipped if its name ends in ``.gz``. Missing folders are made.
        episodes: The episodes; may be a generator.
        append: Whether to add to an existing file instead of replacing it.

    Returns:
        How many episodes were written.

    Raises:
        ValueError: An episode holds a value that JSON cannot hold, such as NaN; the file is left as it was.
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
        stream.write(whole(line).encode("utf-8") + b"\n")
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
    # A gzip file may have several members one after the other, so appending is the same for both.
    with file.open("ab") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _umask() -> int:
    # mkstemp makes private files; the result should have the same rights as the user's other files.
    mask = os.umask(0)
    os.umask(mask)
    return mask
