"""Environments in worker processes, one of which is killed: which one, what to do, and no waiting for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

import agentprm_gym  # noqa: F401  registers the environments
from agentprm_gym.envs.workers import WorkerError
from agentprm_gym.wrappers import VectorProcessReward
from algorithms import GRPO
from algorithms.common.shell.checkpoints import read_checkpoint
from tests.algorithm_helpers import make_model
from tests.cli_helpers import Cli

NAMED = r"worker of environment 1 of 3 \(process \d+\) ended by SIGKILL.*fewer environments.*resume\(\)"


class Killer(BaseCallback):
    """Kills the second worker after some steps."""

    def __init__(self, processes: Any, n_steps: int) -> None:
        super().__init__()
        self.processes, self.n_steps = processes, n_steps

    def _on_step(self) -> bool:
        self.n_steps -= 1
        if self.n_steps == 0:
            os.kill(self.processes[1].pid, signal.SIGKILL)
        return True


@pytest.fixture(params=["fork", "forkserver"])
def venv(request: pytest.FixtureRequest) -> Iterator[VecMonitor]:
    made = SubprocVecEnv([partial(gym.make, "agentprm_gym:TextIdentity-v0")] * 3, start_method=request.param)
    yield VecMonitor(made)
    for process in made.processes:
        process.kill()
        process.join()
    for remote in made.remotes:
        remote.close()


def test_a_worker_that_is_killed_in_the_middle_is_named(learner: str, venv: VecMonitor, tmp_path: Path) -> None:
    model = make_model(GRPO, learner, venv)
    model.checkpoint_dir = tmp_path
    model.learn(1)
    with pytest.raises(WorkerError, match=NAMED) as caught:
        model.learn(1000, callback=Killer(venv.unwrapped.processes, 2))  # type: ignore[attr-defined]
    assert caught.value.index == 1
    assert read_checkpoint(tmp_path)[0].manifest["counters"]["iteration"] == 1  # the last good one


def test_a_worker_that_is_dead_already_is_named(learner: str, venv: VecMonitor) -> None:
    model = make_model(GRPO, learner, venv)
    process = venv.unwrapped.processes[1]  # type: ignore[attr-defined]
    process.kill()
    process.join()
    with pytest.raises(WorkerError, match=NAMED):
        model.learn(1)


def test_a_worker_behind_a_process_reward_is_named() -> None:
    make = partial(gym.make, "TextIdentity-v0", disable_env_checker=True)
    inner = gym.vector.AsyncVectorEnv([make] * 3, shared_memory=False)
    envs = VectorProcessReward(inner, "penalty")
    envs.reset(seed=0)
    envs.step(["look"] * 3)
    process = inner.processes[1]
    process.kill()
    process.join()
    with pytest.raises(WorkerError, match=NAMED):
        envs.step(["look"] * 3)
    for process in inner.processes:
        process.kill()
        process.join()
    for pipe in inner.parent_pipes:
        pipe.close()
    inner.error_queue.close()
    inner.closed = True


def test_a_pipe_that_breaks_elsewhere_is_no_success_of_the_command_line(cli: Cli, learner: str) -> None:
    """Only where nobody reads what is printed, as before "| head", the status is 0."""
    Path("broken_env.py").write_text(
        "import os, gymnasium as gym\n"
        "from agentprm_gym.envs.identity import TextIdentityEnv\n"
        "class Broken(TextIdentityEnv):\n"
        "    def step(self, action):\n"
        "        read, write = os.pipe()\n"
        "        os.close(read)\n"
        "        os.write(write, b'x')\n"
        "gym.register('Broken-v0', Broken)\n"
    )
    args = ("--algo", "grpo", "--policy", learner, "--env", "Broken-v0", "--import", "broken_env", "--n-envs", 2)
    said = cli("train", *args, "--out", "run")
    assert said.status == 1 and "has ended (broken pipe)" in said.err and "Traceback" not in said.err
