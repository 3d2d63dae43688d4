"""Comparing runs: curves read back from TensorBoard event files, seeds of one setting drawn as a mean with an interval.

A curve is one tag of one setting. The seeds of a setting are folders named ``seed_<n>``, as ``agentprm train --seeds``
makes them. Each is read and put on a common grid by linear interpolation; then the mean is taken. Intervals are 95 % of
Student's t over the seeds, for each point. Nothing is smoothed.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.checks import check_choice

Floats = NDArray[np.float64]

#: What may stand on the x axis, and the tag that holds it; ``None`` is the step itself.
AXES: dict[str, str | None] = {"steps": None, "seconds": "time/time_elapsed", "tokens": "time/total_tokens"}
AXIS_LABELS = {"steps": "environment steps", "seconds": "seconds of training", "tokens": "tokens fed while acting"}

#: 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; from 30 on the normal one is near enough.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

#: Points of the common grid.
N_GRID = 200

_SEED = re.compile(r"^seed_(\d+)$")
_RUN_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Curve:
    """One tag of one setting.

    Attributes:
        label: name of the setting.
        tag: the TensorBoard tag.
        axis: what ``x`` is: ``"steps"``, ``"seconds"`` or ``"tokens"``.
        seeds: for each seed its points, ``(x, y)`` of shape (N,) each, x increasing.
    """

    label: str
    tag: str
    axis: str
    seeds: Mapping[str, tuple[Floats, Floats]]

    def band(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Grid, mean over seeds, and the ends of the 95 % interval; each of shape (N_GRID,).

        The grid spans what all seeds have. With one seed the ends of the interval are NaN.
        """
        low = max(x[0] for x, _ in self.seeds.values())
        high = min(x[-1] for x, _ in self.seeds.values())
        grid = np.linspace(low, max(low, high), N_GRID)
        values = np.stack([np.interp(grid, x, y) for x, y in self.seeds.values()])  # (S, N_GRID)
        mean, half = mean_interval(values)
        return grid, mean, mean - half, mean + half

    def last(self) -> Floats:
        """The last value of each seed, (S,)."""
        return np.array([y[-1] for _, y in self.seeds.values()])

    def average(self) -> Floats:
        """The mean height of each seed's curve over what all seeds have, (S,): a curve that rises earlier has more."""
        low = max(x[0] for x, _ in self.seeds.values())
        high = max(low, min(x[-1] for x, _ in self.seeds.values()))
        grid = np.linspace(low, high, N_GRID)
        return np.array([np.interp(grid, x, y).mean() for x, y in self.seeds.values()])

    def reached(self, level: float) -> Floats:
        """Where each seed's curve first is at ``level`` or above, (S,); infinite where it never is."""
        out = []
        for x, y in self.seeds.values():
            at = np.flatnonzero(y >= level)
            out.append(float(x[at[0]]) if len(at) else math.inf)
        return np.array(out)


def mean_interval(values: Floats) -> tuple[Any, Any]:
    """Mean over the first axis, and half the width of its 95 % interval (Student's t); NaN with one value.

    Args:
        values: shape (S, ...).

    Example:
        >>> mean, half = mean_interval(np.array([1.0, 2.0, 3.0]))
        >>> float(mean), round(float(half), 2)
        (2.0, 2.48)
    """
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else 1.96
    half = quantile * values.std(axis=0, ddof=1) / math.sqrt(n)
    return mean, half


def finite(value: Any) -> float | None:
    """A number for a result file: ``None`` where it is not finite, which JSON cannot say."""
    return float(value) if math.isfinite(value) else None


def mean_columns(values: Mapping[str, Floats]) -> dict[str, float | None]:
    """Means over seeds for a row of a result file: ``<name>``, and half its 95 % interval as ``<name>_half``.

    Args:
        values: by name, (n_seeds,) each.

    Example:
        >>> mean_columns({"won": np.array([0.5, 0.7])})["won"]
        0.6
    """
    out: dict[str, float | None] = {}
    for name, column in values.items():
        mean, half = mean_interval(column)
        out[name], out[f"{name}_half"] = float(mean), finite(half)
    return out


# ---------------------------------------------------------------------- reading
def is_rate(tag: str) -> bool:
    """Whether a tag's values are shares in [0, 1], so that a height such as 0.5 means something.

    Example:
        >>> is_rate("rollout/success_rate"), is_rate("rollout/ep_len_mean"), is_rate("train/learning_rate")
        (True, False, False)
    """
    return tag.endswith(("success_rate", "accuracy", "_share", "_top1", "clip_fraction"))


