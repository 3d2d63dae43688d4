"""The initial state of a game: from PDDL facts about ids to tables of display names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import Any

from agentprm_gym.games.limits import check_declared
from agentprm_gym.games.names import BadGameError, UnsupportedGameError

# The facts that an initial state may hold, and the kinds of their arguments.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "atLocation": ("agent", "location"),
    "receptacleAtLocation": ("receptacle", "location"),
    "objectAtLocation": ("object", "location"),
    "inReceptacle": ("object", "receptacle"),
    "inReceptacleObject": ("object", "object"),
    "wasInReceptacle": ("object", "receptacle"),
    "receptacleType": ("receptacle", "rtype"),
    "objectType": ("object", "otype"),
    "canContain": ("rtype", "otype"),
    "holds": ("agent", "object"),
    "holdsAny": ("agent",),
    "holdsAnyReceptacleObject": ("agent",),
    "examined": ("location",),
    **dict.fromkeys(("openable", "opened", "checked", "full"), ("receptacle",)),
    **dict.fromkeys(
        (
            *("pickupable", "moveable", "cleanable", "heatable", "coolable"),
            *("toggleable", "sliceable", "isReceptacleObject", "isReceptacleObjectFull"),
            *("isClean", "isHot", "isCool", "isOn", "isToggled", "isSliced"),
        ),
        ("object",),
    ),
}
# The facts of one argument that matter to a player.
_PROPERTIES = (
    *("openable", "opened", "pickupable", "cleanable", "heatable", "coolable", "toggleable"),
    *("sliceable", "isReceptacleObject", "isClean", "isHot", "isCool", "isToggled", "isSliced"),
)

_FACT = re.compile(r"\(\s*(\w+)((?:\s+[^\s()]+)*)\s*\)")


def _declared(header: str) -> dict[str, set[str]]:
    """Return the names by kind, from the problem's ``(:objects a b - kind ...)``."""
    kinds: dict[str, set[str]] = {}
    waiting: list[str] = []
    words = iter(header[header.find("(:objects") + len("(:objects") :].replace(")", " ").split())
    for word in words:
        if word == "-":
            kinds.setdefault(next(words, ""), set()).update(waiting)
            waiting = []
        else:
            waiting.append(word)
    return kinds


def read_facts(
    header: str, init: str, where: str, goal_types: Iterable[tuple[str, str]] = ()
) -> dict[str, list[list[str]]]:
    """Read the facts of the initial state.

    Args:
        header: The problem before its ``(:init``, with its ``(:objects ...)``.
        init: The text between ``(:init`` and ``(:goal``.
        where: Path or id, for errors.
        goal_types: Kind and name of the types that the goal names.

    Returns:
        The arguments of all facts by name.

    Raises:
        BadGameError: A fact is not one of the domain's, or it or the goal names something that is not declared.
        UnsupportedGameError: The agent holds something from the start.
    """
    facts: dict[str, list[list[str]]] = {}
    for name, arguments in _FACT.findall(init):
        facts.setdefault(name, []).append(arguments.split())
    if _FACT.sub("", init).strip() != ")":
        raise BadGameError(f"{where}: expected a flat list of facts in (:init ...)")
    declared = _declared(header)
    check_declared(sum(map(len, declared.values())), where)
    for name, rows in facts.items():
        kinds = _SIGNATURES.get(name)
        if kinds is None:
            raise BadGameError(f"{where}: the domain has no fact {name!r}")
        if any(len(row) != len(kinds) for row in rows):
            raise BadGameError(f"{where}: expected {len(kinds)} argument(s) in every {name!r}")
        for i, kind in enumerate(kinds):
            unknown = {row[i] for row in rows} - declared.get(kind, set())
            if unknown:
                raise BadGameError(f"{where}: in {name!r}, {min(unknown)!r} is not a declared {kind}")
    for kind, name in goal_types:
        if name not in declared.get(kind, set()):
            raise BadGameError(f"{where}: in the goal, {name!r} is not a declared {kind}")
    if "holds" in facts or "holdsAny" in facts:
        raise UnsupportedGameError(where, "the agent holds something from the start")
    return facts


