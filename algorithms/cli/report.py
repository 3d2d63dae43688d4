"""``agentprm report``: runs and evaluations as one HTML page that needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments, naming, output, progress
from algorithms.common.shell import folders


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "report",
        help="write runs and evaluations into one HTML page, with a viewer of their episodes",
        description="Write one HTML page that needs no network: success with intervals, paired comparisons, curves over seeds, "
        "how good process reward models are, and a viewer of episodes. It shows the room turn by turn, the commands that were "
        "compared with their scores, the exact values where the game is found on this machine, and where an episode went "
        "wrong. docs/report.md explains it.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a folder that eval, train or demo wrote; NAME=FOLDER gives it another name",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/report.html"),
        metavar="FILE",
        help="the page (default: runs/report.html)",
    )
    parser.add_argument("--title", default="Report", metavar="TEXT", help="of the page (default: Report)")
    parser.add_argument(
        "--max-episodes",
        type=arguments.positive,
        default=150,
        metavar="N",
        help="episodes of each evaluation in the viewer, spread over the task types (default: 150); tables are about all",
    )
    parser.add_argument(
        "--score",
        metavar="SAVE",
        help="a zip or a run's folder: its process reward model scores every command of the episodes in the viewer that were "
        "played without a search",
    )
    arguments.add_base_option(parser)
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Report.

    Raises:
        FileNotFoundError: a folder is missing, or holds nothing to report on.
        OSError: the page cannot be written.
        ValueError: two runs of one name, a page of another kind, or a file that cannot be read.
    """
    if args.out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out: expected a .html file, got {str(args.out)!r}")
    folders.check_file(args.out)
    named = naming.named_folders(args.runs)
    missing = next((folder for folder in named.values() if not Path(folder).is_dir()), None)
    if missing is not None:
        raise FileNotFoundError(f"no run {missing!r}: expected a folder that 'agentprm train', 'eval' or 'demo' wrote")
    if args.base is not None and args.score is None:
        raise ValueError("--base says where the base model of --score is, which is missing")
    from algorithms.report.making import make_report
    from algorithms.report.scoring import Scorer

    scorer = None if args.score is None else Scorer(args.score, args.base)
    with progress.progress(console) as bars, progress.stage(bars, "reading and playing episodes again", 1.0) as done:
        page = make_report(
            named,
            title=args.title,
            max_episodes=args.max_episodes,
            scorer=scorer,
            on_replay=lambda n, total: done(n / total),
        )
    output.write_text(args.out, page)
    size = len(page.encode()) / 1e6
    console.print(f"written to [bold]{escape(str(args.out))}[/] ({size:.1f} MB); open it in a browser", soft_wrap=True)
    output.show_json(args, {"file": str(args.out), "bytes": len(page.encode())})
    return 0
