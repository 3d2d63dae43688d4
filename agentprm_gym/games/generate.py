"""Make ALFWorld games from what the alfworld package ships: for whoever has not got the real ones.

A game is a function of (split, index, seed) and of nothing else. Its floor plan, receptacles,
domain, grammar and affordances are the package's; how many things lie where is drawn from totals
counted over the real train games (`room_statistics.json`). The goal is chosen first and the room
filled around it, so that every game can be won, and `walkthrough` says how; no textworld needed.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from random import Random
from typing import Any, NamedTuple

from agentprm_gym.games import problem_text
from agentprm_gym.games.furnish import Furnisher, draw, furniture, homes, statistics, tables
from agentprm_gym.games.game import TASK_TYPES
from agentprm_gym.games.problem_text import Room, Thing
from agentprm_gym.games.scenes import SEEN_SCENES, UNSEEN_SCENES, scene

# Counts up whenever the same (split, index, seed) comes to mean another game.
GENERATOR_VERSION = "2"
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


def split_scenes(split: str) -> tuple[int, ...]:
    """The floor plans of a split, as ALFRED divides them: `valid_unseen` shares none with `train`.

    Raises:
        ValueError: unknown split.
    """
    if split not in _SPLIT_LETTERS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(_SPLIT_LETTERS)}")
    return UNSEEN_SCENES if split == "valid_unseen" else SEEN_SCENES


@cache
def _possible_goals(number: int, task_type: str) -> tuple[tuple[tuple[str, str], ...], tuple[float, ...]]:
    """All (object class, receptacle class) pairs that a floor plan can ask for, with weights."""
    place = scene(number)
    counts = statistics()["goals"][task_type].get(place.kind, {})
    liftable = set(statistics()["pickupable"])
    standing = {r.type for r in furniture(number)}
    _, affordance, appliance = _TREATMENTS.get(task_type, ("", "", ""))
    objects = [o for o in place.object_types if o in liftable and homes(number, o)[0]]
    if affordance:
        objects = [o for o in objects if o in tables()[affordance]] if appliance in standing else []
    pairs = []
    if task_type == "look_at_obj_in_light":
        if "DeskLamp" in place.object_types and homes(number, "DeskLamp")[0]:
            pairs = [(o, "DeskLamp") for o in objects]
    else:
        can_contain = tables()["can_contain"]
        for o in objects:
            types = {r.type for r in homes(number, o)[0]}
            for r in sorted(standing):
                if o in can_contain.get(r, ()) and types - {r} and r != appliance:
                    pairs.append((o, r))
    weights = [float(counts.get(f"{o} {r}", 0)) for o, r in pairs]
    flat = _NOVEL_GOAL_SHARE * (sum(weights) or 1.0) / max(len(pairs), 1)
    return tuple(pairs), tuple(w + flat for w in weights)


@cache
def _scenes_by_kind(split: str, task_type: str) -> tuple[list[list[int]], list[int]]:
    kinds = statistics()["room_kinds"][task_type]
    groups: dict[str, list[int]] = defaultdict(list)
    for number in split_scenes(split):
        if scene(number).kind in kinds and _possible_goals(number, task_type)[0]:
            groups[scene(number).kind].append(number)
    names = sorted(groups)
    return [groups[k] for k in names], [kinds[k] for k in names]


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
    return Goal(f"{task_type}-{target}-{place}-{number}/{trial}", task_type, target, receptacle, number)


def _rng(split: str, index: int, seed: int, task_type: str | None) -> Random:
    split_scenes(split)
    if index < 0:
        raise ValueError(f"expected a game index of 0 or more, got {index}")
    return Random(f"{GENERATOR_VERSION} {seed} {split} {index} {task_type or ''}")


def generated_game_id(split: str, index: int, seed: int = 0, *, task_type: str | None = None) -> str:
    """The id that `generate_game` will give, without making the game (some 20 microseconds).

    Raises:
        ValueError: unknown split or task type, or a negative index.
    """
    return _choose_goal(_rng(split, index, seed, task_type), split, index, seed, task_type).game_id


def generate_game(split: str, index: int, seed: int = 0, *, task_type: str | None = None) -> dict[str, Any]:
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
    # Two of a kind, or one to look for, may not lie in the goal's receptacles from the start.
    barred = "" if goal.task_type in _TREATMENTS else goal.receptacle_type
    n_targets = draw(rng, statistics()["n_targets"][goal.task_type])
    furnisher = Furnisher(rng, goal.scene, goal.object_type, n_targets, barred)
    room = furnisher.room(needs_lamp=goal.task_type == "look_at_obj_in_light")
    task = problem_text.task_text(rng, goal.task_type, goal.object_type, goal.receptacle_type)
    domain, grammar = problem_text.domain_and_grammar()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL.", task),
        "pddl_problem": problem_text.problem(
            goal.game_id.split("/")[1], room, goal.task_type, goal.object_type, goal.receptacle_type
        ),
        "solvable": True,
        "walkthrough": _walkthrough(goal, room),
        "game_id": goal.game_id,
        "task_type": goal.task_type,
        "split": split,
    }


def _walkthrough(goal: Goal, room: Room) -> list[str]:
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

    def reachable(kind: str) -> list[Thing]:
        things = [t for t in room.things if t.type == kind and t.receptacles]
        return sorted(things, key=lambda t: room.is_openable(kinds[t.receptacles[0]]))

    targets = reachable(goal.object_type)
    if goal.task_type == "look_at_obj_in_light":
        fetch(targets[0])
        lamp = reachable(goal.receptacle_type)[0]
        visit(lamp.receptacles[0], opening=False)
        return [*commands, f"use {names[lamp.id]}"]
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
