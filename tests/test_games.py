"""Finding, listing and reading games, and what is said of those that are broken."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agentprm_gym.games import (
    GENERATED_SPLITS,
    SPLITS,
    TASK_TYPES,
    BadGameError,
    DataNotFoundError,
    Game,
    GameList,
    UnsupportedGameError,
    find_games,
    parse_game,
)
from agentprm_gym.games.facts import display_names
from agentprm_gym.games.goal import Goal, parse_goal
from agentprm_gym.games.listing import GENERATED_SIZES
from tests.odd_game import odd_data, odd_game

FOLDER = "pick_and_place_simple-odd-room-0"


@pytest.mark.parametrize(
    "subset",
    [
        *({}, {"every": 5}, {"keep": 0}, {"every": 1, "keep": 0}, {"every": 5, "keep": 5}, {"every": 5, "keep": -1}),
        *(
            {"every": 5, "keep": 0, "leave_out": 1},
            {"every": 5.0, "keep": 0},
            {"every": 5, "take": 0},
            {"every": 5, "keep": True},
        ),
    ],
)
def test_what_is_no_subset(subset: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a subset such as"):
        find_games("train", "generated", subset=subset)


def test_subsets_share_out_the_games_and_are_an_option_of_environments() -> None:
    every = find_games("valid_seen", "generated")
    kept, others = (find_games("valid_seen", "generated", subset={"every": 5, key: 2}) for key in ("keep", "leave_out"))
    assert kept.game_ids == every.game_ids[2::5] and len(kept) + len(others) == len(every)
    assert not set(kept.game_ids) & set(others.game_ids)
    assert len({every.content_hash, kept.content_hash, others.content_hash}) == 3
    env: Any = gym.make("ALFWorld-v0", split="valid_seen", games="generated", subset={"every": 5, "keep": 2})
    assert env.reset(options={"game": 1})[1]["game_id"] == every.game_ids[7]
    envs: Any = gym.make_vec(
        "ALFWorld-v0", num_envs=2, split="valid_seen", games="generated", subset={"every": 5, "keep": 2}
    )
    assert envs.reset(options={"game": 1})[1]["game_id"][0] == every.game_ids[7]


def write(root: Path, task: str, trial: str, data: Any, split: str = "train") -> Path:
    path = root / "json_2.1.1" / split / task / trial / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    if not isinstance(data, bytes):
        data = (data if isinstance(data, str) else json.dumps(data)).encode()
    path.write_bytes(data)
    return path


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Four games, written in no order, among folders that are not played."""
    write(tmp_path, "pick_two_obj_and_place-b-1", "trial_2", odd_data("pick_two_obj_and_place"))
    write(tmp_path, FOLDER, "trial_9", odd_data())
    write(tmp_path, FOLDER, "trial_10", odd_data())
    write(tmp_path, "pick_and_place_simple-Sliced-1", "trial_1", odd_data())
    write(tmp_path, "pick_and_place_with_movable_recep-1", "trial_1", odd_data())
    write(tmp_path, "pick_and_place_simple-a-1", "trial_1", {**odd_data(), "solvable": False})
    write(tmp_path, "look_at_obj_in_light-a-1", "trial_1", odd_data("look_at_obj_in_light"))
    write(tmp_path, FOLDER, "trial_1", odd_data(), split="valid_seen")
    (tmp_path / "json_2.1.1" / "train" / FOLDER / "trial_empty").mkdir()
    return tmp_path


# Listing ------------------------------------------------------------------------------------------


def test_games_are_listed_by_id_without_those_that_are_not_played(data_folder: Path) -> None:
    games = find_games("train", data_folder)
    assert games.game_ids == (
        "look_at_obj_in_light-a-1/trial_1",
        f"{FOLDER}/trial_10",
        f"{FOLDER}/trial_9",
        "pick_two_obj_and_place-b-1/trial_2",
    )
    assert [game.game_id for game in games] == list(games.game_ids)
    assert [game.task_type for game in games[2:]] == ["pick_and_place_simple", "pick_two_obj_and_place"]
    assert (games.source, games.split, len(games)) == (str(data_folder), "train", 4)


