"""Devices that exist, and how many CPU threads are fast for a model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from algorithms.common.shell.machine import check_device


def test_a_device_that_is_missing_is_refused() -> None:
    assert check_device("cpu") == torch.device("cpu")
    assert check_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"device must be .*'gpu'"):
        check_device("gpu")
    n = torch.cuda.device_count()
    with pytest.raises(ValueError, match="finds no GPU" if n == 0 else "GPUs are here"):
        check_device(f"cuda:{n}")


@pytest.mark.parametrize("surface", ["load_policy", "algorithm"])
def test_it_is_refused_wherever_it_is_named(surface: str, learner: str) -> None:
    from algorithms import GRPO, load_policy
    from tests.algorithm_helpers import make_toy

    with pytest.raises(ValueError, match="cuda"):
        if surface == "load_policy":
            load_policy(learner, make_toy(1), f"cuda:{torch.cuda.device_count()}")
        else:
            GRPO(learner, make_toy(1), device=f"cuda:{torch.cuda.device_count()}")


@pytest.mark.ci
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_a_small_model_takes_one_thread_until_the_user_sets_another_number(learner: str) -> None:
    """In a process of its own, with torch's default number of threads; playing and learning, until it is set."""
    code = (
        "import sys, torch\n"
        "from algorithms import RLOO, evaluate, load_policy, make_eval_env\n"
        "from algorithms.common.shell.machine import set_threads\n"
        "venv, found = make_eval_env('TextIdentity-v0', n_envs=2), []\n"
        "evaluate(load_policy(sys.argv[1], venv, 'cpu').actor(2), venv, games=[0])\n"
        "found.append(torch.get_num_threads()); torch.set_num_threads(2)\n"
        "RLOO(sys.argv[1], venv, n_games=1, group_size=2).learn(1)\n"
        "found.append(torch.get_num_threads()); set_threads(2)\n"
        "evaluate(load_policy(sys.argv[1], venv, 'cpu').actor(2), venv, games=[0])\n"
        "print(*found, torch.get_num_threads())"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code, learner], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == ["1", "1", "2"]


def test_the_variable_of_the_environment_is_left_alone(learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentprm_gym.llm.model import LanguageModel
    from algorithms.common.shell.machine import use_fast_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert use_fast_threads(LanguageModel.load(learner)) == 2
    finally:
        torch.set_num_threads(before)


def test_a_larger_model_is_measured(learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentprm_gym.llm.model import LanguageModel
    from algorithms.common.shell import machine

    monkeypatch.setattr(machine, "SMALL_MODEL", 0)
    monkeypatch.setattr(machine, "_chosen", [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        lm = LanguageModel.load(learner)
        chosen = machine.use_fast_threads(lm)
        assert 1 <= chosen <= machine.n_cores() and torch.get_num_threads() == chosen
        assert machine.use_fast_threads(lm) == chosen  # measured once
    finally:
        torch.set_num_threads(before)


def test_a_learning_rate_for_small_models_is_warned_of_on_a_large_one(
    learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults of SFT and AgentPRM are set for the bundled model."""
    from algorithms import SFT
    from algorithms.common.shell import machine
    from tests.algorithm_helpers import make_model, make_toy

    model = make_model(SFT, learner, make_toy())
    model.learn(1)  # warnings are errors here
    monkeypatch.setattr(machine, "SMALL_MODEL", 1000)
    monkeypatch.setattr(machine, "_chosen", [1])  # the threads stay as they are
    model.learning_rate = 1e-4
    model.learn(1)
    model.learning_rate = 2e-3
    with pytest.warns(UserWarning, match=r"learning_rate=0.002 .* begin with about 1e-4"):
        model.learn(1)


def test_the_process_reward_models_learning_rate_is_warned_of_too(
    learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from algorithms import AgentPRM
    from algorithms.common.shell import machine
    from tests.algorithm_helpers import make_model, make_toy

    model = make_model(AgentPRM, learner, make_toy(), learning_rate=1e-4, prm={"learning_rate": 1e-3})
    monkeypatch.setattr(machine, "SMALL_MODEL", 1000)
    monkeypatch.setattr(machine, "_chosen", [1])
    with pytest.warns(UserWarning, match=r"^prm\.learning_rate=0.001 suits the bundled model"):
        model.learn(1)
