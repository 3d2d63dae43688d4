"""Curves in services of others: the real packages, without a network; they get what TensorBoard gets."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli_helpers import SMALL_GROUPS, SMALL_RUN, Cli

Points = dict[str, list[tuple[int, float]]]


def loaded(name: str) -> ModuleType:
    """A package that an extra installs; the test skips where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        return pytest.importorskip(name, reason=f"needs pip install agentprm-gym[{name.partition('.')[0]}]")


def curves_of_tensorboard(folder: Path) -> Points:
    """Tags of TensorBoard with their steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.glob("tb/*/events*")
    events = EventAccumulator(str(path))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def train(cli: Cli, learner: str, service: str) -> None:
    """A short run that logs to a service."""
    words = ("train", "--algo", "grpo", "--policy", learner, "--timesteps", 1, "--out", "run", *SMALL_RUN)
    done = cli(*words, "--set", *SMALL_GROUPS, "--log", service)
    assert done.status == 0, done.err


def assert_same(found: Points, folder: Path) -> None:
    """Same tags, steps and values."""
    expected = curves_of_tensorboard(folder)
    assert "rollout/success_rate" in expected and set(found) == set(expected)
    for tag, points in found.items():
        assert [step for step, _ in points] == [step for step, _ in expected[tag]]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected[tag]], rel=1e-5)


def test_mlflow_has_the_curves_and_the_settings(
    cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow advises a database in place of files
        train(cli, learner, "mlflow")
        client = MlflowClient()
        experiment = client.get_experiment_by_name("agentprm-gym")
        (run,) = client.search_runs([experiment.experiment_id])
        found = {
            tag: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, tag)]
            for tag in run.data.metrics
        }
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["algorithm"] == "GRPO" and run.data.params["n_games"] == "2"
    assert_same(found, tmp_path / "run")


@pytest.mark.ci
def test_wandb_writes_an_offline_run(cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = loaded("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "curves"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "curves").mkdir()
    train(cli, learner, "wandb")
    assert wandb.run is None
    (path,) = (tmp_path / "curves").glob("wandb/offline-run-*/run-*.wandb")
    content = path.read_bytes()
    # The format of the file is the package's own; tags stand in it as they are.
    for tag in curves_of_tensorboard(tmp_path / "run"):
        assert tag.encode() in content or tag in ("eval/success_rate",), tag


def test_trackio_keeps_the_curves_here(cli: Cli, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    loaded("trackio")
    train(cli, learner, "trackio")
    assert list((tmp_path / "trackio").glob("agentprm-gym*")), "expected a file of the project"


# ---------------------------------------------------------------------- without any of the packages
def test_a_service_that_is_not_installed_says_how_to_install_it(cli: Cli) -> None:
    from algorithms.cli.train_options import LOG_SERVICES

    missing = [name for name in LOG_SERVICES if find_spec(name) is None]
    if not missing:
        pytest.skip("all services are installed here")
    done = cli("train", "--algo", "grpo", "--log", missing[0])
    assert done.status == 2 and f"pip install 'agentprm-gym[{missing[0]}]'" in done.err and "Traceback" not in done.err


def test_an_unknown_service_is_refused(cli: Cli) -> None:
    done = cli("train", "--algo", "grpo", "--log", "wandbb")
    assert done.status == 2 and "wandb" in done.err


def test_the_command_line_knows_the_services() -> None:
    """It names them without loading torch."""
    from algorithms.cli.train_options import LOG_SERVICES
    from algorithms.common.shell.log_services import SERVICES

    assert tuple(SERVICES) == LOG_SERVICES


def test_scalars_are_those_of_tensorboard() -> None:
    import numpy as np

    from algorithms.common.shell.log_services import scalars

    values = {"a": 1, "b": np.float32(2.5), "c": "text", "d": 3.0, "e": np.zeros(2), "f": True}
    excluded = {key: ("tensorboard",) if key == "d" else None for key in values}
    assert scalars(values, excluded) == {"a": 1.0, "b": 2.5, "f": 1.0}  # type: ignore[arg-type]
