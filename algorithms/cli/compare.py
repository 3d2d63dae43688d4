"""``agentprm compare``: curves of several runs in one chart, or several evaluations game by game, and a table."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from algorithms.cli import arguments, naming, output
from algorithms.common.shell import folders

if TYPE_CHECKING:
    from agentprm_gym.episodes import Episode

#: Also the choices that ``algorithms.common.measure.comparison`` has; torch is not loaded for a help text.
_AXES = ("steps", "seconds", "tokens")
_TAG = "rollout/success_rate"


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "compare",
        help="compare runs by their curves, or evaluations game by game",
        description="Of training runs: draw the TensorBoard curves over the same axis into one picture, and print a table. "
        "Folders seed_<n> in a run are seeds of one setting: they become a mean with a 95 % interval (Student's t). Of "
        "evaluations (folders that 'agentprm eval' wrote, or result.json in them): print success of each, and against the "
        "first the paired difference on the games that both played, the games that one alone won, and McNemar's exact test. "
        "Results of other game lists, wordings or step limits are refused.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a folder that train or eval wrote, a result.json of eval, or any folder with event files below; NAME=FOLDER "
        "gives it another name",
    )
    parser.add_argument(
        "--tag",
        nargs="+",
        action="extend",
        default=[],
        metavar="TAG",
        dest="tags",
        help=f"runs: what to draw, one chart each (default: {_TAG})",
    )
    parser.add_argument("--x", choices=_AXES, default="steps", help="runs: what the curves are drawn over")
    parser.add_argument(
        "--reach",
        type=arguments.number(),
        default=0.5,
        metavar="Y",
        help="runs: the table says when each curve of a rate is this high for the first time",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="runs: the picture, .png, .svg or .pdf, and a .json beside it; evaluations: a .json (default: "
        "runs/compare.png and .json)",
    )
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Compare.

    Raises:
        FileNotFoundError: a run is missing or has no curves.
        OSError: the picture cannot be written.
        ValueError: a tag that no run has, two runs of one name, a picture of another kind, or runs beside evaluations.
    """
    named = naming.named_folders(args.runs)
    evaluations = {name: folder for name, folder in named.items() if folders.holds(Path(folder)) == "evaluation"}
    if evaluations and len(evaluations) < len(named):
        other = next(folder for name, folder in named.items() if name not in evaluations)
        raise ValueError(
            f"{next(iter(evaluations.values()))} is an evaluation and {other} is not: compare runs with runs, and evaluations "
            "with evaluations"
        )
    out = args.out or Path("runs") / ("compare.json" if evaluations else "compare.png")
    kinds = (".json",) if evaluations else (".png", ".svg", ".pdf")
    if out.suffix not in kinds:
        raise ValueError(f"--out: expected a {' or '.join(kinds)} file, got {str(out)!r}")
    for path in (out, out.with_suffix(".json")):
        folders.check_file(path)
    if evaluations:
        _compare_evaluations(evaluations, out, console)
    else:
        _compare_runs(args, named, out, console)
    output.show_json(args, json.loads(out.with_suffix(".json").read_text(encoding="utf-8")))
    return 0


# ---------------------------------------------------------------------- evaluations
def _compare_evaluations(named: dict[str, str], out: Path, console: Console) -> None:
    """Print success of each evaluation, and its paired difference to the first.

    Raises:
        FileNotFoundError: an evaluation did not end.
        ValueError: two evaluations were made under other conditions, or have no game in common.
    """
    from algorithms.common.measure.evaluation import paired_difference, rate

    abouts = {name: _about(Path(folder)) for name, folder in named.items()}
    _check_conditions(named, abouts)
    episodes = {name: _episodes(Path(folder), abouts[name]) for name, folder in named.items()}
    first, base = next(iter(episodes.items()))
    rows = []
    for name, played in episodes.items():
        row = {**output.rate_row(rate(name, list(played.values()), abouts[name]["max_steps"])), "folder": named[name]}
        if name != first:
            both = sorted(base.keys() & played.keys())
            if not both:
                raise ValueError(f"{named[first]} and {named[name]} have no game in common: evaluate on the same split")
            d = paired_difference([base[game] for game in both], [played[game] for game in both])
            row |= {"difference": d.difference, "difference_low": d.low, "difference_high": d.high, "n_both": d.n}
            row |= {"only_first": d.only_first, "only_this": d.only_second, "mcnemar_p": d.p_value}
            if d.n < max(len(base), len(played)):
                console.print(
                    f"{escape(name)}: {d.n} games in common with {escape(first)} ({len(played)} and {len(base)} played); the "
                    "difference is about these",
                    soft_wrap=True,
                )
        rows.append(row)
    table = output.make_table(
        "evaluation", "games", "success %\n[95 % interval]", f"against {first},\npaired", "mean\nsteps"
    )
    tests = []
    for row in rows:
        success = f"{100 * row['success']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        keys = ("difference", "difference_low", "difference_high")
        against = output.signed(*(row[key] for key in keys)) if "difference" in row else ""
        table.add_row(escape(row["name"]), str(row["n"]), success, against, f"{row['mean_steps']:.1f}")
        if against:
            tests.append(
                f"{escape(row['name'])} alone won {row['only_this']} games, {escape(first)} alone {row['only_first']}; "
                f"McNemar's exact test: p = {row['mcnemar_p']:.3g}"
            )
    console.print(table)
    for line in tests:
        console.print(line, highlight=False, soft_wrap=True)
    output.write_json(out, {**output.provenance(), "rows": rows})
    console.print(f"written to [bold]{escape(str(out))}[/]", soft_wrap=True)


