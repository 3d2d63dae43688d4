"""The pictures of a report, as images that stand in the page itself."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentprm_gym.plain_text import plain
from algorithms.common.measure.comparison import Curve, draw
from algorithms.common.measure.evaluation import Rate, by_task_type
from algorithms.report.sources import CURVES, Evaluation, Training

_LONGEST = 40


@dataclass(frozen=True, slots=True)
class Picture:
    """An image.

    Attributes:
        title: what it shows.
        source: its address, ``data:image/...``: no script runs in an image, and its style does not leave it.
    """

    title: str
    source: str


def as_source(kind: str, content: bytes) -> str:
    """The address of an image that is not in a file.

    Args:
        kind: ``"svg+xml"`` or ``"png"``.
        content: the file's bytes.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@contextmanager
def _plain_drawing() -> Iterator[None]:
    """Have matplotlib draw texts as they are (a dollar begins no formula), and the same picture twice."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "agentprm", "svg.fonttype": "path"}):
        yield


def _labels(names: Sequence[str]) -> dict[str, str]:
    """What a picture calls each name: one line of at most 40 harmless characters, no two alike."""
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        line = " ".join(plain(name).split())
        label = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
        labels[name] = label if label not in labels.values() else f"{label} ({len(labels) + 1})"
    return labels


def curve_pictures(trainings: Sequence[Training]) -> list[Picture]:
    """One picture for each curve that a run has, all runs in it: a mean with a 95 % interval over seeds."""
    pictures = []
    labels = _labels([curve.label for training in trainings for curve in training.curves])
    for tag in CURVES:
        curves = [
            Curve(labels[curve.label], tag, curve.axis, curve.seeds)
            for training in trainings
            for curve in training.curves
            if curve.tag == tag
        ]
        if curves:
            with tempfile.TemporaryDirectory() as folder, _plain_drawing():
                path = Path(folder) / "curve.svg"
                draw(curves, path)
                pictures.append(Picture(f"{tag}: {CURVES[tag]}", as_source("svg+xml", path.read_bytes())))
    return pictures


def success_picture(evaluations: Sequence[Evaluation]) -> Picture:
    """Success by task type with 95 % Wilson intervals, all evaluations side by side."""
    rates = [(one.name, by_task_type(one.episodes, one.step_cap)) for one in evaluations]
    names = [*dict.fromkeys(rate.name for _, rows in rates for rate in rows[:-1]), "all"]
    labels, kinds = _labels([name for name, _ in rates]), _labels(names)
    with tempfile.TemporaryDirectory() as folder, _plain_drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 1.4 + 0.28 * len(names) * max(1, len(rates))), layout="constrained")
        axis = figure.add_subplot()
        for i, (name, rows) in enumerate(rates):
            found = {rate.name: rate for rate in rows if rate.n}
            at = [k for k, kind in enumerate(names) if kind in found]
            shown = [found[names[k]] for k in at]
            offset = 0.7 * ((i + 0.5) / len(rates) - 0.5)
            # The interval of a rate of 0 or 1 ends there, up to rounding.
            below, above = ([max(0.0, 100 * x) for x in side] for side in _sides(shown))
            axis.errorbar(
                [100 * r.rate for r in shown],
                [k + offset for k in at],
                xerr=[below, above],
                fmt="o",
                capsize=3,
                label=labels[name],
            )
        axis.set_yticks(range(len(names)), [kinds[name] for name in names])
        axis.invert_yaxis()
        axis.set(xlim=(-2, 102), xlabel="games won, %, with 95 % Wilson intervals")
        axis.grid(alpha=0.25, axis="x")
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
        path = Path(folder) / "success.svg"
        figure.savefig(path)
        return Picture("success by task type", as_source("svg+xml", path.read_bytes()))


def _sides(rates: Sequence[Rate]) -> tuple[list[float], list[float]]:
    """How far the ends of intervals are from the rates, below and above."""
    return [r.rate - r.low for r in rates], [r.high - r.rate for r in rates]


def run_pictures(training: Training) -> list[Picture]:
    """The pictures that a run wrote itself."""
    return [Picture(f"{training.name}: {tag}", as_source("png", content)) for tag, content in training.pictures]