def display_names(ids: list[str]) -> dict[str, str]:
    """Return ALFWorld's names by id: the type and a number; the first id in sorted order gets the highest number.

    Args:
        ids: Lower-case ids ("cabinet_bar__minus_01_dot_29..."); ids without ``_bar_`` do not get a name.
    """
    kinds = {i: i.split("_bar_", 1)[0] for i in ids if "_bar_" in i}
    left: dict[str, int] = {}
    for i, kind in kinds.items():
        if "basin" in i:
            kinds[i] = kind = kind + "basin"
        left[kind] = left.get(kind, 0) + 1
    names = {}
    for i in sorted(kinds):
        names[i] = intern(f"{kinds[i]} {left[kinds[i]]}")
        left[kinds[i]] -= 1
    return names


@lru_cache(64)
def _fits(pairs: tuple[tuple[str, str], ...]) -> frozenset[tuple[str, str]]:
    # Cached, since there are few different tables: one for each set of types in a room.
    return frozenset((r.removesuffix("Type"), o.removesuffix("Type")) for r, o in pairs)


def no_entities() -> dict[str, Any]:
    """Return the parts that :func:`read_entities` returns, for a game whose facts are not read."""
    tables = (
        "order",
        "receptacles",
        "location_names",
        "receptacle_types",
        "object_types",
        "contents",
        "locations",
        "inside",
    )
    return {**{table: {} for table in tables}, "start": "", "properties": {}, "fits": frozenset()}


def read_entities(facts: Mapping[str, list[list[str]]], where: str) -> dict[str, Any]:
    """Turn facts about ids into tables of display names: the parts of a ``Game`` that depend on them.

    Args:
        facts: The facts, as :func:`read_facts` returns them.
        where: Path or id, for errors.

    Raises:
        BadGameError: The agent or the receptacles have no location, or an object is at two locations.
        UnsupportedGameError: The facts may be sound, but they are unlike those of the official games.
    """
    # Entities that occur in a fact about themselves are numbered; types are not.
    ids = {a for name, rows in facts.items() if name != "canContain" for row in rows for a in row}
    lowered = {i: i.lower() for i in ids}
    names = display_names(list(lowered.values()))
    order = {names[i]: rank for rank, i in enumerate(sorted(names))}

    def name_of(identity: str) -> str:
        name = names.get(lowered[identity])
        if name is None:
            raise UnsupportedGameError(where, f"{identity!r} has no '_bar_' in its name")
        return name

    def pairs(fact: str) -> list[list[str]]:
        return facts.get(fact, [])

    def grouped(rows: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
        out: dict[str, set[str]] = {}
        for key, value in rows:
            out.setdefault(key, set()).add(value)
        return {key: tuple(sorted(out[key], key=lambda v: (order.get(v, 0), v))) for key in out}

    def typed(fact: str) -> dict[str, str]:
        types = {name_of(entity): intern(t.removesuffix("Type")) for entity, t in pairs(fact)}
        if len(types) < len(pairs(fact)):
            raise UnsupportedGameError(where, f"an entity has several facts {fact!r}")
        return types

    starts = [location for _, location in pairs("atLocation")]
    if len(starts) != 1:
        raise BadGameError(f"{where}: expected the agent at one location, got {len(starts)}")
    at = {name_of(r): intern(location) for r, location in pairs("receptacleAtLocation")}
    if not at:
        raise BadGameError(f"{where}: expected receptacles at locations, got none")
    if len(at) < len(pairs("receptacleAtLocation")):
        raise UnsupportedGameError(where, "a receptacle is at several locations")
    locations = grouped([(name_of(o), intern(at)) for o, at in pairs("objectAtLocation")])
    # In official games an object is often in several receptacles, and a fact may occur twice; two locations never occur.
    torn = [o for o, places in locations.items() if len(places) > 1]
    if torn:
        raise BadGameError(f"{where}: expected {min(torn)!r} at one location, got {len(locations[min(torn)])}")
    return {
        "order": order,
        "receptacles": {r: at[r] for r in sorted(at, key=order.__getitem__)},
        "location_names": {place: names[place.lower()] for place in at.values() if place.lower() in names},
        "receptacle_types": typed("receptacleType"),
        "object_types": typed("objectType"),
        "contents": grouped([(name_of(r), name_of(o)) for o, r in pairs("inReceptacle")]),
        "locations": locations,
        # In official games objects are in each other, in circles, and even in themselves. The rules do not follow the
        # nesting, and TextWorld's queries never bind two variables to the same object.
        "inside": grouped([(name_of(o), name_of(i)) for i, o in pairs("inReceptacleObject") if i != o]),
        "start": intern(starts[0]),
        "properties": {p: frozenset(name_of(row[0]) for row in pairs(p)) for p in _PROPERTIES},
        "fits": _fits(tuple(sorted((r, o) for r, o in pairs("canContain")))),
    }
