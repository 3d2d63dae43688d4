"""The two wordings of the games: releases 2.1.1 ("put mug 1 in/on shelf 1") and 2.1.2 ("move mug 1 to shelf 1")."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import agentprm_gym  # noqa: F401
from agentprm_gym.engines import make_engine
from agentprm_gym.experts import Planner, SearchExpert, demonstrate, demonstrations
from agentprm_gym.games import (
    GRAMMARS,
    BadGameError,
    DataNotFoundError,
    Game,
    GameList,
    UnsupportedGameError,
    find_games,
    parse_game,
    reword_command,
)
from agentprm_gym.games.recognise import domain_digest, grammar_digest
from tests.odd_game import odd_data, odd_game

# Digests of the texts of 2.1.2: the official grammar and the package's domain. The packages' grammar says the same.
NEWER = ("5f205218f62a04aa", "3c0b24a49f36292e")
FOLDER = "pick_and_place_simple-odd-room-0"
TO_WIN = ("go to sidetable 1", "take pan 1 from sidetable 1", "go to shelf 1")


def write(root: Path, data: dict[str, Any], split: str = "train") -> Path:
    path = root / "json_2.1.1" / split / FOLDER / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return path


def digests(game: Game) -> tuple[str, str]:
    """The digests of a game's texts, the task line blanked."""
    data = game.data()
    return grammar_digest(data["grammar"].replace(game.task, "")), domain_digest(data["pddl_domain"])


def test_a_game_of_the_package_in_the_older_wording_has_the_older_packages_texts(generated_games: GameList) -> None:
    game = generated_games[0]
    assert digests(game.in_grammar("2.1.1")) == ("100917d5750d83ff", "502d719a8f2b1d9a")
    again = parse_game(game.in_grammar("2.1.1").data(), game_id=game.game_id, split="train")
    assert again.grammar == "2.1.1" and digests(again.in_grammar("2.1.2")) == NEWER


def test_an_official_game_in_the_older_wording_has_the_older_official_texts(real_games: GameList) -> None:
    game = real_games[0]
    assert digests(game) == ("5f205218f62a04aa", "fd12e1f2896effe5")
    assert digests(game.in_grammar("2.1.1")) == ("100917d5750d83ff", "3396929f4cc3693c")
    assert digests(pickle.loads(pickle.dumps(game.in_grammar("2.1.1"))).in_grammar("2.1.2")) == digests(game)


def test_the_four_differences(generated_games: GameList) -> None:
    game = odd_game()
    engine = make_engine("native")
    seen = {}
    for grammar in GRAMMARS:
        frame = engine.reset(game.in_grammar(grammar))
        helps = "help" in frame.admissible_commands
        arrived = [engine.step(command).feedback for command in TO_WIN][-1]
        put = reword_command("move pan 1 to shelf 1", grammar)
        done = engine.step(put)
        seen[grammar] = (helps, arrived.split(".")[0], put, done.feedback, done.won)
    # The first id in order has the highest number: loc_bar_0, where the agent starts, is one of seven.
    assert seen["2.1.1"] == (
        False,
        f"You arrive at {game.location_names['loc_bar_1']}",
        "put pan 1 in/on shelf 1",
        "You put the pan 1 in/on the shelf 1.",
        True,
    )
    assert game.location_names["loc_bar_1"].startswith("loc ")
    assert seen["2.1.2"] == (
        True,
        "You arrive at shelf 1",
        "move pan 1 to shelf 1",
        "You move the pan 1 to the shelf 1.",
        True,
    )


def test_files_of_the_older_release_play_natively_and_in_either_wording(tmp_path: Path) -> None:
    new = odd_data()
    path = write(tmp_path, odd_game().in_grammar("2.1.1").data())
    assert json.loads(path.read_text())["grammar"] != new["grammar"]
    game = find_games("train", tmp_path)[0]
    assert game.grammar == "2.1.1" and not game.help_text and not game.unsupported
    back = find_games("train", tmp_path, grammar="2.1.2")[0]
    assert back.grammar == "2.1.2" and back.help_text.startswith("Available commands:")
    assert digests(back) == NEWER and back.walkthrough == odd_game().walkthrough
    env = gym.make("ALFWorld-v0", games=str(tmp_path), split="train")
    observation, _ = env.reset(seed=0)
    assert "help" not in observation["admissible_commands"].split("\n")
    for command in (*TO_WIN, "put pan 1 in/on shelf 1"):
        _, _, terminated, _, info = env.step(command)
    assert terminated and info["is_success"]


