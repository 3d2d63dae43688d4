"""``agentprm bench``: what it prints and writes, and that nothing is written where something does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentprm_gym.bench.metrics import METRICS
from agentprm_gym.bench.panel import read_panel, write_panel
from algorithms.bench.run import choose_states
from tests.bench_helpers import small_panel
from tests.cli_helpers import Cli


@pytest.fixture
def panel(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl.gz"
    write_panel(path, small_panel(), name="small", version=2)
    return path


def test_bench_prints_a_table_and_writes_a_result(cli: Cli, panel: Path, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    rankers = ("uniform", "oracle", "noise:0.1", f"sft=policy:{saved}/sft.zip", f"prm:{saved}/agent.zip")
    done = cli(
        "bench", *rankers, "--panel", panel, "--out", out, "--draws-from", f"policy:{saved}/sft.zip", "--n-samples", 100
    )
    assert done.status == 0, done.err
    assert f"small v2, oracle labels, {len(small_panel())} states" in done.out
    assert "uniform" in done.out and "50.0 [50.0, 50.0]" in done.out
    assert "oracle" in done.out and "100.0 [100.0, 100.0]" in done.out
    assert {path.name for path in out.iterdir()} == {"result.json", "bench.png", "rows.md"}
    assert (out / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    result = json.loads((out / "result.json").read_text())
    assert {"name", "commit", "date", "machine", "versions", "seeds", "figures", "rows", "command"} <= set(result)
    assert result["panel"] == {
        "name": "small",
        "version": 2,
        "sha256": read_panel(panel).sha256,
        "n_states": len(small_panel()),
        "measured": len(small_panel()),
    }
    assert result["labels"] == "oracle" and result["draws_from"].startswith("policy:")
    assert [row["name"] for row in result["rows"]] == [
        "uniform",
        "oracle",
        "noise:0.1",
        "sft",
        f"prm:{saved}/agent.zip",
    ]
    assert result["figures"]["oracle/regret"] == pytest.approx(0, abs=1e-9)
    assert result["figures"]["uniform/pair_accuracy"] == 0.5
    assert result["figures"]["noise:0.1/pair_accuracy_low"] < result["figures"]["noise:0.1/pair_accuracy"] < 1
    assert set(result["rows"][0]["metrics"]) == set(METRICS)
    by_name = {row["name"]: row["metrics"] for row in result["rows"]}
    assert by_name[f"prm:{saved}/agent.zip"]["ece"]["value"] is not None  # its Q is a probability
    assert by_name["sft"]["ece"]["value"] is None
    rows = (out / "rows.md").read_text().splitlines()
    assert len(rows) == 2 + len(rankers)
    assert len({row.count("|") for row in rows}) == 1
    assert rows[3].startswith("| oracle | small v2 (") and "| 100.0 [100.0, 100.0] |" in rows[3]


def test_the_table_fits_80_columns(tmp_path: Path) -> None:
    from rich.console import Console

    from algorithms.bench.names import make_rankers
    from algorithms.bench.run import run_bench
    from algorithms.cli.bench import make_table

    results = run_bench(
        make_rankers(["uniform", "runs/a/long=oracle", "noise:0.1"]), small_panel(), "oracle", n_samples=20
    )
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(make_table(results))
    text = console.export_text()
    console.file.close()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "100.0 [100.0, 100.0]" in text and "…" not in text


def test_a_result_is_not_overwritten(cli: Cli, panel: Path, tmp_path: Path) -> None:
    words = ("bench", "uniform", "--panel", panel, "--out", tmp_path / "b", "--n-samples", 0)
    assert cli(*words).status == 0
    again = cli(*words)
    assert again.status == 2 and "holds a result already" in again.err
    assert cli(*words, "--overwrite", "--labels", "on_policy").status == 0
    assert json.loads((tmp_path / "b" / "result.json").read_text())["labels"] == "on_policy"


def test_the_same_words_give_the_same_figures(cli: Cli, panel: Path, tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        done = cli("bench", "noise:0.2", "shuffled", "--panel", panel, "--out", name, "--seed", 3, "--max-states", 30)
        assert done.status == 0, done.err
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[0]["figures"] == results[1]["figures"]
    assert results[0]["panel"]["measured"] == 30


class Broken:
    """Returns one score too few."""

    name = "broken"

    def score(self, task, history, commands):
        return [0.0] * (len(commands) - 1)


class Diverged:
    """Returns NaN."""

    name = "diverged"

    def score(self, task, history, commands):
        return [float("nan")] * len(commands)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unifrom",), "did you mean 'uniform'?"),
        (("oracle", "prm:nowhere.zip"), "no saved model at 'nowhere.zip'"),
        (("uniform", "tests.test_cli_bench:Broken"), "ranker 'broken', state '"),
        (("tests.test_cli_bench:Diverged",), "ranker 'diverged', state '"),
        (("oracle", "oracle"), "two rankers are called 'oracle'"),
        (
            ("oracle", "--labels", "fair"),
            "the panel 'small' has no 'fair' labels for all of its states, only oracle, on_policy",
        ),
        (("oracle", "--draws-from", "length"), "'length' is none: expected uniform or policy:MODEL"),
        (("oracle", "--timeout", "3"), "--timeout is for judges"),
        (("oracle", "--panel", "nowhere.gz"), "no panel 'nowhere.gz'"),
    ],
)
def test_nothing_is_written_where_something_does_not_fit(
    cli: Cli, panel: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = words if "--panel" in words else (*words, "--panel", panel)
    done = cli("bench", *given, "--out", tmp_path / "deep" / "out")
    assert done.status == 2
    assert message in done.err, done.err
    assert not (tmp_path / "deep").exists()


def test_a_changed_panel_is_refused(cli: Cli, panel: Path, tmp_path: Path) -> None:
    data = bytearray(panel.read_bytes())
    panel.write_bytes(bytes(data[:-20]))
    done = cli("bench", "uniform", "--panel", panel, "--out", tmp_path / "out")
    assert done.status == 2 and "small.jsonl.gz is not a panel" in done.err and not (tmp_path / "out").exists()


def test_a_folder_in_the_way_is_told_before_any_work(cli: Cli, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("bench", "uniform", "--panel", "nowhere", "--out", tmp_path / "file")
    assert done.status == 2 and "expected a folder" in done.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.zip").write_bytes(b"")
    done = cli("bench", "uniform", "--panel", "nowhere", "--out", tmp_path / "run")
    assert done.status == 2 and "holds a run" in done.err


def test_a_part_of_a_panel_has_all_types_and_whole_games() -> None:
    states = list(small_panel(12))
    some = choose_states(states, 60, 1)
    assert len(some) == 60
    assert {s.task_type for s in some} == {s.task_type for s in states}
    counts = {g: sum(s.game_id == g for s in states) for g in {s.game_id for s in some}}
    cut = [g for g, n in counts.items() if sum(s.game_id == g for s in some) != n]
    assert len(cut) <= 1
    assert some == [s for s in states if s in some]
    assert choose_states(states, None) == states == choose_states(states, 10**6)
    assert choose_states(states, 60, 2) != some
