"""Two processes that train together give what one gives at the same minibatches, and only the first writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from algorithms.common.acting.ranks import Ranks, join, ranks
from algorithms.common.learning.batches import own_pieces, shared_pieces
from tests import ranks_program

pytest.importorskip("accelerate", reason="processes meet by accelerate: pip install 'agentprm-gym[distributed]'")

ROOT = Path(__file__).parents[1]
#: One of each kind of training, and the others.
FIRST, MORE = ("SFT", "GRPO", "AgentPRM"), ("PPO", "RFT", "OnlineDPO", "InversePRM")
NAMES = [
    *(pytest.param(name, marks=pytest.mark.ci) for name in FIRST),
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE),
]


def launch(words: list[str], size: int, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a program in so many processes, as a launcher does; all have to succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    env = {key: value for key, value in env.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if size > 1:
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**env, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {})},
            cwd=cwd,
            **pipes,
        )
        for rank in range(size)
    ]
    done = []
    for process in running:
        try:
            out, err = process.communicate(timeout=240)
        finally:
            for other in running if process.returncode != 0 else ():
                other.kill()  # it would wait for the one that failed
        assert process.returncode == 0, err
        done.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    return done


#: What one process found, what each of two did, and the folder in which the two trained.
Found = tuple[dict[str, Any], list[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def results(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """Of an algorithm, trained together with those of its group when the first of them is asked for."""
    done: dict[tuple[str, ...], Found] = {}

    def of(name: str) -> Found:
        names = FIRST if name in FIRST else MORE
        if names not in done:
            alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
            ranks_program.main(learner, str(alone), *names)
            launch(["-m", "tests.ranks_program", learner, str(together), *names], 2, ROOT)
            read = [json.loads((together / f"2_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
            done[names] = json.loads((alone / "1_0.json").read_text(encoding="utf-8")), read, together
        return done[names]

    return of


@pytest.mark.parametrize("name", NAMES)
class TestTwoProcesses:
    def test_the_loss_curve_is_that_of_one(self, results: Any, name: str) -> None:
        alone, (first, second), _ = results(name)
        assert alone[name]["losses"]
        np.testing.assert_allclose(first[name]["losses"], alone[name]["losses"], rtol=1e-5, atol=1e-5)
        assert second[name]["losses"] == first[name]["losses"]

    def test_both_hold_the_same_policy_and_it_is_that_of_one(self, results: Any, name: str) -> None:
        alone, (first, second), _ = results(name)
        assert first[name]["weights"] == second[name]["weights"]
        assert np.ptp(first[name]["weights"]) > 0
        np.testing.assert_allclose(first[name]["weights"], alone[name]["weights"], atol=1e-4)

    def test_what_is_logged_and_counted_is_the_same(self, results: Any, name: str) -> None:
        alone, (first, _), _ = results(name)
        for what in ("timesteps", "tokens"):
            assert first[name][what] == alone[name][what]
        assert len(first[name]["logged"]) == len(alone[name]["logged"])
        for got, expected in zip(first[name]["logged"], alone[name]["logged"], strict=True):
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                assert got[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key


def test_only_the_first_writes_checkpoints(results: Any) -> None:
    folder = results("SFT")[2]
    assert (folder / "SFT" / "resume" / "state.zip").is_file()
    assert not list(folder.rglob("*.part*"))


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes_into_one_folder(learner: str, tmp_path: Path) -> None:
    words = ["train", "--algo", "sft", "--policy", learner, "--games", "generated", "--n-demos", "4", "--epochs", "1"]
    program = ["-c", "import sys; from algorithms.cli import main; sys.exit(main(sys.argv[1:]))", *words]
    first, second = launch([*program, "--out", "run", "--seed", "3"], 2, tmp_path)
    launch([*program, "--out", "alone", "--seed", "3"], 1, tmp_path)
    assert "saved run/model.zip" in first.stdout and second.stdout == ""
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["algo"] == "sft"
    assert len(list((tmp_path / "run" / "tb").rglob("events*"))) == 1
    from algorithms import SFT

    together, alone = (SFT.load(tmp_path / name / "model.zip") for name in ("run", "alone"))
    for a, b in zip(together.lm.adapter_parameters("policy"), alone.lm.adapter_parameters("policy"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


class TestOne:
    """A process alone is the smallest case."""

    def test_it_is_alone_without_a_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert join() is ranks() and ranks().size == 1 and ranks().is_main

    def test_it_does_everything(self) -> None:
        one = Ranks()
        assert list(one.mine("abc")) == ["a", "b", "c"] and one.spread([1, 2], lambda x: x + 1) == [2, 3]
        assert one.total(2.5) == 2.5 and one.all(True) and not one.all(False) and one.agreed_seed(None) is None

    def test_pieces_of_all_processes_make_the_minibatch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from algorithms.common.learning import batches

        for n, size, n_ranks in ((16, 16, 2), (5, 2, 2), (1, 4, 3), (7, 3, 4)):
            found: list[str] = []
            for rank in range(n_ranks):
                monkeypatch.setattr(batches, "ranks", lambda rank=rank, n_ranks=n_ranks: Ranks(rank, n_ranks))
                mine = list(own_pieces(list(range(n)), size))
                assert all(len(piece) <= size for piece in mine)
                found += [str(x) for piece in mine for x in piece]
                if n >= n_ranks:
                    assert mine or len(shared_pieces(list(range(n)), size)) <= rank
            assert sorted(found, key=int) == [str(i) for i in range(n)]


def test_without_accelerate_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("algorithms.common.acting.ranks.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"agentprm-gym\[distributed\]"):
        join()
