"""The vector environment among its users: Gymnasium's recorders, attributes, rendering, processes, Stable-Baselines3."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from agentprm_gym.games.game import BadGameError
from tests.game_files import write_games
from tests.test_vector_env import KWARGS, MODES, assert_same, make


@pytest.mark.parametrize("mode", MODES)
def test_gymnasium_records_its_episodes(mode):
    envs = RecordEpisodeStatistics(make("TextIdentity-v0", 2, n_turns=2, autoreset_mode=mode))
    observations, _ = envs.reset(seed=0)
    n_ended = 0
    for _ in range(9):
        words = [text.removeprefix("You see ").removesuffix(".") for text in observations["feedback"]]
        observations, *_, terminations, _, infos = envs.step([words[0], "dance"])
        if terminations.all():
            n_ended += 2
            assert infos["episode"]["l"].tolist() == [2, 2]
            assert infos["episode"]["r"].tolist() == [1.0, 0.0]
            if mode == "Disabled":
                observations, _ = envs.reset(options={"reset_mask": np.array([True, True])})
    assert envs.episode_count == n_ended == (6 if mode == "NextStep" else 8)


def test_attributes_are_read_called_and_set_as_in_sync():
    envs = make(num_envs=2)
    envs.reset(seed=0)
    assert envs.get_attr("n_games") == (400, 400)
    assert [total > 0 for _, total in envs.call("subgoals")] == [True, True]
    envs.set_attr("mark", [1, 2])
    assert envs.get_attr("mark") == (1, 2)
    envs.set_attr("mark", "x")
    assert envs.get_attr("mark") == ("x", "x")
    with pytest.raises(ValueError, match="2 environments"):
        envs.set_attr("mark", [1, 2, 3])
    with pytest.raises(AttributeError, match="nothing"):
        envs.get_attr("nothing")


def test_rendering_and_closing():
    envs = make(num_envs=2, render_mode="ansi")
    assert envs.render_mode == "ansi"
    observations, _ = envs.reset(seed=0)
    assert envs.render() == tuple(text.strip("\n") for text in observations["feedback"])
    envs.step(["dance", "inventory"])
    assert envs.render() == ("> dance\nNothing happens.", "> inventory\nYou are not carrying anything.")
    envs.close()
    envs.close()
    assert envs.closed


def test_bad_games_are_skipped_and_counted(tmp_path):
    paths = write_games(tmp_path, range(3))
    paths[1].write_text(paths[1].read_text()[:1000])
    kwargs = {"games": str(tmp_path), "split": "train", "max_episode_steps": 1}
    envs = make(num_envs=2, on_bad_game="skip", autoreset_mode="SameStep", **kwargs)
    with pytest.warns(UserWarning, match=paths[1].parent.name):
        results = [envs.reset(seed=0), *(envs.step(["look", "look"]) for _ in range(3))]
    ids = {str(game_id) for result in results for game_id in result[-1]["game_id"]}
    assert len(ids) == 2
    assert not any(paths[1].parent.name in game_id for game_id in ids)
    assert results[-1][-1]["n_bad_games"].tolist() == [1, 1]
    with pytest.raises(BadGameError, match=paths[1].parent.name):
        make(num_envs=2, **kwargs).reset(options={"game": str(paths[1])})


def test_processes_give_what_it_gives():
    asynchronous = gym.make_vec(
        "agentprm_gym:ALFWorld-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False, "context": "forkserver"},
        max_episode_steps=2,
        **KWARGS,
    )
    envs = make(num_envs=2, max_episode_steps=2)
    assert_same(envs.reset(seed=3), asynchronous.reset(seed=3))
    for _ in range(4):
        assert_same(envs.step(["look", "inventory"]), asynchronous.step(["look", "inventory"]))
    asynchronous.close()


def make_one():
    return gym.make("agentprm_gym:TextIdentity-v0", n_turns=2)


@pytest.mark.ci
@pytest.mark.parametrize("make_venv", [DummyVecEnv, lambda fns: SubprocVecEnv(fns, start_method="spawn")])
def test_sb3_monitors_it_from_outside(make_venv):
    venv = VecMonitor(make_venv([make_one, make_one]))
    venv.seed(0)
    venv.reset()
    for _ in range(2):
        *_, infos = venv.step(np.array(["dance", "dance"], dtype=object))
    venv.close()
    assert [(info["episode"]["l"], info["episode"]["r"]) for info in infos] == [(2, 0.0), (2, 0.0)]
    assert all(info["terminal_observation"]["feedback"] == "That was not it." for info in infos)