@pytest.mark.parametrize("env_id", ["ALFWorld-v0", "ALFWorldPRM-v0"])
@pytest.mark.parametrize("engine", ["native", "textworld"])
def test_the_option_grammar_of_the_environments(tmp_path: Path, env_id: str, engine: str) -> None:
    write(tmp_path, odd_data())
    frames: dict[str | None, Any] = {}
    for grammar in (None, *GRAMMARS):
        env = gym.make(env_id, games=str(tmp_path), split="train", engine=engine, grammar=grammar)
        assert gym.spec(env_id).kwargs.get("grammar") is None
        env.reset(seed=0)
        commands = (*TO_WIN, reword_command("move pan 1 to shelf 1", grammar or "2.1.2"))
        frames[grammar] = [env.step(command)[:4] for command in commands]
        assert frames[grammar][-1][2]
        env.close()
    assert frames[None] == frames["2.1.2"]
    old, new = ([step[1:] for step in frames[grammar]] for grammar in GRAMMARS)
    assert old == new  # rewards and ends
    assert frames["2.1.1"][-1][0]["feedback"] == "You put the pan 1 in/on the shelf 1."


def test_the_option_grammar_of_the_vector_environment() -> None:
    envs = gym.make_vec("ALFWorld-v0", num_envs=2, games="generated", grammar="2.1.1")
    observations, _ = envs.reset(seed=0)
    assert not any("help" in commands.split("\n") for commands in observations["admissible_commands"])
    goes = [next(c for c in text.split("\n") if c.startswith("go to")) for text in observations["admissible_commands"]]
    observations, *_ = envs.step(goes)
    assert all(feedback.startswith("You arrive at loc ") for feedback in observations["feedback"])


def test_an_unknown_wording_is_refused() -> None:
    for make in (
        lambda: find_games("train", "generated", grammar="2.1.3"),
        lambda: gym.make("ALFWorld-v0", games="generated", grammar="2.1.3"),
        lambda: odd_game().in_grammar("put"),
    ):
        with pytest.raises(ValueError, match=r"unknown grammar .*2\.1\.1, 2\.1\.2, or None"):
            make()


def test_a_snapshot_in_another_wording_is_refused_and_leaves_the_environment_usable() -> None:
    old, new = (gym.make("ALFWorld-v0", games="generated", grammar=grammar).unwrapped for grammar in GRAMMARS)
    old.reset(options={"game": 0})
    new.reset(options={"game": 0})
    for game in (0, 1):  # the same game as the loaded one, and another one
        new.reset(options={"game": game})
        with pytest.raises(ValueError, match=r"wording '2\.1\.1', got one in '2\.1\.2'.*same grammar"):
            old.restore(new.snapshot())
        old.reset(options={"game": 0})
        assert old.step("look")[0]["feedback"]


def test_what_cannot_be_said_in_a_wording_is_refused(tmp_path: Path) -> None:
    # The grammar says "loc N" only of names with "_bar_".
    data = odd_data()
    data["pddl_problem"] = data["pddl_problem"].replace("loc_bar_6", "corner")
    game = parse_game(data, game_id=f"{FOLDER}/trial_1", split="train")
    with pytest.raises(UnsupportedGameError, match="corner"):
        game.in_grammar("2.1.1")
    write(tmp_path, data)
    with pytest.raises(UnsupportedGameError, match="corner"):
        find_games("train", tmp_path, grammar="2.1.1")[0]
    env = gym.make("ALFWorld-v0", games=str(tmp_path), split="train", engine="textworld", grammar="2.1.1")
    env.reset(seed=0)
    assert env.step("go to shelf 1")[0]["feedback"].startswith("You arrive at loc ")
    env.close()
    # The texts of an unknown grammar cannot be translated.
    data["grammar"] = data["grammar"].replace("You close the", "You shut the")
    write(tmp_path / "unknown", data)
    with pytest.raises(BadGameError, match="leave out grammar"):
        find_games("train", tmp_path / "unknown", grammar="2.1.1").unread(0)


