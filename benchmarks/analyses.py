"""The paper's analyses: ``python -m benchmarks.analyses NAME [--quick] [--seeds 0 1 2] [--jobs 2] [--out FOLDER]``.

All but ``reasons`` begin at one policy, SFT on ten demonstrations, and share their runs, so that what one analysis trained
another takes.

* ``scaling``: test-time scaling (figure 2b): best-of-N for N = 1 to 32, of the start and of each iteration of AgentPRM, each
  with the PRM of the paper's table; and of the start by the PRM alone.
* ``rollouts``: a PRM fitted to few and to many rollouts, and what comes of improving the policy against it for longer and
  longer (figure 3): true success beside the PRM's own opinion.
* ``losses``: absolute and relative loss (figure 4): cross-entropy alone, both, and the relative loss with a hundredth of it.
* ``discounts``: targets discounted by the turns that follow (the paper), by those before (its released code), or not.
* ``reasons``: a policy that writes a reason before each command, and a PRM that reads it or not. The bundled model writes
  reasons in the words that it knows, such as "mug cabinet 1" before "go to cabinet 1"; it learns to from demonstrations whose
  reasons have no other words. Models that write sentences learn the expert's (``--policy``).
* ``labels``: pooled visits, branches, and TD with single steps, for as many environment steps.
* ``temperatures``: the start, AgentPRM, and GRPO with as many steps, each at every temperature; the best one is chosen on
  ``valid_seen`` and reported on ``valid_unseen``, beside greedy play. At temperature 1 a sharper policy wins more by that
  alone.

``losses``, ``discounts``, ``labels`` and ``reasons`` measure one iteration: how the PRM orders the commands of panel states
(``fair`` labels; not of ``reasons``: panel states have none), best-of-8 of the start by this PRM, and the improved policy,
sampled and greedily.

Each part is a run of ``agentprm`` on one core with a folder of its own below ``--runs``; what is finished is taken as it is and
what was cut off is resumed. Sizes are in ``benchmarks/analyses_parts.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.cli.output import PlainConsole, provenance, write_json, write_text
from algorithms.common.measure.comparison import mean_interval
from benchmarks._tables import Figures, percent
from benchmarks.analyses_parts import FULL, QUICK, VARIANTS, WEIGHT, Play, Study, step_counts

RESULTS = Path(__file__).parent / "results"
_START = "sft/model.zip"
#: Points that a panel of a chart shows at least.
LEAST_SPAN = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """A measured share.

    Attributes:
        seed: of the runs.
        series: a line of the chart, a row of the table.
        x: where on the line: a number, or what was measured.
        value: in [0, 1].
    """

    seed: int
    series: str
    x: float | str
    value: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """An analysis.

    Attributes:
        title: what it shows.
        x: what the columns of its table are.
        work: does what is not done and returns the rows.
        log: whether the chart's axis doubles.
    """

    title: str
    x: str
    work: Callable[[Study, Sequence[int], int], list[Row]]
    log: bool = False


# ---------------------------------------------------------------------- what is measured
def _agentprm(iteration: int) -> str:
    return f"agentprm/iterations/{iteration}.zip"


def scaling(study: Study, seeds: Sequence[int], jobs: int) -> list[Row]:
    """Best-of-N of each policy."""
    study.train_all(seeds, ["agentprm"], jobs)
    pairs = {"SFT, PRM of its rollouts": (_START, _agentprm(1), WEIGHT)}
    pairs |= {
        f"AgentPRM {k}, the PRM it was improved against": (_agentprm(k), _agentprm(k), WEIGHT)
        for k in range(1, study.scale.iterations + 1)
    }
    pairs["SFT, that PRM alone"] = (_START, _agentprm(1), 0.0)
    plays = {
        (series, n): Play(model, best_of=n, prm=prm, weight=weight) if n > 1 else Play(model)
        for series, (model, prm, weight) in pairs.items()
        for n in study.scale.best_of
    }
    greedy = {series: Play(model, temperature=0.0) for series, (model, _, _) in pairs.items()}
    study.evaluate_all(seeds, [*plays.values(), *greedy.values()], jobs)
    rows = [Row(seed, series, n, study.success(seed, play)) for (series, n), play in plays.items() for seed in seeds]
    return rows + [
        Row(seed, series, "greedy", study.success(seed, play)) for series, play in greedy.items() for seed in seeds
    ]


def rollouts(study: Study, seeds: Sequence[int], jobs: int) -> list[Row]:
    """True success and the PRM's opinion while the policy is improved against a PRM of few and of many rollouts."""
    parts = ["few", "many", "few_scalar", "many_scalar"]
    study.train_all(seeds, parts, jobs)
    counts = step_counts(study.scale.numbers["updates"])
    plays = {(part, n): Play(f"{part}/steps/{n}.zip") for part in parts for n in counts}
    start = Play(_START)
    study.evaluate_all(seeds, [start, *plays.values()], jobs)
    rows = []
    for part in parts:
        name = part.replace("_scalar", " rollouts, scalar PRM") if "_" in part else f"{part} rollouts"
        for seed in seeds:
            rows.append(Row(seed, f"{name}: success", 0, study.success(seed, start)))
            for n in counts:
                play = plays[part, n]
                rows.append(Row(seed, f"{name}: success", n, study.success(seed, play)))
                rows.append(Row(seed, f"{name}: the PRM's opinion", n, study.opinion(seed, f"{part}/model.zip", play)))
    return rows


