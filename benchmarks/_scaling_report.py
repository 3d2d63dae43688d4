"""The simulations of ``benchmarks/scaling.py``, its tables and its plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._scaling_costs import ENGINES, GPUS, MODELS, Assumptions, Plan, Recipe, Texts, as_data, plan
from benchmarks._scaling_simulation import Costs, Iteration, iterate

#: What the tables show, and what the curves have.
SHOWN = (1, 8, 64, 512)
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PARTS = ("broadcast", "rollouts", "scoring", "learning")
#: GPUs that are bought at most.
BUDGET = 64


def drawn(turns: Sequence[int], n: int) -> list[int]:
    """Lengths of ``n`` episodes, drawn from measured ones."""
    return [int(t) for t in np.random.default_rng(0).choice(np.asarray(turns), size=n)]


def row_of(n_workers: int, n_rollouts: int, simulated: Iteration, n_learners: int = 1) -> dict[str, Any]:
    """A simulated iteration as JSON.

    ``gpu_hours_held`` are those of all workers and learners from the first second to the last; ``gpu_hours_busy`` leave out
    workers that wait for the learner and learners that wait for workers, as where the same GPUs take turns.
    """
    playing = n_workers * (simulated.broadcast + simulated.rollouts)
    updating = n_learners * (simulated.scoring + simulated.learning)
    return {
        "workers": n_workers,
        "learners": n_learners,
        **{part: getattr(simulated, part) for part in PARTS},
        "seconds": simulated.seconds,
        "rollouts_per_second": n_rollouts / simulated.seconds,
        "bottleneck": simulated.bottleneck,
        "gpu_hours_busy": (playing + updating) / 3600,
        "gpu_hours_held": (n_workers + n_learners) * simulated.seconds / 3600,
    }


def bundled_curves(
    costs: Costs, learner: Mapping[str, float], turns: Sequence[int], sizes: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Iterations of the bundled model with 1 to 512 workers, a core each.

    Args:
        costs: as measured.
        learner: seconds an episode for ``scoring`` and ``learning``.
        turns: of measured episodes.
        sizes: rollouts of an iteration.
    """
    curves = {}
    for n in sizes:
        parts = {part: n * learner[part] for part in ("scoring", "learning")}
        lengths = drawn(turns, n)
        curves[str(n)] = [row_of(k, n, iterate(costs, lengths, k, dealt=True, **parts)) for k in CURVE]
    return curves


