"""What the verbs share: options, tables, progress, and the note of what a run was made with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentprm_gym.games.game import SPLITS, TASK_TYPES
from algorithms.common.evaluation import Rate


def add_game_options(parser: argparse.ArgumentParser, split: str) -> None:
    """Options that choose games."""
    group = parser.add_argument_group("games")
    group.add_argument("--split", default=split, choices=SPLITS, help="which games (default: %(default)s)")
    group.add_argument(
        "--games",
        default="auto",
        help="'auto' (real games if ALFWORLD_DATA or the default cache has them, else generated), 'alfworld', 'generated', "
        "or a folder (default: %(default)s)",
    )
    group.add_argument(
        "--task-types", nargs="+", metavar="TYPE", help=f"only these: {', '.join(TASK_TYPES)} (default: all)"
    )


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of everything that writes a folder."""
    parser.add_argument("--out", type=Path, default=Path(out), help="output folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every random stream (default: %(default)s)")
    parser.add_argument("--n-envs", type=int, default=96, help="episodes played side by side (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="torch device: auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch (default: all cores)")


def set_threads(n: int) -> None:
    """Limit torch to ``n`` threads; 0 takes the cores there are."""
    import torch

    torch.set_num_threads(n or len(os.sched_getaffinity(0)))


def env_kwargs(args: argparse.Namespace, **override: Any) -> dict[str, Any]:
    """The environment's keyword arguments that the game options ask for."""
    return {"split": args.split, "games": args.games, "task_types": args.task_types, **override}


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A progress display."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bars:
        yield bars


def percent(rate: Rate) -> str:
    """A rate with its interval: ``61.3 [56.4, 65.9]``."""
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def rates_table(title: str, rows: Sequence[Rate], first: str) -> Table:
    """A table of success rates."""
    table = Table(title=title)
    table.add_column(first)
    table.add_column("games", justify="right")
    table.add_column("success % [95 % interval]", justify="right")
    table.add_column("mean steps", justify="right")
    for row in rows:
        style = "bold" if row.name == "all" else None
        table.add_row(row.name, str(row.n), percent(row), f"{row.mean_steps:.1f}", style=style)
    return table


def rate_row(rate: Rate) -> dict[str, Any]:
    """A rate as JSON."""
    return {
        "name": rate.name,
        "n": rate.n,
        "success": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "mean_steps": rate.mean_steps,
    }


def provenance() -> dict[str, Any]:
    """Commit, versions and machine, for result files."""
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    names = ("agentprm-gym", "torch", "transformers", "peft", "gymnasium", "stable-baselines3", "numpy", "alfworld")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    machine = f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores"
    return {"commit": commit, "versions": versions, "machine": machine, "command": " ".join(sys.argv)}


def write_json(path: Path, data: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(path)


class StageBars:
    """One progress bar for each stage of each iteration of AgentPRM."""

    def __init__(self, bars: Progress, model: Any) -> None:
        """Show the stages of ``model`` in ``bars``."""
        self.bars, self.model = bars, model
        self._tasks: dict[tuple[int, str], Any] = {}

    def update(self, stage: str, share: float) -> None:
        """What ``AgentPRM.on_stage`` calls."""
        key = (self.model.iteration, stage)
        if share >= 1 and self._tasks.get(key) == "done":
            return
        if key not in self._tasks:
            label = f"iteration {self.model.iteration + 1}: {stage}"
            self._tasks[key] = self.bars.add_task(label, total=1.0)
        self.bars.update(self._tasks[key], completed=share)
