"""verifiers: its own OpenEnv environment plays on this package's server, and scores the sum of the turns' rewards.

What plays is a script in place of a model: a rollout of verifiers needs a harness, which it installs with uv.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest

import agentprm_gym  # noqa: F401  # registers the environments

pytest.importorskip("verifiers.v1", reason="needs verifiers (pip install verifiers)")
pytest.importorskip("openenv.core", reason="needs openenv (pip install 'verifiers[openenv]')")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ANSWERS = ("look", "REASON: nothing to see.\nACTION: inventory", '{"command": "dance"}')


class Script:
    """Answers in place of a model, and what verifiers' environment told it and recorded."""

    def __init__(self, answers: tuple[str, ...]) -> None:
        from verifiers.v1.agent import Segment
        from verifiers.v1.types import AssistantMessage

        self.told: list[dict[str, Any]] = []
        self.rewards: dict[str, float] = {}
        self.trace = SimpleNamespace(record_reward=self.rewards.__setitem__, stop=lambda why: None)
        self._segments = iter([Segment(messages=[AssistantMessage(content=answer)]) for answer in answers])

    async def turn(self, text: str) -> Any:
        self.told.append(json.loads(text))
        return next(self._segments)

    @asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator[Script]:
        yield self


def test_its_environment_plays_on_our_server() -> None:
    from verifiers.v1.tasksets.openenv import OpenEnvConfig, OpenEnvEnv, OpenEnvTaskset

    from tests.test_openenv import running

    games = {"games": "generated"}
    with running(reward="penalty", max_episode_steps=3) as make:
        url = make()._base_url.replace("ws://", "http://")
        tasks = list(OpenEnvTaskset(OpenEnvConfig(id="openenv", base_url=url, resets=[{"game": 4}, {"game": 5}])))
        played = [Script(ANSWERS) for _ in tasks]
        for task, script in zip(tasks, played, strict=True):
            # Its run() reads nothing of the environment itself.
            asyncio.run(OpenEnvEnv.run(SimpleNamespace(), task, SimpleNamespace(player=script)))
    for game, script in zip((4, 5), played, strict=True):
        env = gym.make("ALFWorldPRM-v0", reward="penalty", max_episode_steps=3, **games)
        observation, _ = env.reset(options={"game": game})
        rewards = []
        for told, answer in zip(script.told, ("look", "inventory", "dance"), strict=True):
            assert told["observation"]["feedback"] == observation["feedback"]
            assert told["action_schema"]["required"] == ["command"]  # so that a plain answer is taken
            observation, reward, *_ = env.step(answer)
            rewards.append(reward)
        assert script.rewards == {"openenv_reward": pytest.approx(sum(rewards))} and sum(rewards) != 0
