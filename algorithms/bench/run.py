"""Rankers on a panel: states are chosen, scored, measured, and made into the rows of a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentprm_gym.bench.metrics import METRICS, PanelMetrics, Report
from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.panel import Panel
from agentprm_gym.bench.ranker import Ranker, probabilities_of, scale_of, score_panel, values_of
from agentprm_gym.bench.states import BenchState

#: Columns of the Markdown table: name of the metric, header, and whether it is written in percent.
COLUMNS: Sequence[tuple[str, str, bool]] = (
    ("pair_accuracy", "pair accuracy %", True),
    ("top1", "top-1 %", True),
    ("best_of_five", "best of 5 %", True),
    ("kendall_tau", "tau-b", False),
    ("regret", "regret", False),
    ("normalised_regret", "normalised regret", False),
    ("auc", "AUC in state", False),
    ("pooled_auc", "AUC pooled", False),
    ("dead_end_auc", "dead ends AUC", False),
    ("first_bad_step_f1", "first bad step F1", False),
    ("best_of_16_regret", "best-of-16 regret", False),
    ("ece", "ECE", False),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one ranker got.

    Attributes:
        name: the ranker's name.
        report: its metrics.
        scale: what its scores are, see :class:`~agentprm_gym.bench.ranker.Ranker`.
        seconds: how long scoring took.
        counts: what the ranker counted itself, for example answers that could not be read.
    """

    name: str
    report: Report
    scale: str
    seconds: float
    counts: Mapping[str, int]


def choose_states(states: Sequence[BenchState], n: int | None, seed: int = 0) -> list[BenchState]:
    """Draw states by whole games, as many of each task type as there are, in the panel's order.

    States of one game stay together, so that episodes keep their consecutive turns. The last game may be cut.

    Args:
        states: a panel's states.
        n: how many at most; ``None``: all.
        seed: draws the games.
    """
    if n is None or n >= len(states):
        return list(states)
    by_type: dict[str, dict[str, list[int]]] = {}
    for i, state in enumerate(states):
        by_type.setdefault(state.task_type, {}).setdefault(state.game_id, []).append(i)
    rng = np.random.default_rng([seed, 29])
    queues = []
    for kind in sorted(by_type):
        games = list(by_type[kind].values())
        queues.append([games[int(g)] for g in rng.permutation(len(games))])
    chosen: list[int] = []
    taken = [0] * len(queues)
    while len(chosen) < n:
        # The type of which least was taken is next.
        k = min((k for k in range(len(queues)) if queues[k]), key=lambda k: taken[k])
        game = queues[k].pop(0)
        taken[k] += len(game)
        chosen += game
    return [states[i] for i in sorted(chosen[:n])]


def run_bench(
    rankers: Sequence[Ranker],
    states: Sequence[BenchState],
    labels: str,
    *,
    draws_from: Ranker | None = None,
    gap: float = 0.0,
    n_samples: int = 1000,
    seed: int = 0,
    on_states: Callable[[str, int], None] | None = None,
) -> list[Result]:
    """Score and measure.

    Args:
        rankers: with different names.
        states: the states.
        labels: which labels.
        draws_from: the policy that best-of-N and the PAV terms draw from, a ranker whose scores are log-probabilities;
            ``None``: a uniform one.
        gap: the least difference of labels that counts.
        n_samples: samples of games for the intervals.
        seed: draws them.
        on_states: called with a ranker's name and the number of states that it has scored.

    Returns:
        One result a ranker, in their order.

    Raises:
        ValueError: labels are missing, a ranker returned something else than one finite number for each command
            (``RankerError``), or ``draws_from`` has no probabilities.
    """
    # The labels are checked before any model is asked.
    measure = PanelMetrics(states, labels, gap=gap, n_samples=n_samples, seed=seed)
    if draws_from is not None:
        policy = _policy(draws_from, states, on_states)
        measure = PanelMetrics(states, labels, policy=policy, gap=gap, n_samples=n_samples, seed=seed)
    out = []
    for ranker in rankers:
        begin = time.monotonic()
        scores = _scores(ranker, states, on_states)
        seconds = time.monotonic() - begin
        scale = scale_of(ranker)
        report = measure.measure(scores, values=values_of(scores, scale), calibrated=scale in ("logit", "probability"))
        counts = {str(k): int(v) for k, v in dict(getattr(ranker, "counts", {})).items()}
        out.append(Result(ranker.name, report, scale, seconds, counts))
    return out


