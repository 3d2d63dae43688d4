"""``agentprm bench``: rankers on a panel with exact labels."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from algorithms.cli import arguments, environments, output, progress
from algorithms.common.shell import folders, machine

if TYPE_CHECKING:
    from algorithms.bench.run import Result

_RESULT = "result.json"
_SERVER = ("concurrency", "timeout", "max_retries", "api_key_env")


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "bench",
        help="measure process reward models and other rankers on a panel with exact labels",
        description="Score every command of every state of a panel with each ranker, and measure how well the scores order "
        "them. Prints a table, and writes OUT/result.json (all metrics with intervals over games, by task type), a chart "
        "OUT/bench.png, and OUT/rows.md, rows to paste. docs/bench.md explains the metrics and the labels.",
    )
    parser.add_argument(
        "rankers",
        nargs="+",
        metavar="RANKER",
        help="uniform, length, oracle, shuffled, labels:KIND, noise:SIGMA, policy:MODEL, prm:SAVE, implicit:SAVE[@REFERENCE], "
        "classifier:FOLDER[#LABEL], stepwise:FOLDER, judge:MODEL@URL, mean:A+B, or package.module:Class; NAME=RANKER gives it "
        "another name",
    )
    parser.add_argument(
        "--panel",
        default="generated",
        metavar="PANEL",
        help="generated, real (needs ALFWorld's own games), or a file that write_panel wrote",
    )
    parser.add_argument(
        "--games", default="alfworld", metavar="SOURCE", help="where ALFWorld's games are, for a panel without texts"
    )
    parser.add_argument(
        "--labels", choices=("oracle", "fair", "on_policy"), default="oracle", help="what the commands are worth"
    )
    parser.add_argument(
        "--max-states", type=arguments.positive, metavar="N", help="only so many, drawn by --seed (default: all)"
    )
    parser.add_argument(
        "--gap", type=arguments.number(0), default=0.0, metavar="G", help="least difference of labels that counts"
    )
    parser.add_argument(
        "--draws-from",
        default="uniform",
        metavar="RANKER",
        help="the policy that best-of-N draws commands from: uniform, or policy:MODEL",
    )
    parser.add_argument(
        "--n-samples", type=arguments.whole(0), default=1000, metavar="N", help="samples of games for the intervals"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a result that is in the output folder")
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="FOLDER", help="output folder")
    group.add_argument("--seed", type=arguments.seed, default=0, metavar="N", help="of every random stream, 0 or more")
    arguments.add_device_options(group)
    arguments.add_base_option(group)
    arguments.add_import_option(group)
    arguments.add_json_option(parser)
    server = parser.add_argument_group(
        "server", "for judges; the API key is read from the environment and from nowhere else"
    )
    server.add_argument("--concurrency", type=arguments.positive, metavar="N", help="requests at once (default: 8)")
    server.add_argument("--max-new-tokens", type=arguments.positive, metavar="N", help="longest answer (default: 1024)")
    server.add_argument(
        "--timeout", type=arguments.number(above=0), metavar="S", help="seconds to wait for an answer (default: 60)"
    )
    server.add_argument(
        "--max-retries", type=arguments.whole(0), metavar="N", help="attempts after the first (default: 3)"
    )
    server.add_argument("--api-key-env", metavar="VAR", help="variable that holds the key (default: OPENAI_API_KEY)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure.

    Raises:
        OSError: the output folder cannot be written or is in use, or a file is missing.
        ValueError: a ranker, a panel or an option does not fit; the message names it, and nothing is written.
    """
    from algorithms.bench.names import check_ranker_name

    environments.import_modules(args)
    _check_out(args)
    for text in (*args.rankers, args.draws_from):
        check_ranker_name(text)
    loads = ("policy:", "prm:", "implicit:", "classifier:", "stepwise:")
    if any(kind in text for text in (*args.rankers, args.draws_from) for kind in loads):
        machine.check_device(args.device)
    if args.threads is not None:
        machine.set_threads(args.threads)
    with folders.locked(args.out):
        _bench(args, console)
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """Refuse an output folder before any work is done."""
    folders.check_folder(args.out)
    folders.check_holds(args.out, "bench")
    if (args.out / _RESULT).exists() and not args.overwrite:
        raise FileExistsError(f"{args.out} holds a result already; choose another --out, or add --overwrite")


