"""The planner's costs are those of a breadth-first search through all states, and its plans win."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.experts.planner import Planner, PlannerExpert
from agentprm_gym.games import SPLITS, TASK_TYPES, DataNotFoundError, Game, find_games, parse_game
from agentprm_gym.games.generation.problem_text import goal_text
from algorithms.common.learning.advantages import discounted_returns
from tests.game_files import smallest, write_games
from tests.odd_game import odd_game, room_data

# Commands that leave everything as it is; trying them in every state would only take time.
_IDLE = ("examine ", "help", "inventory", "look", "slice ")
_MAX_STATES = 2_500


# ---------------------------------------------------------------------- rooms, and the truth about them
def _goal(rng: random.Random, task_type: str) -> str:
    """A goal about an apple and a shelf (or a lamp); now and then one that no official game has."""
    formula = goal_text(task_type, "Apple", "DeskLamp" if task_type.startswith("look") else "Shelf")
    if "isHot" in formula and rng.random() < 0.3:
        formula = formula.replace("(isHot ?o)", rng.choice(["(isHot ?o) (isClean ?o)", "(isHot ?o) (isCool ?o)"]))
    if "able ?o)" in formula and rng.random() < 0.5:
        for affordance in ("cleanable", "heatable", "coolable"):
            formula = formula.replace(f"({affordance} ?o)", "")
    return formula


def _room(seed: int, task_type: str) -> Game:
    """Some furniture, two or three things: doors, neighbours, things in two places, what fits nowhere, at random."""
    rng = random.Random(f"{seed} {task_type}")
    goal = _goal(rng, task_type)
    kinds = ["Shelf", rng.choice(["Shelf", "Cabinet", "SideTable"]), rng.choice(["Cabinet", "SideTable"])]
    if task_type.startswith("pick_") and "_then_" in task_type and rng.random() < 0.95:
        wanted = {"isClean": "SinkBasin", "isHot": "Microwave", "isCool": "Fridge"}
        kinds += [kind for state, kind in wanted.items() if state in goal]
    else:
        kinds += ["SideTable"] * rng.randrange(2)
    n_locations = rng.randint(2, 4)
    doors = {"Shelf": 0.4, "Cabinet": 0.8, "Microwave": 0.8, "Fridge": 0.8}
    receptacles = {}
    for i, kind in enumerate(kinds):
        location = "" if rng.random() < 0.03 else f"loc_bar_{rng.randint(1, n_locations)}"
        properties = "" if rng.random() > doors.get(kind, 0) else rng.choice(["openable", "openable opened"])
        receptacles[f"{kind}_bar__{i}"] = (kind, location, properties)
    things: list[str | None] = [
        "Apple",
        rng.choice(["Apple", "Apple", "Fork"]),
        rng.choice(["Apple", "Fork", "DeskLamp", None]),
    ]
    if task_type == "pick_two_obj_and_place":
        things[1] = "Apple"
    if task_type.startswith("look"):
        things[1] = "DeskLamp"
    objects = {}
    for i, kind in enumerate(things[: rng.choice([2, 3, 3])]):
        # Most rooms are not tidy from the start.
        homes = rng.sample(sorted(receptacles), rng.choice([1, 1, 2]))
        homes = [r for r in homes if not r.startswith("Shelf")] if rng.random() < 0.6 else homes
        properties = [p for p in ("cleanable", "heatable", "coolable") if kind == "Apple" and rng.random() < 0.75]
        properties += ["pickupable"] * (rng.random() < (0.5 if kind == "DeskLamp" else 0.95))
        properties += ["toggleable"] * (kind == "DeskLamp" and rng.random() < 0.9)
        properties += [p for p in ("isClean", "isHot", "isCool", "isToggled") if rng.random() < 0.2]
        objects[f"{kind or 'Thing'}_bar__{i}"] = (kind, " ".join(properties), homes, [])
    if "Apple" not in goal or "DeskLamp" in goal:
        # A lamp in reach of nobody declares the type.
        objects["DeskLamp_bar__9"] = ("DeskLamp", "toggleable", [], [])
    if task_type.startswith("look") and rng.random() < 0.15:
        goal = goal.replace("AppleType", "DeskLampType")  # a lamp is to be looked at by the light of a lamp
    pairs = [(r, o) for r in set(kinds) for o in ("Apple", "Fork", "DeskLamp")]
    unfit = {pair for pair in sorted(pairs) if rng.random() < (0.05 if pair == ("Shelf", "Apple") else 0.2)}
    start = f"loc_bar_{rng.randint(0, n_locations)}"
    data = room_data(receptacles, objects, goal, start, unfit=unfit)
    return parse_game(data, game_id=f"{task_type}-room-{seed}/trial_0", split="train")


def _true_costs(game: Game) -> list[tuple[Snapshot, float, dict[str, float]]] | None:
    """Search all states that can be reached, backwards from those that are won.

    Returns:
        Each state, its cost, and the costs of its commands; None where there are too many states.
    """
    engine = NativeEngine()
    first = engine.reset(game)
    states = [engine.snapshot()]
    frames = [first]

    def key(s: Snapshot) -> tuple[object, ...]:
        contents = tuple(s.contents.get(r, game.contents.get(r, ())) for r in game.order)
        return (s.location, s.held, contents, s.opened, s.clean, s.hot, s.cool, s.toggled)

    numbers = {key(states[0]): 0}
    after: list[dict[str, int]] = []
    while len(after) < len(states):
        if len(states) > _MAX_STATES:
            return None
        state, frame = states[len(after)], frames[len(after)]
        reached = {}
        for command in frame.admissible_commands:
            if command.startswith(_IDLE):
                reached[command] = len(after)
                continue
            engine.restore(state)
            got = engine.step(command)
            snapshot = engine.snapshot()
            reached[command] = numbers.setdefault(key(snapshot), len(states))
            if reached[command] == len(states):
                states.append(snapshot)
                frames.append(got)
        after.append(reached)
    before: list[list[int]] = [[] for _ in states]
    for i, reached in enumerate(after):
        for j in reached.values():
            before[j].append(i)
    costs = [0.0 if frame.won else math.inf for frame in frames]
    queue = deque(i for i, frame in enumerate(frames) if frame.won)
    while queue:
        j = queue.popleft()
        for i in before[j]:
            if costs[i] == math.inf:
                costs[i] = costs[j] + 1
                queue.append(i)
    return [(s, c, {a: 1 + costs[j] for a, j in r.items()}) for s, c, r in zip(states, costs, after, strict=True)]


def _compare(task_type: str, seeds: range) -> None:
    rng, n_rooms, n_states, n_hopeless = random.Random(0), 0, 0, 0
    for seed in seeds:
        game = _room(seed, task_type)
        truth = _true_costs(game)
        if truth is None:
            continue
        planner = Planner(game)
        n_rooms, n_states = n_rooms + 1, n_states + len(truth)
        n_hopeless += any(cost == math.inf for _, cost, _ in truth)
        for state, cost, _ in truth:
            assert planner.cost_to_go(state) == cost, (seed, state)
        for state, cost, costs in rng.sample(truth, min(20, len(truth))):
            assert planner.action_costs(state) == costs, (seed, state)
            assert planner.action_costs(state, ["take moon 1 from shelf 1", "go to"]) == dict.fromkeys(
                ["take moon 1 from shelf 1", "go to"], 1 + cost
            )
    # The rooms that are small enough are not just the dull ones.
    assert n_rooms >= len(seeds) / 3 and n_states >= 50 * len(seeds) and n_hopeless > 0


@pytest.mark.ci
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_the_costs_are_those_of_a_search_through_all_states(task_type: str) -> None:
    _compare(task_type, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_the_costs_are_those_of_a_search_through_all_states_of_many_rooms(task_type: str) -> None:
    _compare(task_type, range(12, 300))


# ---------------------------------------------------------------------- plans
def _games() -> Iterator[Game]:
    """Some games of each split, real ones where there are some, and the odd room with each goal."""
    for split in SPLITS:
        for source in ("generated", "alfworld"):
            try:
                games = find_games(split, source)
            except DataNotFoundError:
                continue
            yield from (games[i] for i in range(0, len(games), max(1, len(games) // 40)))
    yield from map(odd_game, TASK_TYPES)


def _walk(game: Game, n_steps: int, rng: random.Random) -> Iterator[Snapshot]:
    """States on the way of a player who does things rather than run about."""
    engine = NativeEngine()
    frame = engine.reset(game)
    for _ in range(n_steps):
        yield engine.snapshot()
        acts = [c for c in frame.admissible_commands if not c.startswith(("go", *_IDLE))]
        frame = engine.step(rng.choice(acts if acts and rng.random() < 0.6 else frame.admissible_commands))


def test_every_plan_wins_in_as_many_commands_as_it_costs_and_each_brings_it_nearer() -> None:
    engine = NativeEngine()
    n_shorter = 0
    for game in _games():
        planner = Planner(game)
        plan = planner.plan()
        frame = engine.reset(game)
        for left, command in zip(range(len(plan), 0, -1), plan, strict=True):
            assert not frame.won and planner.cost_to_go(engine.snapshot()) == left
            frame = engine.step(command)
        assert frame.won and planner.cost_to_go(engine.snapshot()) == 0
        assert planner.plan(engine.snapshot()) == ()
        assert not game.walkthrough or len(plan) <= len(game.walkthrough)
        n_shorter += len(plan) < len(game.walkthrough)
    assert n_shorter > 0


def test_no_command_is_better_than_its_state_and_the_first_of_the_best_begins_the_plan() -> None:
    rng = random.Random(0)
    for game in _games():
        planner = Planner(game)
        for state in _walk(game, 12, rng):
            cost, costs = planner.cost_to_go(state), planner.action_costs(state)
            if cost:
                assert min(costs.values()) == cost
            if 0 < cost < math.inf:
                assert planner.plan(state)[0] == next(c for c in costs if costs[c] == cost)
            assert Planner(game).cost_to_go(state) == cost  # whatever was asked before


def test_q_is_what_the_monte_carlo_targets_would_be_if_one_played_on_perfectly(generated_games: Any) -> None:
    game = generated_games[0]
    planner, engine = Planner(game), NativeEngine()
    plan = planner.plan()
    engine.reset(game)
    targets = discounted_returns([0.0] * (len(plan) - 1) + [1.0], gamma=0.9)
    for command, target in zip(plan, targets, strict=True):
        q = planner.optimal_q(engine.snapshot(), gamma=0.9)
        assert q[command] == max(q.values()) == pytest.approx(target)
        assert q["look"] == pytest.approx(0.9 * target)
        engine.step(command)
    n = len(plan)
    assert (
        planner.optimal_q(planner.start, steps_left=n)[plan[0]]
        > 0
        == planner.optimal_q(planner.start)["look"] - (0.95**n)
    )
    assert planner.optimal_q(planner.start, steps_left=n)["look"] == 0
    assert set(planner.optimal_q(planner.start, steps_left=n - 1).values()) == {0.0}


def _dressed(objects: dict[str, tuple[str | None, str, list[str], list[str]]], task_type: str, start: str) -> Game:
    """An open shelf, a closed cabinet beside it, a sink elsewhere."""
    receptacles = {
        "Shelf_bar__1": ("Shelf", "loc_bar_1", ""),
        "Cabinet_bar__1": ("Cabinet", "loc_bar_1", "openable"),
        "Sink_bar__1_bar_SinkBasin": ("SinkBasin", "loc_bar_2", ""),
    }
    data = room_data(receptacles, objects, goal_text(task_type, "Apple", "Shelf"), start)
    return parse_game(data, game_id=f"{task_type}-room/trial_0", split="train")


def test_what_lies_in_its_place_as_well_need_not_be_put_there() -> None:
    apple = ("Apple", "pickupable cleanable", ["Shelf_bar__1", "Cabinet_bar__1"], ["loc_bar_1"])
    game = _dressed({"Apple_bar__1": apple}, "pick_clean_then_place_in_recep", "loc_bar_1")
    # From the shelf it would have to be brought back; from the cabinet it is taken and stays on the shelf.
    assert Planner(game).plan() == (
        "open cabinet 1",
        "take apple 1 from cabinet 1",
        "go to sinkbasin 1",
        "clean apple 1 with sinkbasin 1",
    )


def test_what_cannot_be_done_costs_infinitely_much_and_has_no_plan() -> None:
    game = _dressed(
        {
            "Apple_bar__1": ("Apple", "pickupable", ["Cabinet_bar__1"], []),
            "Thing_bar__1": (None, "pickupable", ["Shelf_bar__1"], []),  # fits nowhere
        },
        "pick_and_place_simple",
        "loc_bar_1",
    )
    planner, engine = Planner(game), NativeEngine()
    engine.reset(game)
    assert planner.action_costs(planner.start, ["take thing 1 from shelf 1"]) == {"take thing 1 from shelf 1": math.inf}
    engine.step("take thing 1 from shelf 1")
    stuck = engine.snapshot()
    assert planner.cost_to_go(stuck) == math.inf
    assert set(planner.optimal_q(stuck).values()) == {0.0}
    with pytest.raises(ValueError, match="cannot be won"):
        planner.plan(stuck)
    reason, command = PlannerExpert(game).act(stuck)
    assert "Nothing wins" in reason and command == "look"


def test_states_of_another_game_are_refused(generated_games: Any) -> None:
    planner, other = Planner(generated_games[0]), Planner(generated_games[1])
    for ask in (planner.cost_to_go, planner.action_costs, planner.optimal_q, planner.plan):
        with pytest.raises(ValueError, match=r"expected a state of game .*, got one of"):
            ask(other.start)


# ---------------------------------------------------------------------- the expert
def test_the_planning_expert_says_what_it_knows_wherever_a_stranger_has_led_it() -> None:
    rng = random.Random(0)
    for game in _games():
        expert = PlannerExpert(game)
        for state in _walk(game, 5, rng):
            if expert.planner.cost_to_go(state) in (0, math.inf):
                continue
            plan = expert.planner.plan(state)
            reason, command = expert.act(state)
            assert command == plan[0]
            assert f" {len(plan)} more command" in reason and all(named in reason for named in plan[:3])
            assert PlannerExpert(game).act(state) == (reason, command)
    start = expert.planner.start
    engine = NativeEngine()
    engine.reset(game)
    for command in expert.planner.plan(start):
        engine.step(command)
    with pytest.raises(ValueError, match="is won"):
        expert.act(engine.snapshot())


# ---------------------------------------------------------------------- the environment
@pytest.mark.parametrize("engine", ["native", "textworld"])
def test_the_environment_tells_the_cost_of_its_state(engine: str, tmp_path: Path) -> None:
    write_games(tmp_path, smallest(2))
    env: Any = gym.make("ALFWorld-v0", games=str(tmp_path), split="train", engine=engine).unwrapped
    for index in (0, 1, 0):
        env.reset(seed=0, options={"game": index})
        planner = Planner(find_games("train", str(tmp_path))[index])
        plan = planner.plan()
        assert env.cost_to_go() == len(plan)
        assert env.action_costs() == planner.action_costs(planner.start)
        saved = env.snapshot()
        won = False
        for left, command in zip(range(len(plan), 0, -1), plan, strict=True):
            assert env.action_costs([command, "dance"]) == {command: left, "dance": left + 1}
            won = env.step(command)[2]
        assert won and env.cost_to_go() == 0
        env.restore(saved)
        assert env.cost_to_go() == len(plan)
    env.close()
