"""Labels of commands: exact with full knowledge, fair without it, and those of a policy that plays on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from agentprm_gym.bench import BenchState
from agentprm_gym.bench.belief import Belief
from agentprm_gym.bench.label_fair import FairReturns, read_transcript, state_entropy
from agentprm_gym.bench.labels import (
    GAMMA,
    LIMIT,
    Continuation,
    exactly_labelled,
    fair_labels,
    fair_returns,
    on_policy_labels,
    oracle_labels,
    replay,
    steps_to_go,
)
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.experts import Planner
from agentprm_gym.experts.search import SearchExpert
from agentprm_gym.games import GameList
from agentprm_gym.games.game import Game
from tests.bench_worlds import all_consistent, as_game, has_single_homes, play, small_games, state_of, states


def searched(game: Game, state: BenchState, command: str, limit: int = LIMIT) -> float:
    """Return of the searching expert behind a command, played from the first turn on and with nothing kept."""
    engine, expert = NativeEngine(), SearchExpert()
    frame = engine.reset(game)
    for given in (*state.played(), command):
        expert.act(state.task, frame.feedback, frame.admissible_commands)
        expert.executed(given)
        frame = engine.step(given)
    for n in range(limit + 1):
        if frame.won:
            return float(GAMMA**n)
        if n < limit:
            frame = engine.step(expert.act(state.task, frame.feedback, frame.admissible_commands)[1])
    return 0.0


# The oracle -----------------------------------------------------------------------------------


def test_oracle_values_are_those_of_shortest_plans(generated_games: GameList) -> None:
    n_wins = n_dead = 0
    won = next(g for g in generated_games if g.goal.kind == "place")
    nearly_won = (won, state_of(won, play(won, "expert", random.Random(0))))
    some = list(states(generated_games, 60, seed=3))
    dead = next((game, state) for game, state in some if None in steps_to_go(game, state))
    for game, state in [nearly_won, dead, *some[:8]]:
        planner, engine = Planner(game), NativeEngine()
        steps, values = steps_to_go(game, state), oracle_labels(game, state).values
        assert len(steps) == len(values) == len(state.commands)
        for command, n, value in zip(state.commands, steps, values, strict=True):
            engine.reset(game)
            engine.restore(replay(game, state))
            frame = engine.step(command)
            if n is None:
                assert value == 0.0
                n_dead += 1
                with pytest.raises(ValueError, match="cannot be won"):
                    planner.plan(engine.snapshot())
                continue
            plan = planner.plan(engine.snapshot())
            for planned in plan:
                assert not frame.won
                frame = engine.step(planned)
            assert frame.won
            assert len(plan) == n
            assert value == pytest.approx(0.95**n)
            n_wins += n == 0
    assert n_wins
    assert n_dead


def test_oracle_labels_are_exact() -> None:
    game = small_games()[0]
    state = state_of(game, [])
    labels = oracle_labels(game, state)
    assert labels.stderr is None
    assert labels.n == 0
    assert max(labels.values) == pytest.approx(0.95 ** (Planner(game).cost_to_go(replay(game, state)) - 1))
    assert max(oracle_labels(game, state, gamma=1.0).values) == 1.0


def test_a_state_of_another_game_is_refused(generated_games: GameList) -> None:
    state = state_of(generated_games[0], [])
    with pytest.raises(ValueError, match="expected its game"):
        replay(generated_games[1], state)
    older = generated_games[0].in_grammar("2.1.1")
    with pytest.raises(ValueError, match="the wording in which the history was played"):
        replay(older, state)
    with pytest.raises(ValueError, match="gamma"):
        oracle_labels(generated_games[0], state, gamma=0.0)


# Fair labels ----------------------------------------------------------------------------------


def test_what_is_hidden_does_not_change_fair_labels(generated_games: GameList) -> None:
    """Two games that have shown the same get the same labels, wherever their hidden objects are."""
    changed = 0
    for game, state in [*states(generated_games, 2, seed=6), *states(small_games(), 9, seed=5)]:
        for world in Belief(game, state.history).draw(2, np.random.default_rng(1)):
            other = as_game(game, world.start)
            assert fair_labels(other, state, 6) == fair_labels(game, state, 6)
            changed += oracle_labels(other, state) != oracle_labels(game, state)
    assert changed


def test_without_hidden_targets_the_fair_value_is_what_the_searching_expert_gets(generated_games: GameList) -> None:
    game = next(g for g in generated_games if g.goal.kind == "place" and has_single_homes(g))
    # All receptacles were looked into.
    tour: list[str] = []
    for r in game.receptacles:
        tour += [f"go to {r}", *([f"open {r}"] if r in game.properties["openable"] else [])]
    state = state_of(game, tour)
    assert not Belief(game, state.history).allowed
    labels = fair_labels(game, state)
    assert labels.stderr is None
    assert labels.values == pytest.approx([searched(game, state, command) for command in state.commands])


def test_the_values_are_means_over_games_that_show_the_same(generated_games: GameList) -> None:
    starts = [(g, state_of(g, [])) for g in generated_games[:9] if g.goal.kind == "place"]
    several = [g for g, state in starts if 6 < Belief(g, state.history).n_relevant < 10_000][:2]
    assert several
    for game, state in [*starts[:3], *states(generated_games, 1, seed=21)]:
        found = Belief(game, state.history).likeliest_and_drawn(6, np.random.default_rng([0, state_entropy(state)]))
        slow = np.array([[searched(as_game(game, w.start), state, c) for c in state.commands] for w in found.worlds])
        returns, labels = fair_returns(game, state, 6), fair_labels(game, state, 6)
        assert returns.returns == pytest.approx(slow)
        # The expert is slower than the planner, and it is stopped when its commands are used up.
        for limit in (4, 6, 8):
            in_time = np.where(slow > GAMMA ** (limit + 0.5), slow, 0.0)
            assert fair_returns(game, state, 6, limit=limit).returns == pytest.approx(in_time)
        assert labels.values == pytest.approx((np.array([w.weight for w in found.worlds]) @ slow).tolist())
        if game in several:
            # Three likeliest worlds, and three that were drawn from the others; equal draws are one world.
            assert (found.n_listed, found.n_drawn, labels.n) == (3, 3, 6)
            left = sum(w.weight for w in found.worlds[3:])
            times = [round(3 * w.weight / left) for w in found.worlds[3:]]
            errors = left * np.repeat(slow[3:], times, axis=0).std(axis=0, ddof=1) / sqrt(3)
            assert labels.stderr == pytest.approx(errors.tolist())


def test_objects_that_the_goal_does_not_name_make_no_difference(generated_games: GameList) -> None:
    n_worlds = 0
    for game, state in states(generated_games, 3, seed=9):
        belief = Belief(game, state.history)
        for world in belief.likeliest_and_drawn(4, np.random.default_rng(0)).worlds[:2]:
            homes = {o: r for r, inside in world.start.contents.items() for o in inside if o in belief.relevant}
            # The same homes of what the goal names, with the other objects of another draw.
            for rest in belief.draw(1, np.random.default_rng(7)):
                contents = {
                    r: tuple(
                        sorted(
                            {
                                *(o for o in rest.start.contents.get(r, game.contents.get(r, ())) if o not in homes),
                                *(o for o in homes if homes[o] == r),
                            },
                            key=game.order.__getitem__,
                        )
                    )
                    for r in game.receptacles
                }
                places = {o: (game.receptacles[r],) for o, r in homes.items()}
                mixed = replace(game, contents=contents, locations={**game.locations, **rest.start.locations, **places})
                same = as_game(game, world.start)
                assert [searched(mixed, state, c) for c in state.commands] == [
                    searched(same, state, c) for c in state.commands
                ]
                n_worlds += mixed.contents != same.contents
    assert n_worlds


def test_fair_labels_depend_on_seed_and_state(generated_games: GameList) -> None:
    game = next(g for g in generated_games if g.goal.kind == "place_two")
    state = state_of(game, [])
    first = fair_labels(game, state, 8, seed=1)
    assert first.n == 8
    assert first == fair_labels(game, state, 8, seed=1)
    assert first != fair_labels(game, state, 8, seed=2)
    assert first != fair_labels(game, replace(state, state_id="another"), 8, seed=1)


def test_all_worlds_are_used_where_they_are_few() -> None:
    game = next(g for g in small_games() if g.goal.kind == "look")
    state = state_of(game, [])
    n = Belief(game, state.history).n_relevant
    assert n > 4
    exact, drawn = fair_labels(game, state, n), fair_labels(game, state, n, listing=False)
    assert exact.stderr is None
    assert exact.n == 0
    assert drawn.stderr is not None
    assert drawn.n == n
    assert fair_labels(game, state, n - 1).n == n - 1


def test_a_command_that_wins_is_worth_one_and_one_that_is_too_slow_nothing(generated_games: GameList) -> None:
    game = next(g for g in generated_games if g.goal.kind == "place")
    commands = play(game, "expert", random.Random(0))
    last = state_of(game, commands)
    best = fair_returns(game, last)
    assert dict(zip(last.commands, best.labels().values, strict=True))[best.choice] == 1.0
    before = state_of(game, commands[:-1])
    choice = fair_returns(game, before).choice
    values = fair_labels(game, before, limit=1).values
    assert dict(zip(before.commands, values, strict=True))[choice] == pytest.approx(GAMMA)
    assert set(fair_labels(game, before, limit=0).values) == {0.0}


def test_exactly_labelled_states_have_both_labels_and_the_steps(generated_games: GameList) -> None:
    game = generated_games[0]
    state = exactly_labelled(game, state_of(game, []), 4, seed=3)
    assert state.steps_to_go == steps_to_go(game, state)
    assert state.labels == {"oracle": oracle_labels(game, state), "fair": fair_labels(game, state, 4, seed=3)}


def test_bad_numbers_are_refused(generated_games: GameList) -> None:
    game = generated_games[0]
    state = state_of(game, [])
    with pytest.raises(ValueError, match="n_worlds of at least 4"):
        fair_labels(game, state, 1)
    with pytest.raises(ValueError, match="gamma"):
        fair_labels(game, state, gamma=1.5)
    with pytest.raises(ValueError, match="limit of 0"):
        fair_labels(game, state, limit=-1)
    with pytest.raises(ValueError, match="does not understand free text"):
        fair_labels(game, replace(state, task="Tidy up, please."))


# Against all consistent worlds ----------------------------------------------------------------


def exact_returns(game: Game, state: BenchState) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each command's return over all consistent worlds, found and played the slow way."""
    found = all_consistent(game, state.history)
    chances = np.array([chance for *_, chance in found])
    returns = np.array([[searched(world, state, command) for command in state.commands] for _, world, _ in found])
    mean = chances @ returns
    return mean, np.sqrt(chances @ (returns - mean) ** 2)


