"""Worker processes play the episodes that one process plays."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode
from algorithms import GRPO, RayWorkers
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.acting.workers import RolloutWorkers
from algorithms.common.measure.evaluation import make_eval_env
from tests.algorithm_helpers import make_alfworld, make_model
from tests.llm_helpers import randomise

GAMES = {"split": "train", "games": "generated", "max_episode_steps": 4}
TASKS = [RolloutTask({"game": g}, (0, g)) for g in range(5)]


def no_environments() -> VecEnv:
    raise OSError("no environments here")


def no_process() -> VecEnv:
    os._exit(7)


@pytest.fixture
def policy() -> LLMPolicy:
    venv = make_eval_env(n_envs=1, **GAMES)
    policy = LLMPolicy(venv.observation_space, venv.action_space, lora={"r": 4})
    randomise(policy.lm, POLICY)
    return policy


@pytest.mark.ci
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
        # A process that is killed is replaced, and what it had not finished is played again.
        n_played = 0

        def kill_one(_: Episode) -> None:
            nonlocal n_played
            n_played += 1
            if n_played == 1:
                os.kill(workers.pids[0], signal.SIGKILL)

        third = workers.collect(TASKS, temperature=0.7, on_episode=kill_one)
        assert [[turn.command for turn in r.episode.turns] for r in third] == second
        assert n_played == len(TASKS) and workers.n_replaced == 1


@pytest.mark.ci
def test_what_a_process_dies_of_is_told(policy: LLMPolicy) -> None:
    with (
        RolloutWorkers(policy, no_environments, 1) as workers,
        pytest.raises(RuntimeError, match="no environments here"),
    ):
        workers.collect(TASKS[:1])
    with pytest.raises(ValueError, match="n_workers must be a whole number of 1 or more"):
        RolloutWorkers(policy, no_environments, 0)


@pytest.mark.slow
def test_processes_that_end_again_and_again_are_not_replaced_for_ever(policy: LLMPolicy) -> None:
    wanted = r"worker process \d+ ended with exit status 7, and 3 workers .* run out of memory"
    with RolloutWorkers(policy, no_process, 1) as workers, pytest.raises(RuntimeError, match=wanted):
        workers.collect(TASKS[:1])


@pytest.mark.ci
def test_an_algorithm_learns_the_same_from_workers(learner: str) -> None:
    def learnt(n_workers: int) -> tuple[int, int, list[torch.Tensor]]:
        model = make_model(GRPO, learner, make_alfworld(max_episode_steps=4))
        if n_workers:
            make = partial(make_alfworld, 2, max_episode_steps=4)
            with RolloutWorkers(model.policy, make, n_workers) as model.workers:
                model.learn(1)
        else:
            model.learn(1)
        return model.num_timesteps, model.total_tokens, list(model.lm.adapter_state(POLICY).values())

    *alone, weights = learnt(0)
    *shared, same = learnt(1)
    assert shared == alone
    for one, other in zip(weights, same, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_workers_of_another_policy_or_with_other_environments_are_refused(policy: LLMPolicy, learner: str) -> None:
    model = make_model(GRPO, learner, make_alfworld(max_episode_steps=4))
    with RolloutWorkers(policy, make_alfworld, 1) as model.workers:
        with pytest.raises(ValueError, match=r"another policy.*model\.policy"):
            model.learn(1)
    with RolloutWorkers(model.policy, partial(make_alfworld, 2, max_episode_steps=5), 1) as model.workers:
        with pytest.raises(RuntimeError, match=r"make_venv makes other environments.*step limit: expected 4, got 5"):
            model.learn(1)


def test_without_ray_the_extra_is_named(policy: LLMPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'agentprm-gym\[ray\]'"):
        RayWorkers(policy, no_environments)
