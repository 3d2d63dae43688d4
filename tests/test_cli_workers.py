"""``agentprm train --workers`` and ``--ray``: the run is the one of a single process, and what cannot be that is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from agentprm_gym.llm.saving import read_save
from tests.cli_helpers import SMALL_GROUPS, SMALL_PRM, SMALL_RUN, Cli

#: A class of the user's own, in the folder where the command runs: other processes have to find it, too.
OWN_REWARD = """
import numpy as np

class Shorter:
    name = "shorter"
    privileged = False

    def score(self, turns):
        return np.array([-0.01 * len(turn.turns[-1].command) for turn in turns])
"""


def command_line(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``python -m algorithms.cli.main``: worker processes import the main module again."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "algorithms.cli.main", *map(str, words)]
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True)


def learnt(path: Path) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The counters of a save, which say how many turns and tokens its episodes had, and its weights."""
    save = read_save(path)
    counters = {k: v for k, v in save.manifest["counters"].items() if "time" not in k or k == "num_timesteps"}
    groups = [group[name] for group in (save.adapters, save.heads) for name in sorted(group)]
    return counters, [group[key] for group in groups for key in sorted(group)]


def assert_same(one: Path, other: Path) -> None:
    (counters, weights), (same_counters, same_weights) = learnt(one), learnt(other)
    assert counters == same_counters and counters["num_timesteps"] > 0
    assert len(weights) == len(same_weights)
    for a, b in zip(weights, same_weights, strict=True):
        torch.testing.assert_close(a, b)


def groups(learner: str, out: str, reward: str = "own_reward:Shorter") -> tuple[object, ...]:
    given = ("--policy", learner, "--timesteps", 1, "--set", *SMALL_GROUPS, "learning_rate=0.01")
    return ("train", "--algo", "grpo", *given, "--reward", reward, "--out", out, *SMALL_RUN)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(cli: Cli, learner: str, tmp_path: Path) -> None:
    (tmp_path / "own_reward.py").write_text(OWN_REWARD)
    alone = cli(*groups(learner, "alone"))
    assert alone.status == 0, alone.err
    shared = command_line(tmp_path, *groups(learner, "shared"), "--workers", 2)
    assert shared.returncode == 0, shared.stderr
    assert_same(tmp_path / "alone" / "model.zip", tmp_path / "shared" / "model.zip")
    # With another reward the run is another one.
    assert cli(*groups(learner, "other", "penalty")).status == 0
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "other" / "model.zip", tmp_path / "shared" / "model.zip")
    # A run that goes on keeps its workers, unless it is told otherwise.
    assert yaml.safe_load((tmp_path / "shared" / "config.yaml").read_text())["workers"] == 2
    again = ("--resume", "shared", "--reward", "own_reward:Shorter", "--timesteps", 1000, "--minutes", 1e-9)
    more = cli("train", *again, "--workers", 0)
    assert more.status == 0 and "stopped after" in more.out, more.err


@pytest.mark.slow
def test_actors_of_ray_learn_what_one_process_learns(cli: Cli, learner: str, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
    (tmp_path / "own_reward.py").write_text(OWN_REWARD)
    assert cli(*groups(learner, "alone")).status == 0
    shared = cli(*groups(learner, "shared"), "--ray", "local")
    assert shared.status == 0, shared.err
    assert not ray.is_initialized()
    assert_same(tmp_path / "alone" / "model.zip", tmp_path / "shared" / "model.zip")


@pytest.mark.slow
def test_the_stages_of_agentprm_are_played_by_processes(cli: Cli, learner: str, tmp_path: Path) -> None:
    settings = (*SMALL_PRM, "rollout.n_branch_states=2", "n_validation_games=2")
    run = ("train", "--algo", "agentprm", "--policy", learner, "--iterations", 1, *SMALL_RUN, "--set", *settings)
    assert cli(*run, "--out", "alone").status == 0
    shared = cli(*run, "--out", "shared", "--workers", 2)
    assert shared.status == 0, shared.err
    assert_same(tmp_path / "alone" / "model.zip", tmp_path / "shared" / "model.zip")


@pytest.mark.parametrize("option", [("--workers", 2), ("--ray", "local")], ids=["processes", "ray"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--algo", "grpo", "--set", "policy_kwargs.explore.reset_share=0.5"), "leave out explore"),
        (("--algo", "sft"), "dagger_games=N"),
        (("--algo", "ppo", "--reward", "progress", "--reward-kwargs", '{"normalize": true}'), "normalize depends on"),
        (
            ("--algo", "ppo", "--reward", "annealed", "--reward-kwargs", '{"part": {"reward": "progress"}}'),
            "'annealed' depends on",
        ),
        (
            (
                *("--algo", "ppo", "--reward", "sum", "--reward-kwargs"),
                '{"parts": [{"reward": "progress", "reward_kwargs": {"normalize": true}}]}',
            ),
            "normalize depends on",
        ),
    ],
)
def test_what_one_process_has_to_play_is_refused(
    cli: Cli, option: tuple[object, ...], words: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    done = cli("train", *words, *option, "--games", "generated")
    assert done.status == 2 and said in done.err and f" {option[0]}\n" in done.err[-12:]
    assert not list(tmp_path.iterdir())
    # The same options are taken where this process plays: what is refused next is another thing.
    alone = cli("train", *words, "--workers", 0, "--games", "generated", "--policy", "missing.zip")
    assert "missing.zip" in alone.err and "leave out" not in alone.err


def test_a_saved_policy_that_explores_is_refused_before_anything_is_cleared(
    cli: Cli, learner: str, tmp_path: Path
) -> None:
    run = ("train", "--algo", "grpo", "--timesteps", 1, *SMALL_RUN, "--set", *SMALL_GROUPS)
    done = cli(*run, "policy_kwargs.explore.steer_share=0.5", "policy_kwargs.explore.strategies=[\"look\"]",
               "--policy", learner, "--out", "explored")  # fmt: skip
    assert done.status == 0, done.err
    refused = cli("train", "--resume", "explored", "--timesteps", 1000, "--workers", 2)
    assert refused.status == 2 and "leave out explore" in refused.err


def test_ray_that_is_missing_or_does_not_answer_is_said(
    cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", "--algo", "grpo", "--policy", learner, *SMALL_RUN, "--overwrite", "--out", "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.zip").write_text("kept")
    monkeypatch.setitem(sys.modules, "ray", None)
    done = cli(*run, "--ray", "local")
    assert done.status == 2 and "pip install 'agentprm-gym[ray]'" in done.err
    assert (tmp_path / "run" / "model.zip").read_text() == "kept"