class Compared(NamedTuple):
    """Labels of one state of each of some games, compared with exact ones.

    Attributes:
        outside: by state, which of the labels of 256 drawn worlds are not within two exact standard errors; only those labels
            that are not the same in all worlds.
        outside_own: by state, which of the labels of 16 worlds, half of them listed, are not within two of their own standard
            errors; only in states with more worlds.
        n_certain: number of the labels that are the same in all worlds.
        far: for ``outside_own``, the largest of these labels' errors.
    """

    outside: list[npt.NDArray[np.bool_]]
    outside_own: list[npt.NDArray[np.bool_]]
    n_certain: int
    far: float


def compare_with_enumeration(n_games: int) -> Compared:
    rng, games = random.Random(17), small_games()
    outside: list[npt.NDArray[np.bool_]] = []
    outside_own: list[npt.NDArray[np.bool_]] = []
    n_certain, far = 0, 0.0
    order = iter(rng.sample(range(len(games)), len(games)))
    while len(outside) < n_games:
        game = games[next(order)]
        if not has_single_homes(game):
            continue
        commands = play(game, ("expert", "mixed", "random")[len(outside) % 3], rng)
        state = state_of(game, commands[: rng.randint(0, min(4, len(commands)))])
        mean, deviation = exact_returns(game, state)
        assert fair_labels(game, state, 10_000).values == pytest.approx(mean.tolist(), abs=1e-12)
        error = np.abs(np.array(fair_labels(game, state, 256, listing=False).values) - mean)
        certain = deviation < 1e-9
        assert error[certain] == pytest.approx(0.0, abs=1e-9)
        n_certain += int(certain.sum())
        outside.append((error > 2 * deviation / sqrt(256))[~certain])
        mixed = fair_labels(game, state, 16)
        if mixed.stderr is not None:
            error = np.abs(np.array(mixed.values) - mean)
            outside_own.append((error > 2 * np.array(mixed.stderr) + 1e-9)[~certain])
            far = max(far, float(error.max()))
    return Compared(outside, outside_own, n_certain, far)


