"""Actors of a Ray cluster play the episodes that one process plays, also where one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agentprm_gym.episodes import Episode
from algorithms import AgentPRM, RayWorkers
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import Rollout, collect
from algorithms.common.measure.evaluation import make_eval_env
from tests.algorithm_helpers import make_alfworld, make_model
from tests.test_workers import GAMES, TASKS, no_environments, policy

__all__ = ["policy"]  # a fixture

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
pytestmark = pytest.mark.slow  # a cluster takes seconds to start


@pytest.fixture(autouse=True)
def no_cluster_is_left() -> Iterator[None]:
    yield
    assert not ray.is_initialized()


def commands(rollouts: list[Rollout] | None) -> list[list[str]]:
    return [[turn.command for turn in rollout.episode.turns] for rollout in rollouts or []]


def test_episodes_are_those_of_one_process_also_after_a_kill(policy: LLMPolicy) -> None:
    venv = make_eval_env(n_envs=3, **GAMES)
    with policy.lm.merged(POLICY):
        alone = commands(collect(policy.actor(3, temperature=0.7), venv, TASKS))
    with RayWorkers(policy, partial(make_eval_env, n_envs=1, **GAMES), 2) as workers:
        pids = workers.pids
        assert len(set(pids)) == 2 and os.getpid() not in pids
        played = workers.collect(TASKS, temperature=0.7, policy_name="me", snapshots=True)
        assert commands(played) == alone
        assert [r.episode.policy for r in played] == ["me"] * len(TASKS)
        assert all(len(r.snapshots) == len(r.episode.turns) for r in played)
        assert workers.counts["turns"] == sum(map(len, alone))
        assert workers.n_replaced == 0

        n_played = 0

        def kill_one(_: Episode) -> None:
            nonlocal n_played
            n_played += 1
            if n_played == 1:
                os.kill(pids[0], signal.SIGKILL)

        assert commands(workers.collect(TASKS * 4, temperature=0.7, on_episode=kill_one)) == alone * 4
        assert n_played == 4 * len(TASKS)
        assert workers.n_replaced == 1
        assert pids[0] not in workers.pids and pids[1] in workers.pids


class Killer(BaseCallback):
    """Kills an actor at the third episode."""

    def __init__(self, workers: RayWorkers) -> None:
        super().__init__()
        self.workers = workers

    def _on_step(self) -> bool:
        if self.n_calls == 3:
            os.kill(self.workers.pids[1], signal.SIGKILL)
        return True


def test_a_run_with_a_killed_actor_learns_what_one_process_learns(learner: str) -> None:
    """Validation, rollouts and branches from snapshots are played by actors."""

    def learnt(on_ray: bool) -> tuple[dict[str, Any], list[torch.Tensor]]:
        model = make_model(AgentPRM, learner, make_alfworld(max_episode_steps=4), n_iterations=1)
        if on_ray:
            make = partial(make_alfworld, 1, max_episode_steps=4)
            with RayWorkers(model.policy, make, 2) as model.workers:
                model.learn(callback=Killer(model.workers))
                assert model.workers.n_replaced == 1
        else:
            model.learn()
        counters = {"timesteps": model.num_timesteps, "episodes": model._episode_num, "best": model.best.success}
        return counters, list(model.lm.adapter_state(POLICY).values())

    alone, weights = learnt(False)
    shared, same = learnt(True)
    assert shared == alone
    for one, other in zip(weights, same, strict=True):
        torch.testing.assert_close(one, other)


def test_what_goes_wrong_is_told(policy: LLMPolicy) -> None:
    with (
        RayWorkers(policy, no_environments, 1) as workers,
        pytest.raises(RuntimeError, match="no environments here"),
    ):
        workers.collect(TASKS[:1])
    assert workers.n_replaced == 0
    with pytest.raises(ValueError, match="num_cpus must be"):
        RayWorkers(policy, no_environments, num_cpus=0)
    with pytest.raises(ValueError, match="expected a policy there, got one on cpu"):
        RayWorkers(policy, no_environments, num_gpus=1)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 'auto'.*ray start --head"):
        RayWorkers(policy, no_environments, address="auto")


def test_the_benchmark_plays_the_same_episodes_and_counts_who_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import ray_speed

    out = tmp_path / "ray_speed.json"
    monkeypatch.setattr(sys, "argv", ["ray_speed", "--quick", "--out", str(out)])
    ray_speed.main()
    figures = json.loads(out.read_text())["figures"]
    assert [figures[key] for key in ("one_same_share", "same_share", "killed_same_share")] == [1.0] * 3
    assert figures["replaced"] == 2 and figures["replaced_without_a_kill"] == 0  # a repetition, and the one before it
    assert figures["ratio"] > 0 and figures["killed_ratio"] > 0
