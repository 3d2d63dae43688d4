"""What studies share that compare ways to learn by their curves: success over environment steps, from the same start."""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from agentprm_gym.files import read_json_object
from algorithms import GamesEvalCallback
from algorithms.cli.environments import drawn_games
from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.measure.comparison import Curve, draw, finite, mean_columns
from algorithms.common.measure.evaluation import make_eval_env
from benchmarks._parts import end_with_study, take_over

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.6
MAX_STEPS = 30


@dataclass(frozen=True)
class Way:
    """One way to learn.

    Attributes:
        name: in figures.
        baseline: name of the way that it is compared with.
        panel: of the plot.
        privileged: whether it reads the game's true state or an expert, or steps that are not counted.
    """

    name: str
    baseline: str
    panel: str
    privileged: bool = False


@dataclass
class Budget:
    """How much is played.

    Attributes:
        steps: environment steps of each run.
        every: steps between evaluations at the least.
        games: evaluation games.
        settings: changes to the algorithms' settings.
    """

    steps: int = 24_000
    every: int = 4_000
    games: int = 100
    settings: dict[str, Any] = field(default_factory=dict)


def evaluation(budget: Budget) -> GamesEvalCallback:
    """What measures a run while it learns: fixed ``valid_seen`` games, sampled at temperature 1."""
    env = make_eval_env(n_envs=64, games="generated", split="valid_seen", max_episode_steps=MAX_STEPS)
    return GamesEvalCallback(env, games=drawn_games(env, budget.games, 0), every=budget.every, temperature=1.0)


#: Lets a way learn with a seed and a callback that measures; returns the environment steps that it spent before that was asked.
Learn = Callable[[Any, int, Budget, GamesEvalCallback], int]


def run(learn: Learn, way: Way, seed: int, budget: Budget, path: Path) -> None:
    """Make one run's curve of environment steps and success, unless it is there.

    Args:
        learn: lets the way learn.
        way: the way.
        seed: of everything.
        budget: how much is played.
        path: where the curve is kept.
    """
    if path.exists():
        return
    torch.set_num_threads(1)
    begun = time.process_time()
    callback = evaluation(budget)
    before = learn(way, seed, budget, callback)
    points = [(before + one.timesteps, one.success) for one in callback.evaluations]
    if before:
        points.insert(0, (0, points[0][1]))
    write_json(path, {"way": way.name, "seed": seed, "points": points, "cpu_seconds": time.process_time() - begun})