@pytest.mark.parametrize("below", ["", "json_2.1.1"])
def test_the_root_and_the_layouts_folder_are_both_fine(data_folder: Path, below: str) -> None:
    assert len(find_games("valid_seen", str(data_folder / below))) == 1


def test_the_variable_says_where_real_games_are(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(data_folder))
    assert find_games("train", "auto").source == find_games("train", "alfworld").source == "alfworld"
    assert len(find_games("train", "alfworld")) == 4


def test_without_real_games_auto_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    games = find_games("valid_seen")
    assert (games.source, len(games)) == ("generated", GENERATED_SIZES["valid_seen"])
    with pytest.raises(DataNotFoundError, match=r"ALFWORLD_DATA.*alfworld-download") as caught:
        find_games("valid_seen", "alfworld")
    assert isinstance(caught.value, FileNotFoundError) and str(tmp_path) in str(caught.value)


def test_task_types_narrow_the_list(data_folder: Path) -> None:
    games = find_games("train", data_folder, ["look_at_obj_in_light", "pick_two_obj_and_place"])
    assert len(games) == 2
    assert len(find_games("train", data_folder, [])) == 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: find_games("test"), ("'test'", *SPLITS)),
        (lambda: find_games("train", "textworld"), ("'textworld'", "auto", "alfworld", "generated")),
        (lambda: find_games("train", "generated", ["pick"]), ("'pick'", *TASK_TYPES)),
        (lambda: find_games("train", "generated", "look_at_obj_in_light"), ("list", "look_at_obj_in_light")),
        (lambda: find_games("train", "generated", on_bad_game="drop"), ("'drop'", "raise", "skip")),
    ],
)
def test_unknown_names_list_the_choices(call: Callable[[], GameList], named: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    for name in named:
        assert name in str(caught.value)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"game\.tw-pddl"):
        find_games("train", tmp_path)


def test_games_are_found_by_index_id_and_path(data_folder: Path) -> None:
    games = find_games("train", data_folder)
    path = games[2].path
    assert path is not None
    for name in (2, f"{FOLDER}/trial_9", path, os.path.dirname(path), Path(path)):
        assert games.index(name) == 2
    for wrong in (4, -1, True, None, 2.0):
        with pytest.raises(ValueError):
            games.index(wrong)
    with pytest.raises(ValueError, match=f"did you mean '{FOLDER}/trial_9'"):
        games.index(f"{FOLDER}/trial_99")


def test_the_hash_is_that_of_ids_and_contents(data_folder: Path) -> None:
    before = find_games("train", data_folder).content_hash
    assert before == find_games("train", str(data_folder / "json_2.1.1")).content_hash
    assert len({before, find_games("train", data_folder, TASK_TYPES[:2]).content_hash}) == 2
    path = data_folder / "json_2.1.1" / "train" / FOLDER / "trial_9" / "game.tw-pddl"
    path.write_text(path.read_text() + " ")
    assert find_games("train", data_folder).content_hash != before
    generated = [find_games(split, "generated").content_hash for split in GENERATED_SPLITS]
    assert len({*generated, before}) == 4


def test_games_are_parsed_once_until_their_file_changes(data_folder: Path) -> None:
    games = find_games("train", data_folder)
    assert games[1] is find_games("train", data_folder)[1]
    path = Path(games[1].path or "")
    data = json.loads(path.read_text())
    data["walkthrough"] = ["look", "help"]
    path.write_text(json.dumps(data))
    assert games[1].walkthrough == ("look", "help")


