"""The study of process rewards: what stands in its figures, and what of its run folders it takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from agentprm_gym.episodes import Turn
from agentprm_gym.prm import load_prm
from algorithms import SFT, AgentPRM
from algorithms.common.measure.evaluation import make_eval_env
from benchmarks import _expert_choice, _parts, prm_study, prm_study_parts
from benchmarks.prm_study import Measured, differences, figures_of, goals, measured_before, seed_rows
from benchmarks.prm_study_parts import PARTS, Condition, Settings, Study, conditions, parts_of

STARTS = {20: Settings(agentprm_iterations=2, inverseprm_iterations=1), 50: Settings()}
SEEDS = (0, 1)
BEST_OF = (1, 4)


def write_result(folder: Path, success: float, steps: float = 10.0) -> None:
    row = {"name": "all", "n": 8, "success": success, "low": 0.0, "high": 1.0, "mean_steps": steps}
    folder.mkdir(parents=True)
    rows = [{**row, "name": "look", "success": 0.0}, row]
    (folder / "result.json").write_text(json.dumps({"rows": rows, "games": {"source": "generated"}}))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """All evaluations there: the i-th condition of a start wins i % of the games with seed 0, and 2 i % with seed 1."""
    study = Study(tmp_path / "runs", STARTS, best_of=BEST_OF)
    for start, settings in STARTS.items():
        for i, c in enumerate(conditions(settings, BEST_OF)):
            for seed in SEEDS:
                write_result(study.evaluation(start, seed, c), i * (1 + seed) / 100)
        for seed in SEEDS:
            folder = study.part(start, seed, "eval") / "bench"
            folder.mkdir(parents=True)
            found = {"prm/pair_accuracy": 0.7 + 0.01 * seed, "sft/pair_accuracy": 0.7 - 0.01 * seed}
            (folder / "result.json").write_text(json.dumps({"figures": found}))
    return study


def test_conditions_have_names_of_their_own_and_stay_within_the_iterations() -> None:
    names = [c.name for c in conditions(STARTS[20], BEST_OF)]
    assert len(set(names)) == len(names)
    assert names[:6] == ["sft", "agentprm_1", "agentprm_2", "agentprm_kept", "rft", "grpo"]
    assert {"best_of_4_sft", "best_of_4_sft_prm_alone", "sft_greedy", "grpo_unseen"} <= set(names)
    assert not {"agentprm_6", "inverseprm_2_greedy", "best_of_4_iteration_6", "best_of_1_sft"} & set(names)


def test_parts_are_those_that_the_policies_need() -> None:
    assert parts_of(Settings()) == list(PARTS)
    less = Settings(wide_iterations=0, gail_iterations=0, implicit=False)
    assert parts_of(less) == ["sft", "agentprm", "inverseprm", "rft", "grpo", "grpo_minutes"]
    assert not [c for c in conditions(less) if c.policy.startswith(("wide", "gail", "implicit"))]


def test_figures_are_means_and_paired_differences(study: Study) -> None:
    rows = seed_rows(study, SEEDS)
    names = {start: [c.name for c in conditions(s, BEST_OF)] for start, s in STARTS.items()}
    assert len(rows) == len(SEEDS) * sum(map(len, names.values()))
    figures = figures_of(rows, study)

    def check(figure: str, start: int, name: str, against: str | None = None) -> None:
        at = names[start].index(name) - (0 if against is None else names[start].index(against))
        assert figures[figure] == pytest.approx(1.5 * at / 100)
        # Two seeds: values i and 2 i, whose standard error is i / 2.
        assert figures[f"{figure}_half_interval"] == pytest.approx(12.706 * abs(at) / 200)

    check("sft20_agentprm_2_success", 20, "agentprm_2")
    check("sft50_agentprm_6_success", 50, "agentprm_6")
    check("sft50_agentprm_6_minus_sft", 50, "agentprm_6", "sft")
    check("sft50_agentprm_6_minus_grpo", 50, "agentprm_6", "grpo")
    check("sft50_agentprm_kept_greedy_minus_grpo_minutes", 50, "agentprm_kept_greedy", "grpo_minutes_greedy")
    check("sft50_inverseprm_2_minus_sft", 50, "inverseprm_2", "sft")
    check("sft50_wide_2_minus_inverseprm_2", 50, "wide_2", "inverseprm_2")
    check("sft50_inverseprm_2_unseen_minus_sft", 50, "inverseprm_2_unseen", "sft_unseen")
    check("sft50_best_of_4_iteration_6", 50, "best_of_4_iteration_6")
    check("sft50_best_of_1_iteration_6", 50, "agentprm_6")
    check("sft50_agentprm_6_greedy_minus_rft", 50, "agentprm_6_greedy", "rft_greedy")
    check("sft50_best_of_4_sft_minus_best_of_1", 50, "best_of_4_sft", "sft")
    check("sft50_best_of_4_iteration_6_minus_greedy", 50, "best_of_4_iteration_6", "agentprm_6_greedy")
    check("sft50_best_of_4_iteration_6_minus_sft_greedy", 50, "best_of_4_iteration_6", "sft_greedy")
    assert "sft50_agentprm_1_greedy_minus_sft" not in figures  # its greedy play is not measured
    assert figures["sft20_grpo_mean_steps"] == 10
    assert all(isinstance(value, float) for value in figures.values())


def pairs_of(study: Study) -> list[dict[str, Any]]:
    return [{"start": start, "seed": k, **study.pair_accuracy(start, k)} for start in study.settings for k in SEEDS]


def test_goals_are_points_with_the_lower_end_of_their_interval(study: Study) -> None:
    rows = seed_rows(study, SEEDS)
    found = goals(rows, study, pairs_of(study))
    names = [c.name for c in conditions(STARTS[50], BEST_OF)]
    at = names.index("agentprm_6_greedy") - names.index("sft_greedy")
    assert found["sft50_agentprm_gain"] == pytest.approx(1.5 * at)
    assert found["sft50_agentprm_gain_low"] == pytest.approx(1.5 * at - 12.706 * at / 2, rel=1e-4)
    assert found["sft50_pair_gain"] == pytest.approx(1.0)  # 0 and 2 points
    assert found["sft50_pair_gain_low"] == pytest.approx(1.0 - 12.706, rel=1e-4)
    assert "sft20_agentprm_gain" not in found and "sft20_pair_gain" in found  # it has two iterations
    table = prm_study.goal_table(found, study)
    assert table.rows[0] == ["pair_gain", "+1.0, from -11.7", "+1.0, from -11.7"]
    assert ["best_of_8_gain", "", ""] in table.rows  # best-of-8 is not measured here


def test_other_seeds_of_the_result_file_stay_where_settings_and_games_are_the_same(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, games = tmp_path / "prm_study.json", {"hash": "abc"}
    now = Measured(pairs=[{"start": 20, "seed": 1}])
    assert measured_before(path, study, games, now) == ({}, Measured())  # there is no file

    def row(start: int, seed: int) -> dict[str, Any]:
        return {"start": start, "seed": seed, "success": 0.5}

    before = [row(20, 0), row(20, 1), row(50, 0), row(77, 3)]
    asked = {str(k): dataclasses.asdict(s) for k, s in study.settings.items()}
    asked["77"] = {**dataclasses.asdict(prm_study.OTHERS), "epochs": 1}
    settings = {"max_games": study.max_games, "best_of": study.best_of, "starts": asked}
    written = {"games": games, "settings": settings, "rows": before, "cost": before, "pairs": before}
    path.write_text(json.dumps(written))
    starts, found = measured_before(path, study, games, now)
    assert set(starts) == {20, 50}
    assert found.rows == found.cost == found.pairs == [row(20, 0), row(50, 0)]  # seed 1 of 20 is measured now
    assert "SFT on 77, seed 3 was measured with other settings" in capsys.readouterr().out
    other, _ = measured_before(path, study, {"hash": "other"}, now)
    assert other == {}


def test_the_bundled_model_is_a_start_that_costs_nothing(tmp_path: Path) -> None:
    study = Study(tmp_path, {0: prm_study_parts.STARTS[0]})
    study.train(0, 3, "sft")
    assert study.spent(0, 3, "sft") == (0, 0.0)
    venv = make_eval_env(n_envs=1, games="generated")
    saved, base = SFT.load(study.model(0, 3, "sft"), env=None), SFT("tiny", venv, seed=3)
    for name, weight in saved.lm.adapter_state("policy").items():
        assert torch.equal(weight, base.lm.adapter_state("policy")[name])
    assert "inverseprm" not in parts_of(study.settings[0])
    assert prm_study_parts.policy_title("sft", 0) == "the bundled model"


def test_one_seed_has_no_intervals(study: Study) -> None:
    figures = figures_of(seed_rows(study, [1]), study)
    assert figures["sft20_agentprm_1_success"] == pytest.approx(0.02)
    assert not any(name.endswith("_half_interval") for name in figures)


def test_differences_compare_the_same_way_of_playing() -> None:
    by_name = {c.name: c for c in conditions(Settings())}
    for name, against, _ in differences(Settings()):
        if against in by_name and by_name[name].line is None:
            assert by_name[name].mode == by_name[against].mode
    assert len({figure for _, _, figure in differences(Settings())}) == len(differences(Settings()))


def test_seeds_stand_in_their_order() -> None:
    rows = [{"start": 20, "seed": seed, "name": "sft", "success": seed / 10} for seed in (2, 0, 1)]
    np.testing.assert_allclose(prm_study.by_condition(rows, 20)["sft"], [0, 0.1, 0.2])


def test_tables_and_chart_are_made(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(seed_rows(study, SEEDS), study)
    figures |= {"sft20_grpo_train_steps": 1234.0, "sft20_grpo_train_minutes": 5.0}
    shown = prm_study.tables(figures, study, dict.fromkeys(study.settings, len(SEEDS)))
    console = Console(width=200)
    for table in shown:
        table.show(console)
    said = capsys.readouterr().out
    assert "InversePRM, iteration 1" in said and "PRM of iteration 1" in said and "GRPO, equal minutes" in said
    assert [len(table.rows) for table in shown] == [12, 3, 1, 17, 5]
    written = shown[0].markdown().splitlines()
    assert written[2].startswith("| policy | success % |") and written[2].count("|") == written[3].count("|")
    assert written[4].startswith("| SFT | 0.0 ± 0.0 |") and "| grpo | 1,234 | 5.0 |" in shown[2].markdown()
    prm_study.draw(figures, study, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_a_missing_part_says_so(study: Study) -> None:
    (study.evaluation(20, 0, Condition("grpo", "grpo")) / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not been run"):
        seed_rows(study, SEEDS)
    agentprm = study.part(20, 0, "agentprm")
    agentprm.mkdir()
    assert study.model(20, 0, "agentprm_1") == agentprm / "iterations" / "1.zip"  # still to come
    (agentprm / "model.zip").touch()
    assert study.model(20, 0, "agentprm_kept") == agentprm / "model.zip"
    with pytest.raises(FileNotFoundError, match="saves each iteration"):
        study.model(20, 0, "agentprm_1")


def test_what_is_done_is_taken_and_with_other_settings_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path, {20: Settings()})
    model = study.model(20, 0, "sft")
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        out = Path(command[command.index("--out") + 1])
        (out / "model.zip").write_text(f"model {len(calls)}")
        return type("Ended", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(_parts.subprocess, "run", run)
    study.train(20, 0, "sft")
    study.train(20, 0, "sft")
    assert len(calls) == 1 and calls[0][3:8] == ["train", "--algo", "sft", "--n-demos", "20"]
    study.train(20, 0, "inverseprm")
    assert len(calls) == 2 and calls[1][calls[1].index("--demos") + 1] == str(model.with_name("demos.jsonl.gz"))

    other = Study(tmp_path, {20: Settings(epochs=3)})
    with pytest.raises(RuntimeError, match=r"--epochs 8.*\n.*\n.*--epochs 3"):
        other.train(20, 0, "sft")
    model.write_text("another one")
    with pytest.raises(RuntimeError, match="is of older models"):
        study.train(20, 0, "inverseprm")


def test_an_ideal_judge_wins_what_one_draw_loses(tmp_path: Path) -> None:
    words = ["--policy", "tiny", "--max-games", "6", "--seed", "0"]
    won = {}
    for n in (1, 16):
        _expert_choice.main([*words, "--n", str(n), "--out", str(tmp_path / str(n))])
        row = _parts.read_row(tmp_path / str(n))
        assert row["n"] == 6
        won[n] = row["success"]
    assert won[1] < won[16] == 1.0


def test_a_prm_without_repeats_is_the_same_but_for_these(tmp_path: Path) -> None:
    study = Study(tmp_path, {20: Settings()})
    model: Any = AgentPRM("tiny", make_eval_env(n_envs=1, games="generated", split="train"), seed=0)
    with torch.no_grad():
        model.prm.head.repeats.fill_(-1.0)
    path = study.model(20, 0, "agentprm_6")
    path.parent.mkdir(parents=True)
    model.save(path)
    turns = [Turn(feedback="Nothing happens.", admissible_commands=["look", "inventory"], command="look")] * 2
    before, after = (load_prm(save) for save in (path, study.model(20, 0, "agentprm_6_uncounted")))
    first, second = (prm.score_turns("look.", turns).logit() for prm in (before, after))
    assert (second - first).tolist() == pytest.approx([0.0, 1.0], abs=1e-4)


def test_what_failed_says_what_it_said(tmp_path: Path) -> None:
    study = Study(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"ended with 2(.|\n)*invalid choice"):
        study.run(tmp_path / "out", "model.zip", "no-such-verb")


def test_rows_of_a_result_file_count_as_done_where_settings_are_the_same(tmp_path: Path) -> None:
    from algorithms.cli.output import write_json
    from benchmarks._parts import take_over

    rows = [{"seed": 0, "won": 3}, {"seed": 1, "won": 4}]
    write_json(tmp_path / "result.json", {"size": [1, 2], "rows": rows})
    write_json(tmp_path / "1.json", {"seed": 1, "won": 5})

    def path_of(row: Mapping[str, Any]) -> Path:
        return tmp_path / f"{row['seed']}.json"

    assert take_over(tmp_path / "none.json", {}, path_of) == 0
    assert take_over(tmp_path / "result.json", {"size": (1, 3)}, path_of) == 0
    assert take_over(tmp_path / "result.json", {"size": (1, 2)}, lambda row: None) == 0
    assert take_over(tmp_path / "result.json", {"size": (1, 2)}, path_of) == 1
    assert json.loads((tmp_path / "0.json").read_text())["won"] == 3
    assert json.loads((tmp_path / "1.json").read_text())["won"] == 5  # what was measured since stays
