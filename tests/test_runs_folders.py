"""Folders of runs: what cannot be written is refused first, one command at a time writes, and --overwrite leaves no mixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentprm_gym.episodes import read_episodes
from algorithms.common.shell.folders import locked
from tests.cli_helpers import Cli
from tests.test_runs_kills import State, watched

TRAIN = ("train", "--env", "TextIdentity-v0", "--n-envs", 4, "--set", "n_games=2", "group_size=2", "batch_size=4")


def grpo(learner: str, *more: object) -> tuple[object, ...]:
    return (*TRAIN, "--algo", "grpo", "--policy", learner, "--timesteps", 10, *more)


# ---------------------------------------------------------------------- what cannot be written
def commands(saved: Path, learner: str) -> dict[str, tuple[object, ...]]:
    sft = saved / "sft.zip"
    return {
        "eval": ("eval", sft, "--games", "generated", "--max-games", 1, "--out"),
        "train": grpo(learner, "--out"),
        "games": ("games", "generate", "--n", 1, "--out"),
        "demos": ("demos", "--games", "generated", "--n", 1, "--out"),
        "export": ("export", sft, "--out"),
        "demo": ("demo", "--games", "generated", "--out"),
    }


@pytest.mark.parametrize("verb", ["eval", "train", "games", "demos", "export", "demo"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    verb: str, cli: Cli, saved: Path, learner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def worked(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was done first")

    for work in ("measure.evaluation.make_eval_env", "shell.load.load_actor", "shell.load.load_language_model"):
        monkeypatch.setattr(f"algorithms.common.{work}", worked)
    monkeypatch.setattr("algorithms.cli.demos.demonstrations", worked)
    monkeypatch.setattr("algorithms.cli.games.write_games", worked)
    Path("file").write_text("")
    said = cli(*commands(saved, learner)[verb], "file/inside")
    assert said.status == 2 and "--out" in said.err and "file" in said.err, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# ---------------------------------------------------------------------- one at a time
def test_a_run_of_several_seeds_locks_their_folders_too(cli: Cli, learner: str) -> None:
    assert cli(*grpo(learner, "--seeds", 2, "--out", "runs")).status == 0
    with locked(Path("runs/seed_1")):
        said = cli("train", "--resume", "runs", "--timesteps", 30)
        assert said.status == 2 and f"process {os.getpid()}" in said.err and "seed_1" in said.err
    assert cli("train", "--resume", "runs", "--timesteps", 30).status == 0
    assert not list(Path("runs").rglob(".lock"))


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from algorithms.common.shell.folders import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read(1); os._exit(9)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    with holder, holder.stdin, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"written by process {holder.pid} on .*choose another --out"):
            with locked(tmp_path):
                pass
        holder.stdin.write("x")
        holder.stdin.flush()
        assert holder.wait(30) == 9
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    lock = fcntl.flock

    def removed_first(file: object, how: int) -> None:
        (tmp_path / ".lock").unlink()  # its holder ends now, and another process makes a new one
        (tmp_path / ".lock").write_text("process 1 on elsewhere")
        lock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with pytest.raises(BlockingIOError, match="start again"), locked(tmp_path):
        pass


# ---------------------------------------------------------------------- --overwrite
def mixtures(states: list[State], old: State) -> list[tuple[str, str]]:
    """Old models that stand beside new descriptions, in any state of a folder."""
    found = []
    for state in states:
        for path, data in state.items():
            if path.endswith(("model.zip", "state.zip")) and data == old.get(path):
                above = [str(folder) for folder in Path(path).parents]
                for folder in above:
                    for name in ("config.yaml", "settings.json", "demos.jsonl.gz"):
                        other = str(Path(folder, name))
                        if other in old and state.get(other) != old[other]:
                            found.append((path, other))
    return found


@pytest.mark.parametrize("seeds", [(), ("--seeds", 2)], ids=["one", "seeds"])
def test_a_killed_overwrite_leaves_no_old_model_beside_a_new_description(
    seeds: tuple[object, ...], cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert cli(*grpo(learner, *seeds, "--out", out)).status == 0
    old: State = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch, watched(out, patch) as seen:
        assert cli(*grpo(learner, *seeds, "--out", out, "--overwrite", "--set", "gamma=0.5")).status == 0
    assert len(seen.states) > 10 and not mixtures(seen.states, old)
    assert any(state.get(p) == data for state in seen.states for p, data in old.items() if p.endswith("model.zip"))
    assert sum(name.endswith("model.zip") for name in old) == (2 if seeds else 1)


def test_what_is_refused_costs_no_old_model(cli: Cli, learner: str, tmp_path: Path) -> None:
    assert cli(*grpo(learner, "--out", "run")).status == 0
    before = (tmp_path / "run" / "model.zip").read_bytes()
    for wrong in (("--set", "gamma=2"), ("--env", "No-v0")):
        assert cli(*grpo(learner, "--out", "run", "--overwrite", *wrong)).status == 2
    assert (tmp_path / "run" / "model.zip").read_bytes() == before


def test_the_policy_to_start_from_is_not_cleared(cli: Cli, learner: str) -> None:
    assert cli(*grpo(learner, "--seeds", 2, "--out", "runs")).status == 0
    args = grpo("runs/seed_1", "--seeds", 2, "--out", "runs", "--overwrite")
    said = cli(*args)
    assert said.status == 2 and "copy it somewhere else" in said.err and Path("runs/seed_1/model.zip").exists()


# ---------------------------------------------------------------------- evaluations and exports
def test_an_evaluation_goes_on_after_a_kill_in_the_middle_of_a_row(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("eval", learner, "--import", "tests.stopping", "--env", "Stopping-v0", "--n-envs", 2)
    assert cli(*run, "--out", "whole").status == 0
    (tmp_path / "stop").write_text("interrupt")
    assert cli(*run, "--out", "part").status == 130
    (tmp_path / "stop").unlink()
    kept = tmp_path / "part" / "unfinished.jsonl.gz"
    n = len(list(read_episodes(kept)))
    kept.write_bytes(kept.read_bytes()[:-10])
    said = cli("eval", "--resume", "part")
    assert said.status == 0 and f"{n - 1} were played before" in said.out, said.err
    one, other = (list(read_episodes(Path(name, "episodes.jsonl.gz"))) for name in ("part", "whole"))
    assert [[t.command for t in e.turns] for e in one] == [[t.command for t in e.turns] for e in other]


def test_a_killed_evaluation_is_resumed_or_begun_again_wherever_it_was(
    cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state that --overwrite passes through mixes two evaluations."""
    run = ("eval", learner, "--env", "TextIdentity-v0", "--max-games", 2, "--n-envs", 2, "--out", tmp_path / "run")
    assert cli(*run).status == 0
    with monkeypatch.context() as patch, watched(tmp_path / "run", patch) as seen:
        assert cli(*run, "--temperature", 0, "--overwrite").status == 0
    for state in seen.states:
        if "config.yaml" in state:
            new = b"temperature: 0" in (state["config.yaml"] or b"")
            about = json.loads(state["about.json"] or b"")
            assert (about["temperature"] == 0) == new
            if "result.json" in state:
                assert (json.loads(state["result.json"] or b"")["temperature"] == 0) == new


def test_an_export_is_there_as_a_whole_or_not_at_all(
    cli: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("export", saved / "sft.zip", "--out", "adapter")
    with monkeypatch.context() as patch:
        patch.setattr("agentprm_gym.llm.peft_folder.save_file", full_disk)
        assert cli(*export).status == 2 and not list(tmp_path.iterdir())
    with watched(tmp_path, monkeypatch) as seen:
        assert cli(*export).status == 0
    names = {path for path in os.listdir("adapter")}
    assert len(names) >= 2 and os.listdir() == ["adapter"]
    for state in seen.states:
        assert "adapter" not in state or all(f"adapter/{name}" in state for name in names)


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_greedy_evaluation_goes_on_as_a_greedy_one(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("eval", learner, "--import", "tests.stopping", "--env", "Stopping-v0", "--n-envs", 2, "--temperature", 0)
    (tmp_path / "stop").write_text("interrupt")
    assert cli(*run, "--out", "part").status == 130
    (tmp_path / "stop").unlink()
    said = cli("eval", "--resume", "part")
    assert said.status == 0, said.err
    assert json.loads(Path("part/result.json").read_text())["temperature"] == 0
