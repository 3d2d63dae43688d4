"""Worlds that a player may believe in: they show the transcript to the letter, and have the stated distribution."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from agentprm_gym.bench import BenchState
from agentprm_gym.bench.belief import Belief, World, consistent_worlds
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.experts.costs import Costs
from agentprm_gym.games import GameList
from agentprm_gym.games.game import Game
from agentprm_gym.games.prior import holding_rate
from tests.bench_worlds import (
    all_consistent,
    as_game,
    has_single_homes,
    history_of,
    play,
    shows,
    small_games,
    state_of,
    states,
)


def homes(game: Game, world: World) -> dict[str, tuple[str, ...]]:
    """Where each object lies at the start of a world."""
    lying: dict[str, list[str]] = {}
    for r, inside in {**game.contents, **world.start.contents}.items():
        for o in inside:
            lying.setdefault(o, []).append(r)
    return {o: tuple(sorted(rs)) for o, rs in lying.items()}


def check_worlds(pairs: Sequence[tuple[Game, BenchState]], n: int) -> int:
    """Assert that worlds show their transcripts; returns how many worlds differ from the game in where something lies."""
    moved = 0
    for game, state in pairs:
        belief = Belief(game, state.history)
        worlds = belief.draw(n, np.random.default_rng(5))
        worlds += belief.likeliest_and_drawn(n, np.random.default_rng(6)).worlds
        for world in worlds:
            other = as_game(game, world.start)
            assert shows(other, state.history), (state.state_id, world.start)
            # The state that is returned is the one where the transcript leads to.
            engine = NativeEngine()
            engine.reset(other)
            for turn in state.history[:-1]:
                engine.step(turn.command)
            mine, given = engine.snapshot(), world.now
            assert {**other.contents, **mine.contents} == {**game.contents, **given.contents}
            assert {**other.locations, **mine.locations} == {**game.locations, **given.locations}
            assert mine._replace(contents={}, locations={}) == given._replace(contents={}, locations={})
            moved += homes(game, world) != homes(game, World(world.start._replace(contents={}), world.now, 1.0))
    return moved


def test_worlds_show_the_transcript_to_the_letter(generated_games: GameList) -> None:
    pairs = list(states(generated_games, 30, seed=1))
    assert check_worlds(pairs, 4) > 100


def test_worlds_of_real_games_show_the_transcript_to_the_letter(real_games: GameList) -> None:
    assert check_worlds(list(states(real_games, 30, seed=2)), 4) > 100


def test_worlds_show_the_transcript_in_the_older_wording(generated_games: GameList) -> None:
    games = [generated_games[i].in_grammar("2.1.1") for i in range(9)]
    assert check_worlds(list(states(games, 9, seed=3)), 4) > 20


@pytest.mark.slow
def test_many_worlds_show_the_transcript_to_the_letter(generated_games: GameList) -> None:
    check_worlds(list(states(generated_games, 600, seed=11)), 8)
    check_worlds(list(states(small_games(), 600, seed=12)), 8)


@pytest.mark.slow
def test_many_worlds_of_real_games_show_the_transcript_to_the_letter(real_games: GameList) -> None:
    check_worlds(list(states(real_games, 600, seed=13)), 8)


def check_every_world(n: int, seed: int) -> int:
    """Assert that the consistent worlds and their chances are those found by trying all; returns how many there were."""
    rng, games, total = random.Random(seed), small_games(), 0
    for i in range(n):
        game = games[rng.randrange(len(games))]
        if not has_single_homes(game):
            continue
        commands = play(game, ("expert", "mixed", "random")[i % 3], rng, 12)
        history = history_of(game, commands[: rng.randint(0, len(commands))])
        found = all_consistent(game, history)
        belief = Belief(game, history)
        relevant: Counter[tuple[str, ...]] = Counter()
        for lying, _, chance in found:
            relevant[tuple(lying[o] for o in belief.relevant)] += chance  # type: ignore[assignment]
        every = belief.likeliest_and_drawn(10_000, np.random.default_rng(0)).worlds
        mine = {tuple(homes(game, world)[o][0] for o in belief.relevant): world.weight for world in every}
        assert mine == pytest.approx(dict(relevant), abs=1e-12)
        # The objects that the goal does not name: each can be exactly where some consistent world has it.
        for o, allowed in belief.allowed.items():
            assert set(allowed) >= {lying[o] for lying, _, _ in found}
            if o not in belief.relevant:
                for r, chance in zip(allowed, belief.chances[o], strict=True):
                    assert chance == pytest.approx(sum(p for lying, _, p in found if lying[o] == r), abs=1e-12)
        total += len(found)
    return total


def test_all_consistent_worlds_are_found_with_their_chances() -> None:
    assert check_every_world(15, 1) > 100


@pytest.mark.slow
def test_all_consistent_worlds_of_many_games_are_found_with_their_chances() -> None:
    assert check_every_world(400, 2) > 1000


def test_draws_follow_the_prior_at_the_start_of_a_game(generated_games: GameList) -> None:
    game = next(g for g in generated_games if g.goal.kind == "place" and g.goal.states and has_single_homes(g))
    target = next(o for o, kind in game.object_types.items() if kind == game.goal.object_type and game.locations[o])
    belief, n = Belief(game, history_of(game, [])), 4000
    assert target in belief.relevant
    worlds = belief.draw(n, np.random.default_rng(3))
    drawn = Counter(homes(game, world)[target][0] for world in worlds)
    # It can be sliced where it lies.
    assert all(w.start.locations[target] == (game.receptacles[homes(game, w)[target][0]],) for w in worlds[:100])
    number = Counter(r.rsplit(" ", 1)[0] for r in game.receptacles)
    kind = target.rsplit(" ", 1)[0]
    rates = {r: holding_rate(kind, r.rsplit(" ", 1)[0], number[r.rsplit(" ", 1)[0]]) for r in game.receptacles}
    for r, rate in rates.items():
        p = rate / sum(rates.values())
        # Five standard errors: one of thirty receptacles beyond that is a chance of one in 50,000.
        assert abs(drawn[r] / n - p) <= 5 * (p * (1 - p) / n) ** 0.5 + 1 / n, r


def test_draws_of_two_objects_follow_the_enumeration() -> None:
    game = next(g for g in small_games() if g.goal.kind == "place_two" and has_single_homes(g))
    belief, n = Belief(game, history_of(game, [])), 4000
    every = belief.likeliest_and_drawn(n, np.random.default_rng(0)).worlds
    exact = {tuple(homes(game, w)[o] for o in belief.relevant): w.weight for w in every}
    # Both in one place of the goal would be won from the start.
    assert len(exact) < belief.n_relevant
    drawn: dict[tuple[tuple[str, ...], ...], float] = dict.fromkeys(exact, 0.0)
    for world in belief.likeliest_and_drawn(n, np.random.default_rng(4), 0).worlds:
        drawn[tuple(homes(game, world)[o] for o in belief.relevant)] += world.weight
    assert sum(drawn.values()) == pytest.approx(1.0)
    for key, p in exact.items():
        assert abs(drawn[key] - p) <= 5 * (p * (1 - p) / n) ** 0.5 + 1 / n, key


def test_the_likeliest_worlds_have_exact_weights_and_the_others_are_drawn() -> None:
    game = next(
        g for g in small_games() if g.goal.kind == "place_two" and has_single_homes(g) and len(g.receptacles) > 4
    )
    belief = Belief(game, history_of(game, []))

    def weights(n: int, seed: int) -> tuple[dict[tuple[tuple[str, ...], ...], float], int, int]:
        found = belief.likeliest_and_drawn(n, np.random.default_rng(seed))
        by_homes = {tuple(homes(game, w)[o] for o in belief.relevant): w.weight for w in found.worlds}
        assert sum(by_homes.values()) == pytest.approx(1.0)
        return by_homes, found.n_listed, found.n_drawn

    exact, n_all, n_drawn = weights(1000, 0)
    assert (n_all, n_drawn) == (len(exact), 0)
    assert n_all > 8
    listed = list(weights(8, 0)[0])[:4]
    assert min(exact[key] for key in listed) >= max(exact[key] for key in exact if key not in listed)
    mean = dict.fromkeys(exact, 0.0)
    for seed in range(400):
        some, n_listed, n_drawn = weights(8, seed)
        assert (n_listed, n_drawn) == (4, 4)
        assert [some[key] for key in listed] == pytest.approx([exact[key] for key in listed])
        for key, weight in some.items():
            mean[key] += weight / 400
    left = 1.0 - sum(exact[key] for key in listed)
    for key, p in exact.items():
        share = p / left
        allowed = 0.0 if key in listed else 5 * left * (share * (1 - share) / 1600) ** 0.5 + left / 1600
        assert abs(mean[key] - p) <= allowed + 1e-9, key


def test_what_was_seen_stays_where_it_was_seen(generated_games: GameList) -> None:
    game = generated_games[0]
    receptacle = next(r for r in game.receptacles if r not in game.properties["openable"] and game.contents.get(r))
    worlds = consistent_worlds(game, history_of(game, [f"go to {receptacle}"]), 50, np.random.default_rng(0))
    assert {({**game.contents, **world.start.contents})[receptacle] for world in worlds} == {game.contents[receptacle]}
    # The rest is not known, and the worlds disagree about it.
    assert len({str(sorted(world.start.contents.items())) for world in worlds}) == 50


def test_a_closed_door_hides_and_an_open_one_does_not(generated_games: GameList) -> None:
    game = next(g for g in generated_games if any(r.startswith("fridge") for r in g.receptacles))
    kinds = Counter(game.receptacles.values())
    assert kinds[game.receptacles["fridge 1"]] == 1
    closed = Belief(game, history_of(game, ["go to fridge 1"]))
    opened = Belief(game, history_of(game, ["go to fridge 1", "open fridge 1"]))
    assert any("fridge 1" in allowed for allowed in closed.allowed.values())
    assert not any("fridge 1" in allowed for allowed in opened.allowed.values())


def test_neighbours_show_what_can_be_taken(generated_games: GameList) -> None:
    for game in generated_games:
        at = {r: [q for q in game.receptacles if game.receptacles[q] == place] for r, place in game.receptacles.items()}
        pairs = [(r, q) for r in at for q in at[r] if q != r and q not in game.properties["openable"]]
        if pairs:
            break
    gone_to, neighbour = pairs[0]
    before = Belief(game, history_of(game, []))
    after = Belief(game, history_of(game, [f"go to {gone_to}"]))
    takeable = game.properties["pickupable"]
    assert any(neighbour in before.allowed[o] for o in before.allowed if o in takeable)
    assert not any(neighbour in after.allowed[o] for o in after.allowed if o in takeable)


def test_a_lamp_behind_a_closed_door_is_known_to_be_there(generated_games: GameList) -> None:
    """The command that turns it on is there before the door is open."""
    from dataclasses import replace

    game = next(g for g in generated_games if g.goal.kind == "look" and g.properties["openable"] & g.receptacles.keys())
    alone = Counter(game.receptacles.values())
    door = next(r for r in game.receptacles if r in game.properties["openable"] and alone[game.receptacles[r]] == 1)
    lamp = next(o for o, kind in game.object_types.items() if kind == game.goal.lamp_type and game.locations[o])
    contents = {r: tuple(o for o in inside if o != lamp) for r, inside in game.contents.items()}
    contents[door] = tuple(sorted((*contents.get(door, ()), lamp), key=game.order.__getitem__))
    hidden = replace(game, contents=contents, locations={**game.locations, lamp: (game.receptacles[door],)})
    assert Belief(hidden, history_of(hidden, [f"go to {door}"])).allowed[lamp] == (door,)


def test_a_knife_in_hand_tells_what_can_be_sliced_behind_closed_doors(generated_games: GameList) -> None:
    pairs = []
    for game in generated_games[:60]:
        knives = [
            (o, r)
            for r, inside in game.contents.items()
            for o in inside
            if game.object_types[o] in ("Knife", "ButterKnife")
        ]
        doors = [r for r in game.receptacles if r in game.properties["openable"]]
        if not knives:
            continue
        knife, r = knives[0]
        opening = [f"open {r}"] if r in game.properties["openable"] else []
        tour = [f"go to {door}" for door in doors if door != r]
        pairs.append((game, state_of(game, [f"go to {r}", *opening, f"take {knife} from {r}", *tour])))
    hiding = [any(c.startswith("slice ") for t in state.history for c in t.admissible_commands) for _, state in pairs]
    assert sum(hiding) > 3
    assert check_worlds(pairs[:12], 4) > 30


def test_the_goal_is_not_reached_before_the_game_begins(generated_games: GameList) -> None:
    for kind in ("place", "place_two"):
        game = next(g for g in generated_games if g.goal.kind == kind and not g.goal.states)
        for world in consistent_worlds(game, history_of(game, []), 50, np.random.default_rng(0)):
            costs = Costs(game)
            assert 0 < costs.cost(costs.read(world.start), world.start.location) < float("inf")


def test_draws_depend_on_the_generator_only(generated_games: GameList) -> None:
    game, state = next(states(generated_games, 1, seed=8))
    same = [consistent_worlds(game, state.history, 9, np.random.default_rng(1)) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != consistent_worlds(game, state.history, 9, np.random.default_rng(2))
    assert [world.weight for world in same[0]] == [pytest.approx(1 / 9)] * 9


def test_a_history_of_another_game_is_refused(generated_games: GameList) -> None:
    state = state_of(generated_games[0], [])
    with pytest.raises(ValueError, match="turn 0 of the history shows"):
        Belief(generated_games[1], state.history)
    with pytest.raises(ValueError, match="at least one turn"):
        Belief(generated_games[0], ())
    with pytest.raises(ValueError, match="n of at least 1"):
        Belief(generated_games[0], state.history).draw(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="n of at least 4"):
        Belief(generated_games[0], state.history).likeliest_and_drawn(3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_listed from 0 to 2"):
        Belief(generated_games[0], state.history).likeliest_and_drawn(4, np.random.default_rng(0), 3)
