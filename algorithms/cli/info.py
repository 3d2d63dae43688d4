"""``agentprm info``: what a save holds, without loading its base model."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from algorithms.cli import arguments, output
from algorithms.common.shell import folders


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "info",
        help="say what a save holds",
        description="Say what a save holds: which algorithm made it and with which settings, on which base model, its adapters "
        "and heads, and what its training took. The base model is not loaded.",
    )
    parser.add_argument("save", metavar="SAVE", help="a saved model (.zip), the folder of a run, or hub:USER/NAME")
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Say it.

    Raises:
        FileNotFoundError: the save is missing.
        ValueError: the file is not a save.
    """
    from agentprm_gym.llm.saving import read_save

    path = Path(folders.saved_model(args.save))
    saved = read_save(path)
    manifest = saved.manifest
    counters = {name.lstrip("_"): value for name, value in manifest.get("counters", {}).items() if value}
    found: dict[str, Any] = {
        "save": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "class": manifest["class"],
        "agentprm_gym": manifest.get("agentprm_gym") or "unknown",
        "base": manifest["base"],
        "adapters": {name: _tensors(tensors) for name, tensors in sorted(saved.adapters.items())},
        "heads": {name: _tensors(tensors) for name, tensors in sorted(saved.heads.items())},
        "counters": counters,
        "settings": manifest["data"],
    }
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name in ("save", "sha256", "class", "agentprm_gym"):
        table.add_row(name, escape(str(found[name])))
    where = " (a folder)" if found["base"].get("folder") else ""
    table.add_row("base", escape(f"{found['base']['name']}{where}, {found['base']['fingerprint']}"))
    for kind in ("adapters", "heads"):
        told = ", ".join(f"{name} ({n:,} numbers)" for name, n in found[kind].items())
        table.add_row(kind, escape(told or "none"))
    table.add_row("training", escape(", ".join(f"{name} {value:,}" for name, value in counters.items()) or "none"))
    table.add_section()
    for name, value in _flat(found["settings"]):
        table.add_row(escape(name), escape(str(value)))
    console.print(table)
    output.show_json(args, found)
    return 0


def _tensors(tensors: Mapping[str, Any]) -> int:
    """How many numbers there are."""
    return sum(int(tensor.numel()) for tensor in tensors.values())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings with dotted names, as ``--set`` takes them."""
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        rows += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return rows
