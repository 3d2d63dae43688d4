"""The scripts in examples/ run as they are, with small budgets, in a process and a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.algorithm_helpers import make_alfworld, make_model

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


def test_own_algorithm(tmp_path: Path, learner: str) -> None:
    said = run("own_algorithm.py", tmp_path, "--policy", learner, "--timesteps", 1, "--n-games", 2, "--group-size", 2)
    assert re.search(r"^\d+ turns learnt from, credit=0.9$", said, re.MULTILINE)


def test_train_and_evaluate(tmp_path: Path, learner: str) -> None:
    budget = ("--n-demos", 4, "--n-games", 2, "--n-updates", 2, "--max-games", 4)
    said = run("train_and_evaluate.py", tmp_path, "--policy", learner, *budget)
    assert "of 4 games won" in said and re.search(r"^difference [+-]", said, re.MULTILINE)


@pytest.mark.parametrize("kind", ["saved", "none"])
def test_a_prm_in_another_trainer(tmp_path: Path, learner: str, kind: str) -> None:
    from algorithms import AgentPRM

    prm: object = "none"
    if kind == "saved":
        prm = tmp_path / "agent.zip"
        make_model(AgentPRM, learner, make_alfworld()).save(prm)
    said = run("prm_in_your_trainer.py", tmp_path, "--prm", prm, "--episodes", 4, "--games", 1)
    assert len(re.findall(r"% of the last quarter won", said)) == 4


def test_the_linear_policy_learns_a_game_from_exact_advantages(tmp_path: Path) -> None:
    """That the loop learns at all: with the oracle's advantages in place of a model's it comes to win its game."""
    source = (ROOT / "examples" / "prm_in_your_trainer.py").read_text()
    assert 'f"prm:{args.prm}"' in source and '{"form": "advantage"}' in source
    source = source.replace('f"prm:{args.prm}"', '"oracle_advantage"').replace('{"form": "advantage"}', "{}")
    (tmp_path / "loop.py").write_text(source)
    env = {**os.environ, "ALFWORLD_DATA": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "loop.py", "--prm", "x", "--episodes", "200", "--games", "1"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True).stdout
    shares = [int(share) for share in re.findall(r": (\d+) % of the last quarter", said)]
    assert shares[-1] > shares[0] + 20


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
