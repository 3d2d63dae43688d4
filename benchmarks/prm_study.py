"""PRM study: what process rewards add to demonstrations, ``python -m benchmarks.prm_study [--quick] [--starts 10 100]``.

Two starts, SFT on 10 and on 100 demonstrations of the searching expert, and three seeds of each. From a start: three
iterations of AgentPRM; with as many environment steps (what AgentPRM played to choose its best iteration included) RFT, which
imitates what it won and has no PRM, and GRPO on outcomes; GRPO for as many minutes; and two iterations of InversePRM on the
demonstrations that the start was cloned from. AgentPRM and InversePRM have their default settings, but for the number of
episodes of InversePRM from 10 demonstrations. Every policy plays every ``valid_seen`` game once, sampled at temperature 1, some
of them greedily and on ``valid_unseen``, too. Then best-of-N: with the policy and the PRM of the last iteration, and with the
start's policy and the PRM that was fitted to its rollouts, which is a process reward model against which nothing was trained
yet; with this one also without the policy's log-probability.

Each part is a run of ``agentprm`` on one core, in a folder of its own below ``RUNS/sft<n>/seed_<k>``. What is finished is taken
as it is and what was cut off is resumed, so an interrupted study goes on; a part that was made with other settings, or of
another model, is refused by name. The settings are at the top of ``benchmarks/prm_study_parts.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from algorithms.cli.output import PlainConsole, provenance, write_json, write_text
from algorithms.common.measure.comparison import mean_interval
from benchmarks.prm_study_parts import (
    BEST_OF,
    BEST_OF_LINES,
    ITERATED,
    OTHERS,
    PARTS,
    QUICK,
    QUICK_GAMES,
    QUICK_START,
    STARTS,
    TITLES,
    Condition,
    Floats,
    Settings,
    Study,
    conditions,
    lines,
    parts_of,
    policies,
    read_row,
)

RESULTS = Path(__file__).parent / "results"


# ---------------------------------------------------------------------- figures
def seed_rows(study: Study, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A row for each start, seed and condition."""
    return [
        {
            "start": start,
            "seed": seed,
            **{key: value for key, value in dataclasses.asdict(c).items() if value is not None},
            **read_row(study.evaluation(start, seed, c)),
        }
        for start, settings in study.settings.items()
        for seed in seeds
        for c in conditions(settings, study.best_of)
    ]


def by_condition(rows: Iterable[Mapping[str, Any]], start: int, key: str = "success") -> dict[str, Floats]:
    """A column of the rows from one start: name of the condition -> (S,), seeds in their order."""
    columns: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["start"] == start:
            columns.setdefault(row["name"], {})[row["seed"]] = row[key]
    return {name: np.array([values[seed] for seed in sorted(values)]) for name, values in columns.items()}


def differences(settings: Settings, best_of: Sequence[int] = BEST_OF) -> list[tuple[str, str, str]]:
    """What is compared with what, seed by seed, always in the same way of playing: name, against, name of the figure."""
    out = []
    for c in conditions(settings, best_of):
        if c.line is not None:
            out.append((c.name, c.policy, f"{c.name}_minus_best_of_1"))
            out += [
                (c.name, f"{c.policy}_greedy", f"{c.name}_minus_greedy"),
                (c.name, "sft_greedy", f"{c.name}_minus_sft_greedy"),
            ]
            continue
        if c.policy != "sft":
            out.append((c.name, f"sft{c.mode}", f"{c.name}_minus_sft"))
        if c.policy.startswith("wide"):
            other = c.policy.replace("wide", "inverseprm")
            out.append((c.name, f"{other}{c.mode}", f"{c.name}_minus_{other}"))
        if c.policy.startswith("agentprm"):
            out += [(c.name, f"{x}{c.mode}", f"{c.name}_minus_{x}") for x in ("rft", "grpo", "grpo_minutes")]
    return out


def figures_of(rows: Sequence[Mapping[str, Any]], study: Study) -> dict[str, float]:
    """Means over seeds, each with half its 95 % interval (Student's t) where there are several seeds; flat and by name."""
    figures: dict[str, float] = {}

    def add(name: str, values: Floats) -> None:
        mean, half = mean_interval(values)
        figures[name] = float(mean)
        if len(values) > 1:
            figures[f"{name}_half_interval"] = float(half)

    for start, settings in study.settings.items():
        success, steps = by_condition(rows, start), by_condition(rows, start, "mean_steps")
        for c in conditions(settings, study.best_of):
            # A curve of best-of-N is a figure a point; that of a policy is its success.
            add(f"sft{start}_{c.name}" + ("" if c.line else "_success"), success[c.name])
            if c.line is None:
                add(f"sft{start}_{c.name}_mean_steps", steps[c.name])
        for line, (policy, *_) in lines(settings).items():
            add(f"sft{start}_best_of_1_{line}", success[policy])
        for name, against, figure in differences(settings, study.best_of):
            if against in success:
                add(f"sft{start}_{figure}", success[name] - success[against])
    return figures


