"""Observations as one text: what the template writes, the same for one environment and for a vector in every autoreset mode."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.envs import ALFWorldEnv
from agentprm_gym.wrappers import ProcessRewardWrapper, TextObservationWrapper, VectorTextObservation

N = 3
GAME = {"games": "generated", "max_episode_steps": 5}
OWN = """{% macro prompt(task, feedback, admissible_commands, first) -%}
{% if first %}GOAL {{ task }} {% endif %}{{ feedback | trim }} [{{ admissible_commands | length }}]
{%- endmacro %}{% macro response(reason, command) %}{{ command }}{% endmacro %}"""


def make(**kwargs):
    return gym.make("ALFWorld-v0", **{**GAME, **kwargs})


def test_the_environment_has_a_short_import():
    assert gym.make("ALFWorld-v0", games="generated").unwrapped.__class__ is ALFWorldEnv


def test_the_text_says_what_the_three_texts_say():
    env, plain = TextObservationWrapper(make(), OWN), make()
    text, info = env.reset(seed=3)
    observation, known = plain.reset(seed=3)
    n = len(observation["admissible_commands"].split("\n"))
    assert text == f"GOAL {observation['task']} {observation['feedback'].strip()} [{n}]"
    assert info == known
    after, (observation, *others) = env.step("inventory"), plain.step("inventory")
    n = len(observation["admissible_commands"].split("\n"))
    assert after == (f"{observation['feedback'].strip()} [{n}]", *others)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("template", ["compact", "full", "react"])
def test_gymnasium_accepts_it(template):
    check_env(TextObservationWrapper(make().unwrapped, template), skip_render_check=True)


def test_instructions_at_the_first_turn_or_at_each():
    env, each = TextObservationWrapper(make()), TextObservationWrapper(make(), always_first=True)
    firsts = [e.reset(seed=0)[0] for e in (env, each)]
    assert firsts[0] == firsts[1]
    laters = [e.step("look")[0] for e in (env, each)]
    assert [text.startswith("You are an agent") for text in laters] == [False, True]
    assert laters[1].endswith(laters[0])


def test_a_file_of_ones_own_and_names_that_are_unknown(tmp_path: Path):
    (tmp_path / "own.jinja").write_text(OWN)
    assert TextObservationWrapper(make(), str(tmp_path / "own.jinja")).reset(seed=0)[0].startswith("GOAL")
    with pytest.raises(ValueError, match="compact"):
        TextObservationWrapper(make(), "fancy")


def test_a_process_reward_goes_inside():
    env = TextObservationWrapper(ProcessRewardWrapper(make(), "penalty"), "compact")
    env.reset(seed=0)
    text, reward, _, _, info = env.step("dance")
    assert text.startswith("Nothing happens.\n")
    assert (reward, info["reward/prm"]) == (-0.1, -0.1)
    with pytest.raises(TypeError, match="process reward"):
        ProcessRewardWrapper(TextObservationWrapper(make()), "penalty")


def test_it_can_be_made_again_from_its_spec():
    env = TextObservationWrapper(make(), "compact", always_first=True)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=4)[0] == env.reset(seed=4)[0]


def test_other_environments_are_refused():
    with pytest.raises(TypeError, match="feedback"):
        TextObservationWrapper(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="VectorTextObservation"):
        TextObservationWrapper(gym.make_vec("ALFWorld-v0", num_envs=1, games="generated"))
    with pytest.raises(TypeError, match="TextObservationWrapper"):
        VectorTextObservation(make())
    with pytest.raises(TypeError, match="feedback"):
        VectorTextObservation(gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync"))


def play(envs, mode, n_steps=14):
    """Play nonsense until episodes are cut off, and reset as the mode wants it."""
    out, ended = [envs.reset(seed=[5, 6, 7])], np.zeros(N, dtype=bool)
    for t in range(n_steps):
        if mode == "Disabled" and ended.any():
            out.append(envs.reset(options={"reset_mask": ended}))
        if t == 2:  # episodes then end at different steps
            mask = np.array([False, True, False])
            out.append(envs.reset(options={"reset_mask": mask}) if mode == "Disabled" else None)
        observations, rewards, terminations, truncations, infos = envs.step(["look", "inventory", "dance"])
        ended = terminations | truncations
        out.append((observations, rewards.tolist(), ended.tolist(), infos))
    envs.close()
    return out


def texts(step):
    """The texts of a step, and the last ones of the episodes that it ended."""
    if step is None:
        return None
    final = step[-1].get("final_obs")
    return tuple(step[0]), None if final is None else [None if text is None else str(text) for text in final]


@pytest.mark.parametrize("kind", ["ours", "sync"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_vector_writes_what_single_environments_write(mode, kind):
    singles = SyncVectorEnv([lambda: TextObservationWrapper(make(), "full")] * N, autoreset_mode=AutoresetMode(mode))
    if kind == "ours":
        inner = gym.make_vec("ALFWorld-v0", num_envs=N, autoreset_mode=mode, **GAME)
    else:
        inner = SyncVectorEnv([make] * N, autoreset_mode=AutoresetMode(mode))
    envs = VectorTextObservation(inner)
    assert envs.single_observation_space == singles.single_observation_space
    ours, theirs = play(envs, mode), play(singles, mode)
    assert [texts(step) for step in ours] == [texts(step) for step in theirs]
    began = [text for step in ours if step for text in step[0] if text.startswith("You are an agent")]
    assert len(began) > N  # some episodes were begun again
    assert all(envs.single_observation_space.contains(text) for step in ours if step for text in step[0])


def test_a_vector_must_be_reset_first():
    envs = VectorTextObservation(gym.make_vec("ALFWorld-v0", num_envs=1, games="generated"))
    with pytest.raises(ResetNeeded):
        envs.step(["look"])
