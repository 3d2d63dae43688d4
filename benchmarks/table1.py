"""The table of methods: ``python -m benchmarks.table1 [--budget small|full] [--quick] [--seeds 0 1 2] [--out FILE]``.

On ALFWorld's own games: SFT, iterations of AgentPRM and best-of-16 by its process reward model, the draws of SFT judged by the
last iteration's process reward model, InversePRM's iterations, and PPO, GRPO, RLOO and GiGPO with as many environment steps as
AgentPRM had, all from the same start; and SFT on many demonstrations, the ceiling of imitation. Everything is trained on
``train`` without 100 held-out games (``full``: 200). On these is chosen, for each seed by itself, which iteration and which way
to play (sampled, greedily, best-of-16) stands for a method. Then every game of ``valid_seen`` and ``valid_unseen`` that is
installed is played once, under the protocol of docs/protocol.md.

Published rows stand beside it, with the model and the conditions that they were measured under.

Each part is a run of ``agentprm`` on one core with a folder of its own below ``--runs``. What is finished is taken as it is and
what was cut off is resumed, so an interrupted table goes on. The budgets are in ``benchmarks/table1_parts.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.cli.output import PlainConsole, provenance, write_json, write_text
from algorithms.common.measure.comparison import mean_interval
from algorithms.common.measure.evaluation import wilson
from benchmarks._published import CONDITIONS, PUBLISHED, Published
from benchmarks._tables import Figures, percent
from benchmarks.table1_parts import (
    BEST_OF,
    BEST_OF_MODE,
    BUDGETS,
    HELD_OUT,
    MODES,
    ON_OUTCOMES,
    QUICK,
    SPLITS,
    Condition,
    Study,
    method_of,
    title_of,
)

RESULTS = Path(__file__).parent / "results"
#: The splits that are reported.
REPORTED = SPLITS[:2]
_MODE_TITLES = {"sampled": "sampled", "greedy": "greedy", BEST_OF_MODE: f"best-of-{BEST_OF}"}
#: What a choice may be made among, by the name of its figure.
_ANY = "any"


# ---------------------------------------------------------------------- figures
def seed_rows(study: Study, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A row for each seed and condition."""
    return [
        {"seed": seed, **dataclasses.asdict(condition), **study.row(seed, condition)}
        for seed in seeds
        for condition in study.conditions()
    ]


def choices(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, list[tuple[str, str]]]:
    """For each method, and for all that were not cloned from many demonstrations: what is chosen for each seed.

    Args:
        rows: from :func:`seed_rows`.
        seeds: which.

    Returns:
        Method -> policy and mode for each seed. The most held-out train games won; of equals the fewest steps, then the first.
    """
    methods = list(dict.fromkeys(method_of(row["policy"]) for row in rows if row["policy"] != "base"))
    found: dict[str, list[tuple[str, str]]] = {}
    for method in (*methods, _ANY):
        found[method] = []
        for seed in seeds:
            candidates = [
                row
                for row in rows
                if (row["seed"], row["split"]) == (seed, HELD_OUT)
                and (
                    method_of(row["policy"]) == method or (method == _ANY and row["policy"] not in ("base", "ceiling"))
                )
            ]
            best = max(candidates, key=lambda row: (row["success"], -row["mean_steps"]))
            found[method].append((best["policy"], best["mode"]))
    return found


def figures_of(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, float]:
    """Shares of games won: means over seeds, each with half its 95 % interval (Student's t) where there are several.

    ``<policy>_<mode>_<split>`` is a fixed policy and way to play, ``chosen_<method>_<split>`` what was chosen on held-out train
    games. ``chosen_any_<split>_low`` is the lower end of Wilson's interval over the games of all seeds.
    """
    figures: dict[str, float] = {}
    at = {(row["seed"], row["policy"], row["mode"], row["split"]): row for row in rows}

    for policy, mode, split in dict.fromkeys((row["policy"], row["mode"], row["split"]) for row in rows):
        of_seeds = [at[seed, policy, mode, split] for seed in seeds]
        _add_mean(figures, Condition(policy, mode, split).name, [row["success"] for row in of_seeds])
        _add_mean(figures, f"{Condition(policy, mode, split).name}_steps", [row["mean_steps"] for row in of_seeds])
    for method, chosen in choices(rows, seeds).items():
        for split in REPORTED:
            of_seeds = [at[seed, policy, mode, split] for seed, (policy, mode) in zip(seeds, chosen, strict=True)]
            _add_mean(figures, f"chosen_{method}_{split}", [row["success"] for row in of_seeds])
            won, n = (
                sum(counts) for counts in zip(*((round(r["success"] * r["n"]), r["n"]) for r in of_seeds), strict=True)
            )
            figures[f"chosen_{method}_{split}_low"], figures[f"chosen_{method}_{split}_high"] = wilson(won, n)
    return figures