def test_generated_games_give_their_data_back() -> None:
    games = find_games("valid_unseen", "generated")
    game = games[5]
    again = parse_game(game.data(), game_id=game.game_id, split="valid_unseen")
    assert again == game and game.path is None
    assert game.game_id == games.game_ids[5]
    assert pickle.loads(pickle.dumps(game)) == game


def test_real_games_are_listed_as_alfworld_does(real_games: GameList) -> None:
    assert list(real_games.game_ids) == sorted(real_games.game_ids)
    assert {game_id.split("-", 1)[0] for game_id in real_games.game_ids} == set(TASK_TYPES)
    assert not any("movable" in game_id or "Sliced" in game_id for game_id in real_games.game_ids)
    game = real_games[0]
    assert game.task and game.walkthrough and game.data()["pddl_problem"]


# Reading ------------------------------------------------------------------------------------------


def test_the_first_id_has_the_highest_number() -> None:
    ids = ["shelf_bar__a", "shelf_bar__c", "shelf_bar__b", "sink_bar__1_bar_sinkbasin", "sink_bar__1", "agent1"]
    assert display_names(ids) == {
        "shelf_bar__a": "shelf 3",
        "shelf_bar__b": "shelf 2",
        "shelf_bar__c": "shelf 1",
        "sink_bar__1": "sink 1",
        "sink_bar__1_bar_sinkbasin": "sinkbasin 1",
    }


@pytest.mark.parametrize(
    ("task_type", "expected"),
    [
        ("pick_and_place_simple", Goal("place", "Pan", "Shelf")),
        ("look_at_obj_in_light", Goal("look", "Apple", lamp_type="DeskLamp")),
        ("pick_clean_then_place_in_recep", Goal("place", "Apple", "Drawer", ("isClean",), ("cleanable",))),
        ("pick_heat_then_place_in_recep", Goal("place", "Apple", "Shelf", ("isHot",), ("heatable",))),
        ("pick_cool_then_place_in_recep", Goal("place", "Apple", "Cabinet", ("isCool",), ("coolable",))),
        ("pick_two_obj_and_place", Goal("place_two", "Apple", "Drawer")),
    ],
)
def test_the_goal_is_read_from_the_problem(task_type: str, expected: Goal) -> None:
    assert odd_game(task_type).goal == expected


@pytest.mark.parametrize(
    "change", [("isHot", "isBlue"), ("exists", "forall"), ("(and (heatable ?o)", "(or (heatable ?o)")]
)
def test_other_goals_are_left_to_the_stock_engine(change: tuple[str, str]) -> None:
    problem = odd_data("pick_heat_then_place_in_recep")["pddl_problem"]
    goal = problem[problem.index("(:goal") :]
    parse_goal(goal)
    with pytest.raises(ValueError, match="six goals"):
        parse_goal(goal.replace(*change))


def read(data: Any) -> Game:
    return parse_game(data, game_id=f"{FOLDER}/trial_1", split="train")


REFORMATTED: dict[str, tuple[str, Callable[[str], str]]] = {
    "more white space in the domain": ("pddl_domain", lambda text: text.replace("\n", "\n\n\t ").replace("(", " ( ")),
    "less white space in the domain": (
        "pddl_domain",
        lambda text: " ".join(re.sub(";.*", "", text).split()).replace(" (", "(").replace(") ", ")"),
    ),
    "comments in the domain": ("pddl_domain", lambda text: text.replace("\n", "; (a comment)\n") + "; the end"),
    "upper case in the domain": ("pddl_domain", str.upper),
    "more white space in the grammar": ("grammar", lambda text: text.replace("\n", "\r\n\n  ") + "\n"),
    "less white space in the grammar": ("grammar", lambda text: re.sub(r"\n\s+", "\n", text)),
}


@pytest.mark.parametrize(("key", "reformat"), REFORMATTED.values(), ids=REFORMATTED)
def test_another_format_does_not_make_another_release(key: str, reformat: Callable[[str], str]) -> None:
    data = odd_data()
    changed = {**data, key: reformat(data[key])}
    assert changed != data
    assert read(changed) == read(data)


