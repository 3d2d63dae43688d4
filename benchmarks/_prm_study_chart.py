"""The chart of :mod:`benchmarks.prm_study`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.prm_study_parts import ITERATED, TITLES, Study, lines, pair_title, start_title


def draw(figures: Mapping[str, float], study: Study, path: Path) -> None:
    """Two panels a start: success over iterations, and best-of-N."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    n_starts = len(study.settings)
    chart, panels = plt.subplots(
        n_starts, 2, figsize=(12.5, 4.4 * n_starts), squeeze=False, layout="constrained", dpi=130
    )

    def plot(panel: Any, label: str, points: Mapping[float, str], **how: Any) -> None:
        heights = [100 * figures[name] for name in points.values()]
        halves = [100 * figures.get(f"{name}_half_interval", 0.0) for name in points.values()]
        panel.errorbar(list(points), heights, yerr=halves, label=label, capsize=3, marker="o", markersize=4, **how)

    for (start, settings), (left, right) in zip(study.settings.items(), panels, strict=True):
        key = f"sft{start}_{{}}_success"
        last = settings.agentprm_iterations
        for i, (name, label) in enumerate(ITERATED.items()):
            n = getattr(settings, f"{name}_iterations")
            if not n:
                continue
            # Beside each other, so that intervals can be told apart; the start is common to all.
            points = {0.0: key.format("sft")} | {k + 0.04 * i: key.format(f"{name}_{k}") for k in range(1, n + 1)}
            plot(left, label, points, color=f"C{i}")
        for i, name in enumerate(("rft", "grpo", "grpo_minutes")):
            # Of these only the end was measured, where its budget is that of all iterations.
            points = {0.0: key.format("sft"), last + 0.06 * (i + 1): key.format(name)}
            plot(left, TITLES[name], points, color=f"C{len(ITERATED) + i}", linestyle=":")
        left.set_xticks(range(last + 1), ["SFT" if start else "base", *map(str, range(1, last + 1))])
        left.set_xlabel("iteration")
        for i, (line, pair) in enumerate(lines(settings).items()):
            curve = {float(n): f"sft{start}_best_of_{n}_{line}" for n in study.best_of}
            plot(right, pair_title(start, *pair), curve, color=f"C{len(ITERATED) + 2 + i}")
        right.set_xscale("log", base=2)
        right.set_xticks(study.best_of, list(map(str, study.best_of)))
        right.set_xlabel("N of best-of-N")
        for panel in (left, right):
            panel.set_ylabel("success % on valid_seen")
            panel.set_title(f"from {start_title(start)}", fontsize="medium")
            panel.grid(alpha=0.25)
            panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)
