"""PRM study: what process rewards add to demonstrations, ``python -m benchmarks.prm_study [--quick] [--starts 0 10 100]``.

Three starts, the bundled model as it is, and SFT on 10 and on 100 demonstrations of the searching expert, and three seeds of
each. From a start: six iterations of AgentPRM; with as many environment steps (what AgentPRM played to choose its best
iteration included) RFT, which imitates what it won and has no PRM, and GRPO on outcomes; GRPO for as many minutes; and two
iterations of InversePRM on the demonstrations that the start was cloned from, if any. AgentPRM and InversePRM have their
default settings, but for the number of episodes of InversePRM from 10 demonstrations. Every policy plays every ``valid_seen``
game once, sampled at temperature 1, some of them greedily and on ``valid_unseen``, too. Then best-of-N: with the policy and
the PRM of the last iteration, and with the start's policy and the PRM that was fitted to its rollouts, which is a process
reward model against which nothing was trained yet; with this one also without the policy's log-probability. In the place of a
process reward model the searching expert chooses among the same draws: what an ideal judge would win.

Each part is a run of ``agentprm`` on one core, in a folder of its own below ``RUNS/sft<n>/seed_<k>``. What is finished is taken
as it is and what was cut off is resumed, so an interrupted study goes on; a part that was made with other settings, or of
another model, is refused by name. Seeds and starts that the result file has from an earlier run with the same settings stay in
it, so the study may be made seed by seed. The settings are at the top of ``benchmarks/prm_study_parts.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.cli.output import PlainConsole, provenance, write_json, write_text
from algorithms.common.measure.comparison import mean_interval
from benchmarks._parts import Floats, read_row
from benchmarks._prm_study_chart import draw
from benchmarks._tables import Figures, percent
from benchmarks.prm_study_parts import (
    BEST_OF,
    BEST_OF_LINES,
    OTHERS,
    PARTS,
    QUICK,
    QUICK_GAMES,
    QUICK_START,
    STARTS,
    Condition,
    Settings,
    Study,
    conditions,
    lines,
    pair_title,
    parts_of,
    policies,
    policy_title,
    start_title,
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
    "best_of_8_expert_gain": ("best_of_8_sft_expert", "sft_greedy"),
    "best_of_16_over_8": ("best_of_16_sft", "best_of_8_sft"),
    "agentprm_gain": ("agentprm_6_greedy", "sft_greedy"),
    "agentprm_gain_sampled": ("agentprm_6", "sft"),
    "over_rft_rollouts": ("agentprm_6_greedy", "rft_greedy"),
    "over_grpo_rollouts": ("agentprm_6_greedy", "grpo_greedy"),
    "over_grpo_minutes": ("agentprm_6_greedy", "grpo_minutes_greedy"),
    "best_of_8_on_top": ("best_of_8_iteration_6", "agentprm_6_greedy"),
    "inverse_gain": ("inverseprm_2_greedy", "sft_greedy"),
}


def goals(rows: Sequence[Mapping[str, Any]], study: Study, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Goals of the study from each start, in points, with the lower end of the 95 % interval over seeds as ``<key>_low``.

    ``pair_gain`` is of pairs of commands in the right order, by ``fair`` labels: the PRM that was fitted to the start's
    rollouts against the start's log-probability. Those from :data:`MAIN_START` also stand without the start's name.
    """
    figures: dict[str, float] = {}
    for start in study.settings:
        success = by_condition(rows, start)
        found = {key: success[a] - success[b] for key, (a, b) in GOALS.items() if a in success and b in success}
        found["pair_gain"] = np.array([pair["prm"] - pair["sft"] for pair in pairs if pair["start"] == start])
        for key, values in found.items():
            mean, half = mean_interval(100 * values)
            for name in (f"sft{start}_{key}", *([key] if start == MAIN_START else [])):
                figures[name] = float(mean)
                if len(values) > 1:
                    figures[f"{name}_low"] = float(mean - half)
    return figures


