"""Entry point of ``agentprm``: parses, then hands over to one module a verb."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from algorithms.cli import compare, demo, demos, evaluate, export, games, play, train

_EPILOG = """examples:
  agentprm demo                         watch AgentPRM beat its starting point on this machine (about 8 minutes)
  agentprm games                        which games are found, and where
  agentprm play                         play one yourself
  agentprm demos --expert search --n 150 --out demos.jsonl.gz
  agentprm train --algo sft --demos demos.jsonl.gz --out runs/sft
  agentprm train --algo agentprm --policy runs/sft/model.zip --out runs/agentprm
  agentprm train --resume runs/agentprm go on with a run that was killed or interrupted
  agentprm eval runs/agentprm/model.zip --split valid_unseen
  agentprm compare runs/ppo runs/grpo   the curves of two runs in one chart
  agentprm play --policy runs/agentprm/model.zip
  agentprm export runs/agentprm/model.zip --adapter prm --out prm

'agentprm VERB --help' tells more about each.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="agentprm",
        description="Process reward models for LLM agents: train, compare and watch text agents on ALFWorld.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="on an error, show where in the code it comes from")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for module in (demo, train, evaluate, compare, play, games, demos, export):
        module.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 (a check failed), 2 (wrong input), 130 (Ctrl-C).
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    # Hub look-ups print advice meant for developers of other libraries; a progress bar should be all there is.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Tables must not be folded to 80 columns where the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if getattr(args, "resume", None) is not None:
            args = train.with_resume(parser, words, args.resume)
        elif getattr(args, "config", None) is not None:
            args = parser.parse_args(train.with_config(words, args.config))
        status: int = args.run(args, console)
        return status
    except KeyboardInterrupt:
        console.print(f"\n[yellow]Interrupted.[/] {getattr(args, 'on_interrupt', '')}")
        return 130
    except BrokenPipeError:
        # Whoever read has enough ("| head"). Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
