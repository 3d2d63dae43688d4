"""Entry point of ``agentprm``: parses, then hands over to one module a verb."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

from algorithms.cli import demo, evaluate, games, play, train

_EPILOG = """examples:
  agentprm demo                         watch AgentPRM beat its starting point on this machine (about 12 minutes)
  agentprm games                        which games are found, and where
  agentprm play                         play one yourself
  agentprm train --algo sft --out runs/sft
  agentprm train --algo agentprm --policy runs/sft/model.zip --out runs/agentprm
  agentprm eval runs/agentprm/model.zip --split valid_unseen
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="agentprm",
        description="Process reward models for LLM agents: train, compare and watch text agents on ALFWorld.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for module in (demo, train, evaluate, play, games):
        module.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    # Hub look-ups print advice meant for developers of other libraries; a progress bar should be all there is.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    console = Console()
    try:
        status: int = args.run(args, console)
        return status
    except KeyboardInterrupt:
        console.print("\n[yellow]Interrupted.[/] Finished stages are saved; the same command goes on from there.")
        return 130
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False, markup=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