def share_and_error(outside: Sequence[npt.NDArray[np.bool_]]) -> tuple[float, float]:
    """The share of labels outside, and its standard error: the labels of a state share their worlds, so states are drawn."""
    hits, sizes = (np.array([f(o) for o in outside], dtype=float) for f in (np.sum, len))
    share = hits.sum() / sizes.sum()
    residuals = hits - share * sizes
    n = len(outside)
    return share, float(sqrt(n / (n - 1) * (residuals**2).sum()) / sizes.sum())


def test_fair_labels_equal_the_average_over_all_consistent_worlds() -> None:
    found = compare_with_enumeration(6)
    share, error = share_and_error(found.outside)
    assert share <= 0.05 + 2 * max(error, sqrt(0.05 * 0.95 / 6))


@pytest.mark.slow
def test_fair_labels_of_200_games_equal_the_average_over_all_consistent_worlds() -> None:
    found = compare_with_enumeration(200)
    (share, error), (own, own_error) = share_and_error(found.outside), share_and_error(found.outside_own)
    print(
        f"{sum(map(len, found.outside))} uncertain labels of 200 states: {share:.4f} (s.e. {error:.4f}) outside of two exact "
        f"standard errors; {found.n_certain} certain labels, all equal; of {sum(map(len, found.outside_own))} labels of "
        f"{len(found.outside_own)} states with more than 16 worlds {own:.4f} (s.e. {own_error:.4f}) outside of two of their "
        f"own standard errors, none of them further than {found.far:.4f}"
    )
    # Of normal errors 4.6 % are outside. The rule was written down before the first run.
    assert share <= 0.05 + 2 * error
    # With eight draws a standard error is itself a guess: of Student's t with 7 degrees of freedom 8.6 % are outside.
    assert own <= 0.086 + 2 * own_error


