"""Entry point of ``agentprm``: parses, then hands over to one module a verb."""

from __future__ import annotations

import argparse
import os
import select
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TextIO

from rich.markup import escape

from agentprm_gym.envs.workers import WorkerError
from algorithms.cli import (
    bench,
    compare,
    completion,
    configuration,
    demo,
    demos,
    doctor,
    evaluate,
    export,
    export_data,
    games,
    info,
    models,
    output,
    play,
    push,
    report,
    serve,
    sweep,
    train,
)
from algorithms.common.shell.errors import DivergedError

_EPILOG = """examples:
  agentprm demo                         watch AgentPRM beat its starting point on this machine
  agentprm games                        which games are found, and where
  agentprm models                       which models have a short name, and how to get them
  agentprm play                         play one yourself
  agentprm demos --expert search --n 150 --out demos.jsonl.gz
  agentprm train --algo sft --demos demos.jsonl.gz --out runs/sft
  agentprm train --algo agentprm --policy runs/sft --out runs/agentprm
  agentprm train --resume runs/agentprm go on with a run that was killed or interrupted
  agentprm eval runs/agentprm --split valid_unseen
  agentprm compare runs/ppo runs/grpo   the curves of two runs in one chart
  agentprm report runs/agentprm runs/eval/agentprm-valid_unseen
  agentprm bench uniform policy:runs/sft prm:runs/agentprm --out runs/bench
  agentprm play --policy runs/agentprm
  agentprm export runs/agentprm --adapter prm --out prm

'agentprm VERB --help' tells more about each; docs/command_line.md has an example of each.
"""


#: What to say about errors without a text.
_SILENT: dict[type, str] = {MemoryError: "the memory is full; take a smaller model, or fewer --n-envs"}


def build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of the verbs by their names."""
    parser = argparse.ArgumentParser(
        prog="agentprm",
        description="Process reward models for LLM agents: train, compare and watch text agents on ALFWorld.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="on an error, show where in the code it comes from")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for module in (
        demo,
        train,
        sweep,
        evaluate,
        compare,
        report,
        bench,
        play,
        games,
        models,
        info,
        demos,
        export,
        export_data,
        push,
        serve,
        doctor,
        completion,
    ):
        module.add_parser(verbs)
    return parser, verbs.choices


def _version() -> str:
    try:
        return metadata.version("agentprm-gym")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        import agentprm_gym

        return agentprm_gym.__version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words behind ``agentprm``; those of this process by default.

    Returns:
        The exit status: 0, 1 (a check failed, or a run could not go on), 2 (wrong input), 130 (Ctrl-C).
    """
    parser, verbs = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    # Hub look-ups print advice meant for developers of other libraries; a progress bar should be all there is.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Tables must not be folded to 80 columns where the output goes to a file.
    width = None if sys.stdout.isatty() else 120
    console = output.console(stderr=getattr(args, "json", False), width=width)
    output.show_warnings_plainly()
    try:
        if hasattr(args, "rules"):
            args = configuration.complete(parser, verbs[args.verb], words, args.rules)
        status: int = args.run(args, console)
        return status
    except KeyboardInterrupt:
        console.print(f"\n[yellow]Interrupted.[/] {escape(getattr(args, 'on_interrupt', ''))}", soft_wrap=True)
        return 130
    except (DivergedError, WorkerError) as error:
        if args.debug:
            raise
        told = f"{error} {getattr(args, 'on_interrupt', '')}".strip()
        output.console(stderr=True).print(f"[red]error:[/] {escape(told)}", highlight=False, soft_wrap=True)
        return 1
    except BrokenPipeError:
        if _is_read(sys.stdout):
            if args.debug:
                raise
            told = getattr(args, "on_interrupt", "")
            print(
                f"error: a process that this one was talking to has ended (broken pipe). {told}".strip(),
                file=sys.stderr,
            )
            return 1
        # The reader has enough ("| head"). Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        # Some errors, such as that of a full memory, say nothing of their own.
        said = str(error) or f"{type(error).__name__}: {_SILENT.get(type(error), 'no more is known; see --debug')}"
        told = f"{said} {getattr(args, 'on_interrupt', '')}".strip()
        output.console(stderr=True).print(f"[red]error:[/] {escape(told)}", highlight=False, soft_wrap=True)
        return 2
    except Exception:
        # A fault of the program: its traceback is shown, but what is kept is said first.
        if told := getattr(args, "on_interrupt", ""):
            output.console(stderr=True).print(escape(told), highlight=False, soft_wrap=True)
        raise


def _is_read(stream: TextIO) -> bool:
    """Whether somebody may still read what is written into a stream."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except AttributeError:  # Windows does not tell
        return False
    except (OSError, ValueError):  # no file behind the stream, so no pipe
        return True


if __name__ == "__main__":
    sys.exit(main())