def large_models(texts: Texts, turns: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """Costs of an AgentPRM iteration of the large models.

    Args:
        texts: what an agent reads.
        turns: of measured episodes.
        quick: a hundredth of the rollouts and of the updates.
    """
    recipe, assumed = Recipe(), Assumptions()
    if quick:
        recipe = Recipe(rollouts=recipe.rollouts // 100, updates=recipe.updates // 100)
    lengths = [min(t, recipe.max_turns) for t in drawn(turns, recipe.rollouts)]
    kinds = {"reason": assumed.reason_tokens, "command": assumed.command_tokens}

    def planned(model: Any, gpu: Any, engine: Any, kind: str) -> Plan:
        return plan(model, gpu, engine, texts, lengths, written=kinds[kind], recipe=recipe, assumed=assumed)

    costs, curves, bought = [], {}, {}
    for model in MODELS:
        for kind in kinds:
            for engine in ENGINES:
                for gpu in GPUS:
                    made = planned(model, gpu, engine, kind)
                    one = row_of(1, recipe.rollouts, _simulated(made, lengths, 1))
                    names = {"model": model.name, "gpu": gpu.name, "engine": engine.name, "writes": kind}
                    costs.append({**names, "slots": made.costs.slots, **one})
        made = planned(model, GPUS[0], ENGINES[1], "reason")
        curves[model.name] = [row_of(k, recipe.rollouts, _simulated(made, lengths, k)) for k in CURVE]
        bought[model.name] = purchases(
            cache(lambda k, m, made=made: _simulated(made, lengths, k, m)), recipe.rollouts, BUDGET
        )
    return {
        "assumptions": {**as_data(assumed, recipe), "models": [asdict(m) for m in MODELS], **_hardware()},
        "one_gpu": costs,
        "large": curves,
        "bought": bought,
    }


def _hardware() -> dict[str, Any]:
    return {"gpus": [asdict(gpu) for gpu in GPUS], "engines": [asdict(engine) for engine in ENGINES]}


def _simulated(made: Plan, lengths: Sequence[int], n_workers: int, n_learners: int = 1) -> Iteration:
    parts = {"scoring": made.scoring, "learning": made.learning, "n_learners": n_learners}
    return iterate(made.costs, lengths, n_workers, **parts)  # type: ignore[arg-type]


def purchases(simulate: Callable[[int, int], Iteration], n_rollouts: int, budget: int) -> list[dict[str, Any]]:
    """What to buy first: at each step the doubling, of workers or of learners, that saves most for each GPU bought.

    Args:
        simulate: an iteration with so many workers and learners.
        n_rollouts: of an iteration.
        budget: GPUs at most.
    """
    workers = learners = 1
    rows = [row_of(1, n_rollouts, simulate(1, 1))]
    while True:
        now = simulate(workers, learners).seconds
        choices = {
            "workers": (2 * workers, learners, (now - simulate(2 * workers, learners).seconds) / workers),
            "learners": (workers, 2 * learners, (now - simulate(workers, 2 * learners).seconds) / learners),
        }
        what, (workers_then, learners_then, _) = max(choices.items(), key=lambda item: item[1][2])
        if workers_then + learners_then > budget:
            return rows
        workers, learners = workers_then, learners_then
        rows.append({**row_of(workers, n_rollouts, simulate(workers, learners), learners), "bought": what})


# ---------------------------------------------------------------------- tables
def figures_of(data: Mapping[str, Any]) -> dict[str, float]:
    """The result's numbers by name: the measured points beside the simulated ones, and hours of the job on one GPU.

    Args:
        data: the result.
    """
    figures: dict[str, float] = {}
    for row in data["measured"]["workers"]:
        for key in ("measured", "low", "high", "simulated", "ratio"):
            figures[f"workers_{row['workers']}_{key}"] = row[key]
    for row in data["one_gpu"]:
        name = "_".join(row[key] for key in ("model", "writes", "engine", "gpu")).replace(" ", "_").replace("'", "")
        figures[f"hours_{name}"] = row["seconds"] / 3600
    return figures


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _iterations(rows: Sequence[Mapping[str, Any]], unit: str, scale: float) -> str:
    head = ["workers", *(f"{part}, {unit}" for part in PARTS), f"all, {unit}", "rollouts a second", "longest"]
    shown = [row for row in rows if row["workers"] in SHOWN]
    return _table(
        head,
        [
            [
                row["workers"],
                *(f"{row[part] / scale:.3g}" for part in (*PARTS, "seconds")),
                f"{row['rollouts_per_second']:.3g}",
                row["bottleneck"],
            ]
            for row in shown
        ],
    )


def tables(data: Mapping[str, Any]) -> str:
    """The result as Markdown.

    Args:
        data: what the JSON file holds.
    """
    measured, recipe = data["measured"], data["assumptions"]["recipe"]
    costs = measured["costs"]
    told = [
        "# Scaling\n",
        f"Made by `{data['command']}` on {data['machine']}, {data['date']}, commit {data['commit']}. "
        + ("**--quick: a first look, not a result.** " if data["quick"] else "")
        + "What is measured, what is simulated and what is assumed: [docs/scaling.md](../../docs/scaling.md).\n",
        "## Measured: the bundled model, one thread\n",
        _table(
            ["part", "milliseconds"],
            [
                ["a turn of all episodes that run", f"{1e3 * costs['step']:.3g}"],
                ["for each of them", f"{1e3 * costs['step_row']:.3g}"],
                [f"packing the adapter ({measured['adapter_bytes'] / 1e6:.2f} MB) for a worker", f"{1e3 * costs['send']:.3g}"],
                ["a worker takes it up", f"{1e3 * costs['begin']:.3g}"],
                ["taking in an episode", f"{1e3 * costs['receive']:.3g}"],
                ["PRM scores of an episode", f"{1e3 * measured['scoring']:.3g}"],
                ["learner's update, an episode", f"{1e3 * measured['learning']:.3g}"],
            ],
        ),
        "## Measured against simulated: worker processes\n",
        _table(
            ["processes", "rollouts a second", "from", "to", "simulated", "measured / simulated"],
            [
                [row["workers"], *(f"{row[k]:.3g}" for k in ("measured", "low", "high", "simulated")), f"{row['ratio']:.2f}"]
                for row in measured["workers"]
            ],
        ),
    ]  # fmt: skip
    for n, rows in data["bundled"].items():
        told += [f"## Simulated: the bundled model, {int(n):,} rollouts an iteration, a core each\n"]
        told += [_iterations(rows, "s", 1.0)]
    told += [f"## By formula: an AgentPRM iteration with {recipe['rollouts']:,} rollouts on one GPU, hours\n"]
    head = ["model", "writes", "engine", "GPU", "side by side", "rollouts", "PRM scores", "learner", "all"]
    told += [
        _table(
            head,
            [
                [row["model"], row["writes"], row["engine"], row["gpu"], row["slots"]]
                + [f"{row[part] / 3600:.3g}" for part in ("rollouts", "scoring", "learning", "seconds")]
                for row in data["one_gpu"]
            ],
        )
    ]
    for name, rows in data["large"].items():
        told += [f"## Simulated: {name}, reason and command, a serving engine, one H100 a worker and one learner\n"]
        told += [_iterations(rows, "h", 3600.0)]
        told += [_table(["workers", "GPU hours busy", "GPU hours held"], [
            [row["workers"], f"{row['gpu_hours_busy']:.4g}", f"{row['gpu_hours_held']:.4g}"]
            for row in rows if row["workers"] in SHOWN
        ])]  # fmt: skip
        told += [f"### What to buy first for {name}\n", _table(["buy", "workers", "learners", "hours", "GPU hours held"], [
            [row.get("bought", "(begin)"), row["workers"], row["learners"], f"{row['seconds'] / 3600:.3g}",
             f"{row['gpu_hours_held']:.3g}"]
            for row in data["bought"][name]
        ])]  # fmt: skip
    return "\n".join(told)


# ---------------------------------------------------------------------- plot
def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draw throughput of the bundled model with the measured points, and the parts of the large models.

    Args:
        data: what the JSON file holds.
        path: the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 1 + len(data["large"]), figsize=(13, 4), layout="constrained")
    axis = axes[0]
    for n, rows in data["bundled"].items():
        workers = [row["workers"] for row in rows]
        play = [int(n) / (row["broadcast"] + row["rollouts"]) for row in rows]
        (line,) = axis.plot(workers, play, label=f"{int(n):,} rollouts: play")
        whole = [row["rollouts_per_second"] for row in rows]
        axis.plot(workers, whole, "--", color=line.get_color(), label=f"{int(n):,} rollouts: with scores and update")
    points = data["measured"]["workers"]
    axis.plot([p["workers"] for p in points], [p["measured"] for p in points], "ko", label="measured: play")
    axis.set(xscale="log", yscale="log", xlabel="workers (cores)", ylabel="rollouts a second", title="bundled model")
    axis.legend(fontsize=7)
    for axis, (name, rows) in zip(axes[1:], data["large"].items(), strict=True):
        for part in PARTS:
            axis.plot([row["workers"] for row in rows], [row[part] / 3600 for row in rows], label=part)
        axis.plot([row["workers"] for row in rows], [row["seconds"] / 3600 for row in rows], "k--", label="all")
        axis.set(xscale="log", yscale="log", xlabel="workers (H100)", ylabel="hours an iteration", title=name)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