#: The start whose goals stand in the figures under their own names.
MAIN_START = 100
#: Goals by the name of their figure: what is compared with what, seed by seed, in points.
GOALS = {
    "best_of_8_gain": ("best_of_8_sft", "sft_greedy"),
    "best_of_16_over_8": ("best_of_16_sft", "best_of_8_sft"),
    "agentprm_gain": ("agentprm_3_greedy", "sft_greedy"),
    "agentprm_gain_sampled": ("agentprm_3", "sft"),
    "over_rft_rollouts": ("agentprm_3_greedy", "rft_greedy"),
    "over_grpo_rollouts": ("agentprm_3_greedy", "grpo_greedy"),
    "over_grpo_minutes": ("agentprm_3_greedy", "grpo_minutes_greedy"),
    "best_of_8_on_top": ("best_of_8_iteration_3", "agentprm_3_greedy"),
    "inverse_gain": ("inverseprm_2_greedy", "sft_greedy"),
}


def goals(rows: Sequence[Mapping[str, Any]], study: Study, seeds: Sequence[int]) -> dict[str, float]:
    """Goals of the study from each start, in points, with the lower end of the 95 % interval over seeds as ``<key>_low``.

    ``pair_gain`` is of pairs of commands in the right order, by ``fair`` labels: the PRM that was fitted to the start's
    rollouts against the start's log-probability. Those from :data:`MAIN_START` also stand without the start's name.
    """
    figures: dict[str, float] = {}
    for start in study.settings:
        success = by_condition(rows, start)
        found = {key: success[a] - success[b] for key, (a, b) in GOALS.items() if a in success and b in success}
        pairs = [study.pair_accuracy(start, seed) for seed in seeds]
        found["pair_gain"] = np.array([pair["prm"] - pair["sft"] for pair in pairs])
        for key, values in found.items():
            mean, half = mean_interval(100 * values)
            for name in (f"sft{start}_{key}", *([key] if start == MAIN_START else [])):
                figures[name] = float(mean)
                if len(values) > 1:
                    figures[f"{name}_low"] = float(mean - half)
    return figures


# ---------------------------------------------------------------------- showing
def _cell(figures: Mapping[str, float], name: str, sign: str = "") -> str:
    """A mean in percent with half its interval; empty where there is no such figure."""
    if name not in figures:
        return ""
    half = figures.get(f"{name}_half_interval")
    return f"{100 * figures[name]:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _title(policy: str) -> str:
    """A policy's name for people."""
    name, _, iteration = policy.rpartition("_")
    return TITLES[policy] if policy in TITLES else f"{ITERATED[name]}, iteration {iteration}"


@dataclass(frozen=True, slots=True)
class Figures:
    """A table of figures for people.

    Attributes:
        title: what it shows.
        columns: their names; the first is that of the rows' names.
        rows: cells as text.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title)
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """It as Markdown."""
        lines = [f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in (self.columns, *self.rows))]
        return "\n".join([*lines[:3], "|---" * len(self.columns) + "|", *lines[3:]]) + "\n"


def tables(figures: Mapping[str, float], study: Study, n_seeds: int) -> list[Figures]:
    """Three tables a start: the policies, best-of-N, and what training took."""
    out = []
    for start, settings in study.settings.items():
        intervals = f"{n_seeds} seeds, 95 % intervals over these" if n_seeds > 1 else "1 seed"
        how = f"SFT on {start} demonstrations, {intervals}"
        columns = {
            "success %": ("_success", ""),
            "against SFT": ("_minus_sft", "+"),
            "against RFT": ("_minus_rft", "+"),
            "against GRPO, equal rollouts": ("_minus_grpo", "+"),
            "against GRPO, equal minutes": ("_minus_grpo_minutes", "+"),
            "greedy": ("_greedy_success", ""),
            "valid_unseen": ("_unseen_success", ""),
        }
        rows = []
        for policy in policies(settings):
            key = f"sft{start}_{policy}"
            cells = [_cell(figures, key + figure, sign) for figure, sign in columns.values()]
            rows.append([_title(policy), *cells, f"{figures[f'{key}_mean_steps']:.1f}"])
        out.append(Figures(f"success % on valid_seen, sampled; {how}", ["policy", *columns, "mean steps"], rows))
        rows = [
            [_pair_title(*pair), *(_cell(figures, f"sft{start}_best_of_{n}_{line}") for n in study.best_of)]
            for line, pair in lines(settings).items()
        ]
        columns_n = ["policy, PRM", *map(str, study.best_of)]
        out.append(Figures(f"best-of-N by the PRM, success % on valid_seen; {how}", columns_n, rows))
        keys = [f"sft{start}_{part}_train" for part in PARTS]
        rows = [
            [part, f"{figures[f'{key}_steps']:,.0f}", f"{figures[f'{key}_minutes']:.1f}"]
            for part, key in zip(PARTS, keys, strict=True)
            if f"{key}_steps" in figures
        ]
        if rows:
            out.append(Figures(f"what training took; {how}", ["part", "environment steps", "minutes, one core"], rows))
    return out


def goal_table(figures: Mapping[str, float], study: Study) -> Figures:
    """What the study asks, from each start: the mean difference, and from where its interval begins."""
    names = ["pair_gain", *GOALS]
    rows = []
    for name in names:
        cells = []
        for start in study.settings:
            key = f"sft{start}_{name}"
            low = f", from {figures[f'{key}_low']:+.1f}" if f"{key}_low" in figures else ""
            cells.append(f"{figures[key]:+.1f}{low}" if key in figures else "")
        rows.append([name, *cells])
    columns = ["difference", *(f"from SFT on {start}" for start in study.settings)]
    return Figures("in points, seed by seed; from: lower end of the 95 % interval", columns, rows)


def _pair_title(policy: str, prm: str, weight: float) -> str:
    """A policy, the PRM that chooses for it, and what the policy's own opinion counts."""
    which = "its PRM" if policy == prm else f"PRM of iteration {prm.rpartition('_')[2]}"
    return f"{_title(policy)}, {which}" + (f" + {weight:g} log pi" if weight else " alone")


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
        left.set_xticks(range(last + 1), ["SFT", *map(str, range(1, last + 1))])
        left.set_xlabel("iteration")
        for i, (line, pair) in enumerate(lines(settings).items()):
            curve = {float(n): f"sft{start}_best_of_{n}_{line}" for n in study.best_of}
            plot(right, _pair_title(*pair), curve, color=f"C{len(ITERATED) + 2 + i}")
        right.set_xscale("log", base=2)
        right.set_xticks(study.best_of, list(map(str, study.best_of)))
        right.set_xlabel("N of best-of-N")
        for panel in (left, right):
            panel.set_ylabel("success % on valid_seen")
            panel.set_title(f"from SFT on {start} demonstrations", fontsize="medium")
            panel.grid(alpha=0.25)
            panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)


