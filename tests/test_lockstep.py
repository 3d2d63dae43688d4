"""Lockstep: the native engine says what the stock TextWorld + ALFWorld stack says, string for string."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from agentprm_gym.engines import make_engine
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.textworld import TextWorldEngine
from agentprm_gym.games import TASK_TYPES, BadGameError, DataNotFoundError, Game, GameList, find_games, parse_game
from tests.odd_game import odd_data, odd_game

N_RANDOM = 30
NONSENSE = ("dance", "", "go to moon 1", "Look", "take the apple", "ACTION: look", "go to  shelf 1", "look\nlook")


@pytest.fixture(scope="module")
def stock() -> Iterator[TextWorldEngine]:
    engine = TextWorldEngine()
    yield engine
    engine.close()


def play(stock: TextWorldEngine, game: Game, commands: Sequence[str], n_random: int, seed: int) -> Counter[str]:
    """Play commands, then random admissible ones, with five nonsense strings in between, in both engines.

    Returns:
        How often each kind of command was executed.
    """
    rng = random.Random(seed)
    native = make_engine("native")
    ours = native.reset(game)
    assert ours == stock.reset(game), game.game_id
    script: list[str | None] = [*commands, *[None] * n_random]
    for nonsense in rng.sample(NONSENSE, 5):
        script.insert(rng.randrange(len(script)), nonsense)
    kinds: Counter[str] = Counter()
    for i, planned in enumerate(script):
        command = choose(ours, rng) if planned is None else planned
        if i % 10 == 9:
            command = f" {command}\n"  # the stock engine strips
        if command.strip() in ours.admissible_commands:
            kinds[command.split()[0]] += 1
        ours, theirs = native.step(command), stock.step(command)
        assert ours == theirs, (game.game_id, script[: i + 1], command)
    return kinds


def choose(frame: Frame, rng: random.Random) -> str:
    """Choose the kind first: a uniform choice would be nearly all walks, and most rules would never be met."""
    kinds: dict[str, list[str]] = {}
    for command in frame.admissible_commands:
        kinds.setdefault(command.split()[0], []).append(command)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


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
        kinds += play(stock, game, game.walkthrough, N_RANDOM, seed=i)
    assert sum(kinds.values()) >= len(games) * N_RANDOM  # else next to nothing was compared
    assert {"go", "take", "move", "examine", "open"} <= set(kinds)


@pytest.mark.slow
def test_both_engines_agree_on_fifty_real_games(real_games: GameList, stock: TextWorldEngine) -> None:
    for i, game in enumerate(odd_real_games(real_games, 50, seed=1)):
        play(stock, game, game.walkthrough, N_RANDOM, seed=i)


@pytest.mark.slow
def test_both_engines_agree_on_generated_games(one_of_each_type: list[int], stock: TextWorldEngine) -> None:
    games = find_games("train", "generated")
    for i in one_of_each_type:
        play(stock, games[i], games[i].walkthrough, N_RANDOM, seed=i)


@pytest.mark.parametrize(("task_type", "start"), [(t, f"loc_bar_{i}") for i, t in enumerate(TASK_TYPES)])
def test_both_engines_agree_in_a_room_of_oddities(stock: TextWorldEngine, task_type: str, start: str) -> None:
    kinds = play(stock, odd_game(task_type, start), [], 40, seed=TASK_TYPES.index(task_type))
    assert len(kinds) >= 8


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
        "slice bread 1 with butterknife 1|go to fridge 1|slice apple 2 with butterknife 1|"
        "slice apple 2 with butterknife 1"
    ),
}


@pytest.mark.parametrize("script", DIRECTED.values(), ids=DIRECTED)
def test_both_engines_agree_on_rules_that_chance_rarely_meets(stock: TextWorldEngine, script: str) -> None:
    native, game = make_engine("native"), odd_game("pick_cool_then_place_in_recep")
    frame = native.reset(game)
    assert frame == stock.reset(game)
    for command in script.split("|"):
        refused, command = command.startswith("!"), command.removeprefix("!")
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