def test_a_domain_and_a_grammar_of_different_releases_are_for_the_stock_engine() -> None:
    data = odd_data()
    data["pddl_domain"] = odd_game().in_grammar("2.1.1").data()["pddl_domain"]
    with pytest.raises(UnsupportedGameError, match=r"domain is of release 2\.1\.1 and its grammar of release 2\.1\.2"):
        parse_game(data, game_id=f"{FOLDER}/trial_1", split="train")


def test_experts_play_alike_in_both_wordings(one_of_each_type: list[int]) -> None:
    old, new = (find_games("train", "generated", grammar=grammar) for grammar in GRAMMARS)
    for i in one_of_each_type:
        for expert in ("search", "planner"):
            episodes = [demonstrate(games[i], expert) for games in (old, new)]
            commands = [[turn.command for turn in episode.turns] for episode in episodes]
            assert episodes[0].success and commands[0] == [reword_command(c, "2.1.1") for c in commands[1]]
            assert all(turn.command in turn.admissible_commands for turn in episodes[0].turns)
        planner = Planner(old[i])
        assert len(planner.plan()) == planner.cost_to_go(planner.start) == Planner(new[i]).cost_to_go(planner.start)
    assert any("in/on" in turn.command for turn in demonstrations(old, 1)[0].turns)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_the_searching_expert_puts_a_wrong_object_away_and_remembers_where(grammar: str) -> None:
    expert = SearchExpert()
    put = reword_command("move mug 1 to shelf 1", grammar)
    _, command = expert.act("put a cd in safe.", "You see nothing.", [put, "examine mug 1", "examine shelf 1"])
    assert command == put
    said = {"2.1.1": "You put the mug 1 in/on the shelf 1.", "2.1.2": "You move the mug 1 to the shelf 1."}[grammar]
    away = ["go to cabinet 1", "go to shelf 1"]
    expert.act("put a cd in safe.", said, ["examine shelf 1", "go to cabinet 1"])
    assert expert.act("put a mug in safe.", "Nothing.", away) == ("I saw mug 1 on shelf 1, so I go there.", away[1])


def test_the_hash_tells_the_wordings_apart() -> None:
    hashes = {
        find_games("train", "generated", generator_kwargs={"n_games": 2}, grammar=grammar).content_hash
        for grammar in (None, *GRAMMARS)
    }
    assert len(hashes) == 3


def test_the_split_valid_train_of_the_official_layout(tmp_path: Path) -> None:
    write(tmp_path, odd_data(), split="valid_train")
    env = gym.make("ALFWorld-v0", games=str(tmp_path), split="valid_train")
    _, info = env.reset(seed=0)
    assert info["split"] == "valid_train"
    with pytest.raises(DataNotFoundError, match="none are generated for it: choose from train, valid_seen"):
        find_games("valid_train", "generated")


def test_the_path_of_the_file_is_told_as_alfworlds_own_wrappers_do(tmp_path: Path) -> None:
    path = write(tmp_path, odd_data())
    env = gym.make("ALFWorld-v0", games=str(tmp_path), split="train")
    _, info = env.reset(seed=0)
    assert info["extra.gamefile"] == str(path) == env.step("look")[-1]["extra.gamefile"]
    # What programs for ALFWorld make of it is the game's id.
    assert "/".join(info["extra.gamefile"].split("/")[-3:-1]) == info["game_id"]
    envs = gym.make_vec("ALFWorld-v0", num_envs=2, games=str(tmp_path), split="train")
    assert list(envs.reset(seed=0)[1]["extra.gamefile"]) == [str(path)] * 2
    assert "extra.gamefile" not in gym.make("ALFWorld-v0", games="generated").reset(seed=0)[1]
