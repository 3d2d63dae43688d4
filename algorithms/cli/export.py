"""``agentprm export``: what a save holds, in the formats of other tools."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments, output
from algorithms.common.shell.folders import check_folder, saved_model

#: What each adapter can become; the first is what happens without ``--as``.
FORMATS = {"policy": ("peft", "merged"), "prm": ("classifier", "peft")}


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "export",
        help="write a saved policy or process reward model for other tools",
        description="Write a saved policy or process reward model as a folder that other tools read: 'peft', the adapter "
        "alone, in PEFT's format; 'merged', the policy as a standalone causal language model; 'classifier', the process "
        "reward model as a sequence classifier with one logit, whose sigmoid is Q. See docs/export.md.",
    )
    parser.add_argument("save", metavar="SAVE", help="a saved model (.zip), or the folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder, new or empty")
    parser.add_argument("--adapter", choices=sorted(FORMATS), default="policy", help="which part of the save")
    arguments.add_base_option(parser)
    parser.add_argument(
        "--as",
        dest="format",
        choices=("peft", "classifier", "merged"),
        help="format (default: peft for the policy, classifier for the prm)",
    )
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Export.

    Raises:
        FileNotFoundError: the save is missing.
        OSError: the output folder cannot be written.
        ValueError: the format does not fit the adapter, or the output folder is not empty.
    """
    chosen = args.format or FORMATS[args.adapter][0]
    if chosen not in FORMATS[args.adapter]:
        raise ValueError(
            f"--adapter {args.adapter} cannot be exported as {chosen!r}: choose --as {' or '.join(FORMATS[args.adapter])}"
        )
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out {args.out} exists and is not an empty folder: choose a new one")
    check_folder(args.out)
    args.save = saved_model(args.save)
    # Written aside: a folder that is there is a whole one.
    aside = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(args, chosen, aside)
        aside.replace(args.out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    console.print(
        f"{args.adapter} of {escape(args.save)} as {chosen} in [bold]{escape(str(args.out))}[/]", soft_wrap=True
    )
    output.show_json(args, {"folder": str(args.out), "adapter": args.adapter, "format": chosen})
    return 0


def _write(args: argparse.Namespace, chosen: str, folder: Path) -> None:
    """Write one part of a save in one format."""
    from agentprm_gym.prm import load_prm
    from algorithms.common.shell.load import load_language_model

    if args.adapter == "prm":
        prm = load_prm(args.save, base=args.base)
        if chosen == "classifier":
            prm.export(folder)
        else:
            prm.export_adapter(folder)
    else:
        lm = load_language_model(args.save, args.base)
        write = lm.export_merged if chosen == "merged" else lm.export_adapter
        write("policy", folder)
