"""The table of methods: what is chosen by which games, what stands in its figures, and that held-out games stay held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentprm_gym.games import TASK_TYPES, find_games
from algorithms.common.measure.evaluation import wilson
from benchmarks import _parts, table1
from benchmarks._parts import Parts
from benchmarks._published import CONDITIONS, PUBLISHED
from benchmarks.table1 import choices, differences_of, figures_of, seed_rows, tables
from benchmarks.table1_parts import BEST_OF_MODE, BUDGETS, HELD_OUT, JUDGED, QUICK, Budget, Condition, Study

SEEDS = (0, 1)
SMALL = Budget(agentprm_iterations=2, agentprm_shown=None, inverseprm_iterations=1, n_held_out=12)


def write_result(folder: Path, success: float, steps: float = 10.0) -> None:
    row = {"name": "all", "n": 20, "success": success, "low": 0.0, "high": 1.0, "mean_steps": steps}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"rows": [{**row, "name": "look"}, row], "protocol": {}}))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Everything wins half of its games, but for what a test changes."""
    study = Study(tmp_path / "runs", SMALL, "generated")
    for seed in SEEDS:
        for condition in study.conditions():
            write_result(study.evaluation(seed, condition), 0.5)
    return study


def test_every_policy_is_played_in_every_way_that_it_has() -> None:
    study = Study(Path("runs"), BUDGETS["small"], "alfworld")
    found = study.conditions()
    assert len({condition.name for condition in found}) == len(found)
    of = {mode: {c.policy for c in found if c.mode == mode} for mode in ("sampled", "greedy", BEST_OF_MODE)}
    assert of["sampled"] == of["greedy"] == set(study.policies()) - {JUDGED}
    assert of[BEST_OF_MODE] == {"sft", JUDGED, "agentprm_2", "agentprm_4", "agentprm_6", "inverseprm_1", "inverseprm_2"}
    assert {c.split for c in found} == {"valid_seen", "valid_unseen", HELD_OUT}
    assert {"base", "sft", "ppo", "grpo", "rloo", "gigpo", "ceiling"} <= set(study.policies())
    # As in the paper's table: the start by the PRM of its rollouts, others by the PRM that they were improved against.
    assert [study.judge(p) for p in ("sft", "agentprm_6", "ppo", "base")] == ["agentprm_1", "agentprm_6", None, None]
    # And the start by the last PRM.
    assert study.judge(JUDGED) == "agentprm_6" and study.model(0, JUDGED) == study.model(0, "sft")


def test_what_won_most_held_out_games_is_chosen_for_each_seed(study: Study) -> None:
    write_result(study.evaluation(0, Condition("agentprm_2", "greedy", HELD_OUT)), 0.8)
    write_result(study.evaluation(0, Condition("agentprm_2", "greedy", "valid_unseen")), 0.9)
    write_result(study.evaluation(1, Condition("agentprm_1", BEST_OF_MODE, HELD_OUT)), 0.7)
    write_result(study.evaluation(1, Condition("agentprm_1", BEST_OF_MODE, "valid_unseen")), 0.7)
    # What is not held out must not count, nor the ceiling or the base among "any".
    write_result(study.evaluation(0, Condition("agentprm_1", "sampled", "valid_unseen")), 1.0)
    for policy in ("ceiling", "base"):
        write_result(study.evaluation(0, Condition(policy, "sampled", HELD_OUT)), 1.0)
    rows = seed_rows(study, SEEDS)
    found = choices(rows, SEEDS)
    assert found["agentprm"] == [("agentprm_2", "greedy"), ("agentprm_1", BEST_OF_MODE)] == found["any"]
    assert found["ceiling"][0] == ("ceiling", "sampled") and "base" not in found
    figures = figures_of(rows, SEEDS)
    assert figures["chosen_any_valid_unseen"] == pytest.approx(0.8)
    assert figures["chosen_any_valid_unseen_half_interval"] == pytest.approx(12.706 * 0.1)
    low, high = wilson(18 + 14, 40)
    assert (figures["chosen_any_valid_unseen_low"], figures["chosen_any_valid_unseen_high"]) == pytest.approx(
        (low, high)
    )
    assert figures["chosen_any_valid_seen"] == pytest.approx(0.5)


def test_of_equals_the_one_with_fewer_steps_is_chosen(study: Study) -> None:
    write_result(study.evaluation(0, Condition("ppo", "greedy", HELD_OUT)), 0.5, steps=9.0)
    assert choices(seed_rows(study, SEEDS), SEEDS)["ppo"] == [("ppo", "greedy"), ("ppo", "sampled")]


def test_one_seed_has_no_interval_over_seeds(study: Study) -> None:
    figures = figures_of(seed_rows(study, [1]), [1])
    assert figures["gigpo_greedy_valid_seen"] == 0.5 and figures["gigpo_greedy_valid_seen_steps"] == 10.0
    assert not any(name.endswith("_half_interval") for name in figures)


