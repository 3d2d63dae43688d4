"""What was measured of a model, out of the ``result.json`` of ``agentprm eval`` and ``agentprm bench``, for its card."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm_gym.files import read_json_object

_FILE = "result.json"
# The largest that the commands here write is a hundredth of it.
_MAX_BYTES = 20_000_000


class ResultError(ValueError):
    """A file is not a result of this package, or is that of another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An evaluation.

    Attributes:
        env: id of the environment.
        split: of the games; ``""`` for an environment without splits.
        source: where the games come from.
        n: games that were played.
        content_hash: SHA-256 of the whole game list; ``""`` where there is none.
        played_sha256: SHA-256 of the ids of the games that were played, in order.
        grammar: wording of the games.
        step_cap: step limit.
        acting: how the player answers, in words.
        seed: of the evaluation.
        success: share of games won, in [0, 1].
        low: lower end of its 95 % interval.
        high: upper end.
        mean_steps: over all games; ``None`` where it is not known.
        model_sha256: SHA-256 of the model's file; ``""`` for a model without one.
        version: of agentprm-gym.
    """

    env: str
    split: str
    source: str
    n: int
    content_hash: str
    played_sha256: str
    grammar: str
    step_cap: int | None
    acting: str
    seed: int
    success: float
    low: float
    high: float
    mean_steps: float | None
    model_sha256: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """A measurement on a benchmark panel.

    Attributes:
        panel: the panel's name.
        panel_version: its version.
        panel_sha256: the hash of its rows.
        n_states: how many states were measured.
        labels: kind of the labels.
        rows: name of a ranker, and its metrics by name: value, lower and upper end of the interval.
    """

    panel: str
    panel_version: int
    panel_sha256: str
    n_states: int
    labels: str
    rows: tuple[tuple[str, Mapping[str, tuple[float | None, float | None, float | None]]], ...]


def read_results(
    paths: Iterable[str | os.PathLike[str]], model_sha256: str | None = None
) -> tuple[list[Evaluation], list[Ranking]]:
    """Read result files.

    Args:
        paths: ``result.json`` files, or the folders that hold them.
        model_sha256: the model that evaluations must be about; ``None``: any.

    Returns:
        Evaluations and measurements on panels, each in the order of the files.

    Raises:
        FileNotFoundError: a file is missing.
        ResultError: (a ``ValueError``) a file is no result, or an evaluation is about another model.
    """
    evaluations: list[Evaluation] = []
    rankings: list[Ranking] = []
    for given in paths:
        path = Path(given) / _FILE if Path(given).is_dir() else Path(given)
        data = _read(path)
        is_bench = data.get("name") == "bench"
        try:
            found = _ranking(data) if is_bench else _evaluation(data)
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise ResultError(
                f"{path} is not a result ({type(error).__name__}: {error}): expected a result.json that 'agentprm eval' or "
                "'agentprm bench' of this version wrote"
            ) from error
        if isinstance(found, Ranking):
            rankings.append(found)
            continue
        if model_sha256 is not None and found.model_sha256 != model_sha256:
            raise ResultError(
                f"{path} is about the model with the SHA-256 {found.model_sha256[:16] or 'none'}..., and this one has "
                f"{model_sha256[:16]}...: evaluate this model, or leave the result out"
            )
        evaluations.append(found)
    return evaluations, rankings


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no result at {path}: expected the folder or the result.json of an evaluation")
    try:
        return read_json_object(path, max_bytes=_MAX_BYTES)
    except ValueError as error:
        raise ResultError(str(error)) from error


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value!r}")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, (str, int)):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    return str(value)


def _evaluation(data: Mapping[str, Any]) -> Evaluation:
    protocol = data["protocol"]
    games, sampling = protocol["games"], protocol["sampling"]
    everything = next(row for row in data["rows"] if row["name"] == "all")
    acting = [f"temperature {_number(sampling['temperature']):g}"]
    if sampling.get("search") not in (None, "none"):
        acting.append(f"search {_text(sampling['search'])}, n={sampling.get('n')}")
    if protocol.get("action_mode"):
        acting.append(f"mode {_text(protocol['action_mode'])}")
    cap, steps = protocol.get("step_cap"), everything.get("mean_steps")
    return Evaluation(
        env=_text(protocol["env"]),
        split=_text(games.get("split") or ""),
        source=_text(games.get("source") or ""),
        n=int(_number(everything["n"])),
        content_hash=_text(games.get("content_hash") or ""),
        played_sha256=_text(games["played_sha256"]),
        grammar=_text(protocol.get("grammar") or ""),
        step_cap=None if cap is None else int(_number(cap)),
        acting=", ".join(acting),
        seed=int(_number(protocol["seed"])),
        success=_number(everything["success"]),
        low=_number(everything["low"]),
        high=_number(everything["high"]),
        mean_steps=None if steps is None else _number(steps),
        model_sha256=_text(data.get("model_sha256") or ""),
        version=_text((data.get("versions") or {}).get("agentprm-gym", "unknown")),
    )


def _ranking(data: Mapping[str, Any]) -> Ranking:
    panel = data["panel"]
    rows = []
    for row in data["rows"]:
        metrics = {
            _text(name): (_optional(found.get("value")), _optional(found.get("low")), _optional(found.get("high")))
            for name, found in row["metrics"].items()
        }
        rows.append((_text(row["name"]), metrics))
    return Ranking(
        panel=_text(panel["name"]),
        panel_version=int(_number(panel["version"])),
        panel_sha256=_text(panel["sha256"]),
        n_states=int(_number(panel["measured"])),
        labels=_text(data["labels"]),
        rows=tuple(rows),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)