def _add_mean(figures: dict[str, float], name: str, values: Sequence[float]) -> None:
    """Put a mean over seeds there, and half its interval where there are several."""
    mean, half = mean_interval(np.array(values))
    figures[name] = float(mean)
    if len(values) > 1:
        figures[f"{name}_half_interval"] = float(half)


def compared(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Which policies are compared: AgentPRM's last with the start and with each other method, InversePRM's with the start."""
    last = [policy for policy in policies if method_of(policy) == "agentprm"][-1]
    inverse = [policy for policy in policies if method_of(policy) == "inverseprm"]
    return [(last, other) for other in ("sft", *ON_OUTCOMES)] + [(policy, "sft") for policy in inverse]


def differences_of(
    rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], policies: Sequence[str]
) -> dict[str, float]:
    """Differences in games won, paired by seed: ``<policy>_over_<other>_<mode>_<split>``, with half its interval."""
    at = {(row["seed"], row["policy"], row["mode"], row["split"]): row["success"] for row in rows}
    figures: dict[str, float] = {}
    for (policy, other), mode, split in itertools.product(compared(policies), MODES, REPORTED):
        differences = [at[seed, policy, mode, split] - at[seed, other, mode, split] for seed in seeds]
        _add_mean(figures, f"{policy}_over_{other}_{mode}_{split}", differences)
    return figures


# ---------------------------------------------------------------------- showing
def tables(
    figures: Mapping[str, float], rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], policies: Sequence[str]
) -> list[Figures]:
    """What each policy wins, differences, what was chosen, and what others published."""
    games = {row["split"]: row["n"] for row in rows}
    how = f"{len(seeds)} seeds, 95 % intervals over these" if len(seeds) > 1 else "1 seed"
    modes = (*MODES, BEST_OF_MODE)
    columns = [f"{split.removeprefix('valid_')}, {_MODE_TITLES[mode]}" for split in REPORTED for mode in modes]
    shown = []
    for policy in policies:
        cells = [percent(figures, Condition(policy, mode, split).name) for split in REPORTED for mode in modes]
        trained = f"{method_of(policy)}_train"
        steps, minutes = (figures.get(f"{trained}_{key}") for key in ("steps", "minutes"))
        took = ["" if steps is None else f"{steps:,.0f}", "" if minutes is None else f"{minutes:.1f}"]
        shown.append([title_of(policy), *cells, *took])
    all_games = ", ".join(f"{games[split]} of {split}" for split in REPORTED)
    one = Figures(
        f"games won, %, each of {all_games} once; {how}",
        ["policy", *columns, "environment steps", "minutes, one core"],
        shown,
    )
    picked = choices(rows, seeds)
    titles = {_ANY: "any, but for many demonstrations"} | {m: title_of(m) for m in picked if m != _ANY}
    two = Figures(
        f"iteration and way to play chosen on {games[HELD_OUT]} held-out train games; {how}",
        ["method", "seen", "unseen", "unseen, Wilson over all games", "chosen for each seed"],
        [
            [
                titles[method],
                *(percent(figures, f"chosen_{method}_{split}") for split in REPORTED),
                f"{100 * figures[f'chosen_{method}_valid_unseen_low']:.1f} to "
                f"{100 * figures[f'chosen_{method}_valid_unseen_high']:.1f}",
                "; ".join(f"{title_of(policy)}, {_MODE_TITLES[mode]}" for policy, mode in chosen),
            ]
            for method, chosen in picked.items()
        ],
    )
    three = Figures(
        f"differences in points, paired by seed; {how}",
        ["policy", "against", *(f"{s.removeprefix('valid_')}, {_MODE_TITLES[m]}" for s in REPORTED for m in MODES)],
        [
            [
                title_of(policy),
                title_of(other),
                *(percent(figures, f"{policy}_over_{other}_{m}_{s}", "+") for s in REPORTED for m in MODES),
            ]
            for policy, other in compared(policies)
        ],
    )
    return [one, three, two, published_table(PUBLISHED)]


def published_table(published: Sequence[Published]) -> Figures:
    """Published rows with their conditions."""
    cell = lambda value: "" if value is None else f"{value:.1f}"  # noqa: E731
    return Figures(
        "published, under other conditions; none was measured here",
        ["method", "model", "seen", "unseen", "conditions", "source"],
        [[p.method, p.model, cell(p.seen), cell(p.unseen), CONDITIONS[p.conditions], p.source] for p in published],
    )


def draw(figures: Mapping[str, float], policies: Sequence[str], path: Path) -> None:
    """A panel for each split: every policy's success with its interval, published numbers below, in grey."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    chart, panels = plt.subplots(1, 2, figsize=(13, 10.5), sharey=True, layout="constrained", dpi=130)
    marks = {"sampled": "o", "greedy": "s", BEST_OF_MODE: "^"}
    labels = [title_of(policy) for policy in policies]
    theirs = [p for p in PUBLISHED if p.conditions in ("agentprm", "verl-agent")]
    labels += [f"{p.method}, {p.model}" for p in theirs]
    for panel, split in zip(panels, REPORTED, strict=True):
        for k, (mode, mark) in enumerate(marks.items()):
            names = {y: Condition(policy, mode, split).name for y, policy in enumerate(policies)}
            heights = {y: 100 * figures[name] for y, name in names.items() if name in figures}
            halves = [100 * figures.get(f"{names[y]}_half_interval", 0.0) for y in heights]
            panel.errorbar(
                list(heights.values()),
                [y + 0.22 * (k - 1) for y in heights],
                xerr=halves,
                fmt=mark,
                markersize=5,
                capsize=2,
                elinewidth=0.9,
                color=f"C{k}",
                label=_MODE_TITLES[mode],
            )
        for y, p in enumerate(theirs, start=len(policies)):
            value = p.seen if split == "valid_seen" else p.unseen
            if value is not None:
                panel.plot([value], [y], marker="D", markersize=4.5, color="0.5", linestyle="none")
        panel.axhline(len(policies) - 0.5, color="0.7", linewidth=0.8)
        panel.set_xlim(0, 101)
        panel.set_title(f"games of {split} won, %", fontsize="medium")
        panel.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize="small", loc="lower left")
    panels[0].text(1, len(policies) - 0.1, "published, other conditions", fontsize="small", color="0.4", va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)


