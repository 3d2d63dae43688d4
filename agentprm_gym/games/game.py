"""One ALFWorld game, read once: who is where, what may hold what, and what has to be achieved.

An official ``game.tw-pddl`` is JSON with a PDDL domain, a text grammar and a PDDL problem. All games of one release share
the domain and the grammar but for the task line; what they say is built into the native engine, so a game is recognised by
the hash of both and everything else is refused with a hint at the stock engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

SPLITS = ("train", "valid_seen", "valid_unseen")
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
#: A game file larger than this is none (the official ones have about 110 kB).
MAX_FILE_BYTES = 5_000_000

#: SHA-256 (first 16 hex digits) of the known domains, comments and white space removed, and whether ``SinkType`` cleans.
_KNOWN_DOMAINS = {"abd977daed3ce87d": True, "9f953aecdc35af60": False}
#: The same of the known grammars, with the task line blanked.
_KNOWN_GRAMMARS = {"c1c25bb319bb4883", "56dc47bf2614d99f"}

_FACT = re.compile(r"\(\s*(\w+)((?:\s+[^\s()]+)*)\s*\)")
_TASK = re.compile(r"Your task is to: ((?:[^\"\\]|\\.)*)\"")
_HELP = re.compile(r"action\s+help\s*\{.*?feedback\s*::\s*\"(.*?)\"\s*;", re.DOTALL)
_HELP_RULE = re.compile(r"\"help\.feedback\"\s*:\s*\[\s*\{\s*\"rhs\"\s*:\s*(\"(?:[^\"\\]|\\.)*\")")


class BadGameError(ValueError):
    """A game file that cannot be played; the message holds its path or id and what is wrong."""


class UnsupportedGameError(BadGameError):
    """A game of a domain or grammar that the native engine does not know."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What has to be achieved, as the game file states it.

    Attributes:
        kind: ``"place"``, ``"place_two"`` or ``"look"``.
        object_type: type of the object ("Potato").
        receptacle_type: type of the place; for ``"look"`` empty.
        state: ``"hot"``, ``"cool"``, ``"clean"``, or empty.
        lamp_type: for ``"look"`` the type of the lamp.
    """

    kind: str
    object_type: str
    receptacle_type: str = ""
    state: str = ""
    lamp_type: str = ""


@dataclass(frozen=True, slots=True)
class Game:
    """A parsed game. Entities are display names ("cabinet 8"); collections are in the order that texts list them.

    Attributes:
        game_id: ``"<task folder>/<trial folder>"``.
        split: which split it belongs to.
        task_type: one of :data:`TASK_TYPES`.
        task: the task in words, e.g. ``"put a hot potato in fridge."``.
        walkthrough: commands that win.
        path: the file, or ``None`` for a generated game.
        goal: what has to be achieved.
        order: rank of every named entity in listings.
        receptacles: location of each receptacle, in listing order.
        receptacle_types: type of each receptacle.
        object_types: type of each object that has one.
        contents: what is in each receptacle at the start.
        locations: where each object is at the start (it may be nowhere, or not where its receptacle is).
        inside: objects inside objects at the start.
        start: the agent's location.
        properties: entities by property ("openable", "pickupable", "heatable", ...; "isHot", "opened", ... at the start).
        fits: ``(receptacle type, object type)`` pairs that go together.
        sink_types: receptacle types that clean.
        help_text: what the command ``help`` answers.
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
    receptacle_types: Mapping[str, str]
    object_types: Mapping[str, str]
    contents: Mapping[str, tuple[str, ...]]
    locations: Mapping[str, tuple[str, ...]]
    inside: Mapping[str, tuple[str, ...]]
    start: str
    properties: Mapping[str, frozenset[str]]
    fits: frozenset[tuple[str, str]]
    sink_types: frozenset[str]
    help_text: str
    _data: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def data(self) -> dict[str, Any]:
        """The official dictionary (pddl_domain, grammar, pddl_problem, ...), for the stock engine."""
        if self._data is not None:
            return dict(self._data)
        assert self.path is not None
        return read_game_file(self.path)


def read_game_file(path: str) -> dict[str, Any]:
    """Read a game file's JSON.

    Raises:
        BadGameError: with the path, if it cannot be read or is not a JSON object.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadGameError(f"{path}: {size} bytes is too large for a game (limit {MAX_FILE_BYTES}); is it one?")
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise BadGameError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadGameError):
            raise
        raise BadGameError(f"{path}: not valid JSON ({error}); unpack the data again") from None
    if not isinstance(data, dict):
        raise BadGameError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(64)
def domain_digest(domain: str) -> str:
    """Hash of a domain without comments, case and white space."""
    return _digest(re.sub(r"\s+", "", re.sub(r";[^\n]*", "", domain)).lower())


@lru_cache(256)
def grammar_digest(grammar: str) -> str:
    """Hash of a grammar without its task line and white space."""
    return _digest(re.sub(r"\s+", "", _TASK.sub('Your task is to: "', grammar)))


@lru_cache(64)
def _fits(facts: tuple[tuple[str, str], ...]) -> frozenset[tuple[str, str]]:
    return frozenset((r.removesuffix("Type"), o.removesuffix("Type")) for r, o in facts)


@lru_cache(16)
def _help_text(grammar: str) -> str | None:
    """What ``help`` answers; the grammar's parser drops white space at the beginning of a rule."""
    rule = _HELP_RULE.search(grammar)
    if rule is not None:
        return str(json.loads(rule[1])).lstrip()
    inline = _HELP.search(grammar)
    return None if inline is None else inline[1].lstrip()


