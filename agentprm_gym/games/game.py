"""One ALFWorld game, read once: what stands where, what may hold what, and what has to be achieved.

An official ``game.tw-pddl`` is JSON with a PDDL domain, a text grammar and a PDDL problem. All games of a release share the
domain and the grammar, the task line aside. The native engine has both built in, so it recognises a game by their hashes and
reads only the problem.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import intern
from typing import Any

from agentprm_gym.games.facts import no_entities, read_entities, read_facts
from agentprm_gym.games.goal import Goal, parse_goal
from agentprm_gym.games.limits import check_declared, check_problem, check_task_length, check_texts
from agentprm_gym.games.names import SPLITS, TASK_TYPES, BadGameError, UnsupportedGameError
from agentprm_gym.games.recognise import MAX_GRAMMAR, check_task, read_task, recognise, task_line, unescaped
from agentprm_gym.games.wording import (
    WORDINGS,
    check_grammar,
    reword_command,
    reword_domain,
    reword_grammar,
)

__all__ = [
    "SPLITS",
    "TASK_TYPES",
    "BadGameError",
    "Game",
    "UnsupportedGameError",
    "parse_game",
    "read_game_file",
    "unread_game",
]

#: A larger file is not a game: the official files have about 110 kB.
MAX_FILE_BYTES = 5_000_000


@dataclass(frozen=True, slots=True)
class Game:
    """A parsed game.

    Entities have their display names ("cabinet 8"), types have no suffix ("Cabinet"), and collections have the order in
    which the game's texts list them.

    Attributes:
        game_id: ``"<task folder>/<trial folder>"``.
        split: The split it belongs to.
        task_type: One of ``TASK_TYPES``.
        task: The task in words, e.g. ``"put a hot potato in fridge."``.
        walkthrough: Commands that win.
        path: The file, or ``None`` for a generated game.
        goal: What has to be achieved.
        order: Rank of each entity in listings.
        receptacles: Location of each receptacle.
        location_names: Display name ("loc 5") of each location where a receptacle stands.
        receptacle_types: Type of each receptacle.
        object_types: Type of each object that has one.
        contents: What is in each receptacle at the start; one object may be in several.
        locations: Where each object is at the start; this may differ from where its receptacle is.
        inside: Objects in other objects; they stay there.
        start: The agent's location.
        properties: Entities by property (``"openable"``, ``"isCool"``, ...) at the start.
        fits: ``(receptacle type, object type)`` pairs that go together.
        sink_types: Receptacle types that clean.
        grammar: The wording of its texts and commands: ``"2.1.1"``, ``"2.1.2"``, or ``""`` where it is not known. See
            :mod:`agentprm_gym.games.wording`.
        unsupported: Why only the stock engine plays it; ``""`` where both engines do. The tables of an unsupported game
            are empty.
    """

    game_id: str
    split: str
    task_type: str
    task: str
    walkthrough: tuple[str, ...]
    path: str | None
    goal: Goal
    order: Mapping[str, int]
    receptacles: Mapping[str, str]
    location_names: Mapping[str, str]
    receptacle_types: Mapping[str, str]
    object_types: Mapping[str, str]
    contents: Mapping[str, tuple[str, ...]]
    locations: Mapping[str, tuple[str, ...]]
    inside: Mapping[str, tuple[str, ...]]
    start: str
    properties: Mapping[str, frozenset[str]]
    fits: frozenset[tuple[str, str]]
    sink_types: frozenset[str]
    grammar: str
    unsupported: str = ""
    _data: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    _make: Callable[[], dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    @property
    def help_text(self) -> str:
        """What the command ``help`` answers; empty where the game does not have this command."""
        return WORDINGS[self.grammar].help_text if self.grammar else ""

    def without_text(self, make: Callable[[], dict[str, Any]]) -> Game:
        """Return this game without its text, so that a list of many games stays small.

        Args:
            make: Makes the text again. It should be picklable, since games are sent to other processes.
        """
        return replace(self, _data=None, _make=make)

    def with_task(self, task: str) -> Game:
        """Return this game with its task in other words, for both engines; the goal does not change.

        Raises:
            BadGameError: The stock grammar would read the task as more than a text.
        """
        check_task(task, self.path or self.game_id)
        return replace(self, task=task)

    def in_grammar(self, grammar: str | None) -> Game:
        """Return this game in a wording, for both engines; rooms, task and goal do not change.

        Args:
            grammar: ``"2.1.1"`` ("put mug 1 in/on shelf 2"), ``"2.1.2"`` ("move mug 1 to shelf 2"), or ``None`` for the
                wording that the game has.

        Raises:
            ValueError: The wording is not known.
            BadGameError: The game's own grammar or domain is not known, so it cannot be translated.
            UnsupportedGameError: Only the stock engine can play the game in this wording.
        """
        check_grammar(grammar)
        if grammar is None or grammar == self.grammar:
            return self
        where = self.path or self.game_id
        if not self.grammar:
            raise BadGameError(
                f"{where}: expected a known grammar and domain, which can be said as grammar={grammar!r}, but "
                f"{self.unsupported}; leave out grammar to play the game as it is"
            )
        _check_location_names(self.receptacles, self.location_names, grammar, where)
        walkthrough = tuple(intern(reword_command(command, grammar)) for command in self.walkthrough)
        return replace(self, grammar=grammar, walkthrough=walkthrough)

    def data(self) -> dict[str, Any]:
        """Return the official dictionary, which the stock engine plays.

        A file is read again, and a generated game is made again: keeping all texts would fill the memory.

        Raises:
            BadGameError: The file has gone, or it holds something else now.
        """
        data = self._original_data()
        grammar, domain = data.get("grammar"), data.get("pddl_domain")
        if not isinstance(grammar, str) or not isinstance(domain, str) or len(grammar) > MAX_GRAMMAR:
            return data
        if self.grammar:
            grammar = reword_grammar(grammar, self.grammar)
            data |= {"grammar": grammar, "pddl_domain": reword_domain(domain, self.grammar)}
            if "walkthrough" in data:
                data["walkthrough"] = list(self.walkthrough)
        line = task_line(grammar)
        if line is not None and unescaped(line[1]) != self.task:
            # The task was put in other words; dumps ends with the quotation mark that ends the line.
            data["grammar"] = f"{grammar[: line.start(1)]}{json.dumps(self.task)[1:]}{grammar[line.end() :]}"
        return data

    def _original_data(self) -> dict[str, Any]:
        if self._data is not None:
            return dict(self._data)
        if self._make is not None:
            return self._make()
        assert self.path is not None  # parse_game keeps the data of a game that has no path
        return read_game_file(self.path)


def read_game_file(path: str) -> dict[str, Any]:
    """Read the JSON of a game file.

    Raises:
        BadGameError: It cannot be read, is too large, or does not hold a JSON object.
    """
    try:
        size = Path(path).stat().st_size
        text = Path(path).read_bytes() if size <= MAX_FILE_BYTES else b""
    except OSError as error:
        reason = error.strerror or error
        raise BadGameError(f"{path}: cannot be read ({reason}); check path and rights") from None
    if size > MAX_FILE_BYTES:
        raise BadGameError(f"{path}: expected a game of about 110 kB, got {size:,} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadGameError(f"{path}: not valid JSON ({error}); unpack the data again") from None
    if not isinstance(data, dict):
        raise BadGameError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def parse_game(data: Mapping[str, Any], *, game_id: str, split: str, path: str | None = None) -> Game:
    """Parse the official dictionary.

    Args:
        data: ``pddl_domain``, ``grammar``, ``pddl_problem``, and perhaps ``walkthrough``.
        game_id: ``"<task folder>/<trial folder>"``; it begins with the task type.
        split: The split it belongs to.
        path: The file it came from.

    Raises:
        BadGameError: Something is missing, of the wrong type, or contradicts itself.
        UnsupportedGameError: The domain, the grammar or the goal is not known here. The game may be sound, and
            :func:`unread_game` makes a game of it for the stock engine.
    """
    where = path or game_id
    domain, grammar, problem = _texts(data, where)
    task_type = _task_type(game_id, where)
    begin, end = _sections(problem, where)
    release, sink_types = recognise(domain, grammar, where)
    task = _task(grammar, where)
    try:
        goal = parse_goal(problem[end:])
    except ValueError as error:
        raise UnsupportedGameError(where, str(error)) from None
    facts = read_facts(problem[:begin], problem[begin + len("(:init") : end], where, goal.types)
    entities = read_entities(facts, where)
    _check_location_names(entities["receptacles"], entities["location_names"], release, where)
    check_texts(entities, task, where)
    return Game(
        game_id=game_id,
        split=split,
        task_type=task_type,
        task=task,
        walkthrough=_walkthrough(data, where),
        path=path,
        goal=goal,
        sink_types=sink_types,
        grammar=release,
        _data=dict(data) if path is None else None,
        **entities,
    )


def unread_game(data: Mapping[str, Any], *, game_id: str, split: str, why: str, path: str | None = None) -> Game:
    """Make a game of what :func:`parse_game` does not support: no table is read, and only the stock engine plays it.

    Args:
        data: See :func:`parse_game`.
        game_id: See :func:`parse_game`.
        split: The split it belongs to.
        why: What is not supported.
        path: The file it came from.

    Raises:
        BadGameError: Something is missing or of the wrong type.
    """
    where = path or game_id
    domain, grammar, problem = _texts(data, where)
    task_type = _task_type(game_id, where)
    begin, _ = _sections(problem, where)
    check_declared(len(problem[:begin].split()), where)
    task = _task(grammar, where)
    try:
        release, _ = recognise(domain, grammar, where)
    except UnsupportedGameError:
        release = ""
    return Game(
        game_id=game_id,
        split=split,
        task_type=task_type,
        task=task,
        walkthrough=_walkthrough(data, where),
        path=path,
        goal=Goal("", ""),
        sink_types=frozenset(),
        grammar=release,
        **no_entities(),
        unsupported=why,
        _data=dict(data) if path is None else None,
    )


def _check_location_names(
    receptacles: Mapping[str, str], location_names: Mapping[str, str], grammar: str, where: str
) -> None:
    """Refuse locations without a display name where the wording says these names."""
    if not WORDINGS[grammar].names_location:
        return
    unnamed = [location for location in receptacles.values() if location not in location_names]
    if unnamed:
        raise UnsupportedGameError(where, f"{unnamed[0]!r} has no '_bar_' in its name")


def _texts(data: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Return domain, grammar and problem."""
    texts = []
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        value = data.get(key)
        if not isinstance(value, str):
            got = "nothing" if value is None else type(value).__name__
            raise BadGameError(f"{where}: expected a string under {key!r}, got {got}")
        texts.append(value)
    domain, grammar, problem = texts
    return domain, grammar, problem


def _task_type(game_id: str, where: str) -> str:
    task_type = game_id.split("-", 1)[0]
    if task_type not in TASK_TYPES:
        raise BadGameError(
            f"{where}: expected a folder that begins with one of {', '.join(TASK_TYPES)}, got {game_id!r}"
        )
    return task_type


def _task(grammar: str, where: str) -> str:
    task = read_task(grammar, where)
    check_task_length(task, where)
    return task


def _sections(problem: str, where: str) -> tuple[int, int]:
    """Check the problem, and return where its initial state and its goal begin."""
    check_problem(problem, where)
    begin, end = problem.find("(:init"), problem.find("(:goal")
    if begin < 0 or end < begin:
        raise BadGameError(f"{where}: the problem lacks an (:init ...) followed by a (:goal ...)")
    return begin, end


def _walkthrough(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    commands = data.get("walkthrough")
    if commands is None:
        return ()
    if not isinstance(commands, (list, tuple)) or not all(isinstance(c, str) for c in commands):
        raise BadGameError(f"{where}: expected a list of commands under 'walkthrough'")
    return tuple(intern(c) for c in commands)
