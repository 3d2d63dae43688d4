"""The native engine: commands, snapshots and subgoals. That its texts are ALFWorld's, `test_lockstep` shows."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentprm_gym.engines import ENGINES, make_engine
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.games import TASK_TYPES, Game, GameList, find_games
from agentprm_gym.games.listing import GENERATED_SIZES
from tests.drawn_play import COMMAND, STABLE, meant
from tests.odd_game import odd_game


def run(engine: NativeEngine, *commands: str) -> str:
    """Execute commands that must all be admissible; returns the last feedback."""
    frame = engine.step("help")
    for command in commands:
        assert command in frame.admissible_commands, (command, frame.admissible_commands)
        frame = engine.step(command)
    return frame.feedback


def started(game: Game) -> NativeEngine:
    engine = NativeEngine()
    engine.reset(game)
    return engine


def test_engines_are_made_by_name() -> None:
    assert isinstance(make_engine("native"), NativeEngine)
    with pytest.raises(ValueError) as caught:
        make_engine("fast")
    assert all(name in str(caught.value) for name in ("'fast'", *ENGINES))


def test_without_a_game_there_is_a_clear_error() -> None:
    acts: list[Callable[[NativeEngine], object]] = [
        lambda engine: engine.step("look"),
        lambda engine: engine.snapshot(),
        lambda engine: engine.restore(None),
        lambda engine: engine.subgoals(),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match="reset"):
            act(NativeEngine())


def test_the_first_feedback_names_the_room_and_the_task() -> None:
    frame = NativeEngine().reset(odd_game())
    assert frame.feedback == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a bathtubbasin 1, a cabinet 1, a drawer 1, a fridge 1, a microwave 1, a shelf 2, a shelf 1, a sidetable 1, "
        "and a sinkbasin 1.\n\nYour task is to: look around."
    )
    assert list(frame.admissible_commands) == sorted(set(frame.admissible_commands))
    assert not frame.won


@pytest.mark.parametrize(
    "command",
    ["", " ", "dance", "LOOK", "go to  shelf 1", "go to shelf 3", "take pan 1 from sidetable 1", "é"],
)
def test_what_is_not_admissible_changes_nothing(command: str) -> None:
    engine = started(odd_game())
    before, state = engine.step("go to shelf 1"), engine.snapshot()
    frame = engine.step(command)
    assert frame == before._replace(feedback="Nothing happens.")
    assert engine.snapshot() == state


def test_white_space_around_a_command_does_not_matter() -> None:
    assert started(odd_game()).step("  go to shelf 1\n") == started(odd_game()).step("go to shelf 1")


def test_every_admissible_command_does_something(generated_games: GameList, one_of_each_type: list[int]) -> None:
    rng = random.Random(0)
    for index in one_of_each_type:
        engine = NativeEngine()
        frame = engine.reset(generated_games[index])
        for _ in range(60):
            state = engine.snapshot()
            for command in frame.admissible_commands:
                assert engine.step(command).feedback != "Nothing happens."
                engine.restore(state)
            frame = engine.step(rng.choice(frame.admissible_commands))


ODD_GAMES = st.builds(odd_game, st.sampled_from(TASK_TYPES), st.integers(0, 6).map("loc_bar_{}".format))
GENERATED_GAMES = st.integers(0, GENERATED_SIZES["train"] - 1).map(lambda i: find_games("train", "generated")[i])


def check_branches(game: Game, commands: list[int | str], branch_points: list[int]) -> None:
    """Play on from snapshots taken on the way, in this engine and in another, as they are and after pickling."""
    engine, other = started(game), started(game)
    frames, states = [engine.step("look")], [engine.snapshot()]
    path = []
    for command in commands:
        path.append(meant(command, frames[-1]))
        frames.append(engine.step(path[-1]))
        states.append(engine.snapshot())
    # Bytes: thousands of them are kept for branching.
    assert max(len(pickle.dumps(state)) for state in states) < 2000
    for point in branch_points:
        start = point % len(states)
        for player, state in ((engine, states[start]), (other, pickle.loads(pickle.dumps(states[start])))):
            assert player.restore(state) == frames[start]._replace(feedback="")
            assert player.snapshot() == states[start]
            for command, expected, reached in zip(path[start:], frames[start + 1 :], states[start + 1 :], strict=True):
                assert player.step(command) == expected
                assert player.snapshot() == reached


@settings(STABLE, max_examples=150)
@given(
    ODD_GAMES | GENERATED_GAMES,
    st.lists(COMMAND, min_size=20, max_size=50),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_a_branch_from_a_snapshot_continues_as_an_unbroken_play(
    game: Game, commands: list[int | str], branch_points: list[int]
) -> None:
    check_branches(game, commands, branch_points)


def test_a_branch_of_a_real_game_continues_as_an_unbroken_play(real_games: GameList) -> None:
    rng = random.Random(3)
    for index in rng.sample(range(len(real_games)), 60):
        commands: list[int | str] = [rng.randrange(9999) for _ in range(50)]
        check_branches(real_games[index], commands, [40, 0, 25])


def test_play_after_a_snapshot_leaves_it_alone() -> None:
    engine = started(odd_game())
    run(engine, "go to drawer 1", "take knife 1 from drawer 1")
    state, copy = engine.snapshot(), pickle.dumps(engine.snapshot())
    run(engine, "move knife 1 to drawer 1", "close drawer 1", "go to shelf 1", "take apple 1 from shelf 1")
    assert pickle.dumps(state) == copy
    engine.restore(state)
    assert engine.step("inventory").feedback == "You are carrying: a knife 1."


def test_a_snapshot_knows_what_lies_next_to_the_furniture() -> None:
    engine, other = started(odd_game()), started(odd_game())
    run(engine, "go to shelf 1", "take apple 1 from shelf 1", "move apple 1 to shelf 2")
    other.restore(pickle.loads(pickle.dumps(engine.snapshot())))
    beside = other.step("look").feedback
    assert beside == engine.step("look").feedback
    assert beside.endswith("Next to it, you see a apple 1.")


def test_only_snapshots_of_the_loaded_game_are_taken() -> None:
    engine = started(odd_game())
    for wrong in (started(odd_game(start="loc_bar_1")).snapshot(), ("look",), None):
        with pytest.raises(ValueError, match="expected a snapshot of the loaded game"):
            engine.restore(wrong)
    assert engine.step("look").feedback != ""


def test_a_reset_forgets_everything() -> None:
    engine, game = NativeEngine(), odd_game("pick_heat_then_place_in_recep")
    first, state = engine.reset(game), engine.snapshot()
    run(engine, "go to shelf 1", "take apple 1 from shelf 1", "go to microwave 1", "heat apple 1 with microwave 1")
    run(engine, "open microwave 1", "move apple 1 to microwave 1")
    assert engine.reset(game) == first
    assert engine.snapshot() == state


def test_winning_is_not_for_ever() -> None:
    engine = started(odd_game("pick_and_place_simple"))
    run(engine, "go to sidetable 1", "take pan 1 from sidetable 1", "go to shelf 1")
    assert engine.step("move pan 1 to shelf 1").won
    assert engine.subgoals() == (2, 2)
    assert not engine.step("take pan 1 from shelf 1").won
    assert engine.subgoals() == (1, 2)


def test_walking_up_to_a_lamp_that_is_on_can_win() -> None:
    engine = started(odd_game("look_at_obj_in_light"))
    run(engine, "go to sidetable 1", "use desklamp 1", "go to shelf 1", "take apple 1 from shelf 1")
    assert engine.subgoals() == (1, 2)
    assert engine.step("go to sidetable 1").won


def progress(game: Game, script: str) -> list[int]:
    """Subgoals done after each of the commands."""
    engine = started(game)
    done = [engine.subgoals()[0]]
    for command in script.split("|"):
        run(engine, command)
        done.append(engine.subgoals()[0])
    return done


@pytest.mark.parametrize(
    ("task_type", "script", "expected"),
    [
        (
            "pick_and_place_simple",
            "go to sidetable 1|take pan 1 from sidetable 1|go to shelf 1|move pan 1 to shelf 2|take pan 1 from shelf 2",
            [0, 0, 1, 1, 2, 1],
        ),
        (
            "look_at_obj_in_light",
            "go to shelf 1|take apple 1 from shelf 1|go to sidetable 1|use desklamp 1|go to shelf 1",
            [0, 0, 1, 1, 2, 1],
        ),
        (  # laid down before it is hot, it must be fetched again
            "pick_heat_then_place_in_recep",
            "go to shelf 1|take apple 1 from shelf 1|move apple 1 to shelf 2|take apple 1 from shelf 2|"
            "go to microwave 1|heat apple 1 with microwave 1|go to fridge 1|cool apple 1 with fridge 1|"
            "go to microwave 1|heat apple 1 with microwave 1|go to shelf 1|move apple 1 to shelf 1",
            [0, 0, 1, 0, 1, 1, 2, 2, 1, 1, 2, 2, 3],
        ),
        (  # apple 3 is clean from the start and lies in the drawer, too: the goal holds at once
            "pick_clean_then_place_in_recep",
            "go to drawer 1|take apple 3 from drawer 1|move apple 3 to drawer 1",
            [3, 3, 2, 3],
        ),
        (  # apple 2 is cool from the start
            "pick_cool_then_place_in_recep",
            "go to fridge 1|open fridge 1|take apple 2 from fridge 1|go to cabinet 1|open cabinet 1|"
            "move apple 2 to cabinet 1",
            [1, 1, 1, 2, 2, 2, 3],
        ),
        (  # one apple lies in the drawer from the start
            "pick_two_obj_and_place",
            "go to shelf 1|take apple 1 from shelf 1|go to drawer 1|move apple 1 to drawer 1|"
            "take apple 3 from drawer 1",
            [2, 2, 3, 3, 4, 3],
        ),
    ],
)
def test_subgoals_tell_how_far_the_task_is(task_type: str, script: str, expected: list[int]) -> None:
    assert progress(odd_game(task_type), script) == expected


def test_all_subgoals_are_done_exactly_when_the_game_is_won(
    generated_games: GameList, one_of_each_type: list[int]
) -> None:
    rng = random.Random(2)
    for index in one_of_each_type:
        game, engine = generated_games[index], NativeEngine()
        frame, walkthrough = engine.reset(game), list(game.walkthrough)
        wins = 0
        while walkthrough:
            detour = rng.random() < 0.3
            frame = engine.step("look" if detour else walkthrough.pop(0))
            done, total = engine.subgoals()
            assert 0 <= done <= total and (done == total) == frame.won
            wins += frame.won
        assert wins


def test_the_domains_version_decides_what_a_sink_is() -> None:
    for sinks, expected in ((frozenset({"SinkBasin"}), False), (frozenset({"SinkBasin", "Sink"}), True)):
        game = odd_game()
        types = {**game.receptacle_types, "sinkbasin 1": "Sink"}
        game = type(game)(
            **{**{f: getattr(game, f) for f in game.__slots__}, "receptacle_types": types, "sink_types": sinks}
        )
        engine = started(game)
        run(engine, "go to shelf 1", "take apple 1 from shelf 1")
        frame = engine.step("go to sinkbasin 1")
        assert ("clean apple 1 with sinkbasin 1" in frame.admissible_commands) is expected


def test_every_real_game_is_won_by_its_walkthrough(real_games: GameList) -> None:
    for game in real_games[::40]:
        engine = started(game)
        frames = [engine.step(command) for command in game.walkthrough]
        assert [frame.won for frame in frames] == [False] * (len(frames) - 1) + [True], game.path