def display_names(ids: list[str]) -> dict[str, str]:
    """ALFWorld's names: the type and a number, the first id in order getting the highest ("cabinet 8").

    Args:
        ids: mangled lower-case ids ("cabinet_bar__minus_01_dot_29...").
    """
    kinds = {i: i.split("_bar_", 1)[0] + ("basin" if "basin" in i else "") for i in ids if "_bar_" in i}
    left: dict[str, int] = {}
    for kind in kinds.values():
        left[kind] = left.get(kind, 0) + 1
    names = {}
    for i in sorted(kinds):
        names[i] = f"{kinds[i]} {left[kinds[i]]}"
        left[kinds[i]] -= 1
    return names


def _parse_goal(text: str, where: str) -> Goal:
    """Recognise the six goals of the official games."""
    goal = re.sub(r"\s+", "", text)

    def find(pattern: str) -> str:
        match = re.search(pattern, goal)
        if match is None:
            raise UnsupportedGameError(
                f'{where}: unknown kind of goal: {text.strip()[:200]!r}; engine="textworld" plays it'
            )
        return match[1]

    if "(isToggled?ot)" in goal:
        expected = (
            r"^\(:goal\(and\(exists\(\?ot-object\?r-receptacle\?a-agent\?l-location\)\(and\(objectType\?ot(\w+)Type\)"
            r"\(toggleable\?ot\)\(isToggled\?ot\)\(receptacleAtLocation\?r\?l\)\(atLocation\?a\?l\)\(inReceptacle\?ot\?r\)\)\)"
            r"\(exists\(\?o-object\?a-agent\)\(and\(objectType\?o\w+Type\)\(holds\?a\?o\)\)\)\)\)"
        )
        return Goal("look", find(r"\(objectType\?o(\w+?)Type\)\(holds"), lamp_type=find(expected))
    if "(not(=?o1?o2))" in goal:
        shape = (
            r"^\(:goal\(and\(exists\(\?r-receptacle\)\(exists\(\?o1-object\)\(and\(objectType\?o1(\w+)Type\)"
            r"\(receptacleType\?r(\w+)Type\)\(inReceptacle\?o1\?r\)\(exists\(\?o2-object\)\(and\(not\(=\?o1\?o2\)\)"
            r"\(objectType\?o2\1Type\)\(receptacleType\?r\2Type\)\(inReceptacle\?o2\?r\)\)\)\)\)\)\)\)"
        )
        find(shape)
        return Goal("place_two", find(r"objectType\?o1(\w+?)Type"), find(r"receptacleType\?r(\w+?)Type"))
    body = find(r"^\(:goal\(and\(exists\(\?r-receptacle\)\(exists\(\?o-object\)\(and((?:\([^()]*\))+)\)\)\)\)\)")
    atoms = re.findall(r"\(([^()]*)\)", body)
    states = {"isHot?o": "hot", "isCool?o": "cool", "isClean?o": "clean"}
    # An object can only become hot where it is heatable, so the pair of atoms says one thing.
    implied = {"heatable?o", "coolable?o", "cleanable?o", "inReceptacle?o?r"}
    odd = [
        a
        for a in atoms
        if a not in states and a not in implied and not re.fullmatch(r"(objectType\?o|receptacleType\?r)\w+", a)
    ]
    if odd or "inReceptacle?o?r" not in atoms:
        raise UnsupportedGameError(f'{where}: unknown condition in the goal: {odd}; engine="textworld" plays it')
    state = next((states[a] for a in atoms if a in states), "")
    return Goal("place", find(r"objectType\?o(\w+?)Type"), find(r"receptacleType\?r(\w+?)Type"), state)


