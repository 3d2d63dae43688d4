"""``agentprm export-data``: episodes as data sets of other trainers, and data sets as episodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments, output
from algorithms.common.shell.folders import check_file

#: As ``algorithms.export_data.FORMATS``, which loads torch.
_FORMATS = ("stepwise", "preferences", "values", "chat", "episodes")


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "export-data",
        help="write episodes as a data set for other trainers, or read one back",
        description="Write the episodes of files, evaluations and runs as a data set: 'stepwise' (TRL's stepwise supervision), "
        "'preferences' (pairs for DPO), 'values' (soft labels: every state with its commands, Q-hat, visits, Q*), 'chat' "
        "(conversations for SFT), 'episodes'. --back reads a data set of the last two kinds as episodes. See "
        "docs/integrations.md.",
    )
    parser.add_argument(
        "source", nargs="+", metavar="SOURCE", help="a file of episodes, or a folder of an evaluation or a run"
    )
    parser.add_argument("--to", choices=_FORMATS, default="chat", help="what to write")
    parser.add_argument(
        "--back", action="store_true", help="SOURCE is a data set; write its episodes, as agentprm demos does"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .jsonl, .jsonl.gz or .parquet (extra 'data')"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument(
        "--template", default="full", metavar="NAME", help="prompt template: compact, full, react, or a file"
    )
    parser.add_argument(
        "--gamma", type=arguments.number(above=0), default=0.95, metavar="X", help="discount of Q-hat and Q*"
    )
    parser.add_argument(
        "--threshold", type=arguments.number(0), default=0.0, metavar="X", help="stepwise: a label is true above it"
    )
    parser.add_argument(
        "--min-gap",
        type=arguments.number(above=0),
        default=0.1,
        metavar="X",
        help="preferences: least difference of Q-hat",
    )
    parser.add_argument(
        "--min-visits", type=arguments.positive, default=1, metavar="N", help="preferences: least visits of a command"
    )
    parser.add_argument("--q-star", action="store_true", help="values: add Q*, which needs the episodes' games")
    parser.add_argument("--all", action="store_true", help="chat: also episodes that were not won")
    parser.add_argument(
        "--games",
        default="auto",
        metavar="SOURCE",
        help="where the games are, for --q-star, and for --back of conversations",
    )
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write a data set, or the episodes of one.

    Raises:
        ImportError: pyarrow is missing.
        OSError: a source is missing, or the file exists or cannot be written.
        ValueError: a source holds something else, or a number is out of range.
    """
    from algorithms import export_data as data

    check_file(args.out, overwrite=args.overwrite)
    data.check_name(args.out)
    if args.back:
        return _back(args, console)
    episodes, histories = data.found_episodes(args.source)
    n = data.write_rows(args.out, _rows(args, episodes, histories))
    console.print(
        f"wrote {n} rows ({args.to}) of {len(episodes)} episodes to [bold]{escape(str(args.out))}[/]", soft_wrap=True
    )
    output.show_json(args, {"file": str(args.out), "to": args.to, "rows": n, "episodes": len(episodes)})
    return 0


def _rows(args: argparse.Namespace, episodes: list[Any], histories: list[int]) -> Iterator[dict[str, Any]]:
    from algorithms import export_data as data

    if args.to == "episodes":
        return (episode.to_dict() for episode in episodes)
    if args.to == "chat":
        return data.chat_rows(episodes, args.template, only_won=not args.all)
    table = data.q_table(episodes, args.gamma, histories)
    if args.to == "stepwise":
        return data.stepwise_rows(episodes, table, args.template, args.threshold)
    if args.to == "preferences":
        return data.preference_rows(episodes, table, args.template, args.min_gap, args.min_visits)
    known = data.optimal_values(episodes, args.gamma, games=args.games) if args.q_star else None
    return data.value_rows(episodes, table, args.template, known)


def _back(args: argparse.Namespace, console: Console) -> int:
    from agentprm_gym import write_episodes
    from algorithms import export_data as data

    if args.out.suffix == ".parquet":
        raise ValueError(f"--back writes episodes: expected --out to end in .jsonl or .jsonl.gz, got {args.out}")
    rows = [row for source in args.source for row in data.read_rows(source)]
    is_chat = bool(rows) and "messages" in rows[0]
    episodes = data.episodes_of_chats(rows, games=args.games) if is_chat else data.episodes_of_rows(rows)
    n = write_episodes(args.out, episodes)
    console.print(f"wrote {n} episodes to [bold]{escape(str(args.out))}[/]", soft_wrap=True)
    output.show_json(args, {"file": str(args.out), "to": "episodes", "episodes": n})
    return 0
