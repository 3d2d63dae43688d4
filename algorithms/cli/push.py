"""``agentprm push``: a policy, a process reward model or a benchmark panel to the Hugging Face hub, with a card."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments, output
from algorithms.common.shell import folders

_PANEL = ".jsonl.gz"


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "push",
        help="upload a policy, a process reward model or a panel to the Hugging Face hub",
        description="Upload a save's policy or process reward model, or a benchmark panel, to the Hugging Face hub, with a "
        "card that is generated from results of 'agentprm eval' and 'agentprm bench'. The account is the one of 'hf auth "
        "login' or HF_TOKEN. 'hub:USER/NAME' stands for the model wherever a save can be named. --folder writes the "
        "repository's folder without a network.",
    )
    parser.add_argument(
        "what",
        metavar="SAVE",
        help=f"a saved model (.zip), the folder of a run, or a panel (generated, real, *{_PANEL})",
    )
    parser.add_argument("--to", metavar="USER/NAME", help="the repository; it is made where it is missing")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="write the repository into this folder, new or empty, to look at or to upload yourself; without --to nothing is "
        "uploaded",
    )
    parser.add_argument(
        "--adapter",
        choices=("policy", "prm"),
        help="of a save: the policy with all that the save holds, or the process reward model alone, and as a classifier where "
        "its form has one (default: policy)",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of evaluations and benchmarks of this very save, whose numbers the card tells",
    )
    parser.add_argument(
        "--base", metavar="ID", help="id under which others find the base model, where it is a folder on this machine"
    )
    parser.add_argument("--license", metavar="ID", help="licence of the weights, as the hub names it, e.g. apache-2.0")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    parser.add_argument(
        "--games", default="alfworld", metavar="SOURCE", help="where ALFWorld's games are, for a panel without texts"
    )
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write and upload.

    Raises:
        FileNotFoundError: the save, the panel or a result is missing.
        OSError: the folder cannot be written, or the hub refused or could not be reached.
        ValueError: an option does not fit what is uploaded; see ``save_pretrained``.
    """
    from agentprm_gym.bench.panel import SHIPPED
    from agentprm_gym.hub import upload
    from agentprm_gym.hub.remote import parse

    if args.to is None and args.folder is None:
        raise ValueError("where to? --to USER/NAME uploads, --folder FOLDER writes the repository's folder")
    if args.to is not None:
        parse(args.to)
    if args.folder is not None:
        folders.check_folder(args.folder, "--folder")
        if args.folder.exists() and any(args.folder.iterdir()):
            raise ValueError(f"--folder {args.folder} exists and is not empty: choose a new one")
    is_panel = args.what in SHIPPED or args.what.endswith(_PANEL)
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if is_panel:
            _write_panel(args, folder)
        else:
            _write_model(args, folder)
        names = sorted(path.name for path in folder.iterdir())
        files, url = ", ".join(names), None
        if args.folder is not None:
            console.print(f"[bold]{escape(str(folder))}[/]: {escape(files)}", soft_wrap=True)
        if args.to is not None:
            kind = "dataset" if is_panel else "model"
            url = upload(folder, args.to, kind=kind, private=args.private or None)
            console.print(f"{escape(files)} in [bold]{escape(url)}[/]", soft_wrap=True)
            use = f"agentprm bench prm:MODEL --panel hub:{args.to}" if is_panel else f"agentprm eval hub:{args.to}"
            if args.adapter == "prm":
                use = f"agentprm bench prm:hub:{args.to}"
            console.print(f"next: {escape(use)}", soft_wrap=True)
        kept = None if args.folder is None else str(args.folder)
        output.show_json(args, {"files": names, "folder": kept, "repository": args.to, "commit": url})
    return 0


def _write_panel(args: argparse.Namespace, folder: Path) -> None:
    from agentprm_gym.bench import save_panel

    for option, value in (("adapter", args.adapter), ("base", args.base), ("results", args.results)):
        if value:
            raise ValueError(f"--{option} is for models, and {args.what} is a panel: leave it out")
    save_panel(args.what, folder, license=args.license, games=args.games, **({"repo_id": args.to} if args.to else {}))


def _write_model(args: argparse.Namespace, folder: Path) -> None:
    from agentprm_gym.llm.saving import read_save
    from agentprm_gym.prm import load_prm
    from algorithms.common.shell.sharing import write_policy_repository

    path = Path(folders.saved_model(args.what))
    saved = read_save(path)
    shared: dict[str, Any] = {
        "repo_id": args.to,
        "results": args.results,
        "base": args.base,
        "license": args.license,
        "measured_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    if args.adapter == "prm":
        load_prm(path).save_pretrained(folder, algorithm=saved.manifest["class"], **shared)
    else:
        write_policy_repository(saved, folder, **shared)
