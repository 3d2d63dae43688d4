"""ALFWorld-v0: games, engines and bad input."""

import gymnasium as gym
import pytest

from agentprm_gym.games.game import BadGameError
from agentprm_gym.games.listing import DataNotFoundError, find_games
from tests.game_files import smallest, write_games

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


def make(**kwargs):
    return gym.make("ALFWorld-v0", **{"games": "generated", "split": "valid_seen", **kwargs})


def first_of_each_type(env):
    games = env.unwrapped.games
    found = {}
    for i in range(len(games)):
        found.setdefault(games[i].task_type, i)
        if len(found) == len(TASK_TYPES):
            break
    return found


def test_walkthroughs_win_with_one_reward_at_the_end():
    env = make()
    found = first_of_each_type(env)
    assert set(found) == set(TASK_TYPES)
    for task_type, index in found.items():
        game = env.unwrapped.games[index]
        observation, info = env.reset(options={"game": index})
        assert (info["task_type"], info["game_source"]) == (task_type, "generated")
        assert observation["task"] == game.task
        assert game.task in observation["feedback"]
        outcomes = []
        for command in game.walkthrough:
            assert command in observation["admissible_commands"].split("\n")
            observation, reward, terminated, truncated, info = env.step(command)
            outcomes.append((reward, terminated, truncated, info["is_success"], info["won"]))
        assert set(outcomes[:-1]) == {(0.0, False, False, False, False)}
        assert outcomes[-1] == (1.0, True, False, True, True)
        done, total = env.unwrapped.subgoals()
        assert done == total > 0


def test_the_step_limit_is_the_papers_and_can_be_changed():
    assert make().spec.max_episode_steps == 30
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    assert env.step("look")[3] is False
    assert env.step("look")[3] is True


def test_the_long_name_works():
    assert gym.make("agentprm_gym:ALFWorldPRM-v0", games="generated").spec.id == "ALFWorldPRM-v0"


def test_task_types_narrow_the_games():
    env = make(task_types=["look_at_obj_in_light"])
    assert {env.reset(seed=0 if i == 0 else None)[1]["task_type"] for i in range(4)} == {"look_at_obj_in_light"}


@pytest.mark.parametrize(
    ("kwargs", "choices"),
    [
        ({"split": "test"}, ("train", "valid_seen", "valid_unseen", "'test'")),
        ({"engine": "fast"}, ("native", "textworld", "'fast'")),
        ({"task_types": ["pick"]}, (*TASK_TYPES, "'pick'")),
        ({"on_bad_game": "ignore"}, ("raise", "skip", "'ignore'")),
    ],
)
def test_unknown_names_list_the_choices(kwargs, choices):
    with pytest.raises(ValueError) as caught:
        make(**kwargs)
    for choice in choices:
        assert choice in str(caught.value)


def test_without_data_the_error_says_what_to_set_and_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError) as caught:
        make(games="alfworld")
    assert "ALFWORLD_DATA" in str(caught.value)
    assert "alfworld-download" in str(caught.value)


def test_the_stock_engine_plays_the_same_and_knows_the_subgoals():
    native, stock = make(split="train"), make(split="train", engine="textworld")
    (index,) = smallest(1)
    walkthrough = native.unwrapped.games[index].walkthrough
    assert native.reset(options={"game": index}) == stock.reset(options={"game": index})
    for command in ["dance", *walkthrough[:3]]:
        assert native.step(command) == stock.step(command)
        assert native.unwrapped.subgoals() == stock.unwrapped.subgoals()
    state = stock.unwrapped.snapshot()
    last = [stock.step(command) for command in walkthrough[3:5]]
    stock.unwrapped.restore(state)
    assert [stock.step(command) for command in walkthrough[3:5]] == last
    stock.close()
    stock.close()


def test_a_snapshot_of_another_split_is_refused():
    env, other = make(), make(split="valid_unseen")
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError):
        other.unwrapped.restore(env.unwrapped.snapshot())


# Broken games, on files: three games of which one is cut off --------------------------------------


@pytest.fixture
def folder_with_a_broken_game(tmp_path):
    paths = write_games(tmp_path, range(3))
    text = paths[1].read_text()
    paths[1].write_text(text[: len(text) // 2])
    return tmp_path, paths[1]


def test_a_broken_game_is_an_error_that_names_it(folder_with_a_broken_game):
    folder, broken = folder_with_a_broken_game
    env = gym.make("ALFWorld-v0", games=str(folder), split="train")
    with pytest.raises(BadGameError, match=broken.parent.name):
        for i in range(3):
            env.reset(options={"game": i})


def test_the_rest_plays_when_asked_to_counted_and_warned_once(folder_with_a_broken_game):
    folder, broken = folder_with_a_broken_game
    env = gym.make("ALFWorld-v0", games=str(folder), split="train", on_bad_game="skip")
    with pytest.warns(UserWarning, match=broken.parent.name) as caught:
        infos = [env.reset(seed=0 if i == 0 else None)[1] for i in range(6)]
    assert len(caught) == 1
    ids = [info["game_id"] for info in infos]
    assert len(set(ids)) == 2
    assert not any(broken.parent.name in game_id for game_id in ids)
    assert infos[-1]["n_bad_games"] == 1
    with pytest.raises(BadGameError):
        env.reset(options={"game": str(broken)})


def test_queued_broken_games_are_passed_over(folder_with_a_broken_game):
    folder, broken = folder_with_a_broken_game
    env = gym.make("ALFWorld-v0", games=str(folder), split="train", on_bad_game="skip")
    env.unwrapped.queue_tasks([{"game": str(broken)}, {"game": 2}])
    with pytest.warns(UserWarning, match="cannot be played"):
        _, info = env.reset()
    assert env.unwrapped.game_index(info["game_id"]) == 2


def test_a_folder_of_broken_games_says_so(tmp_path):
    for path in write_games(tmp_path, range(2)):
        path.write_text("{")
    env = gym.make("ALFWorld-v0", games=str(tmp_path), split="train", on_bad_game="skip")
    with (
        pytest.warns(UserWarning, match="cannot be played"),
        pytest.raises(ValueError, match="none of the 2 games"),
    ):
        env.reset(seed=0)


def test_real_games_play():
    try:
        find_games("valid_unseen", "alfworld")
    except DataNotFoundError as error:
        pytest.skip(str(error))
    env = gym.make("ALFWorld-v0", split="valid_unseen")
    assert env.reset(seed=0)[1]["game_source"] == "alfworld"
    game = env.unwrapped.games[0]
    _, info = env.reset(options={"game": game.path})
    assert info["game_id"] == game.game_id
    assert [env.step(command)[2] for command in game.walkthrough][-1] is True
