"""SkyRL's gym: the real registry makes the environment, which plays and pays what the environment plays and pays."""

from __future__ import annotations

import gymnasium as gym
import pytest

from agentprm_gym.wrappers import TextObservationWrapper

skyrl_gym = pytest.importorskip("skyrl_gym", reason="needs skyrl-gym (pip install agentprm-gym[skyrl])")

GAMES = {"games": "generated"}


def test_it_plays_what_the_environment_plays_and_pays_each_turn() -> None:
    from agentprm_gym.integrations import register_skyrl, skyrl_rows

    register_skyrl(reward="penalty", max_episode_steps=3, **GAMES)
    (row,) = skyrl_rows(1, first=5)
    extras = {
        key: value for key, value in row.items() if key not in ("prompt", "env_class")
    }  # as SkyRL's data set does
    env = skyrl_gym.make(row["env_class"], env_config={}, extras=extras)
    ours = TextObservationWrapper(gym.make("ALFWorldPRM-v0", reward="penalty", max_episode_steps=3, **GAMES))
    text, info = ours.reset(options={"game": 5})
    messages, about = env.init(row["prompt"])
    assert messages == [*row["prompt"], {"role": "user", "content": text}]
    assert about == {"game_id": info["game_id"]} and env.max_turns == 3
    rewards = []
    for said in ("look", "dance", "REASON: what have I?\nACTION: inventory"):
        text, reward, terminated, truncated, info = ours.step(said)
        out = env.step(said)
        assert out["reward"] == reward and out["done"] == (terminated or truncated)
        assert out["observations"] == ([] if out["done"] else [{"role": "user", "content": text}])
        assert out["metadata"]["reward/prm"] == info["reward/prm"]
        rewards.append(out["reward"])
    assert out["done"] and len(set(rewards)) > 1
    assert env.get_metrics() == {"won": False, "turns": 3, "return": sum(rewards)}
    assert type(env).aggregate_metrics([{"won": True}, {"won": False}]) == {"won": 0.5}
    env.close()


def test_the_trainers_configuration_counts_more() -> None:
    from agentprm_gym.integrations import register_skyrl

    register_skyrl("small", max_episode_steps=9, **GAMES)
    env = skyrl_gym.make("small", env_config={"max_episode_steps": 4, "template": "compact"}, extras={"game": 0})
    assert env.max_turns == 4
    messages, _ = env.init([])
    assert messages[0]["content"].endswith(">")


def test_a_row_must_name_its_game() -> None:
    from agentprm_gym.integrations import SkyRLHousehold

    with pytest.raises(ValueError, match="column 'game'"):
        SkyRLHousehold(extras={"reward_spec": {}}, **GAMES)
