"""The paper's analyses: figures, tables and charts of rows, and what their runs save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentprm_gym.episodes import read_episodes
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.saving import read_save
from algorithms.agent_prm.improve import AgentImproveStage
from algorithms.agent_prm.options import PAPER
from benchmarks import analyses
from benchmarks.analyses import ANALYSES, Analysis, Row, draw, figures_of, table
from benchmarks.analyses_parts import FULL, QUICK, VARIANTS, Play, SteppedAgentPRM, Study, known_words, step_counts
from tests.algorithm_helpers import make_alfworld


def rows(series: str, values: dict[float | str, tuple[float, float]]) -> list[Row]:
    return [Row(seed, series, x, pair[seed]) for x, pair in values.items() for seed in (0, 1)]


def test_figures_tables_and_charts(tmp_path: Path) -> None:
    some = [
        *rows("SFT", {1: (0.2, 0.4), 2: (0.5, 0.5), "greedy": (0.6, 0.8)}),
        *rows("AgentPRM: success", {2: (1.0, 1.0)}),
    ]
    figures = figures_of(some)
    assert figures["SFT/1"] == pytest.approx(0.3)
    assert figures["SFT/1_half_interval"] == pytest.approx(12.706 * 0.1)
    assert "SFT/1_half_interval" not in figures_of([row for row in some if row.seed == 0])
    shown = table(Analysis("what", "N", lambda *_: [], log=True), some, figures, 2, "generated")
    assert shown.columns == ["N", "1", "2", "greedy"]
    assert shown.rows[1] == ["AgentPRM: success", "", "100.0 ± 0.0", ""]
    for name in ("scaling", "losses"):
        draw(ANALYSES[name], some, figures, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_plays_have_folders_of_their_own() -> None:
    base = Play("sft/model.zip")
    others = [
        Play("sft/model.zip", "valid_unseen"),
        Play("sft/model.zip", temperature=0.5),
        Play("sft/model.zip", best_of=8, prm="default/iterations/1.zip"),
        Play("sft/model.zip", best_of=8, prm="default/iterations/1.zip", weight=0.0),
        Play("sft/model.zip", best_of=16, prm="default/iterations/1.zip"),
        Play("agentprm/iterations/1.zip"),
    ]
    assert len({play.name for play in [base, *others]}) == 7


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_settings_that_agentprm_takes(name: str) -> None:
    from algorithms.cli.settings import check_settings, nested

    for scale in (FULL, QUICK):
        words = [setting.format(**scale.numbers) for setting in (*scale.small, *VARIANTS[name].settings)]
        settings = nested(dict(word.split("=", 1) for word in words))
        assert "{" not in "".join(words)
        check_settings(SteppedAgentPRM, settings)
        SteppedAgentPRM("tiny", None, _init_setup_model=False, **settings)  # it checks them together


def test_the_improvement_is_saved_step_by_step(learner: str, tmp_path: Path) -> None:
    assert step_counts(400) == [10, 25, 50, 100, 200, 400] and step_counts(4) == [1, 2, 4]
    model = SteppedAgentPRM(
        learner,
        make_alfworld(),
        seed=0,
        n_iterations=1,
        rollout={"n_games": 2, "n_repeats": 1, "n_branch_states": 0},
        improve={"n_updates": 4, "imitation_coef": 0.0, "prior_visits": None, "margin": 0.0},
        n_validation_games=0,
    )
    model.checkpoint_dir = tmp_path
    model.learn()
    saves = {path.stem: read_save(path) for path in (tmp_path / "steps").iterdir()}
    assert saves.keys() == {"1", "2", "4"}
    last = read_save(tmp_path / "iterations" / "1.zip")
    same = {
        name: all(bool((save.adapters["policy"][key] == value).all()) for key, value in last.adapters["policy"].items())
        for name, save in saves.items()
    }
    assert same == {"1": False, "2": False, "4": True}
    prms = [save.adapters["prm"] for save in saves.values()]  # the model that teaches does not move
    assert all(bool((prms[0][key] == other[key]).all()) for other in prms for key in other)


def test_the_prm_that_teaches_alone_is_the_papers_stage_3() -> None:
    for name in ("few", "many", "few_scalar", "many_scalar"):
        settings = dict(setting.split("=", 1) for setting in VARIANTS[name].settings)
        for key, value in PAPER["improve"].items():
            if key not in ("n_updates", "objective"):
                assert json.loads(settings[f"improve.{key}"]) == value, key
        assert AgentImproveStage().objective == PAPER["improve"]["objective"]


def test_the_bundled_model_gives_reasons_in_words_that_it_has(tmp_path: Path) -> None:
    tokenizer = LanguageModel.load("tiny").tokenizer
    shown = known_words("I need a mug and have not searched cabinet 1 yet, so I go there.", tokenizer)
    assert shown == "mug cabinet 1"
    words = Study(tmp_path, QUICK, "generated")._reasoned(0)
    demos = list(read_episodes(tmp_path / "seed_0" / "terse_demos.jsonl.gz"))
    assert len(demos) == QUICK.n_reasoned and str(tmp_path / "seed_0" / "terse_demos.jsonl.gz") in map(str, words)
    template = next(str(word).split("=", 1)[1] for word in words if "template" in str(word))
    prompt = PromptFormat(tokenizer, template, reasons=True)
    for turn in demos[0].turns:
        assert turn.reason and known_words(turn.reason, tokenizer) == turn.reason
        tokens = prompt.response_tokens(turn)
        assert not any(t.startswith("<0x") for t in tokenizer.convert_ids_to_tokens(list(tokens.ids)))
        read = prompt.read(prompt.response_text(turn.reason, turn.command), turn.admissible_commands)
        assert (read.reason, read.command) == (turn.reason, turn.command)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANALYSES)
def test_a_trial_runs_from_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [name, "--quick", "--jobs", "1", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["analyses", *words])
    analyses.main()
    (path,) = (tmp_path / "runs").glob(f"analysis_{name}*.json")
    result = json.loads(path.read_text())
    assert result["rows"] and all(0 <= row["value"] <= 1 for row in result["rows"])
    assert path.with_suffix(".md").is_file() and path.with_suffix(".png").is_file()
    assert {Study(tmp_path, QUICK, "generated").at(0, "x").parent.name} == {"seed_0"}
