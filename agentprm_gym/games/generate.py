"""Make ALFWorld games from what the alfworld package ships: for whoever has not got the real ones.

A game is a function of (split, index, seed) and of nothing else. Its floor plan, receptacles,
domain, grammar and affordances are the package's; how many things lie where is drawn from totals
counted over the real train games (`room_statistics.json`). The goal is chosen first and the room
filled around it, so that every game can be won, and `walkthrough` says how. textworld is not needed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from agentprm_gym.games import problem_text
from agentprm_gym.games.problem_text import Room, Thing
from agentprm_gym.games.scenes import (
    SEEN_SCENES,
    UNSEEN_SCENES,
    Receptacle,
    Scene,
    location_id,
    mangle,
    scene,
)

GENERATOR_VERSION = "1"
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_SPLIT_LETTERS = {"train": "T", "valid_seen": "S", "valid_unseen": "U"}
# What an object must admit, and where that is done.
_TREATMENTS = {
    "pick_clean_then_place_in_recep": ("clean", "cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("heat", "heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("cool", "coolable", "Fridge"),
}
# Goals that the real data never asks for in a room of this kind, but which fit: this share.
_NOVEL_GOAL_SHARE = 0.15


class Goal(NamedTuple):
    """What a game asks for: its id, the floor plan and the classes of object and receptacle."""

    game_id: str
    task_type: str
    object_type: str
    receptacle_type: str
    scene: int


@cache
def _tables() -> dict[str, Any]:
    return _read("alfred_tables.json")


@cache
def _statistics() -> dict[str, Any]:
    return _read("room_statistics.json")


def _read(name: str) -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return tables


def split_scenes(split: str) -> tuple[int, ...]:
    """The floor plans of a split, as ALFRED divides them: `valid_unseen` shares none with `train`.

    Raises:
        ValueError: unknown split.
    """
    if split not in _SPLIT_LETTERS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(_SPLIT_LETTERS)}")
    return UNSEEN_SCENES if split == "valid_unseen" else SEEN_SCENES


@cache
def _furniture(number: int) -> tuple[Receptacle, ...]:
    """The receptacles of a floor plan, those included of which it only says that they exist."""
    place = scene(number)
    rng = Random(f"furniture {number}")
    extra = _statistics()["extra_receptacles"][place.kind]
    found = list(place.receptacles)
    known = {r.type for r in found}
    spots = [(r.position, r.location) for r in found]
    for kind in place.receptacle_types:
        # The floor plan promises at least one of each; "more" counts those beside the listed ones.
        n = _draw(rng, extra.get(f"more {kind}", [1]) if kind in known else extra.get(kind, [0, 1]))
        location = ""
        for _ in range(n):
            (x, y, z), _unused = rng.choice(spots)
            x, z = x + rng.uniform(-1, 1), z + rng.uniform(-1, 1)
            if not location or rng.random() < 0.8:  # some neighbours are reached from one spot
                location = location_id(x, z, 90 * rng.randrange(4), rng.choice((45, 60)))
            suffix = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}.get(kind)
            name = _object_id(suffix or kind, x, y, z) + (f"_bar_{kind}" if suffix else "")
            found.append(Receptacle(name, kind, (x, y, z), location, False))
    return tuple(sorted({r.id: r for r in found}.values()))


@cache
def _homes(number: int, object_type: str) -> tuple[tuple[Receptacle, ...], tuple[int, ...]]:
    """Where in a floor plan an object of this class may lie at first, with weights."""
    rates = _statistics()["homes"].get(object_type, {})
    furniture = _furniture(number)
    weights = [rates.get(r.type, 0) for r in furniture]
    if not any(weights):
        can_contain = _tables()["can_contain"]
        weights = [int(object_type in can_contain.get(r.type, ())) for r in furniture]
    kept = [(r, w) for r, w in zip(furniture, weights, strict=True) if w]
    return tuple(r for r, _ in kept), tuple(w for _, w in kept)


@cache
def _possible_goals(
    number: int, task_type: str
) -> tuple[tuple[tuple[str, str], ...], tuple[float, ...]]:
    """All (object class, receptacle class) pairs that a floor plan can ask for, with weights."""
    place = scene(number)
    counts = _statistics()["goals"][task_type].get(place.kind, {})
    liftable = set(_statistics()["pickupable"])
    furniture = {r.type for r in _furniture(number)}
    _, affordance, appliance = _TREATMENTS.get(task_type, ("", "", ""))
    objects = [o for o in place.object_types if o in liftable and _homes(number, o)[0]]
    if affordance:
        objects = (
            [o for o in objects if o in _tables()[affordance]] if appliance in furniture else []
        )
    pairs = []
    if task_type == "look_at_obj_in_light":
        if "DeskLamp" in place.object_types and _homes(number, "DeskLamp")[0]:
            pairs = [(o, "DeskLamp") for o in objects]
    else:
        can_contain = _tables()["can_contain"]
        for o in objects:
            types = {r.type for r in _homes(number, o)[0]}
            for r in sorted(furniture):
                if o in can_contain.get(r, ()) and types - {r} and r != appliance:
                    pairs.append((o, r))
    weights = [float(counts.get(f"{o} {r}", 0)) for o, r in pairs]
    flat = _NOVEL_GOAL_SHARE * (sum(weights) or 1.0) / max(len(pairs), 1)
    return tuple(pairs), tuple(w + flat for w in weights)


@cache
def _scenes_by_kind(split: str, task_type: str) -> tuple[list[list[int]], list[int]]:
    kinds = _statistics()["room_kinds"][task_type]
    groups: dict[str, list[int]] = defaultdict(list)
    for number in split_scenes(split):
        if scene(number).kind in kinds and _possible_goals(number, task_type)[0]:
            groups[scene(number).kind].append(number)
    names = sorted(groups)
    return [groups[k] for k in names], [kinds[k] for k in names]


def _draw(rng: Random, histogram: list[int]) -> int:
    """Draw a count from a histogram of counts."""
    return rng.choices(range(len(histogram)), histogram)[0]


def _choose_goal(rng: Random, split: str, index: int, seed: int, task_type: str | None) -> Goal:
    if task_type is None:
        task_type = TASK_TYPES[index % len(TASK_TYPES)]
    elif task_type not in TASK_TYPES:
        raise ValueError(f"unknown task type {task_type!r}: choose from {', '.join(TASK_TYPES)}")
    groups, weights = _scenes_by_kind(split, task_type)
    number = rng.choice(rng.choices(groups, weights)[0])
    pairs, pair_weights = _possible_goals(number, task_type)
    target, receptacle = rng.choices(pairs, pair_weights)[0]
    place = "None-DeskLamp" if task_type == "look_at_obj_in_light" else f"None-{receptacle}"
    trial = f"trial_G{_SPLIT_LETTERS[split]}{seed}_{index}"
    return Goal(
        f"{task_type}-{target}-{place}-{number}/{trial}", task_type, target, receptacle, number
    )


def _rng(split: str, index: int, seed: int, task_type: str | None) -> Random:
    split_scenes(split)
    if index < 0:
        raise ValueError(f"expected a game index of 0 or more, got {index}")
    return Random(f"{GENERATOR_VERSION} {seed} {split} {index} {task_type or ''}")


def generated_game_id(
    split: str, index: int, seed: int = 0, *, task_type: str | None = None
) -> str:
    """The id that `generate_game` will give, without making the game (some 20 microseconds).

    Raises:
        ValueError: unknown split or task type, or a negative index.
    """
    return _choose_goal(_rng(split, index, seed, task_type), split, index, seed, task_type).game_id


def generate_game(
    split: str, index: int, seed: int = 0, *, task_type: str | None = None
) -> dict[str, Any]:
    """Make one game.

    Args:
        split: `"train"`, `"valid_seen"` (the floor plans of train, otherwise filled) or
            `"valid_unseen"` (floor plans that no other split has).
        index: Which game of the split, from 0 on; there is no last one.
        seed: Another seed is another, independent series of games.
        task_type: Ask for this one; by default the six types take turns along the index.

    Returns:
        The official file's keys (`pddl_domain`, `grammar`, `pddl_problem`, `solvable`,
        `walkthrough`), and `game_id`, `task_type` and `split`.

    Raises:
        ValueError: unknown split or task type, or a negative index.
        FileNotFoundError: the package alfworld is not installed.
    """
    rng = _rng(split, index, seed, task_type)
    goal = _choose_goal(rng, split, index, seed, task_type)
    room, targets, lamps = _fill(rng, goal)
    task = problem_text.task_text(rng, goal.task_type, goal.object_type, goal.receptacle_type)
    domain, grammar = problem_text.domain_and_grammar()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL.", task),
        "pddl_problem": problem_text.problem(
            goal.game_id.split("/")[1], room, goal.task_type, goal.object_type, goal.receptacle_type
        ),
        "solvable": True,
        "walkthrough": _walkthrough(goal, room, targets, lamps),
        "game_id": goal.game_id,
        "task_type": goal.task_type,
        "split": split,
    }


def _object_id(kind: str, x: float, y: float, z: float) -> str:
    return mangle(f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}")


def _fill(rng: Random, goal: Goal) -> tuple[Room, list[Thing], list[Thing]]:
    """Put objects into the goal's floor plan; returns the room, the targets, and the lamps."""
    place: Scene = scene(goal.scene)
    statistics, furniture = _statistics(), _furniture(goal.scene)
    placed, hidden = statistics["placed"][place.kind], statistics["hidden"][place.kind]
    liftable = set(statistics["pickupable"])
    by_type: dict[str, list[Receptacle]] = defaultdict(list)
    for r in furniture:
        by_type[r.type].append(r)
    # Two of a kind, or one to look for, may not lie in the goal's receptacles from the start.
    barred = goal.receptacle_type if goal.task_type not in _TREATMENTS else ""
    taken: set[str] = set()
    things: list[Thing] = []

    def put(kind: str, where: Receptacle | None) -> Thing:
        while True:
            if where is None:
                x, y, z = rng.uniform(-4, 4), rng.uniform(0, 2), rng.uniform(-4, 4)
                spot = location_id(x, z, 90 * rng.randrange(4), rng.choice((0, 30, 45)))
            else:
                x, y, z = where.position
                x, y, z = (
                    x + rng.uniform(-0.3, 0.3),
                    y + rng.uniform(0, 0.2),
                    z + rng.uniform(-0.3, 0.3),
                )
                spot = where.location
            name = _object_id(kind, x, y, z)
            if name not in taken:
                break
        taken.add(name)
        thing = Thing(name, kind, [] if where is None else [where.id], spot, kind in liftable)
        things.append(thing)
        return thing

    for kind in (*place.object_types, "Faucet"):
        is_target = kind == goal.object_type
        homes, weights = _homes(goal.scene, kind)
        if is_target:
            n = _draw(rng, statistics["n_targets"][goal.task_type])
        else:
            n = _draw(rng, placed[kind]) if kind in placed and homes else 0
            if kind == "DeskLamp" and goal.receptacle_type == kind:
                n = max(n, 1)
        if is_target and barred:
            allowed = [(r, w) for r, w in zip(homes, weights, strict=True) if r.type != barred]
            homes, weights = tuple(r for r, _ in allowed), tuple(w for _, w in allowed)
        for home in rng.choices(homes, weights, k=n) if n else ():
            thing = put(kind, home)
            for other, chance in statistics["also_in"].get(home.type, {}).items():
                if rng.random() < chance and not (is_target and other == barred):
                    second = rng.choice(by_type[other]).id if other in by_type else home.id
                    if second not in thing.receptacles:
                        thing.receptacles.append(second)
            if home.type == "Fridge" and kind in _tables()["coolable"] and not is_target:
                thing.is_cool = rng.random() < statistics["cool_in_fridge"]
        if not is_target and kind in hidden:
            for _ in range(_draw(rng, hidden[kind])):
                put(kind, None)
    _nest(rng, things)
    stands = {r.location for r in furniture}
    while (
        start := location_id(rng.uniform(-2, 2), rng.uniform(-2, 2), 90 * rng.randrange(4), 30)
    ) in stands:
        pass
    room = Room(furniture, things, start, _tables())
    visible = [t for t in things if t.receptacles]
    targets = [t for t in visible if t.type == goal.object_type]
    return room, targets, [t for t in visible if t.type == "DeskLamp"]


