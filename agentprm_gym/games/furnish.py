"""Furnish a floor plan: which receptacles stand there, and which things lie in them today."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from agentprm_gym.games.prior import CROWDING
from agentprm_gym.games.problem_text import Room, Thing
from agentprm_gym.games.scenes import Receptacle, location_id, mangle, scene


@cache
def tables() -> dict[str, Any]:
    """What goes where, and what can be done to what: the alfworld package's tables."""
    return _read("alfred_tables.json")


@cache
def statistics() -> dict[str, Any]:
    """How many things of each class lie where: totals over the real train games."""
    return _read("room_statistics.json")


def _read(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return table


def draw(rng: Random, histogram: list[int]) -> int:
    """Draw a count from a histogram of counts."""
    return rng.choices(range(len(histogram)), histogram)[0]


def _object_id(kind: str, x: float, y: float, z: float) -> str:
    return mangle(f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}")


@cache
def furniture(number: int) -> tuple[Receptacle, ...]:
    """The receptacles of a floor plan, those included of which it only says that they exist."""
    place = scene(number)
    rng = Random(f"furniture {number}")
    extra = statistics()["extra_receptacles"][place.kind]
    found = list(place.receptacles)
    known = {r.type for r in found}
    positions = [r.position for r in found]
    for kind in place.receptacle_types:
        # The floor plan promises at least one of each; "more" counts those beside the listed ones.
        n = draw(rng, extra.get(f"more {kind}", [1]) if kind in known else extra.get(kind, [0, 1]))
        location = ""
        for _ in range(n):
            x, y, z = rng.choice(positions)
            x, z = x + rng.uniform(-1, 1), z + rng.uniform(-1, 1)
            if not location or rng.random() < 0.8:  # some neighbours are reached from one spot
                location = location_id(x, z, 90 * rng.randrange(4), rng.choice((45, 60)))
            if kind in ("SinkBasin", "BathtubBasin"):
                name = _object_id(kind.removesuffix("Basin"), x, y, z) + f"_bar_{kind}"
            else:
                name = _object_id(kind, x, y, z)
            found.append(Receptacle(name, kind, (x, y, z), location, False))
    return tuple(sorted({r.id: r for r in found}.values()))


@cache
def homes(number: int, object_type: str) -> tuple[tuple[Receptacle, ...], tuple[int, ...]]:
    """Where in a floor plan an object of this class may lie at first, with weights."""
    rates = statistics()["homes"].get(object_type, {})
    n = Counter(r.type for r in furniture(number))
    weights = [round(rates.get(r.type, 0) * 1e3 / n[r.type] ** CROWDING) for r in furniture(number)]
    if not any(weights):
        fits = tables()["can_contain"]
        weights = [int(object_type in fits.get(r.type, ())) for r in furniture(number)]
    kept = [(r, w) for r, w in zip(furniture(number), weights, strict=True) if w]
    return tuple(r for r, _ in kept), tuple(w for _, w in kept)


class Furnisher:
    """Puts things into a floor plan, one class after the other.

    Args:
        rng: Source of all chance.
        number: The floor plan.
        target: The class of object that the goal is about.
        n_targets: How many of those there are.
        barred: A class of receptacle where no target may lie at first ("" for none).
    """

    def __init__(self, rng: Random, number: int, target: str, n_targets: int, barred: str) -> None:
        self._rng = rng
        self._number = number
        self._target = target
        self._n_targets = n_targets
        self._barred = barred
        self._things: list[Thing] = []
        self._taken: set[str] = set()
        self._by_type: dict[str, list[Receptacle]] = defaultdict(list)
        for receptacle in furniture(number):
            self._by_type[receptacle.type].append(receptacle)

    def room(self, *, needs_lamp: bool) -> Room:
        """Furnish and return the whole room."""
        rng, place = self._rng, scene(self._number)
        placed = statistics()["placed"][place.kind]
        hidden = statistics()["hidden"][place.kind]
        for kind in (*place.object_types, "Faucet"):
            if kind == self._target:
                self._place(kind, self._n_targets)
                continue
            n = draw(rng, placed[kind]) if kind in placed else 0
            self._place(kind, max(n, int(needs_lamp and kind == "DeskLamp")))
            for _ in range(draw(rng, hidden[kind]) if kind in hidden else 0):
                self._put(kind, None)
        self._nest()
        stands = {r.location for r in furniture(self._number)}
        while True:  # nobody starts right at a receptacle
            x, z = rng.uniform(-2, 2), rng.uniform(-2, 2)
            start = location_id(x, z, 90 * rng.randrange(4), 30)
            if start not in stands:
                break
        return Room(furniture(self._number), self._things, start, tables())

    def _place(self, kind: str, n: int) -> None:
        """Put n things of a class where such things lie."""
        places, weights = homes(self._number, kind)
        barred = self._barred if kind == self._target else ""
        if barred:
            allowed = [(r, w) for r, w in zip(places, weights, strict=True) if r.type != barred]
            places, weights = tuple(r for r, _ in allowed), tuple(w for _, w in allowed)
        if not places:
            return
        for home in self._rng.choices(places, weights, k=n):
            thing = self._put(kind, home)
            for other, chance in statistics()["also_in"].get(home.type, {}).items():
                if self._rng.random() < chance and other != barred and other in self._by_type:
                    second = self._rng.choice(self._by_type[other]).id
                    if second not in thing.receptacles:
                        thing.receptacles.append(second)
            if home.type == "Fridge" and kind in tables()["coolable"] and kind != self._target:
                thing.is_cool = self._rng.random() < statistics()["cool_in_fridge"]

    def _put(self, kind: str, where: Receptacle | None) -> Thing:
        """Add one thing, in a receptacle or somewhere about the room."""
        rng = self._rng
        while True:
            if where is None:
                x, y, z = rng.uniform(-4, 4), rng.uniform(0, 2), rng.uniform(-4, 4)
                location = location_id(x, z, 90 * rng.randrange(4), rng.choice((0, 30, 45)))
            else:
                x, y, z = where.position
                x, z = x + rng.uniform(-0.3, 0.3), z + rng.uniform(-0.3, 0.3)
                y += rng.uniform(0, 0.2)
                location = where.location
            name = _object_id(kind, x, y, z)
            if name not in self._taken:
                break
        self._taken.add(name)
        receptacles = [] if where is None else [where.id]
        thing = Thing(name, kind, receptacles, location, kind in statistics()["pickupable"])
        self._things.append(thing)
        return thing

    def _nest(self) -> None:
        """Let a few things lie inside a bowl, pot or the like of the same receptacle."""
        holders = tables()["holders"]
        by_home: dict[str, list[Thing]] = defaultdict(list)
        for thing in self._things:
            if thing.type in holders and thing.receptacles:
                by_home[thing.receptacles[0]].append(thing)
        # Not every thing has a holder beside it: twice the rate gives about the real total.
        chance = 2 * statistics()["nested"]
        for thing in self._things:
            if thing.type in holders or not thing.is_pickupable or not thing.receptacles:
                continue
            outer = by_home[thing.receptacles[0]]
            if outer and self._rng.random() < chance:
                thing.inside = self._rng.choice(outer).id
