"""Worker processes play the episodes that one process plays."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.acting.workers import RolloutWorkers
from algorithms.common.measure.evaluation import make_eval_env
from tests.llm_helpers import randomise

GAMES = {"split": "train", "games": "generated", "max_episode_steps": 4}
TASKS = [RolloutTask({"game": g}, (0, g)) for g in range(5)]


def no_environments() -> VecEnv:
    raise OSError("no environments here")


@pytest.fixture
def policy() -> LLMPolicy:
    venv = make_eval_env(n_envs=1, **GAMES)
    policy = LLMPolicy(venv.observation_space, venv.action_space, lora={"r": 4})
    randomise(policy.lm, POLICY)
    return policy


def test_episodes_are_those_of_one_process(policy: LLMPolicy) -> None:
    def alone() -> list[list[str]]:
        venv = make_eval_env(n_envs=3, **GAMES)
        with policy.lm.merged(POLICY):
            rollouts = collect(policy.actor(3, temperature=0.7), venv, TASKS, policy_name="me")
        return [[turn.command for turn in r.episode.turns] for r in rollouts or []]

    first = alone()
    with RolloutWorkers(policy, partial(make_eval_env, n_envs=2, **GAMES), 2) as workers:
        played = workers.collect(TASKS, temperature=0.7, policy_name="me", snapshots=True)
        assert [[turn.command for turn in r.episode.turns] for r in played] == first
        assert [r.episode.policy for r in played] == ["me"] * len(TASKS)
        assert all(len(r.snapshots) == len(r.episode.turns) for r in played)
        assert workers.counts["turns"] == sum(len(commands) for commands in first)
        # The adapter is the policy's as it is now.
        with torch.no_grad():
            for parameter in policy.lm.adapter_parameters(POLICY):
                parameter.mul_(-3)
        seen = []
        again = workers.collect(TASKS[:1], temperature=0.7, on_episode=seen.append)
        assert [e.game_id for e in seen] == [r.episode.game_id for r in again] == [played[0].episode.game_id]
        second = alone()
        assert [turn.command for turn in again[0].episode.turns] == second[0]
        assert second != first


def test_what_a_process_dies_of_is_told(policy: LLMPolicy) -> None:
    with (
        RolloutWorkers(policy, no_environments, 1) as workers,
        pytest.raises(RuntimeError, match="no environments here"),
    ):
        workers.collect(TASKS[:1])
    with pytest.raises(ValueError, match="n_workers must be a whole number of 1 or more"):
        RolloutWorkers(policy, no_environments, 0)
