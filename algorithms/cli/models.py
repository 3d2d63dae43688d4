"""``agentprm models``: language models that have a short name, and how to get them."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentprm_gym.llm.aliases import list_models
from algorithms.cli import arguments, output


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "models",
        help="list the models that have a short name, and how to get them",
        description="Prints the names that --policy takes beside folders, GGUF files and hub ids: where each model comes from, "
        "its licence, how many parameters it has, whether it is installed here, and the command that installs it.",
    )
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """List the models."""
    rows = list_models()
    if args.json:
        output.show_json(args, rows)
        return 0
    table = Table()
    for name in ("name", "model", "from", "licence"):
        table.add_column(name, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("installed")
    for row in rows:
        cells = (escape(str(row[key])) for key in ("name", "model", "from", "licence"))
        table.add_row(
            *cells, f"{row['parameters'] / 1e6:.1f} M", "[green]yes[/]" if row["installed"] else "[yellow]no[/]"
        )
    console.print(table)
    for row in rows:
        if not row["installed"]:
            console.print(f"To get {row['name']}: {row['install']}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        "Any GGUF file and any folder or hub id of a causal language model works, too: --policy path/to/file.gguf"
    )
    return 0
