"""What verbs write: files that appear whole or not at all, the note of what a result was made with, and tables of rates."""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from agentprm_gym.files import write_whole
from agentprm_gym.plain_text import plain

if TYPE_CHECKING:
    from algorithms.common.measure.evaluation import Rate

_PACKAGES = ("agentprm-gym", "torch", "transformers", "peft", "gymnasium", "stable-baselines3", "numpy", "alfworld")
#: Options that say where a command keeps its work and writes its result.
_PLACES = ("--out", "--runs", "--work")


# ---------------------------------------------------------------------- the terminal
class PlainConsole(Console):
    """A console that shows texts of games, models, servers and files without obeying them.

    Whatever is printed, tables and bars included, comes through :meth:`render`. What rich itself writes to move the cursor or
    to change colours is not text, and stays.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is printed, as rich does, in harmless characters."""
        for segment in super().render(renderable, options):
            harmless = segment.text if segment.control else plain(segment.text)
            yield segment if harmless == segment.text else Segment(harmless, segment.style)


def console(*, stderr: bool = False, width: int | None = None) -> PlainConsole:
    """A console of the command line.

    Args:
        stderr: write to standard error.
        width: columns; ``None``: those of the terminal.
    """
    return PlainConsole(stderr=stderr, width=width)


def show_warnings_plainly() -> None:
    """Have Python show warnings in harmless characters, too."""
    usual = warnings.formatwarning
    if getattr(usual, "is_plain", False):
        return

    def formatted(*args: Any, **kwargs: Any) -> str:
        return plain(usual(*args, **kwargs))

    formatted.is_plain = True  # type: ignore[attr-defined]
    warnings.formatwarning = formatted


def show_json(args: argparse.Namespace, data: Any) -> None:
    """Print a verb's result as JSON on standard output, where ``--json`` asks for it.

    Args:
        args: the options; those of a verb that a caller runs without a parser may lack ``json``.
        data: JSON types.
    """
    if getattr(args, "json", False):
        sys.stdout.write(json.dumps(data, indent=1) + "\n")


# ---------------------------------------------------------------------- tables
def percent(rate: Rate) -> str:
    """A rate with its interval: ``61.3 [56.4, 65.9]``."""
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def signed(difference: float, low: float, high: float) -> str:
    """A difference of rates with its interval, in points: ``+12.3 [+10.1, +14.5]``."""
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def make_table(first: str, *others: str, title: str | None = None) -> Table:
    """A table that fits 80 columns: a first column of names, which may be folded, and others of numbers, which are not.

    Args:
        first: header of the first column.
        others: headers of the others; a line break in them saves width.
        title: above the table.
    """
    table = Table(title=None if title is None else escape(title))
    table.add_column(
        escape(first), overflow="fold", min_width=5
    )  # a narrow terminal folds names, and does not lose them
    for name in others:
        table.add_column(escape(name), justify="right", no_wrap=True)
    return table


def rates_table(rows: Sequence[Rate], first: str) -> Table:
    """A table of success rates.

    Args:
        rows: the rates; the row ``"all"`` is printed bold.
        first: header of the column of names.
    """
    table = make_table(first, "games", "success %\n[95 % interval]", "mean steps")
    for row in rows:
        style = "bold" if row.name == "all" else None
        table.add_row(escape(row.name), str(row.n), percent(row), f"{row.mean_steps:.1f}", style=style)
    return table


def rate_row(rate: Rate) -> dict[str, Any]:
    """A rate as JSON; ``None`` stands for what there was nothing to measure by."""
    numbers = {
        "success": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "mean_steps": rate.mean_steps,
        "mean_steps_won": rate.mean_steps_won,
        "inadmissible": rate.inadmissible,
    }
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"name": rate.name, "n": rate.n, "wins": rate.successes, **finite}


# ---------------------------------------------------------------------- files
def provenance() -> dict[str, Any]:
    """Commit, versions, machine and command line, for result files."""
    from algorithms.common.shell.machine import n_cores

    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    machine = f"{platform.system()} {platform.machine()}, {n_cores()} CPU cores"
    # Without the folders of this machine, which say nothing elsewhere.
    module = getattr(sys.modules["__main__"], "__spec__", None)  # there with "python -m"
    name = Path(sys.argv[0]).name if module is None else f"python -m {module.name.removesuffix('.__main__')}"
    command = " ".join([name, *_without_places(sys.argv[1:])])
    return {"commit": commit, "versions": versions, "machine": machine, "command": command}


def _without_places(args: Sequence[str]) -> list[str]:
    """The arguments but where a command keeps its work: that changes no figure, and names folders of this machine."""
    left, kept = list(args), []
    while left:
        name, equals, _ = (arg := left.pop(0)).partition("=")
        if name not in _PLACES:
            kept.append(arg)
        elif not equals and left:
            left.pop(0)
    return kept


def write_json(path: Path, data: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8; the file appears whole or not at all, in a folder that is made where it is missing."""
    write_whole(path, text)