def test_both_releases_say_what_cleans(real_games: GameList, generated_games: GameList) -> None:
    assert real_games[0].sink_types == {"SinkBasin", "Sink"}
    assert generated_games[0].sink_types == {"SinkBasin"}


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("pddl_domain", "(not (holdsAny ?a))", ""),
        ("pddl_domain", "(:action help", "(:action sing :parameters () :precondition () :effect ()) (:action help"),
        ("pddl_domain", "(not (holdsAny ?a))", "(not (holdsAny?a))"),
        ("pddl_domain", "SinkBasinType", "SinkType"),
        ("grammar", "You pick up", "You grab"),
        ("grammar", "You pick up", "you pick up"),
        ("grammar", "You pick up", "You  pick up"),
        ("grammar", "#look.feedback#", "#look.feedback# "),
    ],
)
def test_an_unknown_domain_or_grammar_is_left_to_the_stock_engine(key: str, old: str, new: str) -> None:
    data = odd_data()
    assert old in data[key]
    data[key] = data[key].replace(old, new, 1)
    with pytest.raises(UnsupportedGameError, match=f'{FOLDER}/trial_1.*engine="textworld" plays it') as caught:
        read(data)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_the_native_engine_does_not_know_the_stock_engine_plays(tmp_path: Path) -> None:
    data = odd_data()
    data["grammar"] = data["grammar"].replace("You pick up", "You grab")
    path = write(tmp_path, FOLDER, "trial_1", data)
    native = gym.make("ALFWorld-v0", games=str(tmp_path), split="train")
    stock: Any = gym.make("ALFWorld-v0", games=str(tmp_path), split="train", engine="textworld")
    with pytest.raises(UnsupportedGameError, match=f'{path}.*engine="textworld" plays it'):
        native.reset(options={"game": 0})
    observation, info = stock.reset(options={"game": 0})
    assert (observation["task"], info["game_id"]) == ("look around.", f"{FOLDER}/trial_1")
    stock.step("go to sidetable 1")
    assert stock.step("take pan 1 from sidetable 1")[0]["feedback"] == "You grab the pan 1 from the sidetable 1."
    assert stock.step("go to shelf 1")[4]["won"] is False
    assert stock.step("move pan 1 to shelf 1")[1:3] == (1.0, True)
    assert stock.unwrapped.games.bad_games == {}
    with pytest.raises(BadGameError, match="its subgoals are unknown"):  # these the native engine would know
        stock.unwrapped.subgoals()
    stock.close()


def test_a_game_in_other_words_is_the_same_game() -> None:
    game = odd_game()
    other = game.with_task('put "it" down')
    assert (other.task, other.goal, game.task) == ('put "it" down', game.goal, "look around.")
    again = parse_game(other.data(), game_id=game.game_id, split="train")
    assert again == other
    assert game.data() == odd_data()


# Broken games -------------------------------------------------------------------------------------


def edited(old: str, new: str) -> Callable[[dict[str, Any]], Any]:
    def edit(data: dict[str, Any]) -> dict[str, Any]:
        assert old in data["pddl_problem"]
        return {**data, "pddl_problem": data["pddl_problem"].replace(old, new)}

    return edit


