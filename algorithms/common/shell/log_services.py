"""Curves in services of others: Weights & Biases, trackio, MLflow, as output formats of Stable-Baselines3's logger.

Each writes the scalars that TensorBoard gets, with the same tags over the same x axis. The services are configured by their
own environment variables, as always (``WANDB_MODE=offline``, ``TRACKIO_DIR``, ``MLFLOW_TRACKING_URI``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agentprm_gym.checks import check_choice
from algorithms.common.shell.logs import hyper_parameters

#: Where runs go unless the service's own variable says something else.
PROJECT = "agentprm-gym"


def scalars(key_values: Mapping[str, Any], key_excluded: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """What TensorBoard shows as a curve: numbers that are not excluded there.

    Args:
        key_values: what the logger dumps, by tag.
        key_excluded: by tag, the formats that are not to have it.

    Example:
        >>> scalars({"a/b": 1, "a/c": 2.0, "a/d": "text"}, {"a/b": (), "a/c": ("tensorboard",), "a/d": ()})
        {'a/b': 1.0}
    """
    return {
        key: float(value)
        for key, value in key_values.items()
        if isinstance(value, (int, float, np.number)) and "tensorboard" not in (key_excluded.get(key) or ())
    }


class WandbWriter(KVWriter):
    """Writes scalars into a run of Weights & Biases."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            name: of the run.
            settings: flat hyper-parameters.
        """
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        # Several seeds are trained in one process, each as a run of its own.
        self.run: Any = wandb.init(project=project, name=name, config=dict(settings), reinit="create_new")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one dump of the logger."""
        self.run.log(scalars(key_values, key_excluded), step=step)

    def close(self) -> None:
        """End the run; what is not sent yet is sent."""
        self.run.finish()


class TrackioWriter(KVWriter):
    """Writes scalars into a run of trackio, which keeps them on this machine unless it is told a Space."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin a run; arguments are those of :class:`WandbWriter`."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # A name that is taken is that of an earlier run, whose curves would be mixed with these.
        self.run: Any = trackio.init(project=project, name=name, config=dict(settings), resume="never", embed=False)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one dump of the logger."""
        self.run.log(scalars(key_values, key_excluded), step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()


class MlflowWriter(KVWriter):
    """Writes scalars into a run of MLflow."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin a run; arguments are those of :class:`WandbWriter`."""
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(project)
        experiment = self.client.create_experiment(project) if found is None else found.experiment_id
        self.run_id: str = self.client.create_run(experiment, run_name=name).info.run_id
        for key, value in settings.items():
            self.client.log_param(self.run_id, key, value)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one dump of the logger."""
        for key, value in scalars(key_values, key_excluded).items():
            self.client.log_metric(self.run_id, key, value, step=step)

    def close(self) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id)


#: Services by name; the name is also that of the package, and of the extra that installs it.
SERVICES: dict[str, Callable[[str, Mapping[str, Any]], KVWriter]] = {
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
    "mlflow": MlflowWriter,
}


def check_service(name: str) -> str:
    """The name of a service whose package is installed; the package is not loaded.

    Args:
        name: one of :data:`SERVICES`.

    Raises:
        ValueError: the service is unknown.
        ModuleNotFoundError: its package is not installed; the message says how to install it.
    """
    check_choice("a service for curves", name, SERVICES)
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install 'agentprm-gym[{name}]'")
    return name


class LogTo(BaseCallback):
    """Send the curves of ``learn`` to a service, too: ``model.learn(1000, callback=LogTo("wandb"))``.

    Each ``learn`` is a run of its own. The run ends with ``learn``, and with :meth:`close` where an error ended ``learn``.
    """

    def __init__(self, service: str, name: str | None = None) -> None:
        """Make the callback; the run begins with ``learn``.

        Args:
            service: one of :data:`SERVICES`.
            name: of the run; ``None``: the name of the algorithm.

        Raises:
            ValueError: the service is unknown.
            ModuleNotFoundError: its package is not installed.
        """
        super().__init__()
        self.service, self.name = check_service(service), name
        self._writer: KVWriter | None = None

    def _on_training_start(self) -> None:
        data: dict[str, Any] = getattr(
            self.model, "_constructor_data", dict
        )()  # algorithms of SB3 itself have no such list
        settings = hyper_parameters({"algorithm": type(self.model).__name__, **data})
        self._writer = SERVICES[self.service](self.name or type(self.model).__name__, settings)
        self.logger.output_formats.append(self._writer)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """End the run, if one is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self.logger.output_formats.remove(writer)
            writer.close()