def report(study: Study, seeds: Sequence[int], path: Path, *, quick: bool = False) -> None:
    """Print the tables, and write the JSON, and the tables and the chart beside it."""
    seeds = sorted(set(seeds))
    rows = seed_rows(study, seeds)
    figures = figures_of(rows, study) | goals(rows, study, seeds)
    cost: list[dict[str, Any]] = []
    for start, seed in itertools.product(study.settings, seeds):
        for part in parts_of(study.settings[start]):
            steps, minutes = study.spent(start, seed, part)
            commit = json.loads((study.part(start, seed, part) / "settings.json").read_text())["commit"]
            of_part = {"start": start, "seed": seed, "part": part, "commit": commit}
            cost.append({**of_part, "steps": steps, "minutes": minutes})
            if part == "agentprm":
                cost[-1]["kept_iteration"] = study.kept(start, seed)
        for part in parts_of(study.settings[start]):
            spent = [x for x in cost if (x["start"], x["part"]) == (start, part)]
            for key in ("steps", "minutes"):
                figures[f"sft{start}_{part}_train_{key}"] = float(np.mean([x[key] for x in spent]))
    some = study.evaluation(next(iter(study.settings)), seeds[0], Condition("sft", "sft"))
    shown = [*tables(figures, study, len(seeds)), goal_table(figures, study)]
    console = PlainConsole(width=None if sys.stdout.isatty() else 190)
    for table in shown:
        table.show(console)
    write_text(path.with_suffix(".md"), "\n".join(table.markdown() for table in shown))
    draw(figures, study, path.with_suffix(".png"))
    write_json(
        path,
        {
            "name": "prm_study",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": seeds,
            "quick": quick,
            "games": json.loads((some / "result.json").read_text())["games"],
            "settings": {
                "starts": {str(start): dataclasses.asdict(s) for start, s in study.settings.items()},
                "best_of": study.best_of,
                "best_of_lines": BEST_OF_LINES,
                "max_games": study.max_games,
            },
            "figures": figures,
            "cost": cost,
            "rows": rows,
        },
    )
    print(f"written to {path}, .md and .png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one small start, a few games: a first look")
    parser.add_argument("--starts", type=int, nargs="+", default=list(STARTS), help="demonstrations of each start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--max-games", type=int, help="evaluation games at most (default: all of a split)")
    parser.add_argument("--runs", type=Path, default=Path("runs/prm_study"), help="where the run folders are")
    parser.add_argument(
        "--out",
        type=Path,
        help="result file, .md and .png beside it (default: benchmarks/results/prm_study.json; with --quick beside the runs)",
    )
    args = parser.parse_args()
    settings = {start: STARTS.get(start, OTHERS) for start in args.starts}
    folder, seeds, max_games = args.runs, args.seeds, args.max_games
    best_of: Sequence[int] = BEST_OF
    out = args.out or RESULTS / "prm_study.json"
    if args.quick:
        folder, seeds, max_games, best_of = folder.with_name(folder.name + "_quick"), seeds[:1], QUICK_GAMES, (1, 4)
        settings, out = {QUICK_START: QUICK}, args.out or folder / "prm_study.json"
    study = Study(folder, settings, max_games=max_games, best_of=best_of)
    study.go(seeds, args.jobs)
    report(study, seeds, out, quick=args.quick)


if __name__ == "__main__":
    main()