def with_fact(fact: str) -> Callable[[dict[str, Any]], Any]:
    return edited("(:init", f"(:init {fact}")


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "cut off": (lambda data: json.dumps(data)[:900], "not valid JSON"),
    "empty": (lambda data: "", "not valid JSON"),
    "binary noise": (lambda data: bytes(range(256)) * 9, "not valid JSON"),
    "nested without end": (lambda data: "[" * 200_000, "not valid JSON"),
    "a list": (lambda data: [1, 2], "expected a JSON object, got list"),
    "no problem": (lambda data: {k: v for k, v in data.items() if k != "pddl_problem"}, "'pddl_problem', got nothing"),
    "a number for a grammar": (lambda data: {**data, "grammar": 3}, "'grammar', got int"),
    "a word for a walkthrough": (lambda data: {**data, "walkthrough": "look"}, "'walkthrough'"),
    "no goal": (lambda data: {**data, "pddl_problem": data["pddl_problem"].split("(:goal")[0]}, ":goal"),
    "no initial state": (edited("(:init", "(:begin"), ":init"),
    "no agent": (edited("(atLocation agent1 loc_bar_0)", ""), "agent at one location, got 0"),
    "two agents": (with_fact("(atLocation agent1 loc_bar_2)"), "agent at one location, got 2"),
    "an unknown receptacle": (
        with_fact("(inReceptacle Fork_bar__1 Box_bar__1)"),
        "'Box_bar__1' is not a declared receptacle",
    ),
    "an object for a place": (
        with_fact("(openable Fork_bar__1)"),
        "'Fork_bar__1' is not a declared receptacle",
    ),
    "an unknown fact": (with_fact("(isBlue Fork_bar__1)"), "no fact 'isBlue'"),
    "a fact too short": (
        with_fact("(inReceptacle Fork_bar__1)"),
        r"2 argument\(s\) in every",
    ),
    "a negated fact": (with_fact("(not (openable Fridge_bar__1))"), "flat list of facts"),
    "something in hand": (with_fact("(holds agent1 Fork_bar__1)"), "holds something"),
}


@pytest.mark.parametrize(("broken", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_with_its_path(
    tmp_path: Path, broken: Callable[[dict[str, Any]], Any], said: str
) -> None:
    path = write(tmp_path, FOLDER, "trial_1", broken(odd_data()))
    games = find_games("train", tmp_path)
    with pytest.raises(BadGameError, match=said) as caught:
        games[0]
    assert str(path) in str(caught.value)
    assert not games.playable(0)
    assert games.bad_games == {games.game_ids[0]: str(caught.value)}


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, FOLDER, "trial_1", odd_data())
    with path.open("ab") as file:
        file.truncate(50_000_000)
    with pytest.raises(BadGameError, match="50,000,000 bytes"):
        find_games("train", tmp_path)[0]


def test_a_file_that_has_gone_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = write(tmp_path, FOLDER, "trial_1", odd_data())
    games = find_games("train", tmp_path)
    game = games[0]
    path.unlink()
    with pytest.raises(BadGameError, match="cannot be read"):
        games[0]
    with pytest.raises(BadGameError, match="cannot be read"):
        game.data()


def test_an_unknown_task_type_lists_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, "juggle-Apple-1", "trial_1", odd_data())
    with pytest.raises(BadGameError, match="pick_two_obj_and_place"):
        find_games("train", tmp_path)[0]


def test_the_rest_of_a_split_with_a_broken_game_plays(data_folder: Path) -> None:
    games = find_games("train", data_folder, on_bad_game="skip")
    Path(games[1].path or "").write_text("{")
    assert [games.playable(i) for i in range(4)] == [True, False, True, True]
    assert list(games.bad_games) == [games.game_ids[1]]


def test_a_game_cannot_be_changed() -> None:
    game = odd_game()
    with pytest.raises(AttributeError):
        game.task = "something else"  # type: ignore[misc]
    assert replace(game, split="valid_seen").split == "valid_seen"


def test_environments_share_the_list_of_generated_ids() -> None:
    one, other = (find_games("train", "generated", generator_kwargs={"seed": 5, "n_games": 40}) for _ in range(2))
    assert one is not other and one.bad_games is not other.bad_games
    # Making an id draws a goal: the second list has the very same strings, so they were not made again.
    assert all(a is b for a, b in zip(one.game_ids, other.game_ids, strict=True))
    assert one.game_ids != find_games("train", "generated", generator_kwargs={"seed": 6, "n_games": 40}).game_ids