def _scores(ranker: Ranker, states: Sequence[BenchState], on_states: Callable[[str, int], None] | None) -> list[Floats]:
    return score_panel(
        ranker, states, on_batch=None if on_states is None else lambda done: on_states(ranker.name, done)
    )


def _policy(
    ranker: Ranker, states: Sequence[BenchState], on_states: Callable[[str, int], None] | None
) -> list[list[float]] | None:
    if ranker.name == "uniform":
        return None
    if scale_of(ranker) != "log_prob":
        raise ValueError(
            f"draws are taken from a policy, whose scores are log-probabilities, and {ranker.name!r} is none: expected "
            "uniform or policy:MODEL"
        )
    return [row.tolist() for row in probabilities_of(_scores(ranker, states, on_states))]


# ---------------------------------------------------------------------- what is written
def to_json(results: Sequence[Result], panel: Panel, n_states: int, **about: Any) -> dict[str, Any]:
    """A result as JSON types: the panel, flat figures, and one row a ranker.

    Args:
        results: one a ranker.
        panel: the panel.
        n_states: how many of its states were measured on.
        **about: more keys: labels, seeds.
    """
    figures: dict[str, float | None] = {}
    for result in results:
        for name in METRICS:
            metric = result.report[name]
            for end in ("value", "low", "high"):
                number = getattr(metric.overall, end)
                figures[f"{result.name}/{name}" + ("" if end == "value" else f"_{end}")] = _finite(number)
            figures[f"{result.name}/{name}_worst"] = _finite(metric.worst.value)
    return {
        "panel": {
            "name": panel.name,
            "version": panel.version,
            "sha256": panel.sha256,
            "n_states": len(panel.states),
            "measured": n_states,
        },
        **about,
        "figures": figures,
        "rows": [
            {
                "name": r.name,
                "scale": r.scale,
                "seconds": round(r.seconds, 2),
                **({"counts": dict(r.counts)} if r.counts else {}),
                **r.report.to_dict(),
            }
            for r in results
        ],
    }


def markdown(results: Sequence[Result], panel: Panel, n_states: int) -> str:
    """A Markdown table with one row a ranker; each row says panel and labels, so that it can be pasted into another table.

    Args:
        results: one a ranker.
        panel: the panel.
        n_states: how many of its states were measured on.
    """
    headers = [
        "ranker",
        "panel, labels",
        "states",
        *(header for _, header, _ in COLUMNS),
        "worst type, pair accuracy %",
    ]
    where = f"{panel.name} v{panel.version} ({panel.sha256[:8]})"
    lines = [
        "| " + " | ".join(headers) + " |",
        "| --- | --- | " + " | ".join(["---:"] * (len(headers) - 3)) + " | --- |",
    ]
    for result in results:
        report = result.report
        worst = report["pair_accuracy"]
        cells = [result.name.replace("|", "\\|"), f"{where}, {report.labels}", str(n_states)]
        cells += [number(report[name].overall, percent, name == "pair_accuracy") for name, _, percent in COLUMNS]
        cells.append(f"{number(worst.worst, True)} {worst.worst_type}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def number(e: Any, percent: bool, interval: bool = False) -> str:
    """An estimate in a table: ``61.3 [56.4, 65.9]`` in percent, ``0.613`` else; a dash where there is none.

    Args:
        e: the :class:`~agentprm_gym.bench.metrics.Estimate`.
        percent: whether it is written in percent.
        interval: whether its interval is written, too.
    """
    if not np.isfinite(e.value):
        return "-"
    factor, form = (100.0, ".1f") if percent else (1.0, ".3f")
    text = f"{factor * e.value:{form}}"
    return text + (f" [{factor * e.low:{form}}, {factor * e.high:{form}}]" if interval and np.isfinite(e.low) else "")


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