def _about(folder: Path) -> dict[str, Any]:
    """What an evaluation is about.

    Raises:
        FileNotFoundError: it did not end.
    """
    if not (folder / folders.EPISODES).is_file() or not (folder / naming.RESULT).is_file():
        raise FileNotFoundError(
            f"{folder} holds an evaluation that did not end: 'agentprm eval --resume {folder}' goes on with it"
        )
    about: dict[str, Any] = json.loads((folder / naming.RESULT).read_text(encoding="utf-8"))
    return about


def _conditions(about: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in two evaluations that are compared, in words; old files know less."""
    games, protocol = about.get("games") or {}, about.get("protocol") or {}
    return {
        "environment": about.get("env"),
        "split": games.get("split"),
        "wording of the games (grammar)": protocol.get("grammar"),
        "list of games (content hash)": games.get("content_hash"),
        "step limit": about.get("max_steps") or protocol.get("step_cap"),
    }


def _check_conditions(named: Mapping[str, str], abouts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse evaluations under other conditions: their rates differ for other reasons than the policies.

    Raises:
        ValueError: a condition is known in two evaluations, and is not the same.
    """
    first, *others = abouts
    for other in others:
        for what, one in _conditions(abouts[first]).items():
            another = _conditions(abouts[other])[what]
            if None not in (one, another) and one != another:
                raise ValueError(
                    f"{named[first]} and {named[other]} cannot be compared, since the {what} differs: {one} and {another}; "
                    "evaluate both under the same conditions"
                )


def _episodes(folder: Path, about: Mapping[str, Any]) -> dict[str, Episode]:
    """An evaluation's episodes by what tells games apart: the id, or the number where games do not have ids."""
    from agentprm_gym.episodes import read_episodes

    listed = bool(about.get("games"))
    return {
        episode.game_id if listed else str(episode.seed): episode
        for episode in read_episodes(folder / folders.EPISODES)
    }


# ---------------------------------------------------------------------- runs
def _compare_runs(args: argparse.Namespace, named: dict[str, str], out: Path, console: Console) -> None:
    """Draw the curves, and print a table."""
    from algorithms.common.measure.comparison import draw, read_curves

    missing: dict[tuple[str, str], list[str]] = {}
    curves = read_curves(
        named,
        args.tags or [_TAG],
        args.x,
        on_missing=lambda run, seed, tag: missing.setdefault((run, tag), []).append(seed),
    )
    drawn = {(curve.label, curve.tag) for curve in curves}
    for (label, tag), seeds in missing.items():
        what = f"seed {', '.join(seeds)} of {label}" if (label, tag) in drawn else label
        console.print(f"[yellow]left out:[/] {escape(what)}, which does not have {tag}", soft_wrap=True)
    draw(curves, out, level=args.reach)
    rows = [_row(curve, args.reach) for curve in curves]
    console.print(_table(rows, args.x, args.reach))
    output.write_json(out.with_suffix(".json"), {**output.provenance(), "x": args.x, "rows": rows})
    console.print(f"drawn into [bold]{escape(str(out))}[/]", soft_wrap=True)


def _row(curve: Any, level: float) -> dict[str, Any]:
    """A curve's numbers; where it reaches a height only for a rate."""
    from algorithms.common.measure.comparison import finite, is_rate, mean_interval

    final, final_half = mean_interval(curve.last())
    average, average_half = mean_interval(curve.average())
    row = {
        "run": curve.label,
        "tag": curve.tag,
        "seeds": len(curve.seeds),
        "to": min(float(x[-1]) for x, _ in curve.seeds.values()),
        "final": float(final),
        "final_half_interval": finite(final_half),
        "average": float(average),
        "average_half_interval": finite(average_half),
    }
    if not is_rate(curve.tag):
        return row
    reached = curve.reached(level)
    everywhere = bool(all(map(math.isfinite, reached)))
    # A mean over those that got there would flatter a setting in which some did not.
    mean, half = mean_interval(reached) if everywhere else (math.nan, math.nan)
    return row | {
        "reached_by": int(sum(map(math.isfinite, reached))),
        "reached_at": finite(mean),
        "reached_at_half_interval": finite(half),
    }


def _table(rows: list[dict[str, Any]], x: str, level: float) -> Table:
    """The table of runs; columns that say the same in all rows are left out."""
    several, reaches = len({row["tag"] for row in rows}) > 1, any("reached_by" in row for row in rows)
    columns = (["tag"] if several else []) + ["seeds", f"{x}\nto", "last", "mean\nheight"]
    table = output.make_table("run", *columns, *([f"{x}\nto {level:g}"] if reaches else []))
    if several:
        table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    for row in rows:
        cells = [escape(row["run"])] + ([escape(row["tag"])] if several else [])
        cells += [
            str(row["seeds"]),
            f"{row['to']:.0f}",
            _with_half(row["final"], row["final_half_interval"], ".3f"),
            _with_half(row["average"], row["average_half_interval"], ".3f"),
        ]
        table.add_row(*cells, *([_reached(row)] if reaches else []))
    return table


def _reached(row: dict[str, Any]) -> str:
    """When a curve reached the height: a mean over seeds, or by how many of them."""
    if "reached_by" not in row:
        return "-"
    if row["reached_at"] is None:
        return f"{row['reached_by']} of {row['seeds']} seeds"
    return _with_half(row["reached_at"], row["reached_at_half_interval"], ".0f")


def _with_half(value: float, half: float | None, form: str) -> str:
    return f"{value:{form}}" + (f" ± {half:{form}}" if half is not None else "")