def one_iteration(
    variants: Mapping[str, str], *, ranked: bool = True
) -> Callable[[Study, Sequence[int], int], list[Row]]:
    """An analysis of what one iteration of several variants brings.

    Args:
        variants: keys of ``VARIANTS`` that begin at the same part, and how people call them.
        ranked: whether the PRMs are asked about panel states.
    """
    first = next(iter(variants))
    begun = f"{VARIANTS[first].start}/model.zip"

    def work(study: Study, seeds: Sequence[int], jobs: int) -> list[Row]:
        study.train_all(seeds, list(variants), jobs)
        saves = {part: f"{part}/iterations/1.zip" for part in variants}
        if ranked:
            study.rank_all(seeds, list(saves.values()), jobs)
        plays = {"start, sampled": Play(begun), "start, greedy": Play(begun, temperature=0.0)}
        of = {
            part: {
                "best-of-8 of the start": Play(begun, best_of=8, prm=save),
                "improved, sampled": Play(save),
                "improved, greedy": Play(save, temperature=0.0),
            }
            for part, save in saves.items()
        }
        study.evaluate_all(seeds, [*plays.values(), *(play for some in of.values() for play in some.values())], jobs)
        rows: list[Row] = []
        for seed in seeds:
            if ranked:
                pairs = study.metric(seed, saves[first], "policy", "pair_accuracy")
                rows.append(Row(seed, "the start", "pairs in order", pairs))
            rows.append(Row(seed, "the start", "improved, sampled", study.success(seed, plays["start, sampled"])))
            rows.append(Row(seed, "the start", "improved, greedy", study.success(seed, plays["start, greedy"])))
            for part, series in variants.items():
                if ranked:
                    pairs = study.metric(seed, saves[part], "prm", "pair_accuracy")
                    rows.append(Row(seed, series, "pairs in order", pairs))
                rows += [Row(seed, series, what, study.success(seed, play)) for what, play in of[part].items()]
        return rows

    return work


def temperatures(study: Study, seeds: Sequence[int], jobs: int) -> list[Row]:
    """Each policy at every temperature, and at the one that is best on ``valid_seen``, on ``valid_unseen``."""
    study.train_all(seeds, ["agentprm", "grpo"], jobs)
    last = study.scale.iterations
    policies = {"SFT": _START, f"AgentPRM {last}": _agentprm(last), "GRPO, as many steps": "grpo/model.zip"}
    grid = study.scale.temperatures
    plays = {
        (series, t, split): Play(model, split, temperature=t)
        for series, model in policies.items()
        for t in grid
        for split in ("valid_seen", "valid_unseen")
    }
    study.evaluate_all(seeds, list(plays.values()), jobs)
    rows = []
    for series in policies:
        for seed in seeds:
            seen, unseen = (
                {t: study.success(seed, plays[series, t, split]) for t in grid}
                for split in ("valid_seen", "valid_unseen")
            )
            rows += [Row(seed, series, t, value) for t, value in seen.items()]
            best = max(grid, key=seen.__getitem__)
            rows.append(Row(seed, series, "unseen, greedy", unseen[0.0]))
            rows.append(Row(seed, series, "unseen, temperature 1", unseen[1.0]))
            rows.append(Row(seed, series, "unseen, best temperature", unseen[best]))
    return rows