def _nest(rng: Random, things: list[Thing]) -> None:
    """Let a few things lie inside a bowl, pot or the like of the same receptacle."""
    holders = set(_tables()["holders"])
    by_home: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        if thing.type in holders and thing.receptacles:
            by_home[thing.receptacles[0]].append(thing)
    for thing in things:
        if thing.receptacles and thing.is_pickupable and rng.random() < 2 * _statistics()["nested"]:
            outer = [
                t for t in by_home[thing.receptacles[0]] if t is not thing and t.inside is None
            ]
            if outer and thing.type not in holders:
                thing.inside = rng.choice(outer).id


def _walkthrough(goal: Goal, room: Room, targets: list[Thing], lamps: list[Thing]) -> list[str]:
    """The commands that win: fetch the first target, treat it, bring it where it belongs."""
    names = room.names()
    kinds = {r.id: r for r in room.receptacles}
    opened: set[str] = set()
    commands: list[str] = []
    here: list[str] = []

    def visit(identity: str, *, opening: bool) -> str:
        if here != [kinds[identity].location]:  # a neighbour may be reached from here already
            commands.append(f"go to {names[identity]}")
            here[:] = [kinds[identity].location]
        if opening and identity not in opened and room.is_openable(kinds[identity]):
            commands.append(f"open {names[identity]}")
            opened.add(identity)
        return names[identity]

    def fetch(thing: Thing) -> str:
        home = visit(thing.receptacles[0], opening=True)
        commands.append(f"take {names[thing.id]} from {home}")
        return names[thing.id]

    targets = sorted(targets, key=lambda t: room.is_openable(kinds[t.receptacles[0]]))
    if goal.task_type == "look_at_obj_in_light":
        fetch(targets[0])
        visit(lamps[0].receptacles[0], opening=False)
        return [*commands, f"use {names[lamps[0].id]}"]
    ends = [r for r in room.receptacles if r.type == goal.receptacle_type]
    end = min(ends, key=room.is_openable).id
    n = 2 if goal.task_type == "pick_two_obj_and_place" else 1
    for thing in targets[:n]:
        item = fetch(thing)
        if goal.task_type in _TREATMENTS:
            verb, _, appliance = _TREATMENTS[goal.task_type]
            spot = next(r.id for r in room.receptacles if r.type == appliance)
            commands.append(f"{verb} {item} with {visit(spot, opening=False)}")
        commands.append(f"move {item} to {visit(end, opening=True)}")
    return commands