# The searching expert -------------------------------------------------------------------------


def regrets(pairs: Sequence[tuple[Game, BenchState]], n_worlds: int) -> npt.NDArray[np.float64]:
    """(states, 2): regret of the searching expert's choice by the labels themselves, and by worlds of another seed.

    The best of many noisy values is too high on average. So the second column takes the best command by one seed and
    compares it with the choice by another one.
    """
    rows = []
    for game, state in pairs:
        one, two = (fair_returns(game, state, n_worlds, seed) for seed in (0, 1))
        values, others = one.weights @ one.returns, two.weights @ two.returns
        choice, best = state.commands.index(one.choice), int(values.argmax())
        rows.append((values[best] - values[choice], others[best] - others[choice]))
    return np.array(rows)


def test_the_searching_expert_has_little_fair_regret(generated_games: GameList) -> None:
    assert regrets(list(states(generated_games, 9, seed=31)), 8)[:, 0].mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("player", ["expert", "mixed", "random"])
@pytest.mark.parametrize("source", ["generated", "real"])
def test_the_searching_expert_has_little_fair_regret_in_many_states(
    source: str, player: str, request: pytest.FixtureRequest
) -> None:
    games = request.getfixturevalue(f"{source}_games")
    found = regrets(list(states(games, 100, seed=32, players=[player])), 32)
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / sqrt(len(found))
    print(f"{source} {player}: {mean[0]:.4f} (s.e. {error[0]:.4f}), other seed {mean[1]:.4f} (s.e. {error[1]:.4f})")
    assert mean[0] < 0.02


