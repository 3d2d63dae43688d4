"""``agentprm sweep``: what it refuses, which games its trials see, what it writes, and that it goes on. Needs Optuna."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from agentprm_gym.games import TASK_TYPES, find_games
from algorithms.cli.sweep import HELD_OUT, Dimension, read_space
from tests.cli_helpers import GENERATED, SMALL_GROUPS, SMALL_RUN, Cli


# ---------------------------------------------------------------------- the space, for which nothing is needed
def test_a_space_is_read(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "learning_rate: {low: 1e-4, high: 1e-2, log: true}\nn_games: {low: 8, high: 32, step: 8}\n"
        "prm.form: [scalar, log_prob]\n"
    )
    rate, games, form = read_space(tmp_path / "space.yaml")
    assert rate == Dimension("learning_rate", low=1e-4, high=1e-2, log=True)
    assert games.whole and games.step == 8
    assert form.choices == ("scalar", "log_prob")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 3", "a list of choices"),
        ("learning_rate: []", "choices are texts"),
        ("learning_rate: [[1], [2]]", "choices are texts"),
        ("learning_rate: {low: 1}", "a list of choices"),
        ("learning_rate: {low: 2, high: 1}", "low must be below high"),
        ("learning_rate: {low: .nan, high: 1}", "low must be below high"),
        ("learning_rate: {low: 0, high: 1, log: true}", "low must be above 0"),
        ("learning_rate: {low: 1, high: 4, step: 0}", "step above 0"),
        ("- 1", "hold settings"),
        ("{}", "got none"),
        ("policy_kwargs.trust_remote_code: [true]", "lets files of other people run code"),
        ("critic: ['os:system']", "would run code"),
    ],
)
def test_what_is_no_space(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_space(tmp_path / "space.yaml")


def test_the_held_out_games_have_all_task_types() -> None:
    kept = find_games("train", "generated", subset={"every": HELD_OUT, "keep": 0})
    others = find_games("train", "generated", subset={"every": HELD_OUT, "leave_out": 0})
    assert not set(kept.game_ids) & set(others.game_ids)
    assert sorted([*kept.game_ids, *others.game_ids]) == sorted(find_games("train", "generated").game_ids)
    assert {game_id.split("-", 1)[0] for game_id in kept.game_ids} == set(TASK_TYPES)


# ---------------------------------------------------------------------- sweeps
@pytest.fixture
def space(tmp_path: Path) -> str:
    pytest.importorskip("optuna", reason="needs optuna (pip install agentprm-gym[sweep])")
    (tmp_path / "space.yaml").write_text("learning_rate: {low: 1e-3, high: 1e-2, log: true}\nbeta: [0.0, 0.1]\n")
    return "space.yaml"


def words(space: str, saved: Path, *more: object) -> tuple[object, ...]:
    train = ("--algo", "grpo", "--policy", saved / "sft.zip", "--timesteps", 1, *SMALL_RUN, "--set", *SMALL_GROUPS)
    return ("sweep", "--space", space, "--eval-games", 3, "--out", "sweep", *train, *more)


@pytest.mark.ci
def test_a_sweep_finds_the_best_of_its_trials_and_goes_on(cli: Cli, space: str, saved: Path, tmp_path: Path) -> None:
    done = cli(*words(space, saved, "--trials", 2))
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "sweep" / "result.json").read_text())
    assert [row["played"] for row in result["rows"]] == [3, 3]
    assert result["best"] == result["rows"][0]
    assert result["best"]["success"] == max(row["success"] for row in result["rows"])
    config = yaml.safe_load((tmp_path / "sweep" / "best" / "config.yaml").read_text())
    assert config["set"]["learning_rate"] == result["best"]["settings"]["learning_rate"]
    assert config["set"]["n_games"] == 2 and "env_kwargs" not in config  # all train games
    # Trials do not see what they are measured on.
    held_out = find_games("train", "generated", subset={"every": HELD_OUT, "keep": 0})
    trained = yaml.safe_load((tmp_path / "sweep" / "trial_0" / "config.yaml").read_text())
    assert trained["env_kwargs"] == {"subset": {"every": HELD_OUT, "leave_out": 0}}
    assert result["held_out"]["games"] == len(held_out)
    again = cli(*words(space, saved, "--trials", 2))
    assert again.status == 2 and "--resume sweep goes on" in again.err
    done = cli("sweep", "--resume", "sweep", "--trials", 3, "--json")
    assert done.status == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert len(rows) == 3
    assert {json.dumps(row["settings"]) for row in result["rows"]} < {json.dumps(row["settings"]) for row in rows}
    done = cli("train", "--config", "sweep/best/config.yaml", "--out", "final")
    assert done.status == 0, done.err


def test_a_trial_that_was_killed_is_tried_again(
    cli: Cli, space: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    from algorithms.cli import sweep

    def killed(args: object, model: Path) -> list[object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_play", killed)
        done = cli(*words(space, saved, "--trials", 1))
    assert done.status == 130 and "--resume sweep" in done.out
    done = cli("sweep", "--resume", "sweep")
    assert done.status == 0, done.err
    study = sweep._study(tmp_path / "sweep", 0)
    lost, tried = study.get_trials()
    assert lost.state == optuna.trial.TrialState.FAIL and lost.params == tried.params


def test_demonstrations_of_held_out_games_are_left_out(cli: Cli, space: str, learner: str, tmp_path: Path) -> None:
    from agentprm_gym import read_episodes

    (tmp_path / "space.yaml").write_text("learning_rate: [0.001]\n")
    assert cli("demos", "--n", 30, *GENERATED).status == 0
    run = (
        "sweep",
        "--space",
        space,
        "--trials",
        1,
        "--eval-games",
        2,
        "--out",
        "sweep",
        "--algo",
        "sft",
        "--epochs",
        1,
    )
    done = cli(*run, "--policy", learner, "--demos", "demos.jsonl.gz", *SMALL_RUN)
    assert done.status == 0, done.err
    held_out = set(find_games("train", "generated", subset={"every": HELD_OUT, "keep": 0}).game_ids)
    kept = {episode.game_id for episode in read_episodes(tmp_path / "sweep" / "demos.jsonl.gz")}
    every = {episode.game_id for episode in read_episodes(tmp_path / "demos.jsonl.gz")}
    assert kept == every - held_out != every
    config = yaml.safe_load((tmp_path / "sweep" / "best" / "config.yaml").read_text())
    assert config["demos"] == "demos.jsonl.gz"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--split", "valid_seen"), "leave out --split"),
        (("--env", "TextIdentity-v0"), "holds out some of ALFWorld's train games"),
        (("--env-kwargs", '{"subset": {"every": 2, "keep": 0}}'), "leave 'subset' out"),
        (("--overwrite",), "leave out --overwrite"),
        (("--space", "nowhere.yaml"), "no file 'nowhere.yaml'"),
        (("--space", "other.yaml"), "has no setting 'lerning_rate': did you mean 'learning_rate'"),
    ],
)
def test_what_a_sweep_refuses(
    cli: Cli, space: str, saved: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    (tmp_path / "other.yaml").write_text("lerning_rate: [1]")
    done = cli(*[word for word in words(space, saved, *more) if "--env" not in more or word not in GENERATED])
    assert done.status == 2 and said in done.err
    assert not (tmp_path / "sweep").exists()