def _bench(args: argparse.Namespace, console: Console) -> None:
    from agentprm_gym.bench.panel import read_panel
    from algorithms.bench.figures import draw
    from algorithms.bench.names import Options, make_ranker, make_rankers
    from algorithms.bench.run import choose_states, markdown, run_bench, to_json

    with progress.progress(console) as bars:
        task = bars.add_task("read the panel", total=1.0)
        panel = read_panel(args.panel, games=args.games, on_state=lambda done, n: bars.update(task, completed=done / n))
        bars.remove_task(task)
        if args.labels not in panel.labels:
            raise ValueError(
                f"the panel {panel.name!r} has no {args.labels!r} labels for all of its states, only "
                f"{', '.join(panel.labels) or 'none'}: choose another --labels or --panel"
            )
        states = choose_states(panel.states, args.max_states, args.seed)
        options = Options(args.base, args.device, _server(args), args.seed)
        rankers = make_rankers(args.rankers, options)
        draws_from = None if args.draws_from == "uniform" else make_ranker(args.draws_from, options)
        task = bars.add_task("score", total=len(states) * (len(rankers) + (draws_from is not None)))
        done_before: dict[str, int] = {}

        def on_states(name: str, done: int) -> None:
            done_before[name] = done
            bars.update(task, description=f"score: {escape(name)}", completed=sum(done_before.values()))

        results = run_bench(
            rankers,
            states,
            args.labels,
            draws_from=draws_from,
            gap=args.gap,
            n_samples=args.n_samples,
            seed=args.seed,
            on_states=on_states,
        )
        bars.remove_task(task)
    title = f"{panel.name} v{panel.version}, {args.labels} labels, {len(states)} states"
    console.print(f"[bold]{escape(title)}[/]", highlight=False, soft_wrap=True)
    console.print(make_table(results))
    for result in results:
        bad = result.counts.get("unparsable", 0)
        if bad:
            console.print(f"{escape(result.name)}: {bad} of {result.counts.get('asked', 0)} answers could not be read")
    about = {
        "labels": args.labels,
        "draws_from": args.draws_from,
        "gap": args.gap,
        "seeds": [args.seed],
        "n_samples": args.n_samples,
    }
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"name": "bench", "date": date, **output.provenance(), **to_json(results, panel, len(states), **about)}
    # The result comes last: where it is, all is there.
    draw(results, args.out / "bench.png", title=title, draws_from=args.draws_from)
    output.write_text(args.out / "rows.md", markdown(results, panel, len(states)))
    output.write_json(args.out / _RESULT, found)
    console.print(f"result, chart and rows in [bold]{escape(str(args.out))}[/]", soft_wrap=True)
    output.show_json(args, found)


def _server(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of judges that the options ask for.

    Raises:
        ValueError: such options without a judge.
    """
    wanted = {name: getattr(args, name) for name in _SERVER if getattr(args, name) is not None}
    if args.max_new_tokens is not None:
        wanted["max_tokens"] = args.max_new_tokens
    if wanted and not any("judge:" in text for text in args.rankers):
        option = "--" + next(iter(wanted)).replace("max_tokens", "max_new_tokens").replace("_", "-")
        raise ValueError(f"{option} is for judges (judge:MODEL@URL), and no ranker is one: leave it out")
    return wanted


def make_table(results: Sequence[Result]) -> Table:
    """The table of rankers, which fits 80 columns.

    Args:
        results: one a ranker.
    """
    from algorithms.bench.run import number

    headers = ("pairs in order %\n[95 % interval]", "worst\ntype", "regret", "AUC in\nstate", "AUC\npooled")
    table = output.make_table("ranker", *headers)
    for result in results:
        report = result.report
        table.add_row(
            escape(result.name),
            number(report["pair_accuracy"].overall, True, True),
            number(report["pair_accuracy"].worst, True),
            *(number(report[name].overall, False) for name in ("regret", "auc", "pooled_auc")),
        )
    return table