def test_a_copy_of_the_expert_plays_on_by_itself(generated_games: GameList) -> None:
    for game, state in states(generated_games, 4, seed=33, players=["clumsy"]):
        (original, choice), (another, _) = read_transcript(state), read_transcript(state)
        played = []
        for expert in (another, original.copy()):
            engine, command, commands = NativeEngine(), choice, []
            engine.reset(game)
            engine.restore(replay(game, state))
            for _ in range(20):
                frame = engine.step(command)
                command = expert.act(state.task, frame.feedback, frame.admissible_commands)[1]
                commands.append(command)
            played.append(commands)
        assert played[0] == played[1]
        # What its copy has seen, the original does not know.
        last = state.history[-1]
        assert original.act(state.task, last.feedback, last.admissible_commands)[1] == choice


# A policy that plays on -----------------------------------------------------------------------


def planner_plays_on(continuations: Sequence[Continuation]) -> list[int | None]:
    """Every second rollout of the planner takes one useless step."""
    results: list[int | None] = []
    for c in continuations:
        engine = NativeEngine()
        engine.reset(c.game)
        engine.restore(c.snapshot)
        engine.step(c.command)
        cost = Planner(c.game).cost_to_go(engine.snapshot())
        results.append(None if cost == float("inf") else int(cost) + (c.seed[-1] % 2 if cost else 0))
    return results


def test_on_policy_labels_average_the_rollouts(generated_games: GameList) -> None:
    pairs = list(states(generated_games, 3, seed=41))
    for (game, state), labels in zip(pairs, on_policy_labels(pairs, planner_plays_on, 4), strict=True):
        assert labels.n == 4
        assert labels.stderr is not None
        for n, value, error in zip(steps_to_go(game, state), labels.values, labels.stderr, strict=True):
            if not n:
                assert (value, error) == (float(n is not None), 0.0)
            else:
                one, two = 0.95**n, 0.95 ** (n + 1)
                assert value == pytest.approx((one + two) / 2)
                assert error == pytest.approx(np.std([one, two, one, two], ddof=1) / 2)


def test_a_player_gets_the_transcript_and_a_stream_of_its_own(generated_games: GameList) -> None:
    pairs = list(states(generated_games, 3, seed=42))
    calls: list[list[Continuation]] = []

    def note(continuations: Sequence[Continuation]) -> list[int | None]:
        calls.append(list(continuations))
        return [None] * len(continuations)

    labels = on_policy_labels(pairs, note, 2, seed=6, states_per_call=2)
    assert len(calls) == 2
    asked = [c for call in calls for c in call]
    assert [(c.game, c.command, len(c.history)) for c in asked] == [
        (game, command, state.turn) for game, state in pairs for command in state.commands for _ in range(2)
    ]
    assert len({c.seed for c in asked}) == len(asked)
    assert all(set(found.values) == {0.0} for found in labels)
    alone: list[Continuation] = []
    on_policy_labels(pairs[2:], lambda cs: (alone.extend(cs), [None] * len(cs))[1], 2, seed=6)
    assert alone == calls[1]


def test_a_player_that_answers_wrongly_is_refused(generated_games: GameList) -> None:
    pairs = [(generated_games[0], state_of(generated_games[0], []))]
    n = 2 * len(pairs[0][1].commands)
    with pytest.raises(ValueError, match=f"expected {n} results of the player, one a continuation, got 1"):
        on_policy_labels(pairs, lambda _: [None], 2)
    with pytest.raises(ValueError, match="0 or more steps"):
        on_policy_labels(pairs, lambda cs: [-1] * len(cs), 2)
    with pytest.raises(ValueError, match="n_rollouts of at least 2"):
        on_policy_labels(pairs, planner_plays_on, 1)
    with pytest.raises(ValueError, match="states_per_call"):
        on_policy_labels(pairs, planner_plays_on, 2, states_per_call=0)


def test_weights_count_in_values_and_errors() -> None:
    seen = np.array([[0.2, 0.1], [1.0, 0.5], [0.0, 0.5]])
    labels = FairReturns(seen, np.array([0.6, 0.3, 0.1]), 1, 4, "look").labels()
    assert labels.values == pytest.approx((0.42, 0.26))
    assert labels.stderr == pytest.approx((0.4 * np.std([1, 1, 1, 0], ddof=1) / 2, 0.0))
    assert labels.n == 5
    assert FairReturns(seen, np.array([0.6, 0.3, 0.1]), 3, 0, "look").labels().stderr is None
