"""The stock engine: its caches change nothing that it says, are bounded, and leave TextWorld as it was."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agentprm_gym.engines import make_engine, textworld
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.textworld import TextWorldEngine
from agentprm_gym.games import BadGameError, Game, GameList
from tests.odd_game import odd_game

NONSENSE = ("dance", "", "go to moon 1", "Look", "look\nlook", "take the apple")


@pytest.fixture(scope="module")
def stock() -> Iterator[TextWorldEngine]:
    engine = TextWorldEngine(cached=False, trust_games=True)
    skip_where_textworld_cannot_play(engine)
    yield engine
    engine.close()


def skip_where_textworld_cannot_play(engine: TextWorldEngine) -> None:
    """TextWorld 1.7 writes variables into ``locals()``, which from Python 3.13 on (PEP 667) changes nothing."""
    try:
        engine.reset(odd_game())
    except BadGameError as error:
        if sys.version_info < (3, 13) or "NameError" not in str(error):
            raise
        pytest.skip(f"TextWorld itself cannot play ALFWorld's games on this version of Python: {error}")


@pytest.fixture
def cached() -> Iterator[TextWorldEngine]:
    # Some of the grammars below hold code.
    engine = TextWorldEngine(trust_games=True)
    yield engine
    engine.close()


def choose(frame: Frame, rng: random.Random) -> str:
    """Any kind of command is as likely as any other; now and then it is none."""
    kinds: dict[str, list[str]] = {}
    for command in frame.admissible_commands:
        kinds.setdefault(command.split()[0], []).append(command)
    return rng.choice(NONSENSE) if rng.random() < 0.1 else rng.choice(kinds[rng.choice(sorted(kinds))])


def agree(cached: TextWorldEngine, stock: TextWorldEngine, game: Game, n_steps: int, seed: int) -> list[Frame]:
    """Play a game in both; returns what was said."""
    rng = random.Random(seed)
    frames = [cached.reset(game)]
    assert frames[0] == stock.reset(game), game.game_id
    for i in range(n_steps):
        command = game.walkthrough[i] if i < len(game.walkthrough) else choose(frames[-1], rng)
        frames.append(cached.step(command))
        assert frames[-1] == stock.step(command), (game.game_id, i, command)
    return frames


def with_text(game: Game, key: str, old: str, new: str) -> Game:
    """Alter a game's text, whether or not the native engine could still play it."""
    data = game.data()
    assert old in data[key]
    return replace(game, _data={**data, key: data[key].replace(old, new)})


def test_cached_says_what_stock_says(cached: TextWorldEngine, stock: TextWorldEngine) -> None:
    one, other = odd_game(), odd_game("pick_cool_then_place_in_recep", "loc_bar_1")
    # The third time, much of what is said was derived in an earlier episode.
    for seed, game in enumerate((one, other, one)):
        agree(cached, stock, game, 20, seed)


def test_cached_says_what_stock_says_in_a_generated_game(
    cached: TextWorldEngine, stock: TextWorldEngine, generated_games: GameList
) -> None:
    game = generated_games[0]
    frames = agree(cached, stock, game, len(game.walkthrough) + 5, seed=0)
    assert any(frame.won for frame in frames)


@pytest.mark.ci
def test_cached_says_what_stock_says_in_a_real_game(
    cached: TextWorldEngine, stock: TextWorldEngine, real_games: GameList
) -> None:
    game = real_games[0]
    frames = agree(cached, stock, game, len(game.walkthrough) + 5, seed=0)
    assert any(frame.won for frame in frames)


