"""What every registered id promises, whichever environment it is."""

import copy
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import CustomSpaceError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from agentprm_gym import UnicodeText
from agentprm_gym.envs.identity import DEFAULT_WORDS
from tests.game_files import smallest, write_games

GENERATED = {"games": "generated"}
SPECS = [
    pytest.param("ALFWorld-v0", GENERATED, id="alfworld"),
    pytest.param("ALFWorldPRM-v0", GENERATED, id="alfworld-prm"),
    pytest.param("ALFWorldPRM-v0", {**GENERATED, "reward": "outcome"}, id="alfworld-outcome"),
    pytest.param("TextIdentity-v0", {}, id="identity"),
    pytest.param("TextIdentity-v0", {"n_turns": 3}, id="identity-3"),
]
every_spec = pytest.mark.parametrize(("env_id", "kwargs"), SPECS)
NONSENSE = [
    "",
    "dance",
    "\n\n",
    "ACTION:",
    "ACTION: fly",
    "\u2603 \U0001f600",
    "x" * 5000,
    "%s{}\\",
]


def play(env, seed, n_steps=60):
    """Play admissible commands chosen by a seed; return everything that came back, as bytes."""
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed=seed)]
    for _ in range(n_steps):
        commands = seen[-1][0]["admissible_commands"].split("\n")
        seen.append(env.step(str(rng.choice(commands))))
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
    return json.dumps(seen).encode()


