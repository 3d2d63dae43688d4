"""The baselines' table: what stands on the page is what stands in the result file, and it can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import baselines
from benchmarks.baselines import MARKS, PAGE, PLAYERS, figures_of, table, with_table

RESULT = json.loads((Path(baselines.__file__).parent / "results" / "baselines.json").read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_result_file() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, table(RESULT["rows"]).markdown()) == page
    assert RESULT["figures"] == figures_of(RESULT["rows"]) and not RESULT["quick"]


def test_every_player_played_every_game_of_each_split() -> None:
    sizes = {(row["games"], row["split"]): row["n"] for row in RESULT["rows"]}
    assert sizes["generated", "valid_seen"] == sizes["generated", "valid_unseen"] == 400
    assert sizes["alfworld", "valid_seen"] == 140
    assert len(RESULT["rows"]) == len(sizes) * len(PLAYERS)
    for row in RESULT["rows"]:
        assert row["protocol"]["games"]["n"] == row["n"] == sizes[row["games"], row["split"]]
        assert row["protocol"]["step_cap"] == baselines.MAX_STEPS


def test_the_planner_wins_all_and_needs_the_fewest_steps() -> None:
    figures = RESULT["figures"]
    for where in ("alfworld_valid_seen", "alfworld_valid_unseen", "generated_valid_seen", "generated_valid_unseen"):
        assert figures[f"planner_{where}"] == 1.0
        steps = {player.name: figures[f"{player.name}_{where}_steps"] for player in PLAYERS}
        assert min(steps, key=steps.__getitem__) == "planner" and max(steps, key=steps.__getitem__) == "random"


def test_a_page_without_the_marks_is_refused() -> None:
    assert with_table(f"a\n{MARKS[0]}\nold\n{MARKS[1]}\nb\n", "new\n") == f"a\n{MARKS[0]}\n\nnew\n\n{MARKS[1]}\nb\n"
    with pytest.raises(ValueError, match="between which the table is written"):
        with_table("a page\n", "new")


@pytest.mark.slow
def test_a_trial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))  # generated games alone
    monkeypatch.setattr("sys.argv", ["baselines", "--quick", "--runs", str(tmp_path / "runs")])
    before = PAGE.read_bytes()
    baselines.main()
    result = json.loads((tmp_path / "runs" / "baselines.json").read_text())
    assert {row["games"] for row in result["rows"]} == {"generated"} and result["quick"]
    assert PAGE.read_bytes() == before
