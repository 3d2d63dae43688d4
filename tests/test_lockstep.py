"""Lockstep: the native engine says what the stock TextWorld + ALFWorld stack says, string for string."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agentprm_gym.engines import make_engine
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.engines.textworld import TextWorldEngine
from agentprm_gym.games import (
    GRAMMARS,
    TASK_TYPES,
    BadGameError,
    DataNotFoundError,
    Game,
    GameList,
    find_games,
    parse_game,
    reword_command,
)
from agentprm_gym.games.listing import GENERATED_SIZES
from benchmarks._lockstep_play import compare, play_game, scripted
from benchmarks.lockstep import at_hand, spread
from tests.drawn_play import COMMAND, STABLE, drawn
from tests.odd_game import odd_data, odd_game


@pytest.fixture(scope="module")
def stock() -> Iterator[TextWorldEngine]:
    engine = TextWorldEngine()
    yield engine
    engine.close()


def agree(stock: TextWorldEngine, game: Game, seed: int) -> Counter[str]:
    """Play in both engines, as the benchmark does; returns how often each kind of command was executed."""
    kinds, difference = play_game(NativeEngine(), stock, game, seed)
    assert difference is None, str(difference)
    return kinds


def odd_real_games(games: GameList, n: int, seed: int) -> list[Game]:
    """Games of all six types in turn, each the oddest of a dozen in a sense that changes from game to game."""
    rng = random.Random(seed)
    by_type = {t: [i for i, name in enumerate(games.game_ids) if name.startswith(t)] for t in TASK_TYPES}
    chosen: list[int] = []
    while len(chosen) < n:
        turn = len(chosen)
        some = [i for i in rng.sample(by_type[TASK_TYPES[turn % 6]], 12) if i not in chosen]
        chosen.append(max(some, key=lambda i: oddities(games[i])[(turn + turn // 6) % 6]))
    return [games[i] for i in chosen]


def oddities(game: Game) -> tuple[int, ...]:
    """What only real games have, counted in six senses."""
    holders = Counter(o for inside in game.contents.values() for o in inside)
    takeable = game.properties["pickupable"]
    return (
        sum(n > 1 for n in holders.values()),  # objects in two receptacles
        len(game.receptacles) - len(set(game.receptacles.values())),  # receptacles that share a location
        len(takeable & set(game.inside)),  # objects that hold objects
        len(takeable & game.properties["isCool"]),
        sum(  # objects whose location is not their receptacle's
            game.receptacles[r] not in game.locations.get(o, ()) for r, inside in game.contents.items() for o in inside
        ),
        len(game.properties["sliceable"]) * sum(t.endswith("Knife") for t in game.object_types.values()),
    )


def test_both_engines_agree_on_whole_games(stock: TextWorldEngine) -> None:
    try:
        games = odd_real_games(find_games("train", "alfworld"), 6, seed=0)
    except DataNotFoundError:
        generated = find_games("valid_unseen", "generated")
        games = [generated[1], generated[3]]
    kinds: Counter[str] = Counter()
    for i, game in enumerate(games):
        kinds += agree(stock, game.in_grammar(GRAMMARS[i % 2]), seed=i)
    assert kinds.total() >= len(games) * 100  # else next to nothing was compared
    assert {"go", "take", "put", "move", "examine", "open"} <= set(kinds)


@pytest.mark.slow
def test_both_engines_agree_on_fifty_real_games(real_games: GameList, stock: TextWorldEngine) -> None:
    for i, game in enumerate(odd_real_games(real_games, 50, seed=1)):
        agree(stock, game.in_grammar(GRAMMARS[i % 2]), seed=i)


@pytest.mark.slow
def test_both_engines_agree_on_generated_games(one_of_each_type: list[int], stock: TextWorldEngine) -> None:
    for grammar in GRAMMARS:
        games = find_games("train", "generated", grammar=grammar)
        for i in one_of_each_type:
            agree(stock, games[i], seed=i)


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize(("task_type", "start"), [(t, f"loc_bar_{i}") for i, t in enumerate(TASK_TYPES)])
def test_both_engines_agree_in_a_room_of_oddities(
    stock: TextWorldEngine, task_type: str, start: str, grammar: str
) -> None:
    game = odd_game(task_type, start).in_grammar(grammar)
    kinds = agree(stock, game, seed=TASK_TYPES.index(task_type))
    assert {"nonsense", "stray_space"} < set(kinds) and len(kinds) >= 10


# Drawn play ---------------------------------------------------------------------------------------


def agree_on(stock: TextWorldEngine, game: Game, commands: Sequence[int | str]) -> None:
    difference = compare(NativeEngine(), stock, game, drawn(commands))
    assert difference is None, str(difference)


COMMANDS = st.lists(COMMAND, min_size=15, max_size=40)
# The stock engine takes a good part of a second to load such a game: shrinking a failure would take minutes.
UNSHRUNK = settings(STABLE, phases=(Phase.generate,))
ODD = {
    "task_type": st.sampled_from(TASK_TYPES),
    "start": st.integers(0, 6),
    "grammar": st.sampled_from(GRAMMARS),
    "commands": COMMANDS,
}
GENERATED = {"index": st.integers(0, GENERATED_SIZES["train"] - 1), "commands": COMMANDS}


@pytest.mark.ci
@settings(STABLE, max_examples=100)
@given(**ODD)
def test_both_engines_agree_on_any_play_of_oddities(
    stock: TextWorldEngine, task_type: str, start: int, grammar: str, commands: list[int | str]
) -> None:
    agree_on(stock, odd_game(task_type, f"loc_bar_{start}").in_grammar(grammar), commands)


@pytest.mark.ci
@settings(UNSHRUNK, max_examples=12)
@given(**GENERATED)
def test_both_engines_agree_on_any_play_of_generated_games(
    stock: TextWorldEngine, index: int, commands: list[int | str]
) -> None:
    agree_on(stock, find_games("train", "generated")[index], commands)


@pytest.mark.slow
@settings(STABLE, max_examples=500)
@given(**ODD)
def test_both_engines_agree_on_many_plays_of_oddities(
    stock: TextWorldEngine, task_type: str, start: int, grammar: str, commands: list[int | str]
) -> None:
    agree_on(stock, odd_game(task_type, f"loc_bar_{start}").in_grammar(grammar), commands)


@pytest.mark.slow
@settings(UNSHRUNK, max_examples=100)
@given(**GENERATED)
def test_both_engines_agree_on_many_plays_of_generated_games(
    stock: TextWorldEngine, index: int, commands: list[int | str]
) -> None:
    agree_on(stock, find_games("train", "generated")[index], commands)


# The benchmark ------------------------------------------------------------------------------------


class Liar(NativeEngine):
    """Says something else after the third command."""

    def reset(self, game: Game) -> Frame:
        self.n = 0
        return super().reset(game)

    def step(self, command: str) -> Frame:
        self.n += 1
        frame = super().step(command)
        return frame._replace(feedback="I lie.") if self.n == 3 else frame


class Crasher(NativeEngine):
    """Does not understand "look"."""

    def step(self, command: str) -> Frame:
        if command == "look":
            raise KeyError(command)
        return super().step(command)


def test_a_difference_is_told_whole() -> None:
    commands = ["look", "help", "inventory", "look"]
    kinds: Counter[str] = Counter()
    difference = compare(Liar(), NativeEngine(), odd_game(), scripted(commands), kinds, "walkthrough")
    assert difference is not None and difference.commands == ("look", "help", "inventory")
    said = str(difference)
    for part in ("pick_and_place_simple-odd-room-0", "'inventory'", "I lie.", "You are not carrying anything."):
        assert part in said
    assert kinds == {"look": 1, "help": 1, "inventory": 1}
    crash = compare(Crasher(), NativeEngine(), odd_game(), scripted(commands))
    assert crash is not None and "KeyError: 'look'" in str(crash)


def test_a_game_is_played_long_enough_and_the_same_again(generated_games: GameList) -> None:
    def played(seed: int) -> Counter[str]:
        kinds, difference = play_game(NativeEngine(), NativeEngine(), generated_games[0], seed)
        assert difference is None
        return kinds

    assert played(0).total() >= 100
    assert played(0) == played(0) != played(1)
    assert {"go", "take", "move", "nonsense", "stray_space", "stray_case_or_gap"} <= set(played(0))


def test_games_are_spread_over_splits_and_task_types() -> None:
    lists = at_hand("generated")
    chosen = spread(lists, 36, seed=0)
    by_split = {games.split: games for games in lists}
    cells = Counter((split, by_split[split].game_ids[i].split("-", 1)[0]) for split, i in chosen)
    assert len(cells) == 18 and set(cells.values()) == {2}
    assert chosen == spread(lists, 36, seed=0) != spread(lists, 36, seed=1)
    assert len(set(spread(lists, 10_000, seed=0))) == sum(map(len, lists))


# Commands by "|"; those with "!" are refused.
DIRECTED = {
    "every condition of a sliced object": (
        "go to drawer 1|take knife 1 from drawer 1|examine knife 1|go to shelf 1|slice apple 1 with knife 1|"
        "move knife 1 to shelf 1|look|take apple 1 from shelf 1|examine apple 1|go to fridge 1|"
        "cool apple 1 with fridge 1|examine apple 1|go to microwave 1|heat apple 1 with microwave 1|"
        "examine apple 1|go to sinkbasin 1|!clean apple 1 with bathtubbasin 1|clean apple 1 with sinkbasin 1|"
        "examine apple 1|go to fridge 1|cool apple 1 with fridge 1|examine apple 1|inventory|"
        "!move apple 1 to fridge 1|open fridge 1|move apple 1 to fridge 1"
    ),
    "an object that begins clean and sliced, in two receptacles": (
        "go to shelf 2|take apple 3 from shelf 2|examine apple 3|go to drawer 1|look|move apple 3 to drawer 1|"
        "look|take apple 3 from drawer 1|look|go to shelf 1|look|move apple 3 to shelf 1|look|examine shelf 2"
    ),
    "every condition of a whole object": (
        "go to fridge 1|!take apple 2 from fridge 1|open fridge 1|take apple 2 from fridge 1|examine apple 2|"
        "go to sinkbasin 1|clean apple 2 with sinkbasin 1|examine apple 2|go to microwave 1|"
        "heat apple 2 with microwave 1|examine apple 2|open microwave 1|move apple 2 to microwave 1|"
        "close microwave 1|!take apple 2 from microwave 1|look|go to shelf 1|take apple 1 from shelf 1|"
        "examine apple 1|go to microwave 1|heat apple 1 with microwave 1|examine apple 1|help"
    ),
    "an object on the neighbouring shelf lies next to it": (
        "go to shelf 1|!go to shelf 2|!take apple 1 from shelf 2|take apple 1 from shelf 1|look|"
        "move apple 1 to shelf 2|look|take apple 1 from shelf 2|look|!move apple 1 to cabinet 1|open cabinet 1|"
        "move apple 1 to cabinet 1|look|take lamp 1 from shelf 1|examine lamp 1|!move lamp 1 to shelf 1|"
        "go to sidetable 1|!examine fork 1"
    ),
    "a thing in itself, a thing in a thing, lamps behind doors and in no receptacle": (
        "go to sidetable 1|take pan 1 from sidetable 1|examine pan 1|go to cabinet 1|use desklamp 2|"
        "move pan 1 to shelf 1|open cabinet 1|use desklamp 2|close cabinet 1|go to sidetable 1|use desklamp 1|"
        "take desklamp 1 from sidetable 1|examine desklamp 1|!use desklamp 1|go to drawer 1|!use floorlamp 1|"
        "move desklamp 1 to drawer 1|use desklamp 1"
    ),
    "knives reach what is unseen": (
        "go to cabinet 1|open cabinet 1|take butterknife 1 from cabinet 1|slice apple 1 with butterknife 1|"
        "!slice bread 1 with butterknife 1|go to drawer 1|slice bread 1 with butterknife 1|go to sidetable 1|"
        "!slice bread 1 with butterknife 1|go to fridge 1|slice apple 2 with butterknife 1|"
        "slice apple 2 with butterknife 1"
    ),
    "a thing that was taken from one of its places is known at both": (
        "go to drawer 1|take apple 3 from drawer 1|go to sidetable 1|move apple 3 to sidetable 1|go to drawer 1|"
        "take knife 1 from drawer 1|go to shelf 1|slice apple 3 with knife 1|go to sidetable 1|"
        "slice apple 3 with knife 1|go to drawer 1|!slice apple 3 with knife 1"
    ),
    "things in each other": (
        "go to cabinet 1|open cabinet 1|take pot 1 from cabinet 1|examine pot 1|move pot 1 to shelf 1|"
        "take bowl 1 from cabinet 1|examine bowl 1|go to sidetable 1|move bowl 1 to sidetable 1|"
        "take pan 1 from sidetable 1|examine pan 1|!take fork 1 from sidetable 1"
    ),
}


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("script", DIRECTED.values(), ids=DIRECTED)
def test_both_engines_agree_on_rules_that_chance_rarely_meets(
    stock: TextWorldEngine, script: str, grammar: str
) -> None:
    native, game = make_engine("native"), odd_game("pick_cool_then_place_in_recep").in_grammar(grammar)
    frame = native.reset(game)
    assert frame == stock.reset(game)
    for command in script.split("|"):
        refused, command = command.startswith("!"), reword_command(command.removeprefix("!"), grammar)
        refused |= command == "help" and grammar == "2.1.1"
        assert refused == (command not in frame.admissible_commands), command
        frame = native.step(command)
        assert frame == stock.step(command), command


def test_a_treatment_counts_only_where_the_goal_says_it_may(stock: TextWorldEngine) -> None:
    data = odd_data("pick_cool_then_place_in_recep")
    # Cool from the start, but not to be cooled: the goal asks for both.
    data["pddl_problem"] = data["pddl_problem"].replace("(coolable Apple_bar__y)", "")
    game = parse_game(data, game_id="pick_cool_then_place_in_recep-odd-room-1/trial_1", split="train")
    native = make_engine("native")
    assert native.reset(game) == stock.reset(game)
    frames = []
    for command in "go to fridge 1|open fridge 1|take apple 2 from fridge 1|go to cabinet 1|open cabinet 1".split("|"):
        frames.append(native.step(command))
        assert frames[-1] == stock.step(command)
    command = "move apple 2 to cabinet 1"
    assert command in frames[-1].admissible_commands
    assert native.step(command) == stock.step(command)
    assert not native.step("look").won


def test_the_stock_engine_goes_back_to_a_snapshot(stock: TextWorldEngine) -> None:
    stock.reset(odd_game())
    stock.step("go to sidetable 1")
    before = stock.step("take pan 1 from sidetable 1")
    state = stock.snapshot()
    after = stock.step("examine pan 1"), stock.step("go to shelf 1")
    assert stock.restore(state) == before._replace(feedback="")
    assert (stock.step("examine pan 1"), stock.step("go to shelf 1")) == after
    stock.reset(odd_game(start="loc_bar_1"))
    with pytest.raises(ValueError, match="snapshot of the loaded game"):
        stock.restore(state)


def test_the_stock_engine_leaves_the_process_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    arguments, copy = sys.argv, list(sys.argv)
    engine = TextWorldEngine()
    first = engine.reset(odd_game())
    engine.close()
    engine.close()
    assert engine.reset(odd_game()) == first
    engine.close()
    assert sys.argv is arguments and sys.argv == copy
    assert capfd.readouterr() == ("", "")


def test_what_the_stock_engine_cannot_play_is_named(stock: TextWorldEngine) -> None:
    game = odd_game()
    data = game.data()
    data["pddl_problem"] = data["pddl_problem"].replace("(openable Fridge_bar__1)", "(openable Nothing_bar__1)")
    broken = type(game)(**{**{f: getattr(game, f) for f in game.__slots__}, "_data": data})
    with pytest.raises(BadGameError, match="pick_and_place_simple-odd-room-0"):
        stock.reset(broken)
    assert stock.reset(game).feedback  # and it still plays


def test_without_the_stock_stack_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ImportError, match="pip install"):
        make_engine("textworld")


def test_the_interpreter_ends_well_after_the_stock_engine() -> None:
    """Unloading the planner's library crashed at exit, after all tests had passed."""
    script = (
        "from agentprm_gym.games import find_games\n"
        "from agentprm_gym.engines import make_engine\n"
        "game = find_games('valid_unseen', 'generated')[0]\n"
        "for _ in range(2):\n"
        "    engine = make_engine('textworld')\n"
        "    assert engine.reset(game).admissible_commands == engine.step('look').admissible_commands\n"
        "    engine.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