@every_spec
def test_gymnasium_finds_nothing_to_complain_about(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", ["ALFWorld-v0", "ALFWorldPRM-v0"])
def test_gymnasium_finds_nothing_to_complain_about_in_the_stock_engine(env_id, tmp_path):
    write_games(tmp_path, smallest(2))
    env = gym.make(env_id, engine="textworld", games=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # TextWorld leaves the game file open.
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@every_spec
def test_same_seed_same_bytes(env_id, kwargs):
    runs = [play(gym.make(env_id, **kwargs), seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@every_spec
def test_spec_survives_json(env_id, kwargs):
    spec = gym.make(env_id, **kwargs).spec
    twin = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert twin.spec == spec
    assert play(twin, 5, 5) == play(gym.make(env_id, **kwargs), 5, 5)


@every_spec
def test_spaces_hold_what_is_returned_and_copy(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    observation, _ = env.reset(seed=0)
    assert list(observation) == ["task", "feedback", "admissible_commands"] or set(observation) == set(
        env.observation_space.spaces
    )
    assert observation in env.observation_space
    assert all(isinstance(space, UnicodeText) for space in env.observation_space.spaces.values())
    assert isinstance(env.action_space, UnicodeText)
    for twin in (
        copy.deepcopy(env.observation_space),
        pickle.loads(pickle.dumps(env.observation_space)),
    ):
        assert twin == env.observation_space


@every_spec
def test_no_string_is_an_error(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    for text in [*NONSENSE, env.action_space.sample()]:
        before, _ = env.reset(seed=3)
        observation, reward, terminated, truncated, info = env.step(text)
        assert observation in env.observation_space
        assert info["is_admissible"] is False
        assert info["is_success"] is info["won"] is False
        if env_id != "TextIdentity-v0":
            assert observation["feedback"] == "Nothing happens."
            assert observation["admissible_commands"] == before["admissible_commands"]
            assert (reward, terminated, truncated) == (0.0, False, False)


@every_spec
def test_a_whole_response_does_what_its_command_does(env_id, kwargs):
    results = []
    for wrap in ("{}", "REASON: let me see\nACTION: dance\nACTION: {}", "hm\naction: {}"):
        env = gym.make(env_id, **kwargs)
        observation, _ = env.reset(seed=4)
        command = observation["admissible_commands"].split("\n")[0]
        *rest, info = env.step(wrap.format(command))
        assert info["command"] == command
        assert info["is_admissible"] is True
        results.append(rest)
    assert results[0] == results[1] == results[2]


@every_spec
def test_misuse_is_explained(env_id, kwargs):
    env = gym.make(env_id, **kwargs).unwrapped
    with pytest.raises(ResetNeeded, match="reset"):
        env.step("look")
    with pytest.raises(ResetNeeded, match="reset"):
        env.snapshot()
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"str.*int"):
        env.step(3)
    with pytest.raises(ValueError, match=r"'game', 'snapshot'.*gaem"):
        env.reset(options={"gaem": 0})
    with pytest.raises(ValueError, match="one of"):
        env.reset(options={"game": 0, "snapshot": env.snapshot()})
    with pytest.raises(ValueError, match="no-such-game"):
        env.reset(options={"game": "no-such-game"})
    with pytest.raises(ValueError, match=str(10**9)):
        env.reset(options={"game": 10**9})
    with pytest.raises(TypeError, match="snapshot"):
        env.restore({"game": 0})


@every_spec
def test_options_are_left_as_they_were_and_empty_ones_mean_none(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    options = {"game": 1}
    _, first = env.reset(options=options)
    assert options == {"game": 1}
    _, by_id = env.reset(options={"game": first["game_id"]})
    assert by_id == first
    env.reset(seed=0)
    _, drawn = env.reset(options={})
    env.reset(seed=0)
    assert env.reset()[1] == drawn


@every_spec
def test_a_pass_visits_every_game_once_and_passes_differ(env_id, kwargs):
    if env_id != "TextIdentity-v0":
        kwargs = {**kwargs, "split": "valid_seen", "task_types": ["look_at_obj_in_light"]}
    env = gym.make(env_id, **kwargs)
    n = env.unwrapped.n_games
    passes = [[env.reset(seed=11 if i == n_pass == 0 else None)[1]["game_id"] for i in range(n)] for n_pass in range(2)]
    assert len(set(passes[0])) == n > 4
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


@every_spec
def test_named_games_do_not_disturb_the_pass(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    plain = [env.reset(seed=2)[1]["game_id"], *(env.reset()[1]["game_id"] for _ in range(3))]
    env.reset(seed=2)
    mixed = []
    for _ in range(3):
        env.reset(options={"game": 0})
        mixed.append(env.reset()[1]["game_id"])
    assert mixed == plain[1:]


@every_spec
def test_queued_tasks_come_next_in_order(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    env.reset(options={"game": 2})
    inner = env.unwrapped
    wanted = inner.game_index(2)
    third = env.reset(options={"game": 2})[1]["game_id"]
    state = inner.snapshot()
    assert inner.queue_tasks([{"game": 4}, {"snapshot": state}]) == 2
    assert inner.queue_tasks([{"game": 1}]) == 3
    ids = [env.reset(seed=i)[1]["game_id"] for i in range(3)]
    assert [inner.game_index(i) for i in ids] == [4, wanted, 1]
    assert ids[1] == third
    inner.queue_tasks([{"game": 0}])
    assert inner.queue_tasks([{"game": 3}], replace=True) == 1
    assert inner.game_index(env.reset()[1]["game_id"]) == 3


@every_spec
def test_a_wrong_task_is_refused_before_anything_is_queued(env_id, kwargs):
    env = gym.make(env_id, **kwargs).unwrapped
    with pytest.raises(ValueError, match="no-such-game"):
        env.queue_tasks([{"game": 0}, {"game": "no-such-game"}])
    assert env.queue_tasks([]) == 0


@every_spec
def test_restore_continues_exactly(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    other = gym.make(env_id, **kwargs)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=6)
    for _ in range(2 if "identity" not in env_id.lower() else 0):
        observation = env.step(str(rng.choice(observation["admissible_commands"].split("\n"))))[0]
    state = env.unwrapped.snapshot()
    turns = env.unwrapped.turns
    commands = observation["admissible_commands"].split("\n")

    def follow(somewhere):
        results = []
        for command in commands[:3]:
            results.append(somewhere.step(command))
            if results[-1][2]:
                break
        return results

    expected = follow(env)
    other.reset(seed=9)
    restored, info = other.unwrapped.restore(pickle.loads(pickle.dumps(state)))
    assert restored == observation
    assert other.unwrapped.turns == turns
    assert follow(other) == expected
    restarted, info_again = env.reset(options={"snapshot": state})
    assert (restarted, info_again) == (observation, info)
    assert follow(env) == expected


@every_spec
def test_success_is_told_on_the_last_step_also_when_cut_off(env_id, kwargs):
    env = gym.make(env_id, max_episode_steps=2, **kwargs)
    env.reset(seed=0)
    for _ in range(2):
        *_, terminated, truncated, info = env.step("dance")
        if terminated or truncated:
            break
    assert terminated or truncated
    assert info["is_success"] is False


@every_spec
def test_ansi_returns_the_exchange_and_human_prints_it(env_id, kwargs, capsys):
    env = gym.make(env_id, render_mode="ansi", **kwargs)
    observation, _ = env.reset(seed=0)
    assert env.render() == observation["feedback"].strip("\n")
    observation, *_ = env.step("dance")
    assert env.render() == "> dance\n" + observation["feedback"].strip("\n")
    assert capsys.readouterr().out == ""
    env = gym.make(env_id, render_mode="human", **kwargs)
    env.reset(seed=0)
    env.step("dance")
    assert env.render() is None
    assert "> dance\n" in capsys.readouterr().out


@every_spec
def test_the_recorded_episode_is_what_happened(env_id, kwargs):
    env = gym.make(env_id, **kwargs).unwrapped
    observation, info = env.reset(seed=1)
    after, reward, terminated, _, step_info = env.step("REASON: no idea\nACTION: dance")
    episode = env.episode(policy="random", seed=1)
    (turn,) = episode.turns
    assert (episode.game_id, episode.task) == (info["game_id"], observation["task"])
    assert (episode.success, episode.truncated) == (False, not terminated)
    assert turn.feedback == observation["feedback"]
    assert "\n".join(turn.admissible_commands) == observation["admissible_commands"]
    assert (turn.reason, turn.command) == ("no idea", "dance")
    assert turn.reward == step_info.get("reward/env", reward)
    assert after["feedback"] != turn.feedback or env_id == "TextIdentity-v0"


# Stable-Baselines3 and Gymnasium's vector environments --------------------------------------------


@every_spec
def test_sb3_vectorises_it(env_id, kwargs):
    venv = make_vec_env(env_id, n_envs=2, env_kwargs={**kwargs, "render_mode": None}, seed=0)
    assert isinstance(venv, DummyVecEnv)
    observation = venv.reset()
    assert observation["task"].dtype == object
    assert all(isinstance(text, str) for text in observation["feedback"])
    for _ in range(31):
        observation, rewards, dones, infos = venv.step(np.array(["dance", "look"], dtype=object))
        if dones.all():
            break
    assert dones.all(), "the step limit of the id holds"
    assert [info["is_success"] for info in infos] == [False, False]
    assert all("episode" in info and "terminal_observation" in info for info in infos)
    assert rewards.shape == (2,)


def test_auto_resets_follow_the_queue():
    venv = DummyVecEnv([lambda: Monitor(gym.make("TextIdentity-v0"))])
    venv.env_method("queue_tasks", [{"game": i} for i in (5, 2, 7)])
    seen = [venv.reset()["feedback"][0]]
    for _ in range(2):
        seen.append(venv.step(np.array(["dance"], dtype=object))[0]["feedback"][0])
    assert seen == [f"You see {DEFAULT_WORDS[i]}." for i in (5, 2, 7)]


@pytest.mark.ci
def test_subprocesses_give_what_one_process_gives():
    def steps(venv):
        venv.seed(0)
        out = [venv.reset()["feedback"].tolist()]
        for action in ("look", "inventory"):
            out.append(venv.step(np.array([action] * 2, dtype=object))[0]["feedback"].tolist())
        state = venv.env_method("snapshot", indices=0)[0]
        venv.env_method("restore", state, indices=1)
        venv.close()
        return out, state.turns

    def make():
        # With the module's name in front, a fresh process imports it and knows the id.
        return gym.make("agentprm_gym:ALFWorld-v0", games="generated", split="valid_seen")

    assert steps(SubprocVecEnv([make, make])) == steps(DummyVecEnv([make, make]))


def test_shared_memory_is_refused_loudly_and_without_it_works():
    with pytest.raises((CustomSpaceError, ValueError), match="shared_memory=False"):
        gym.make_vec("TextIdentity-v0", num_envs=2, vectorization_mode="async")
    venv = gym.make_vec(
        "TextIdentity-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False},
    )
    observation, _ = venv.reset(seed=0)
    assert all(text.startswith("You see ") for text in observation["feedback"])
    words = [text.removeprefix("You see ").removesuffix(".") for text in observation["feedback"]]
    _, rewards, terminated, _, _ = venv.step(words)
    assert rewards.tolist() == [1.0, 1.0]
    assert terminated.all()
    venv.close()