def costs(study: Study, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What each trained part took."""
    out = []
    for seed in seeds:
        for part in ("sft", "ceiling", "agentprm", "inverseprm", *ON_OUTCOMES):
            steps, minutes = study.spent(seed, part)
            commit = json.loads((study.part(seed, part) / "settings.json").read_text(encoding="utf-8"))["commit"]
            out.append({"seed": seed, "part": part, "commit": commit, "steps": steps, "minutes": minutes})
    return out


def report(study: Study, seeds: Sequence[int], path: Path, *, budget: str) -> None:
    """Print the tables, and write the JSON, and the tables and the chart beside it."""
    rows = seed_rows(study, seeds)
    figures = figures_of(rows, seeds) | differences_of(rows, seeds, study.policies())
    cost = costs(study, seeds)
    for part in dict.fromkeys(row["part"] for row in cost):
        for key in ("steps", "minutes"):
            figures[f"{part}_train_{key}"] = float(np.mean([row[key] for row in cost if row["part"] == part]))
    shown = tables(figures, rows, seeds, study.policies())
    console = PlainConsole(width=None if sys.stdout.isatty() else 200)
    for table in shown:
        table.show(console)
    write_text(path.with_suffix(".md"), "\n".join(table.markdown() for table in shown))
    draw(figures, study.policies(), path.with_suffix(".png"))
    some = study.evaluation(seeds[0], Condition("sft", "sampled", "valid_unseen")) / "result.json"
    write_json(
        path,
        {
            "name": "table1",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": list(seeds),
            "budget": budget,
            "settings": dataclasses.asdict(study.budget),
            "games": study.games,
            "protocol": json.loads(some.read_text(encoding="utf-8"))["protocol"],
            "figures": figures,
            "chosen": {name: [list(one) for one in chosen] for name, chosen in choices(rows, seeds).items()},
            "published": [dataclasses.asdict(p) for p in PUBLISHED],
            "conditions": CONDITIONS,
            "cost": cost,
            "rows": rows,
        },
    )
    print(f"written to {path}, .md and .png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="small", help="how much each part may do")
    parser.add_argument("--quick", action="store_true", help="one seed, the smallest parts, a few games: a first look")
    parser.add_argument("--games", choices=("alfworld", "generated"), default="alfworld", help="which games")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parts side by side, one core each")
    parser.add_argument("--runs", type=Path, help="where the run folders are (default: runs/table1_BUDGET)")
    parser.add_argument(
        "--out",
        type=Path,
        help="result file, .md and .png beside it (default: benchmarks/results/table1.json, with --budget full "
        "table1_full.json; with --quick beside the runs)",
    )
    args = parser.parse_args()
    budget = "quick" if args.quick else args.budget
    folder = args.runs or Path("runs") / f"table1_{budget}"
    seeds = sorted(set(args.seeds))[: 1 if args.quick else None]
    name = "table1.json" if budget == "small" else f"table1_{budget}.json"
    out = args.out or (folder if args.quick else RESULTS) / name
    study = Study(folder, QUICK if args.quick else BUDGETS[args.budget], args.games, args.jobs)
    study.go(seeds, args.jobs)
    report(study, seeds, out, budget=budget)


if __name__ == "__main__":
    main()