def finished(work: Path, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Runs that are done, in the order of the ways and of the seeds."""
    rows = [read_json_object(path) for path in work.glob("*_[0-9]*.json")]
    order = [way.name for way in ways]
    return sorted((row for row in rows if row["way"] in order), key=lambda row: (order.index(row["way"]), row["seed"]))


def curves_of(rows: Sequence[dict[str, Any]], ways: Sequence[Way], steps: int) -> dict[str, Curve]:
    """A curve a way, cut at so many steps: an iteration is not cut in the middle, and some would be compared later on."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for row in rows:
        at, success = np.array(row["points"], float).T  # (N,) each
        end = min(steps, at[-1])
        points = np.append(at[at < end], end), np.append(success[at < end], np.interp(end, at, success))
        found.setdefault(row["way"], {})[str(row["seed"])] = points
    panels = {way.name: way.panel for way in ways}
    return {name: Curve(name, panels[name], "steps", seeds) for name, seeds in found.items()}


def with_seeds(curve: Curve, seeds: Sequence[str]) -> Curve:
    """The same curve with some of its seeds, in this order."""
    return Curve(curve.label, curve.tag, curve.axis, {seed: curve.seeds[seed] for seed in seeds})


def summary(ways: Sequence[Way], curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """One row a way: means over seeds with 95 % intervals, and differences to the baseline, paired by seed."""
    rows: list[dict[str, Any]] = []
    for way in ways:
        one, base = curves[way.name], curves.get(way.baseline)
        row: dict[str, Any] = {"way": way.name, "privileged": way.privileged, "seeds": len(one.seeds)}
        both = sorted(one.seeds.keys() & base.seeds.keys()) if base is not None and base is not one else []
        measures: dict[str, Callable[[Curve], Any]] = {"height": Curve.average, "final": Curve.last}
        for name, measure in measures.items():
            row |= mean_columns({name: measure(one)})
            if base is not None and both:
                row |= mean_columns({f"{name}_gain": measure(with_seeds(one, both)) - measure(with_seeds(base, both))})
        row["steps_to_level"] = [finite(x) for x in one.reached(LEVEL)]
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The summary to read."""
    shown = Table(title="from the base, sampled at T = 1, 95 % intervals over seeds; (p): privileged")
    for name in ("way", "seeds", "mean height %", "difference", "last %", "difference", f"steps to {LEVEL:.0%}"):
        shown.add_column(name, justify="left" if name == "way" else "right", no_wrap=name == "way")

    def cell(row: dict[str, Any], name: str, sign: str = "") -> str:
        if name not in row:
            return ""
        half = row[f"{name}_half"]
        return f"{100 * row[name]:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")

    for row in rows:
        steps = " ".join("-" if x is None else f"{x / 1000:.0f}k" for x in row["steps_to_level"])
        cells = (cell(row, "height"), cell(row, "height_gain", "+"), cell(row, "final"), cell(row, "final_gain", "+"))
        shown.add_row(row["way"] + (" (p)" if row["privileged"] else ""), str(row["seeds"]), *cells, steps)
    return shown


def study(
    name: str,
    ways: Sequence[Way],
    learn: Learn,
    *,
    about: str | None,
    title: str,
    settings: Mapping[str, Any],
    quick: Budget,
    argv: Sequence[str] | None = None,
) -> None:
    """Command line of a study.

    Args:
        name: of the study and its result file.
        ways: what is compared.
        learn: see :func:`run`; a function of a module, since it goes to other processes.
        about: what the command line's help says.
        title: of the plot.
        settings: what the ways share; rows that were made with other settings are not taken from the result file.
        quick: budget of ``--quick``.
        argv: words of the command line.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few games: a first look")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[w.name for w in ways], help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--work", type=Path, default=Path("runs") / name, help="where curves are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="result file; a .png beside it")
    parser.add_argument("--report", action="store_true", help="begin no run: report those that are finished")
    args = parser.parse_args(argv)
    budget, seeds = (quick, args.seeds[:1]) if args.quick else (Budget(), args.seeds)
    wanted = [w for w in ways if not args.ways or w.name in args.ways]
    work = args.work / ("quick" if args.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    out = work / f"{name}.json" if args.quick else args.out
    said = {**settings, **vars(budget)}
    take_over(out, {"settings": said}, lambda row: work / f"{row['way']}_{row['seed']}.json")
    if not args.report:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, spawn, initializer=end_with_study) as pool:
            pairs = [(way, seed) for seed in seeds for way in wanted]
            runs = [pool.submit(run, learn, way, seed, budget, work / f"{way.name}_{seed}.json") for way, seed in pairs]
            for one in runs:
                one.result()
    rows = finished(work, ways)
    curves = curves_of(rows, ways, budget.steps)
    shown_ways = [way for way in ways if way.name in curves]
    shown = summary(shown_ways, curves)
    console = PlainConsole()
    console.print(table(shown))
    made_by = provenance()  # before a file changes
    picture = [Curve(c.label, f"success of {c.tag}", c.axis, c.seeds) for c in curves.values()]
    draw(picture, out.with_suffix(".png"), title=title, level=LEVEL)
    keys = ("height", "final", "height_gain", "final_gain")
    figures = {f"{row['way']}_{key}": row[key] for row in shown for key in keys if key in row}
    write_json(
        out,
        {
            "name": name,
            **made_by,
            "date": datetime.date.today().isoformat(),
            "seeds": sorted({row["seed"] for row in rows}),
            "quick": args.quick,
            "settings": said,
            "ways": {way.name: {k: getattr(v, "__name__", v) for k, v in asdict(way).items()} for way in shown_ways},
            "figures": figures,
            "summary": shown,
            "rows": rows,
        },
    )
    console.print(f"written to {out}")