def read_curves(
    runs: Mapping[str, str | os.PathLike[str]],
    tags: Sequence[str],
    axis: str = "steps",
    *,
    on_missing: Callable[[str, str, str], None] | None = None,
) -> list[Curve]:
    """Read curves of runs.

    Args:
        runs: names and folders. A folder holds event files at any depth; those below folders ``seed_<n>`` are seeds of one
            setting, others that differ in more than a run number (``SFT_1``, ``AgentPRM_1``) are settings of their own.
        tags: which curves; a run without a tag has no curve of it.
        axis: a key of :data:`AXES`.
        on_missing: called with the setting, the seed (empty where it has none) and the tag of each curve that is left out.

    Raises:
        FileNotFoundError: a folder is missing or does not hold event files.
        ValueError: the axis is unknown, or not one run has a tag; the message lists the tags that were found.
    """
    check_choice("axis", axis, AXES)
    found: dict[str, dict[str, list[Path]]] = {}  # label -> seed -> event folders
    for name, folder in runs.items():
        found |= _settings(name, Path(folder))
    curves: list[Curve] = []
    seen: set[str] = set()
    read = {label: {seed: _scalars(folders) for seed, folders in seeds.items()} for label, seeds in found.items()}
    for tag in tags:
        for label, seeds in read.items():
            points = {}
            for seed, scalars in seeds.items():
                seen |= set(scalars)
                xy = _points(scalars, tag, AXES[axis])
                if xy is not None:
                    points[seed] = xy
                elif on_missing is not None:
                    on_missing(label, seed, tag)
            if points:
                curves.append(Curve(label, tag, axis, points))
        if not any(curve.tag == tag for curve in curves):
            close = difflib.get_close_matches(tag, seen, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no run has the tag {tag!r}{hint} Found: {', '.join(sorted(seen)) or 'none'}")
    return curves


def _settings(name: str, folder: Path) -> dict[str, dict[str, list[Path]]]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no run {str(folder)!r}: expected a folder that 'agentprm train --out' or TensorBoard wrote"
        )
    folders = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    if not folders:
        raise FileNotFoundError(f"{folder} holds no TensorBoard event files (events.out.tfevents.*), at no depth")
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in folders:
        # The folder's own name counts too: "compare runs/ppo/seed_0" is a seed of "ppo".
        parts = [
            _RUN_NUMBER.sub("", part) if not _SEED.match(part) else part for part in path.relative_to(folder).parts
        ]
        seed = next((match[1] for part in parts if (match := _SEED.match(part))), "")
        key = "/".join(part for part in parts if not _SEED.match(part) and part != "tb")
        groups.setdefault(key, {}).setdefault(seed, []).append(path)
    if len(groups) == 1:
        return {name: next(iter(groups.values()))}
    return {f"{name}/{key}" if key else name: seeds for key, seeds in groups.items()}


def _scalars(folders: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Tag -> step -> value of one run; where it was started again, later files replace what is behind their first step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars: dict[str, dict[int, float]] = {}
    files = sorted((path for folder in folders for path in folder.glob("events.out.tfevents.*")), key=_order)
    for file in files:
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            events = accumulator.Scalars(tag)
            first = events[0].step
            kept = {step: value for step, value in scalars.get(tag, {}).items() if step < first}
            scalars[tag] = kept | {event.step: event.value for event in events}
    return scalars


def _order(path: Path) -> tuple[int, str]:
    """By the second in which the file was begun, which its name holds."""
    second = path.name.split(".")[3]
    return (int(second) if second.isdigit() else 0, str(path))


def _points(scalars: Mapping[str, Mapping[int, float]], tag: str, x_tag: str | None) -> tuple[Floats, Floats] | None:
    values = scalars.get(tag, {})
    if x_tag is None:
        at = {step: float(step) for step in values}
    else:
        at = dict(scalars.get(x_tag, {}))
    steps = [step for step in sorted(values) if step in at and math.isfinite(values[step])]
    if not steps:
        return None
    x = np.array([at[step] for step in steps], dtype=np.float64)
    y = np.array([values[step] for step in steps], dtype=np.float64)
    return x, y


# ---------------------------------------------------------------------- drawing
def draw(curves: Sequence[Curve], path: str | os.PathLike[str], *, title: str = "", level: float | None = None) -> None:
    """Draw curves into a PNG (or SVG, by the suffix), one chart for each tag and one legend for all.

    Args:
        curves: from :func:`read_curves`.
        path: the file; its folder is made where it is missing.
        title: above all charts.
        level: a dotted line at this height in the charts of rates (see :func:`is_rate`).
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    tags = list(dict.fromkeys(curve.tag for curve in curves))
    labels = list(dict.fromkeys(curve.label for curve in curves))
    colours = {label: plt.get_cmap("tab10")(i % 10) for i, label in enumerate(labels)}
    figure, axes = plt.subplots(
        1, len(tags), figsize=(1.5 + 5.5 * len(tags), 4.6), squeeze=False, layout="constrained", dpi=130
    )
    lines: dict[str, Any] = {}
    for axis, tag in zip(axes[0], tags, strict=True):
        for curve in (c for c in curves if c.tag == tag):
            lines.setdefault(curve.label, _draw_curve(axis, curve, colours[curve.label]))
        if is_rate(tag):
            axis.set_ylim(-0.02, 1.02)
            if level is not None:
                axis.axhline(level, color="grey", linestyle=":", linewidth=1)
        axis.set_xlabel(AXIS_LABELS[curves[0].axis])
        axis.set_ylabel(tag)
        axis.grid(alpha=0.25)
    # Of the curves of all charts: a setting may be in one chart alone.
    seeds = {label: max(len(c.seeds) for c in curves if c.label == label) for label in lines}
    names = [f"{label} ({n} seed{'s' if n > 1 else ''})" for label, n in seeds.items()]
    figure.legend(
        list(lines.values()), names, loc="outside lower center", ncols=min(len(names), 2 * len(tags)), fontsize="small"
    )
    if title:
        figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    plt.close(figure)


def _draw_curve(axis: Any, curve: Curve, colour: Any) -> Any:
    """Draw one curve; returns its line for the legend."""
    grid, mean, low, high = curve.band()
    (line,) = axis.plot(grid, mean, color=colour)
    if len(curve.seeds) > 1:
        axis.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
    else:  # what was measured: a line between two points looks like many
        axis.plot(*next(iter(curve.seeds.values())), linestyle="", marker=".", color=colour)
    return line
