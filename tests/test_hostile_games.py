"""Game files of people who mean harm: nothing of theirs runs, nothing is endless, and every text fits the observation."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import agentprm_gym  # noqa: F401
from agentprm_gym.engines import make_engine
from agentprm_gym.games import BadGameError, UnsupportedGameError, find_games, parse_game
from agentprm_gym.games.game import unread_game
from agentprm_gym.games.recognise import task_line
from algorithms.cli import arguments, configuration
from algorithms.cli.main import build_parser, main
from tests.odd_game import odd_data, odd_game

FOLDER = "pick_and_place_simple-odd-room-0"
CODE = "{str(__import__('os').system('touch x'))}"
Change = tuple[str, str]


def write(root: Path, data: dict[str, Any], name: str = "trial_1") -> Path:
    path = root / "json_2.1.1" / "train" / FOLDER / name / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return path


def with_grammar(*changes: Change) -> dict[str, Any]:
    data = odd_data()
    for old, new in changes:
        assert old in data["grammar"]
        data["grammar"] = data["grammar"].replace(old, new, 1)
    return data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a file x would appear if a game's code ran."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "games"


def play(env: Any) -> str:
    said = env.reset(options={"game": 0})[0]["feedback"]
    for command in env.unwrapped._frame.admissible_commands[:4]:
        said += env.step(command)[0]["feedback"]
    return str(said)


# Where a grammar may hold an expression.
PLACES = {
    "the task line": ("look around.", CODE),
    "the task line, escaped": ("look around.", CODE.replace("{", "\\u007b").replace("}", "\\u007d")),
    "the task line, conditional": (
        "look around.",
        "{str(__import__('os').system('touch x')) | openable(r:receptacle)}",
    ),
    "the task line, a list": ("look around.", f"[{CODE}]"),
    "a rule": ("You are in the middle of a room.", f"You are in a room {CODE}."),
    "a list in a rule": ("#list_appliances#", "[{str(__import__('os').system('touch x')) | openable(r:receptacle)}]"),
    "a command's template": ('"inventory"', f'"inventory {CODE}"'),
    "a feedback rule": ('"#inventory.feedback#"', f'"{CODE}"'),
    "an attribute's method": ("{r.indefinite} {r.name or r.id}", "{r.name.__class__.__base__.__subclasses__()}"),
    "a walrus": ("{r.indefinite} {r.name or r.id}", "{(x := __import__('os')).system('touch x')}"),
    "a lambda": ("{r.indefinite} {r.name or r.id}", "{(lambda: __import__('os').system('touch x'))()}"),
    "a power that takes for ever": ("{r.indefinite} {r.name or r.id}", "{9**9**9**9}"),
    "names of the stock code": ("{r.indefinite} {r.name or r.id}", "{json} {deepcopy} {context} {self}"),
    "dunder attributes": ("{r.indefinite} {r.name or r.id}", "{r.__class__}"),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", PLACES.values(), ids=PLACES)
def test_a_games_code_does_not_run(folder: Path, change: Change, cached: bool) -> None:
    from agentprm_gym.engines.textworld import TextWorldEngine

    data = with_grammar(change)
    path = write(folder, data)
    games = find_games("train", folder)
    engine = TextWorldEngine(cached=cached)
    start = time.perf_counter()
    with pytest.raises(BadGameError) as caught:
        engine.reset(games.unread(0))
    engine.close()
    assert str(path) in str(caught.value) and len(str(caught.value)) < 700
    assert "trust_games" in str(caught.value) or "plain words" in str(caught.value)
    assert not os.listdir() and time.perf_counter() - start < 20


def test_the_environment_refuses_it_however_it_is_met(folder: Path) -> None:
    write(folder, with_grammar(PLACES["a rule"]))
    env: Any = gym.make("ALFWorld-v0", games=str(folder), split="train", engine="textworld")
    try:
        for options in ({"game": 0}, None):
            with pytest.raises(BadGameError, match=r"Python code.*trust_games=True \(--trust-games\)"):
                env.reset(seed=0, options=options)
        other: Any = gym.make("ALFWorld-v0", games="generated", engine="textworld")
        with pytest.raises(ValueError, match="trust_games must be"):
            gym.make("ALFWorld-v0", games=str(folder), split="train", trust_games="yes")
        other.close()
    finally:
        env.close()
    assert not os.listdir()


def test_trusted_it_runs_which_shows_that_the_cases_are_real(folder: Path) -> None:
    write(folder, with_grammar(PLACES["a rule"]))
    env: Any = gym.make("ALFWorld-v0", games=str(folder), split="train", engine="textworld", trust_games=True)
    play(env)
    env.close()
    assert os.listdir() == ["x"]
    json.dumps(env.spec.kwargs)


def test_the_command_line_refuses_it(folder: Path, capsys: Any) -> None:
    write(folder, with_grammar(PLACES["a rule"]))
    status = main(["play", "--engine", "textworld", "--games", str(folder), "--split", "train"])
    assert status == 2 and "--trust-games" in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.parametrize("verb", ["play", "eval", "train"])
def test_only_the_command_line_lets_games_run_code(verb: str, tmp_path: Path) -> None:
    parser, verbs = build_parser()
    for words, trusts in (([], False), (["--trust-games"], True)):
        args = parser.parse_args([verb, *words])
        arguments.fill_games(args)
        assert arguments.env_kwargs(args).get("trust_games", False) is trusts
    if verb == "play":
        return  # it has no configurations
    for text in ("trust_games: true", 'env_kwargs: {engine: textworld, "trust_games": true}'):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match="write --trust-games on the command line"):
            configuration.read_config(verbs[verb], tmp_path / "config.yaml", ["--trust-games"])


def test_the_task_line_is_refused_before_any_engine_sees_it(folder: Path) -> None:
    for change in list(PLACES.values())[:4]:
        data = with_grammar(change)
        for read in (parse_game, lambda data, **kw: unread_game(data, why="a test", **kw)):
            with pytest.raises(BadGameError, match="plain words"):
                read(data, game_id=f"{FOLDER}/trial_1", split="train")
    with pytest.raises(BadGameError, match="plain words"):
        odd_game().with_task(CODE)


def test_a_file_that_changes_after_it_was_checked_is_checked_again(folder: Path) -> None:
    path = write(folder, odd_data())
    game = find_games("train", folder)[0]
    for change in PLACES.values():
        path.write_text(json.dumps(with_grammar(change)))
        engine = make_engine("textworld")
        try:
            engine.reset(game)
        except BadGameError:
            pass
        engine.close()
        assert not os.listdir()


def test_an_unknown_grammar_that_only_names_things_is_played(folder: Path) -> None:
    write(folder, with_grammar(("You are in the middle", "You are {r.indefinite} {r.desc} in the middle")))
    write(folder, with_grammar(("You pick up the {o.name}", "You grab {o.id} the {o.type}")), "trial_2")
    env: Any = gym.make("ALFWorld-v0", games=str(folder), split="train", engine="textworld")
    env.reset(options={"game": 1})
    env.step("go to sidetable 1")
    assert env.step("take pan 1 from sidetable 1")[0]["feedback"].startswith("You grab pan_bar__1 the object")
    env.close()


LOOPS = {
    "a rule in itself": ("You are in the middle of a room.", "#look.feedback#"),
    "the intro in itself": ("Welcome to TextWorld", "#intro#"),
    "two rules in each other": ('"rhs": "nothing"', '"rhs": "#look-variations##list_objects_on_the_floor#"'),
    "within a list": ("{r.indefinite} {r.name or r.id}", "[{#overview(r)# | openable(r:receptacle)}]"),
    "the empty list in itself": (
        '"list_empty": [\n                {\n                    "rhs": "nothing"',
        '"list_empty": [\n                {\n                    "rhs": "[{o.name | isclean(o:object) & ishot(o:object)}]"',
    ),
}


@pytest.mark.parametrize("change", LOOPS.values(), ids=LOOPS)
def test_a_grammar_without_end_is_refused(folder: Path, change: Change) -> None:
    data = with_grammar(change)
    start = time.perf_counter()
    for trust_games in (False, True):
        engine = make_engine("textworld", trust_games=trust_games)
        game = unread_game(data, game_id=f"{FOLDER}/trial_1", split="train", why="a test")
        said = "leads back to itself" if not trust_games else "does not end"
        if trust_games and change[0] == "Welcome to TextWorld":
            said = "does not end"
        if trust_games and change in (LOOPS["two rules in each other"], LOOPS["the empty list in itself"]):
            continue  # nothing that this room holds leads there
        with pytest.raises(BadGameError, match=said):
            engine.reset(game)
        engine.close()
    assert time.perf_counter() - start < 20


def test_a_text_that_doubles_in_every_rule_is_stopped(folder: Path) -> None:
    rules = ",".join(f'"d{i}": [{{"rhs": "#d{i + 1}##d{i + 1}#"}}]' for i in range(60)) + ',"d60": [{"rhs": "ha"}]'
    data = with_grammar(
        ("You are in the middle", "#d0# You are in the middle"), ('"notImplemented"', f'{rules}, "notImplemented"')
    )
    game = unread_game(data, game_id=f"{FOLDER}/trial_1", split="train", why="a test")
    engine = make_engine("textworld")
    start = time.perf_counter()
    with pytest.raises(BadGameError, match="does not end"):
        engine.reset(game)
    engine.close()
    assert time.perf_counter() - start < 20


def problem(*changes: Change) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        data = odd_data()
        for old, new in changes:
            assert old in data["pddl_problem"]
            data["pddl_problem"] = data["pddl_problem"].replace(old, new)
        return data

    return make


def many_objects(n: int, letters: int = 4) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        data = odd_data()
        names = [f"Mug{'g' * letters}_bar__{i}" for i in range(n)]
        facts = "".join(f"(objectType {m} PanType)(pickupable {m})(inReceptacle {m} Fridge_bar__1)" for m in names)
        text = data["pddl_problem"].replace("agent1 - agent", f"agent1 - agent\n{' '.join(names)} - object")
        return {**data, "pddl_problem": text.replace("(:init", f"(:init {facts}")}

    return make


# Names that format strings, terminals and files read as more than names, and rooms that no observation holds.
HUGE_OR_ODD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a format in a name": (problem(("Pan_bar__1", "Pan_bar__{x:>99999999999}")), "plain names"),
    "an escape in a name": (problem(("Pan_bar__1", "Pan\x1b[31m_bar__1")), "plain names"),
    "a change of direction in a name": (problem(("Pan_bar__1", "Pan\u202e_bar__1")), "plain names"),
    "half a character in a name": (problem(("Pan_bar__1", "Pan\ud800_bar__1")), "plain names"),
    "a NUL in a name": (problem(("Pan_bar__1", "Pan\x00_bar__1")), "plain names"),
    "12,000 objects": (many_objects(12_000), "expected a problem of at most 1,000,000"),
    "1,200 objects": (many_objects(1_200), "expected at most 16,384"),
    "ten objects of 5,000 letters": (many_objects(10, 5_000), "expected at most 16,384"),
    "a task of 50,000 characters": (lambda: with_grammar(("look around.", "look " * 10_000)), "at most 1,024"),
    "half a character in the task": (lambda: with_grammar(("look around.", "look \\ud800")), "plain words"),
}


@pytest.mark.parametrize("engine", ["native", "textworld"])
@pytest.mark.parametrize(("make", "said"), HUGE_OR_ODD.values(), ids=HUGE_OR_ODD)
def test_what_no_observation_can_hold_is_refused_when_it_is_read(
    folder: Path, make: Callable[[], dict[str, Any]], said: str, engine: str
) -> None:
    path = write(folder, make())
    env = gym.make("ALFWorld-v0", games=str(folder), split="train", engine=engine)
    start = time.perf_counter()
    with pytest.raises(BadGameError, match=said) as caught:
        env.reset(options={"game": 0})
    env.close()
    assert str(path) in str(caught.value) and time.perf_counter() - start < 5


def test_the_stock_engines_texts_fit_the_observation(folder: Path) -> None:
    long = with_grammar(("You are in the middle of a room.", "x" * 20_000))
    write(folder, long)
    write(folder, with_grammar(("You pick up the {o.name}", "y" * 20_000)), "trial_2")
    write(folder, with_grammar(("You pick up the {o.name}", "half \\ud800 of it")), "trial_3")
    env: Any = gym.make("ALFWorld-v0", games=str(folder), split="train", engine="textworld").unwrapped
    with pytest.raises(BadGameError, match=r"feedback of at most 16,384 characters, got 20,"):
        env.reset(options={"game": 0})
    env.reset(options={"game": 1})
    env.step("go to sidetable 1")
    with pytest.raises(BadGameError, match="feedback of at most 16,384"):
        env.step("take pan 1 from sidetable 1")
    env.reset(options={"game": 2})
    env.step("go to sidetable 1")
    observation = env.step("take pan 1 from sidetable 1")[0]
    assert observation["feedback"].startswith("half \ufffd of it") and env.observation_space.contains(observation)
    observation["feedback"].encode()
    env.close()


def test_the_task_line_is_found_in_no_time() -> None:
    hostile = "Your task is to: " * 5_800
    start = time.perf_counter()
    assert task_line(hostile) is None
    assert time.perf_counter() - start < 0.5  # 20 seconds, where every place was tried


def test_a_refusal_by_the_native_engine_does_not_recommend_to_run_code() -> None:
    with pytest.raises(UnsupportedGameError) as caught:
        parse_game(with_grammar(PLACES["a rule"]), game_id=f"{FOLDER}/trial_1", split="train")
    assert re.search(r"unless its grammar holds code", str(caught.value))