ANALYSES = {
    "scaling": Analysis("best-of-N, games won", "N", scaling, log=True),
    "rollouts": Analysis("improving against a PRM: games won, and the PRM's mean score", "updates", rollouts),
    "losses": Analysis(
        "absolute and relative loss of the PRM",
        "what",
        one_iteration(
            {
                "absolute": "log_prob, absolute",
                "default": "log_prob, both",
                "relative": "log_prob, relative",
                "scalar_absolute": "scalar, absolute",
                "scalar": "scalar, both",
                "scalar_relative": "scalar, relative",
            }
        ),
    ),
    "discounts": Analysis(
        "discount of the targets",
        "what",
        one_iteration({"default": "to go", "from_start": "from the start", "no_discount": "none"}),
    ),
    "reasons": Analysis(
        "reasons read by the PRM or not",
        "what",
        one_iteration({"reads": "reads reasons", "reads_not": "does not read them"}, ranked=False),
    ),
    "labels": Analysis(
        "labels at equal environment steps",
        "what",
        one_iteration({"visits": "pooled visits", "default": "branches", "td": "TD with single steps"}),
    ),
    "temperatures": Analysis("games won at each temperature", "temperature", temperatures),
}


# ---------------------------------------------------------------------- figures
def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Means over seeds by ``<series>/<x>``, with half their 95 % intervals (Student's t) where there are several seeds."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(name_of(row.series, row.x), []).append(row.value)
    figures: dict[str, float] = {}
    for name, some in values.items():
        mean, half = mean_interval(np.array(some))
        figures[name] = float(mean)
        if len(some) > 1:
            figures[f"{name}_half_interval"] = float(half)
    return figures


def name_of(series: str, x: float | str) -> str:
    """Name of a figure."""
    return f"{series}/{x if isinstance(x, str) else f'{x:g}'}"


def _axes(rows: Sequence[Row]) -> tuple[list[str], list[float | str]]:
    """The series and the columns, in the order in which they come; numbers first, ascending."""
    columns = list(dict.fromkeys(row.x for row in rows))
    numbers = sorted(x for x in columns if not isinstance(x, str))
    return list(dict.fromkeys(row.series for row in rows)), [*numbers, *(x for x in columns if isinstance(x, str))]


def table(analysis: Analysis, rows: Sequence[Row], figures: Mapping[str, float], n_seeds: int, games: str) -> Figures:
    """The analysis as a table, in percent."""
    series, columns = _axes(rows)
    how = f"{n_seeds} seeds, 95 % intervals over these" if n_seeds > 1 else "1 seed"
    return Figures(
        f"{analysis.title}, %; {games} games; {how}",
        [analysis.x, *(x if isinstance(x, str) else f"{x:g}" for x in columns)],
        [[one, *(percent(figures, name_of(one, x)) for x in columns)] for one in series],
    )


def draw(analysis: Analysis, rows: Sequence[Row], figures: Mapping[str, float], path: Path) -> None:
    """The analysis as a chart: lines over numbers, and a panel for each other thing that was measured."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    series, columns = _axes(rows)
    numbers, words = [x for x in columns if not isinstance(x, str)], [x for x in columns if isinstance(x, str)]
    n_panels = bool(numbers) + len(words)
    widths = [3.0] * bool(numbers) + [1.2] * len(words)
    chart, panels = plt.subplots(
        1, n_panels, figsize=(2.6 * sum(widths) + 1, 4.6), squeeze=False, layout="constrained", dpi=130,
        gridspec_kw={"width_ratios": widths},
    )  # fmt: skip
    left = list(panels[0])
    height = lambda one, x: 100 * figures[name_of(one, x)]  # noqa: E731
    half = lambda one, x: 100 * figures.get(f"{name_of(one, x)}_half_interval", 0.0)  # noqa: E731
    if numbers:
        panel = left.pop(0)
        for i, one in enumerate(series):
            xs = [x for x in numbers if name_of(one, x) in figures]
            # An opinion has the colour of the success that it is about, dotted.
            style, color = (":" if "opinion" in one else "-"), f"C{i // 2 if ':' in one else i}"
            heights, halves = [height(one, x) for x in xs], [half(one, x) for x in xs]
            how: dict[str, Any] = {"linestyle": style, "color": color, "marker": "o", "markersize": 4, "capsize": 3}
            panel.errorbar(xs, heights, yerr=halves, label=one, **how)
        if analysis.log:
            panel.set_xscale("log", base=2)
            panel.set_xticks(numbers, [f"{x:g}" for x in numbers])
        panel.set_xlabel(analysis.x)
        panel.set_ylabel("%")
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -2), min(high, 102))  # intervals may go beyond what there is
        if len(series) > 6:
            chart.legend(*panel.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=2)
        else:
            panel.legend(fontsize="small")
    for panel, what in zip(left, words, strict=True):
        for i, one in enumerate(series):
            if name_of(one, what) in figures:
                panel.errorbar([height(one, what)], [i], xerr=[half(one, what)], fmt="o", color=f"C{i}", capsize=3)
        panel.set_yticks(range(len(series)), series if what == words[0] and not numbers else [""] * len(series))
        panel.set_ylim(len(series) - 0.5, -0.5)
        panel.set_xlabel(f"{what}, %", fontsize="small")
        low, high = panel.get_xlim()
        if high - low < LEAST_SPAN:  # a difference of nothing shall look like nothing
            panel.set_xlim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        panel.ticklabel_format(axis="x", useOffset=False)
    for panel in panels[0]:
        panel.grid(alpha=0.25)
    chart.suptitle(analysis.title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)
    plt.close(chart)


def report(name: str, study: Study, rows: Sequence[Row], seeds: Sequence[int], path: Path, *, quick: bool) -> None:
    """Print the table, and write the JSON, and the table and the chart beside it."""
    analysis, figures = ANALYSES[name], figures_of(rows)
    shown = table(analysis, rows, figures, len(seeds), study.games)
    shown.show(PlainConsole(width=None if sys.stdout.isatty() else 190))
    write_text(path.with_suffix(".md"), shown.markdown())
    draw(analysis, rows, figures, path.with_suffix(".png"))
    trained = sorted({p.parent.name for seed in seeds for p in study.at(seed, "").glob("*/model.zip")})
    cost: list[dict[str, Any]] = []
    for seed in seeds:
        for part in trained:
            if (study.at(seed, part) / "model.zip").exists():
                steps, minutes = study.spent(seed, part)
                cost.append({"seed": seed, "part": part, "steps": steps, "minutes": minutes})
    write_json(
        path,
        {
            "name": f"analysis_{name}",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": list(seeds),
            "quick": quick,
            "games": study.games,
            "policy": study.policy,
            "settings": dataclasses.asdict(study.scale),
            "figures": figures,
            "cost": cost,
            "rows": [dataclasses.asdict(row) for row in rows],
        },
    )
    print(f"written to {path}, .md and .png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*ANALYSES, "all"], help="which analysis")
    parser.add_argument("--quick", action="store_true", help="one seed, the smallest runs, a few games: a first look")
    parser.add_argument("--games", choices=("generated", "alfworld"), default="generated", help="which games")
    parser.add_argument("--policy", default="tiny", metavar="MODEL", help="the base model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parts side by side, one core each")
    parser.add_argument("--runs", type=Path, help="where the run folders are (default: runs/analyses_GAMES)")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: benchmarks/results; with --quick beside the runs)"
    )
    args = parser.parse_args()
    # Results of another model do not replace those of the bundled one.
    model = "" if args.policy == "tiny" else "_" + Path(args.policy).name
    folder = args.runs or Path("runs") / f"analyses_{args.games}{model}{'_quick' if args.quick else ''}"
    seeds = sorted(set(args.seeds))[: 1 if args.quick else None]
    out = args.out or (folder if args.quick else RESULTS)
    study = Study(folder, QUICK if args.quick else FULL, args.games, args.policy, args.jobs)
    for name in ANALYSES if args.name == "all" else [args.name]:
        rows = ANALYSES[name].work(study, seeds, args.jobs)
        report(name, study, rows, seeds, out / f"analysis_{name}{model}.json", quick=args.quick)


if __name__ == "__main__":
    main()