# ---------------------------------------------------------------------- showing
def tables(figures: Mapping[str, float], study: Study, n_seeds: Mapping[int, int]) -> list[Figures]:
    """Three tables a start: the policies, best-of-N, and what training took; ``n_seeds`` are the seeds of each start."""
    out = []
    for start, settings in study.settings.items():
        n = n_seeds[start]
        intervals = f"{n} seeds, 95 % intervals over these" if n > 1 else "1 seed"
        how = f"{start_title(start)}, {intervals}"
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
            cells = [percent(figures, key + figure, sign) for figure, sign in columns.values()]
            rows.append([policy_title(policy, start), *cells, f"{figures[f'{key}_mean_steps']:.1f}"])
        out.append(Figures(f"success % on valid_seen, sampled; {how}", ["policy", *columns, "mean steps"], rows))
        rows = [
            [pair_title(start, *pair), *(percent(figures, f"sft{start}_best_of_{n}_{line}") for n in study.best_of)]
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
    columns = ["difference", *(f"from {start_title(start)}" for start in study.settings)]
    return Figures("in points, seed by seed; from: lower end of the 95 % interval", columns, rows)


@dataclass(slots=True)
class Measured:
    """What was measured, in rows that each tell their ``start`` and ``seed``.

    Attributes:
        rows: of each condition.
        cost: of each part: what its training took.
        pairs: of each start and seed: shares of pairs of commands in the right order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    cost: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def sort(self, starts: Sequence[int]) -> None:
        """Put the rows in order: of starts, then of seeds."""
        for rows in (self.rows, self.cost, self.pairs):
            rows.sort(key=lambda row: (starts.index(row["start"]), row["seed"]))

    def seeds(self, start: int) -> list[int]:
        """Seeds that were measured from a start, sorted."""
        return sorted(row["seed"] for row in self.pairs if row["start"] == start)


def measured_now(study: Study, seeds: Sequence[int]) -> Measured:
    """What lies in the study's folders."""
    found = Measured(seed_rows(study, seeds))
    for start, seed in itertools.product(study.settings, seeds):
        here = {"start": start, "seed": seed}
        found.pairs.append({**here, **study.pair_accuracy(start, seed)})
        for part in parts_of(study.settings[start]):
            steps, minutes = study.spent(start, seed, part)
            commit = json.loads((study.part(start, seed, part) / "settings.json").read_text())["commit"]
            found.cost.append({**here, "part": part, "commit": commit, "steps": steps, "minutes": minutes})
            if part == "agentprm":
                found.cost[-1]["kept_iteration"] = study.kept(start, seed)
    return found


def measured_before(path: Path, study: Study, games: object, now: Measured) -> tuple[dict[int, Settings], Measured]:
    """What an earlier run wrote of other seeds and starts, with the same settings and games.

    Args:
        path: its result file; there may be none.
        study: what is measured now.
        games: the evaluation games.
        now: what was measured now, which replaces what was measured before.

    Returns:
        Settings of the starts of which something is taken, and what is taken.
    """
    kept = Measured()
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = before["games"] == games and before["settings"]["max_games"] == study.max_games
        same = same and before["settings"]["best_of"] == list(study.best_of)
        theirs, parts = before["settings"]["starts"], {name: before[name] for name in ("rows", "cost", "pairs")}
    except (FileNotFoundError, KeyError):
        return {}, kept
    ours = {start: study.settings.get(start) or STARTS.get(start, OTHERS) for start in map(int, theirs)}
    plain = {start: json.loads(json.dumps(dataclasses.asdict(settings))) for start, settings in ours.items()}
    taken = {start: ours[start] for start in ours if same and theirs[str(start)] == plain[start]}
    replaced = {(row["start"], row["seed"]) for row in now.pairs}
    for name, rows in parts.items():
        wanted = (row for row in rows if row["start"] in taken and (row["start"], row["seed"]) not in replaced)
        getattr(kept, name).extend(wanted)
    left = {row["start"] for row in kept.pairs}
    dropped = {(row["start"], row["seed"]) for row in parts["pairs"] if row["start"] not in taken} - replaced
    for start, seed in sorted(dropped):
        print(f"{path.name}: SFT on {start}, seed {seed} was measured with other settings or games and is dropped")
    return {start: settings for start, settings in taken.items() if start in left}, kept


def report(study: Study, seeds: Sequence[int], path: Path, *, quick: bool = False) -> None:
    """Print the tables, and write the JSON, and the tables and the chart beside it.

    Other seeds and starts that the file has already, measured with the same settings and games, stay in it: so a study may be
    run seed by seed. Each row of ``cost`` tells at which commit it was made.
    """
    found = measured_now(study, sorted(set(seeds)))
    some = study.evaluation(next(iter(study.settings)), seeds[0], Condition("sft", "sft"))
    games = json.loads((some / "result.json").read_text())["games"]
    others, before = measured_before(path, study, games, found)
    starts = dict(sorted({**others, **study.settings}.items()))
    study = Study(study.folder, starts, max_games=study.max_games, best_of=study.best_of)
    for name in ("rows", "cost", "pairs"):
        getattr(found, name).extend(getattr(before, name))
    found.sort(list(starts))
    figures = figures_of(found.rows, study) | goals(found.rows, study, found.pairs)
    for start, settings in starts.items():
        for part in parts_of(settings):
            spent = [x for x in found.cost if (x["start"], x["part"]) == (start, part)]
            for key in ("steps", "minutes"):
                figures[f"sft{start}_{part}_train_{key}"] = float(np.mean([x[key] for x in spent]))
    n_seeds = {start: len(found.seeds(start)) for start in starts}
    shown = [*tables(figures, study, n_seeds), goal_table(figures, study)]
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
            "seeds": sorted({seed for start in starts for seed in found.seeds(start)}),
            "quick": quick,
            "games": games,
            "settings": {
                "starts": {str(start): dataclasses.asdict(s) for start, s in starts.items()},
                "best_of": study.best_of,
                "best_of_lines": BEST_OF_LINES,
                "max_games": study.max_games,
            },
            "figures": figures,
            **dataclasses.asdict(found),
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