def parse_game(data: Mapping[str, Any], *, game_id: str, split: str, path: str | None = None) -> Game:
    """Parse the official dictionary.

    Args:
        data: ``pddl_domain``, ``grammar``, ``pddl_problem``, and where there is one ``walkthrough``.
        game_id: ``"<task folder>/<trial folder>"``; the task type is read off its beginning.
        split: which split it belongs to.
        path: the file it came from.

    Raises:
        BadGameError: if something is missing, of the wrong type, or contradicts itself.
        UnsupportedGameError: if the domain or grammar is unknown.
    """
    where = path or game_id
    texts = {}
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(data.get(key), str):
            raise BadGameError(
                f"{where}: {key!r} must be a string, got {type(data.get(key)).__name__}; unpack the data again"
            )
        texts[key] = str(data[key])
    domain, grammar, problem = texts["pddl_domain"], texts["grammar"], texts["pddl_problem"]
    if domain_digest(domain) not in _KNOWN_DOMAINS or grammar_digest(grammar) not in _KNOWN_GRAMMARS:
        what = "domain" if domain_digest(domain) not in _KNOWN_DOMAINS else "grammar"
        raise UnsupportedGameError(
            f'{where}: its {what} is not one that the native engine knows; engine="textworld" plays it'
        )
    task, help_text = _TASK.search(grammar), _help_text(grammar)
    task_type = next((t for t in TASK_TYPES if game_id.startswith(t)), "")
    if task is None or help_text is None or not task_type:
        raise BadGameError(
            f"{where}: no task line, or no known task type in its folder's name; expected one of {TASK_TYPES}"
        )
    begin, end = problem.find("(:init"), problem.find("(:goal")
    if begin < 0 or end < begin:
        raise BadGameError(f"{where}: the problem lacks an (:init ...) followed by a (:goal ...)")
    walkthrough = data.get("walkthrough") or ()
    if not isinstance(walkthrough, (list, tuple)) or not all(isinstance(c, str) for c in walkthrough):
        raise BadGameError(f"{where}: 'walkthrough' must be a list of commands")
    facts: dict[str, list[list[str]]] = {}
    for name, arguments in _FACT.findall(problem[begin + 6 : end]):
        facts.setdefault(name, []).append(arguments.split())
    return Game(
        game_id=game_id,
        split=split,
        task_type=task_type,
        task=task[1].replace('\\"', '"'),
        walkthrough=tuple(walkthrough),
        path=path,
        goal=_parse_goal(problem[end:], where),
        sink_types=frozenset({"SinkBasin", "Sink"} if _KNOWN_DOMAINS[domain_digest(domain)] else {"SinkBasin"}),
        help_text=help_text,
        _data=dict(data) if path is None else None,
        **_entities(facts, where),
    )


_ARITY = {
    "receptacleType": 2, "objectType": 2, "canContain": 2, "inReceptacle": 2, "receptacleAtLocation": 2,
    "objectAtLocation": 2, "inReceptacleObject": 2, "atLocation": 2,
}  # fmt: skip
_PROPERTIES = (
    "openable", "opened", "pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "isReceptacleObject",
    "isClean", "isHot", "isCool", "isToggled", "isOn", "isSliced",
)  # fmt: skip


def _entities(facts: Mapping[str, list[list[str]]], where: str) -> dict[str, Any]:
    """The parts of a game that come from the facts of its initial state."""
    for name, rows in facts.items():
        arity = _ARITY.get(name, 1)
        if (name in _ARITY or name in _PROPERTIES) and any(len(row) != arity for row in rows):
            raise BadGameError(f"{where}: a fact {name!r} does not have {arity} argument(s)")
        if name in ("holds", "holdsAny"):
            raise UnsupportedGameError(f'{where}: the agent starts with something in hand; engine="textworld" plays it')
    ids = sorted({a.lower() for name, rows in facts.items() if name != "canContain" for row in rows for a in row})
    names = display_names(ids)
    order = {names[i]: rank for rank, i in enumerate(i for i in ids if i in names)}

    def name_of(mangled: str) -> str:
        name = names.get(mangled.lower())
        if name is None:
            raise BadGameError(f"{where}: {mangled!r} is no entity of the game")
        return name

    def pairs(fact: str) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in facts.get(fact, [])]

    def grouped(rows: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
        out: dict[str, list[str]] = {}
        for key, value in rows:
            out.setdefault(key, []).append(value)
        return {key: tuple(sorted(set(values), key=lambda v: order.get(v, 0))) for key, values in out.items()}

    start = pairs("atLocation")
    if len(start) != 1:
        raise BadGameError(f"{where}: expected the agent at one location, got {len(start)}")
    at = [(name_of(r), location) for r, location in pairs("receptacleAtLocation")]
    if not at:
        raise BadGameError(f"{where}: there is no receptacle at any location")
    receptacles = {r: location for r, location in sorted(at, key=lambda pair: order[pair[0]])}
    contents = grouped([(name_of(r), name_of(o)) for o, r in pairs("inReceptacle")])
    missing = [
        r for r in contents if r not in receptacles and r not in {name_of(x) for x, _ in pairs("receptacleType")}
    ]
    if missing:
        raise BadGameError(f"{where}: {missing[0]!r} holds something but is no receptacle of the game")
    inside = grouped([(name_of(outer), name_of(inner)) for inner, outer in pairs("inReceptacleObject")])
    # Objects inside each other, even inside themselves, occur in the official games: nothing follows the nesting.
    return {
        "order": order,
        "receptacles": receptacles,
        "receptacle_types": {name_of(r): t.removesuffix("Type") for r, t in pairs("receptacleType")},
        "object_types": {name_of(o): t.removesuffix("Type") for o, t in pairs("objectType")},
        "contents": contents,
        "locations": grouped([(name_of(o), location) for o, location in pairs("objectAtLocation")]),
        "inside": inside,
        "start": start[0][1],
        "properties": {p: frozenset(name_of(row[0]) for row in facts.get(p, [])) for p in _PROPERTIES},
        "fits": _fits(tuple(sorted(pairs("canContain")))),
    }