@pytest.mark.slow
def test_cached_says_what_stock_says_in_many_games(
    cached: TextWorldEngine,
    stock: TextWorldEngine,
    real_games: GameList,
    generated_games: GameList,
    one_of_each_type: list[int],
) -> None:
    games = [*real_games[100 :: len(real_games) // 12], *(generated_games[i] for i in one_of_each_type)]
    for seed, game in enumerate(games):
        agree(cached, stock, game, 80, seed)
        agree(cached, stock, game, 20, seed + 1000)


# Grammars that no ALFWorld game has. What a command is called depends here on what
ODD_TEMPLATES = {
    "was moved": ('"examine {r}"', '"oddly examine {r} with [{o.name | inreceptacle(o:object, r:receptacle)}]"'),
    "is held": ('"inventory"', '"oddly #inventory.feedback#"'),
    "is known at all": ('"inventory"', "\"oddly {len(context.get('facts'))}\""),
    "a call returns": ('"go to [{r.name |', '"oddly go to [{r.name.upper() |'),
    "a name of the stock code hides": ('"close {r}"', '"oddly close {r.name or r.id} {context and r}"'),
}


@pytest.mark.ci
@pytest.mark.parametrize(("old", "new"), ODD_TEMPLATES.values(), ids=ODD_TEMPLATES)
def test_cached_says_what_stock_says_where_commands_depend_on_facts(
    cached: TextWorldEngine, stock: TextWorldEngine, old: str, new: str
) -> None:
    start = "pick_and_place_simple", "loc_bar_2"  # before an open drawer with a knife
    game = replace(with_text(odd_game(*start), "grammar", old, new), walkthrough=("take knife 1 from drawer 1",))
    for seed in range(2):
        frames = agree(cached, stock, game, 6, seed)
        assert "knife 1" in frames[1].feedback
        assert any(command.startswith("oddly ") for frame in frames for command in frame.admissible_commands)


@pytest.mark.parametrize(("old", "new"), ODD_TEMPLATES.values(), ids=ODD_TEMPLATES)
def test_such_grammars_are_played_on_every_version_of_python(cached: TextWorldEngine, old: str, new: str) -> None:
    game = with_text(odd_game("pick_and_place_simple", "loc_bar_2"), "grammar", old, new)
    frames = [cached.reset(game), cached.step("take knife 1 from drawer 1"), cached.step("inventory")]
    assert any(command.startswith("oddly ") for frame in frames for command in frame.admissible_commands)


@pytest.mark.parametrize("broken", ['#nowhere#"', '{nobody.name}"', '{r.name | noSuch(r:kind)}"'])
def test_errors_while_playing_name_the_game_and_stop_it(
    cached: TextWorldEngine, stock: TextWorldEngine, broken: str
) -> None:
    game = with_text(odd_game(), "grammar", '{r.name}. #examineReceptacle.feedback#"', broken)
    game = replace(game, path="/games/trial_1/game.tw-pddl")
    said = []
    for engine in (cached, stock):
        frame = engine.reset(game)
        assert engine.step("look").feedback
        command = next(c for c in frame.admissible_commands if c.startswith("go to"))
        with pytest.raises(BadGameError, match=f"/games/trial_1/game.tw-pddl.* step 2, '{command}'") as caught:
            engine.step(command)
        said.append(str(caught.value))
        with pytest.raises(RuntimeError, match="call reset"):
            engine.step("look")
    assert said[0] == said[1]


BROKEN = {
    "a type that is nowhere": ("pddl_problem", "(openable Fridge_bar__1)", "(openable Nothing_bar__1)"),
    "a grammar that is none": ("grammar", "action inventory {", "action {"),
    "an action without words": ("grammar", "action inventory {", "action juggle {"),
    "a condition that is none": ("grammar", '"holdsany(a:agent)"', '"holdsany("'),
}


@pytest.mark.ci
@pytest.mark.parametrize(("key", "old", "new"), BROKEN.values(), ids=BROKEN)
def test_both_refuse_the_same_games_and_leave_the_arguments(
    cached: TextWorldEngine, stock: TextWorldEngine, key: str, old: str, new: str
) -> None:
    good, arguments = odd_game(), sys.argv
    broken = replace(with_text(good, key, old, new), path="/games/trial_2/game.tw-pddl")
    then = []
    for engine in (cached, stock):
        with pytest.raises(BadGameError, match=r"^/games/trial_2/game\.tw-pddl: "):
            for command in [engine.reset(broken).admissible_commands[0], "inventory"]:
                engine.step(command)
        assert sys.argv is arguments
        with pytest.raises(RuntimeError, match="call reset"):
            engine.step("look")
        then.append(engine.reset(good))
    assert then[0] == then[1]


@pytest.mark.parametrize("is_cached", [True, False])
def test_an_interrupted_reset_leaves_no_half_loaded_game(is_cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, one, other = TextWorldEngine(cached=is_cached), odd_game(), odd_game(start="loc_bar_1")
    if not is_cached:
        skip_where_textworld_cannot_play(engine)
    first = engine.reset(one)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._env.unwrapped, "reset", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.reset(other)
    with pytest.raises(RuntimeError, match="call reset"):
        engine.step("look")
    assert engine.reset(one) == first
    engine.close()


def test_a_game_is_translated_once(cached: TextWorldEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    import fast_downward

    games = odd_game(start="loc_bar_2"), odd_game(start="loc_bar_3")
    first = [cached.reset(game) for game in games]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("translated again")

    monkeypatch.setattr(fast_downward, "pddl2sas", refuse)
    assert [cached.reset(game) for game in games] == first
    # Another object, of the same text, in another engine.
    another = TextWorldEngine()
    assert another.reset(odd_game(start="loc_bar_2")) == first[0]
    another.close()
    with pytest.raises(BadGameError):
        cached.reset(odd_game(start="loc_bar_5", task_type="pick_two_obj_and_place"))


def test_the_caches_are_bounded(cached: TextWorldEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentprm_gym.engines import textworld_cache

    monkeypatch.setattr(textworld_cache, "MAX_GAMES", 2)
    games = [odd_game(start=f"loc_bar_{i}") for i in range(4)]
    first = [cached.reset(game) for game in games]
    assert len(textworld_cache._READY) == 2
    kept = list(textworld_cache._READY.values())
    assert cached.reset(games[2]) == first[2]  # now the one used last, so the other one has to go
    assert cached.reset(games[0]) == first[0]
    assert kept[0] in textworld_cache._READY.values() and kept[1] not in textworld_cache._READY.values()
    for cache in (f for f in vars(textworld_cache).values() if hasattr(f, "cache_parameters")):
        assert cache.cache_parameters()["maxsize"]


def test_memory_does_not_grow_by_playing(cached: TextWorldEngine) -> None:
    games = [odd_game(start=f"loc_bar_{i}") for i in range(2)]

    def play(n_episodes: int) -> int:
        for _ in range(n_episodes):
            for game in games:
                frame, rng = cached.reset(game), random.Random(0)
                for _ in range(20):
                    frame = cached.step(choose(frame, rng))
        gc.collect()
        return len(gc.get_objects())

    before = play(2)
    assert play(10) - before < 100


def test_playing_new_games_fills_no_cache_of_textworlds(cached: TextWorldEngine) -> None:
    """The stock code keeps every fact of every game for ever."""
    from mementos.core import _memento_cache

    name = f"Apple_bar__{os.getpid()}"  # in no other test
    game = with_text(odd_game(), "pddl_problem", "Apple_bar__z", name)
    cached.reset(game)
    for command in ("go to shelf 1", "take apple 3 from shelf 1", "look"):
        assert cached.step(command).feedback != "Nothing happens."
    assert not [key for key in _memento_cache if name.lower() in str(key).lower()]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files the Linux way")
def test_no_file_stays_open(tmp_path: object) -> None:
    def play() -> int:
        engine = TextWorldEngine()
        engine.reset(odd_game())
        engine.step("look")
        engine.close()
        return len(os.listdir("/proc/self/fd"))

    assert play() == play()


def test_an_engine_that_nobody_closes_hands_back_its_planner() -> None:
    engine = TextWorldEngine()
    engine.reset(odd_game())
    env, idle = engine._env, list(textworld._IDLE[True])
    del engine
    gc.collect()
    assert textworld._IDLE[True] == [*idle, env]
    engine = TextWorldEngine()
    engine.reset(odd_game())
    assert engine._env is env
    engine.close()
    engine.close()
    assert textworld._IDLE[True] == [*idle, env]  # once


def test_make_engine_caches() -> None:
    engine = make_engine("textworld")
    engine.reset(odd_game())
    assert type(engine._env.unwrapped).__name__ == "CachedPddlEnv"  # type: ignore[attr-defined]
    engine.close()


@pytest.mark.ci
def test_textworld_itself_is_as_it_was() -> None:
    """Whoever uses TextWorld in the same process gets all of it, and the process ends well without a `close`."""
    script = """
import sys, textworld, textworld.envs.pddl.logic, fast_downward.interface
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
def whole():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("textworld", "alfworld", "mementos") or name == "fast_downward.interface":
            for key, value in vars(module).items():
                if callable(value):
                    found[name, key] = value
                if isinstance(value, type):
                    found.update({(name, key, k): v for k, v in vars(value).items() if callable(v)})
    return found
before = whole()
from agentprm_gym.engines.textworld import TextWorldEngine
from tests.odd_game import odd_game
engine = TextWorldEngine()
engine.reset(odd_game())
engine.step("look")
after = whole()
assert len(before) > 500 and all(after[key] is value for key, value in before.items())
env = textworld.envs.pddl.PddlEnv(textworld.EnvInfos(facts=True, policy_commands=True))
env.load(odd_game().data())
try:
    state = env.reset()
except NameError:
    assert sys.version_info >= (3, 13)  # TextWorld 1.7 itself cannot play there
    sys.exit()
assert state["facts"] and state["policy_commands"] and type(env._pddl_state).__module__.startswith("textworld.")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