def test_differences_are_paired_by_seed(study: Study) -> None:
    last = [policy for policy in study.policies() if policy.startswith("agentprm")][-1]
    for seed, (ours, theirs) in zip(SEEDS, ((0.9, 0.5), (0.6, 0.4)), strict=True):
        write_result(study.evaluation(seed, Condition(last, "greedy", "valid_unseen")), ours)
        write_result(study.evaluation(seed, Condition("grpo", "greedy", "valid_unseen")), theirs)
    figures = differences_of(seed_rows(study, SEEDS), SEEDS, study.policies())
    name = f"{last}_over_grpo_greedy_valid_unseen"
    assert figures[name] == pytest.approx(0.3)
    assert figures[f"{name}_half_interval"] == pytest.approx(12.706 * 0.1, rel=1e-4)
    assert figures[f"{last}_over_ppo_sampled_valid_seen"] == 0.0


def test_tables_and_chart_are_made(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = seed_rows(study, SEEDS)
    figures = {**figures_of(rows, SEEDS), "grpo_train_steps": 1234.0, "grpo_train_minutes": 2.5}
    shown = tables(figures, rows, SEEDS, study.policies())
    for one in shown:
        one.show(Console(width=250))
    said = capsys.readouterr().out
    assert "AgentPRM, iteration 2" in said and "1,234" in said and "Llama-3.2-3B" in said
    n_inverse = sum(policy.startswith("inverseprm") for policy in study.policies())
    assert [len(one.rows) for one in shown] == [len(study.policies()), 5 + n_inverse, 10, len(PUBLISHED)]
    assert "| GRPO | 50.0 ± 0.0 | 50.0 ± 0.0 |  | 50.0 ± 0.0 | 50.0 ± 0.0 |  | 1,234 | 2.5 |" in shown[0].markdown()
    table1.draw(figures, study.policies(), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_published_rows_say_their_conditions() -> None:
    assert {row.conditions for row in PUBLISHED} == set(CONDITIONS)
    assert all(row.source and (row.seen is not None or row.unseen is not None) for row in PUBLISHED)
    # The paper's rows are whole numbers of its 134 games.
    paper = [row.unseen for row in PUBLISHED if row.conditions == "agentprm"]
    assert all(value is not None and round(100 * round(value * 1.34) / 134, 1) == value for value in paper)


def test_held_out_games_are_not_trained_on(tmp_path: Path) -> None:
    study = Study(tmp_path / "runs", SMALL, "generated")
    study.split_games()
    train, held_out = (find_games(split, study.lists) for split in ("train", HELD_OUT))
    assert len(train) == 388 and len(held_out) == 12 and not set(train.game_ids) & set(held_out.game_ids)
    assert Counter(game.task_type for game in held_out) == dict.fromkeys(TASK_TYPES, 2)
    assert all(Path(str(held_out.path(i))).is_file() for i in range(12))
    assert find_games("train", "generated").path(0) is None
    before = held_out.content_hash
    study.split_games()  # again: the same
    assert find_games(HELD_OUT, study.lists).content_hash == before


def test_an_evaluation_that_was_cut_off_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command[3:])
        return type("Ended", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(_parts.subprocess, "run", run)
    parts, out = Parts(tmp_path), tmp_path / "played"
    parts.run(out, "result.json", "eval", "tiny", "--seed", 0)
    (out / "unfinished.jsonl.gz").touch()
    parts.run(out, "result.json", "eval", "tiny", "--seed", 0)
    assert calls == [
        ["eval", "tiny", "--seed", "0", "--threads", "1", "--out", str(out)],
        ["eval", "--resume", str(out)],
    ]
    with pytest.raises(RuntimeError, match="unfinished run with other settings"):
        parts.run(out, "result.json", "eval", "tiny", "--seed", 1)


@pytest.mark.slow
def test_workers_do_commands_one_after_the_other(tmp_path: Path) -> None:
    parts = Parts(tmp_path, n_workers=1)
    words = ("--games", "generated", "--max-games", 2, "--max-steps", 3, "--n-envs", 1)
    for player in ("random", "expert"):
        parts.run(tmp_path / player, "result.json", "eval", player, *words)
    result = json.loads((tmp_path / "expert" / "result.json").read_text())
    assert result["run"]["command"].startswith("agentprm eval expert --games generated")
    for wrong in ("no-such-verb", "eval"):  # the first is refused by the parser, the second by the verb
        with pytest.raises(RuntimeError, match=r"ended with 2:\n(.|\n)*(invalid choice|which model)"):
            parts.run(tmp_path / "wrong", "result.json", wrong)


@pytest.mark.slow
def test_a_trial_runs_from_nothing_and_takes_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--quick", "--games", "generated", "--jobs", "1", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["table1", *arguments])
    table1.main()
    path = tmp_path / "runs" / "table1_quick.json"
    result = json.loads(path.read_text())
    assert len(result["rows"]) == len(Study(tmp_path, QUICK, "generated").conditions())
    assert path.with_suffix(".md").is_file() and path.with_suffix(".png").is_file()
    began = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "seed_0").rglob("result.json")}
    table1.main()
    assert began == {p: p.stat().st_mtime_ns for p in began}
