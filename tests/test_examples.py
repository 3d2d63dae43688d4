"""The scripts in examples/ run as they are, with small budgets, in a process and a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llm_helpers import save_random_model

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, folder: Path, *words: object) -> str:
    """Run a script; returns what it printed."""
    env = {**os.environ, "ALFWORLD_DATA": str(folder), "OMP_NUM_THREADS": "1"}  # generated games
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ci
def test_own_reward(tmp_path: Path, learner: str) -> None:
    said = run("own_reward.py", tmp_path, "--policy", learner, "--timesteps", 1, "--n-games", 2)
    assert re.search(r"^\d+ of 32 games won$", said, re.MULTILINE)
    assert (tmp_path / "own_reward.zip").is_file()


def test_the_reward_says_what_it_says() -> None:
    import numpy as np

    from agentprm_gym import Turn
    from agentprm_gym.rewards import ScoredTurn

    source = (ROOT / "examples" / "own_reward.py").read_text()
    space: dict[str, object] = {}
    exec(compile(source, "own_reward.py", "exec"), space)
    commands = ["go to shelf 1", "look", "go to shelf 1", "look"]
    turns = [Turn(feedback="", admissible_commands=(c,), command=c) for c in commands]
    scored = [ScoredTurn(task="", turns=turns[: n + 1], terminated=False) for n in range(4)]
    reward = space["NoWayBack"](coef=0.5)  # type: ignore[operator]
    assert np.array_equal(reward.score(scored), [0, 0, -0.5, 0])


@pytest.mark.slow
def test_own_algorithm(tmp_path: Path, learner: str) -> None:
    said = run("own_algorithm.py", tmp_path, "--policy", learner, "--timesteps", 1, "--n-games", 2, "--group-size", 2)
    assert re.search(r"^\d+ turns learnt from, credit=0.9$", said, re.MULTILINE)


@pytest.mark.slow
def test_train_and_evaluate(tmp_path: Path, learner: str) -> None:
    budget = ("--n-demos", 4, "--n-games", 2, "--n-updates", 2, "--max-games", 4)
    said = run("train_and_evaluate.py", tmp_path, "--policy", learner, *budget)
    assert "of 4 games won" in said and re.search(r"^difference [+-]", said, re.MULTILINE)


@pytest.mark.slow
def test_a_prm_in_trl(tmp_path: Path, saved: Path) -> None:
    pytest.importorskip("trl", reason="needs TRL (pip install agentprm-gym[trl])")
    model = save_random_model(tmp_path / "model", "qwen3", template=None)
    small = ("--steps", 2, "--games", 2, "--group-size", 2, "--max-turn-tokens", 4, "--max-tokens", 24, "--cpu")
    said = run("prm_in_trl.py", tmp_path, "--model", model, "--prm", saved / "agent.zip", *small)
    assert re.search(r"mean return of each step: -?[\d.]+, -?[\d.]+$", said, re.MULTILINE)


@pytest.mark.slow
def test_a_prompted_model(tmp_path: Path, learner: str) -> None:
    said = run("prompted_model.py", tmp_path, "--model", learner, "--games", 2, "--max-new-tokens", 4)
    assert "of 2 games won" in said and "commands inadmissible" in said
    assert (tmp_path / "prompted.jsonl.gz").is_file()


def test_every_example_is_run_here_and_named_in_the_docs() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    page = (ROOT / "docs" / "your_own.md").read_text(encoding="utf-8")
    assert SCRIPTS
    for script in SCRIPTS:
        assert script.name in tests, script.name
        assert f"examples/{script.name}" in page, script.name
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 110  # short
