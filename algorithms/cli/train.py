"""``agentprm train``: one algorithm, one output folder; or several seeds of it, a folder each."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from algorithms import registry
from algorithms.cli import arguments, configuration, environments, output, presets, processes, settings, train_options
from algorithms.common.shell import folders

if TYPE_CHECKING:
    from algorithms.common.shell.base import LLMAlgorithm


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "train",
        help="train one algorithm",
        description="Train one algorithm and save it to OUT/model.zip, with TensorBoard curves in OUT/tb, the "
        "settings in OUT/settings.json, and in OUT/config.yaml what --config takes to run it again. SFT clones the "
        "searching expert's demonstrations and InversePRM learns a process reward from them; the others start from "
        "--policy, usually an SFT model. However a run ends, --resume OUT goes on with it; Ctrl-C also keeps what is learnt "
        "so far in OUT/interrupted.zip. agentprm and inverseprm keep each iteration's model as OUT/iterations/1.zip, 2.zip, "
        "... 'agentprm compare' draws the curves.",
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        dest="lists_settings",
        help="list what --set takes for --algo, with defaults and a line on each, and train nothing",
    )
    train_options.add_options(parser, "runs/train")
    train_options.add_eval_options(parser)
    parser.set_defaults(run=run, rules=train_options.RULES, parser=parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Train.

    Raises:
        OSError: the output folder cannot be written, is in use, or holds a model or another run.
        FileNotFoundError: there is nothing to resume.
        ValueError: a setting or an option is not one of the algorithm's, or the algorithm is unknown.
    """
    if args.preset == presets.LIST:
        _list_presets(args, console)
        return 0
    if args.lists_settings:
        _list_settings(args, console)
        return 0
    train_options.check_options(args)
    algorithm = registry.find_algorithm(args.algo)
    settings.check_settings(algorithm, args.settings)
    runs = [(args.seed, args.out)]
    if args.seeds is not None:
        runs = [(seed, args.out / f"seed_{seed}") for seed in range(args.seed, args.seed + args.seeds)]
    for _, folder in runs if processes.is_main() else ():
        _check_folder(args, folder)
    processes.join()
    from algorithms.cli import training
    from algorithms.common.shell.load import check_model
    from algorithms.common.shell.machine import check_device

    check_device(args.device)
    if not all(training.goes_on(args, folder) for _, folder in runs):
        check_model(args.policy)
    args.policy = folders.saved_model(args.policy)
    if args.overwrite and args.seeds is not None and any(f in Path(args.policy).parents for _, f in runs):
        raise ValueError(
            f"--policy {args.policy} is in a folder that --overwrite clears before the first seed: copy it somewhere else"
        )
    with folders.locked(args.out) if processes.is_main() else nullcontext():
        _train_all(args, algorithm, runs, processes.heard(console))
    if processes.is_main():
        output.show_json(args, [{"seed": seed, "model": str(folder / folders.MODEL)} for seed, folder in runs])
    return 0


def _list_presets(args: argparse.Namespace, console: Console) -> None:
    """Say what each preset is for, and where its file is."""
    for name in presets.names():
        console.print(f"[bold]{name}[/]  {escape(presets.purpose(name))}", highlight=False, soft_wrap=True)
    console.print(f"files: {escape(str(presets.path_of(presets.names()[0]).parent))}", highlight=False, soft_wrap=True)
    found = [{"name": n, "purpose": presets.purpose(n), "file": str(presets.path_of(n))} for n in presets.names()]
    output.show_json(args, found)


def _list_settings(args: argparse.Namespace, console: Console) -> None:
    """Say what ``--set`` takes.

    Raises:
        ValueError: the algorithm is unknown, or none is named.
    """
    if args.algo is None:
        raise ValueError("--settings is about one algorithm: name it, --algo NAME")
    environments.import_modules(args)
    found = settings.list_settings(registry.find_algorithm(args.algo))
    table = Table("setting", "default", "")
    for one in found:
        table.add_row(
            escape(one.name), escape(json.dumps(one.default, default=str)), escape(one.about.replace("``", ""))
        )
    console.print(table)
    output.show_json(
        args, [{**one._asdict(), "default": json.loads(json.dumps(one.default, default=str))} for one in found]
    )


def _check_folder(args: argparse.Namespace, folder: Path) -> None:
    """Refuse a folder that holds a run which is not to go on, and one without a run where one is to go on."""
    from algorithms.common.shell.checkpoints import state_path

    state = state_path(folder)
    if args.resume is not None:
        # Of several seeds some may not have begun.
        if args.seeds is None and not state.exists():
            raise FileNotFoundError(
                f"--resume: {folder} holds no checkpoint; expected {state}, which a run writes as soon as its first stage or "
                f"iteration is done. Start again: agentprm train --config {folder / configuration.FILE} --out {folder}"
            )
    elif args.overwrite:
        return
    elif (folder / folders.MODEL).exists():
        raise FileExistsError(f"{folder / folders.MODEL} exists already; choose another --out, or add --overwrite")
    elif state.exists():
        raise FileExistsError(
            f"{folder} holds a run that did not end; --resume {args.out} goes on with it, --overwrite starts again, and "
            "another --out leaves it as it is"
        )


def _train_all(
    args: argparse.Namespace, algorithm: type[LLMAlgorithm], runs: list[tuple[int, Path]], console: Console
) -> None:
    """Train with each seed, into its folder."""
    from algorithms.cli import training

    seeds, args.resumed_by, begun = args.seeds, args.out, False
    whole = argparse.Namespace(**vars(args))

    def begin() -> None:
        """Before anything is written: clear all folders, and say what is in them from now on."""
        nonlocal begun
        if begun or not processes.is_main():
            return
        begun = True
        if args.resume is None:
            for _, folder in runs:
                training.clear(folder)
        if seeds is not None:
            configuration.write_config(whole.parser, whole.out, whole, train_options.RULES)

    for seed, folder in runs:
        if seeds is not None:
            console.print(f"seed {seed}")
        args.seed, args.out, args.seeds = seed, folder, None
        with nullcontext() if seeds is None or not processes.is_main() else folders.locked(folder):
            training.train_one(args, algorithm, console, begin)
    if seeds is not None:
        console.print(f"next: agentprm compare {escape(str(args.resumed_by))}", soft_wrap=True)
