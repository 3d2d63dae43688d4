"""Held-out games while an algorithm learns: each point plays the same games once, training does not notice, and it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from algorithms import GRPO, SFT, GamesEvalCallback, evaluate, make_eval_env
from tests.algorithm_helpers import household_demonstrations, make_alfworld, make_model
from tests.cli_helpers import SMALL_GROUPS, SMALL_RUN, Cli, same_models

GROUPS: dict[str, Any] = {"n_games": 2, "group_size": 2, "batch_size": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def held_out() -> Any:
    venv = make_eval_env(n_envs=4, games="generated", split="valid_seen", max_episode_steps=5)
    yield venv
    venv.close()


def run(learner: str, held_out: Any, **given: Any) -> tuple[Any, GamesEvalCallback]:
    callback = GamesEvalCallback(held_out, **{"games": [3, 1, 4], "every": 1, **given})
    model = make_model(GRPO, learner, make_alfworld(4), seed=3, **GROUPS)
    model.learn(200, callback=callback)
    return model, callback


def test_training_is_the_same_with_it_and_without(learner: str, held_out: Any, tmp_path: Path) -> None:
    model, callback = run(learner, held_out, folder=tmp_path)
    plain = make_model(GRPO, learner, make_alfworld(4), seed=3, **GROUPS)
    plain.learn(200)
    model.save(tmp_path / "with.zip")
    plain.save(tmp_path / "without.zip")
    assert same_models(tmp_path / "with.zip", tmp_path / "without.zip")
    points = [one.timesteps for one in callback.evaluations]
    assert points == sorted(set(points)) and points[0] == 0 and points[-1] == model.num_timesteps and len(points) > 2


def test_what_it_measures_is_an_evaluation_of_that_policy(learner: str, held_out: Any, tmp_path: Path) -> None:
    model, callback = run(learner, held_out, folder=tmp_path, every=10**6)
    assert [one.timesteps for one in callback.evaluations] == [0, model.num_timesteps]  # the start and the end
    episodes = evaluate(model.policy.actor(4, temperature=0.0), held_out, games=[3, 1, 4])
    last = callback.evaluations[-1]
    assert (last.n, last.won) == (3, sum(e.success for e in episodes))
    assert last.mean_steps == sum(len(e.turns) for e in episodes) / 3
    kept = json.loads((tmp_path / "evaluations.json").read_text())
    assert [row["timesteps"] for row in kept] == [0, model.num_timesteps] and kept[-1]["won"] == last.won
    # Nothing was won more often than at the start, so the start is what is kept.
    assert callback.best is callback.evaluations[0]
    start = make_model(GRPO, learner, make_alfworld(4), seed=3, **GROUPS)
    start.save(tmp_path / "start.zip")
    assert same_models(tmp_path / "best.zip", tmp_path / "start.zip")


def test_the_best_is_the_one_that_wins_most(learner: str, held_out: Any, tmp_path: Path) -> None:
    model, _ = run(learner, held_out, folder=tmp_path)
    rows = json.loads((tmp_path / "evaluations.json").read_text())
    rows[0]["won"], rows[1]["won"] = 1, 2
    (tmp_path / "evaluations.json").write_text(json.dumps(rows))
    again = GamesEvalCallback(held_out, games=[3], every=10**6, folder=tmp_path)
    again.init_callback(model)
    again.on_training_start({}, {})
    assert again.best is not None and again.best.timesteps == rows[1]["timesteps"]
    # A new run has no evaluations, whatever lies in the folder.
    model.num_timesteps = 0
    again.evaluations = []
    again.on_training_start({}, {})
    assert again.evaluations == []


def test_wrong_arguments(held_out: Any) -> None:
    with pytest.raises(ValueError, match="at least one game"):
        GamesEvalCallback(held_out, games=[], every=5)
    with pytest.raises(ValueError, match="every"):
        GamesEvalCallback(held_out, games=[1], every=0)
    with pytest.raises(ValueError, match="temperature"):
        GamesEvalCallback(held_out, games=[1], every=1, temperature=float("nan"))


def test_sft_and_agentprm_are_evaluated_too(learner: str, held_out: Any) -> None:
    from algorithms import AgentPRM

    callback = GamesEvalCallback(held_out, games=[0], every=1)
    sft = make_model(SFT, learner, make_alfworld(4), demonstrations=household_demonstrations(4), batch_size=2)
    sft.learn(3, callback=callback)
    assert callback.evaluations[0].timesteps == 0 and len(callback.evaluations) >= 2
    small = {"n_games": 2, "n_repeats": 1, "n_branch_states": 2}
    groups: dict[str, Any] = {"rollout": small, "prm": {"n_epochs": 1}, "improve": {"n_updates": 1}}
    callback = GamesEvalCallback(held_out, games=[0], every=1)
    model = make_model(AgentPRM, learner, make_alfworld(4), n_iterations=2, n_validation_games=2, **groups)
    model.learn(callback=callback)
    assert len(callback.evaluations) == 3  # before each iteration and at the end


# ---------------------------------------------------------------------- the command line
def test_eval_every_draws_a_curve_and_goes_on(cli: Cli, learner: str, tmp_path: Path) -> None:
    run = ("train", "--algo", "grpo", "--policy", learner, "--set", *SMALL_GROUPS, *SMALL_RUN)
    evals = ("--eval-every", 1, "--eval-games", 4)
    done = cli(*run, "--timesteps", 200, *evals, "--out", "whole")
    assert done.status == 0, done.err
    assert "best on 4 games" in done.out
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    assert {"best.zip", "evaluations.json", "model.zip"} <= names
    whole = json.loads((tmp_path / "whole" / "evaluations.json").read_text())
    assert len(whole) >= 3
    done = cli(*run, "--timesteps", 1, *evals, "--out", "half")
    assert done.status == 0, done.err
    done = cli("train", "--resume", "half", "--timesteps", 200)
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "half" / "evaluations.json").read_text()) == whole
    # TensorBoard has the curve.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "whole" / "tb").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    points = [(e.step, e.value) for e in events.Scalars("eval/success_rate")]
    assert points == [(row["timesteps"], row["success"]) for row in whole]
    # Another run in this folder begins without them.
    done = cli(*run, "--timesteps", 1, "--out", "half", "--overwrite")
    assert done.status == 0, done.err
    assert not {"best.zip", "evaluations.json"} & {p.name for p in (tmp_path / "half").iterdir()}


def test_options_that_do_not_fit(cli: Cli, learner: str) -> None:
    run = ("train", "--algo", "grpo", "--policy", learner, *SMALL_RUN)
    done = cli(*run, "--eval-games", 3)
    assert done.status == 2 and "--eval-every" in done.err
    done = cli(*run, "--eval-every", 3, "--eval-split", "train")
    assert done.status == 2 and "valid_seen" in done.err
    own = ("train", "--algo", "grpo", "--policy", learner, "--env", "TextIdentity-v0", "--eval-every", 3)
    done = cli(*own, "--eval-split", "valid_seen", "--out", "x")
    assert done.status == 2 and "--eval-split" in done.err


def test_games_of_another_environment(cli: Cli, learner: str, tmp_path: Path) -> None:
    gym.register("DoorsToWatch-v0", "tests.foreign_env:DoorEnv", max_episode_steps=4)
    run = ("train", "--algo", "grpo", "--policy", learner, "--timesteps", 1, "--n-envs", 2, "--threads", 1)
    evals = ("--eval-every", 1, "--eval-games", 5, "--set", *SMALL_GROUPS)
    done = cli(*run, "--env", "DoorsToWatch-v0", "--out", "doors", *evals)
    assert done.status == 0, done.err
    rows = json.loads((tmp_path / "doors" / "evaluations.json").read_text())
    assert [row["n"] for row in rows] == [5, 5]
    # One that lists its games trains on all of them. It is refused before anything is written.
    done = cli(*run, "--env", "TextIdentity-v0", "--out", "identity", *evals)
    assert done.status == 2 and "GamesEvalCallback" in done.err
    assert not (tmp_path / "identity" / "config.yaml").exists()
