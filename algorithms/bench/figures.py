"""The chart of a result: pair accuracy with its interval for each ranker, and the best-of-N regret curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agentprm_gym.bench.metrics_state import N_DRAWS
from algorithms.bench.run import Result

#: Curves in the right chart; more could not be told apart.
MAX_CURVES = 10


def draw(
    results: Sequence[Result], path: str | os.PathLike[str], *, title: str = "", draws_from: str = "uniform"
) -> None:
    """Draw a result into a PNG (or SVG or PDF, by the suffix).

    Args:
        results: one a ranker.
        path: the file; its folder is made where it is missing.
        title: above both charts.
        draws_from: the policy that the curves draw from.
    """
    # A third of a second that only who draws should wait for. Not pyplot's: nothing has to be closed.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(3.6, 1.6 + 0.32 * len(results))), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2)
    ranked = sorted(results, key=lambda r: np.nan_to_num(r.report["pair_accuracy"].overall.value, nan=-1))
    for y, result in enumerate(ranked):
        metric = result.report["pair_accuracy"]
        e = metric.overall
        left.plot([e.low, e.high], [y, y], color="C0", linewidth=2)
        left.plot([e.value], [y], "o", color="C0", label="all states" if y == 0 else None)
        left.plot(
            [metric.worst.value], [y], "|", color="C3", markersize=10, label="worst task type" if y == 0 else None
        )
    left.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    left.set_yticks(range(len(ranked)), [r.name for r in ranked], fontsize="small")
    left.set(xlabel="pair accuracy within states, 95 % interval over games", xlim=(-0.02, 1.02))
    left.legend(fontsize="small", loc="lower right")
    for i, result in enumerate(ranked[::-1][:MAX_CURVES]):
        curve = [e.value for e in result.report.curve]
        right.plot(N_DRAWS, curve, color=colormaps["tab10"](i % 10), label=result.name)
    right.set(xlabel=f"N draws of {draws_from}", ylabel="regret of the highest-scored one", xscale="log")
    ticks = [n for n in N_DRAWS if n & (n - 1) == 0]
    right.set_xticks(ticks, [str(n) for n in ticks])
    right.minorticks_off()
    right.set_ylim(bottom=0)
    right.legend(fontsize="x-small")
    for axis in (left, right):
        axis.grid(alpha=0.25)
    if title:
        figure.suptitle(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
