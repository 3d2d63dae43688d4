"""Malicious files: ``python -m benchmarks.hostile [--quick] [--out FILE]``.

Gives this package games, saves, episode files, configurations and servers' answers that are made to do harm, each in a process
of its own, and watches what happens. A case is *refused* where it ends in the error that the command line shows (a
``ValueError`` or an ``OSError``), *harmless* where it is used and does nothing, and *crashed* where it ends in any other error.
Python's audit events tell what was executed and which files were written: everything outside of the case's own folder is
outside. The exit status is 1 if anything was executed, written outside, crashed, or took too much memory or time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks._hostile_cases import CASES, KEY, Case

RESULTS = Path(__file__).parent / "results"
#: A case may add so much to the memory of its process, and take so long.
MAX_MB, MAX_SECONDS = 400, 60
_MOST_BYTES = 12 * 2**30
OUTCOMES = ("refused", "harmless", "crashed", "executed", "written_outside", "over_memory", "over_time")
# What of Python's audit events runs something else than Python code that is here.
_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


def _watch(folder: Path, seen: dict[str, list[str]]) -> None:
    """Note what this process runs, and what it writes outside of a folder."""
    inside = str(folder.resolve())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _RUNS:
            seen["executed"].append(event)
        elif event in _CHANGES or (event == "open" and _writes(args)):
            path = args[0]
            if isinstance(path, (str, bytes)):
                where = os.path.abspath(os.fsdecode(path))
                if not where.startswith((inside, "/dev/", "/proc/")):
                    seen["written_outside"].append(f"{event} {where}")

    sys.addaudithook(hook)


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(sign in mode for sign in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _victim(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in this process, which ends afterwards."""
    os.chdir(folder)
    os.environ["OPENAI_API_KEY"] = KEY
    seen: dict[str, list[str]] = {"executed": [], "written_outside": []}
    # A case that succeeds in filling the memory must not take the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    _watch(folder, seen)
    try:
        case(folder)
        outcome, said = "harmless", ""
    except (ValueError, OSError) as error:
        outcome, said = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        outcome, said = "crashed", f"{type(error).__name__}: {error}"
    if (folder / "x").exists():
        seen["executed"].append("x was touched")
    return {
        "outcome": outcome,
        "said": said.replace(str(folder), "FOLDER")[:300],
        "seconds": round(time.monotonic() - start, 2),
        "mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        **seen,
    }


def run_case(case: Case) -> dict[str, Any]:
    """Run a case in a process of its own, which is ended when its time is over.

    Args:
        case: the case.

    Returns:
        What came of it: ``outcome``, ``said``, ``seconds``, ``mb``, ``executed`` and ``written_outside``.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "case"
        folder.mkdir()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                os.setsid()
                with open(os.devnull, "w") as null:  # warnings and prints of the victim
                    os.dup2(null.fileno(), 1)
                    os.dup2(null.fileno(), 2)
                os.write(writer, json.dumps(_victim(case, folder)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        told = b""
        until = time.monotonic() + MAX_SECONDS
        while (left := until - time.monotonic()) > 0:
            if select.select([reader], [], [], left)[0]:
                piece = os.read(reader, 65_536)
                told += piece
                if not piece:
                    break
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        outside = sorted(path.name for path in Path(root).iterdir() if path != folder)
        row: dict[str, Any] = {
            "outcome": "crashed",
            "said": "the process ended",
            "seconds": float(MAX_SECONDS),
            "mb": 0,
        }
        row |= {"executed": [], "written_outside": []}
        if told:
            row |= json.loads(told)
        elif time.monotonic() >= until:
            row["outcome"] = "over_time"
        row["written_outside"] += outside
        return row


def _warm_up() -> None:
    """Import what the victims need, so that a case pays for what it does and not for imports."""
    import regex
    import torch
    import yaml

    import algorithms.cli.main
    from agentprm_gym.engines import make_engine
    from agentprm_gym.games import find_games
    from agentprm_gym.llm.model import LanguageModel
    from agentprm_gym.llm.text_prompts import TextPrompt
    from algorithms.common.shell import load

    # A fork has no threads of its parent's, and would wait for them for ever.
    torch.set_num_threads(1)
    LanguageModel.load("tiny").add_adapter("policy")
    engine = make_engine("textworld")
    engine.reset(find_games("train", "generated")[1])
    engine.close()
    TextPrompt("full")
    assert regex and yaml and load and algorithms


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    from algorithms.cli.output import PlainConsole, provenance, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every third case, for a first look")
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.json", help="result file")
    args = parser.parse_args(argv)
    console = PlainConsole()
    _warm_up()
    rows = []
    for room, cases in CASES.items():
        for name in list(cases)[:: 3 if args.quick else 1]:
            row = run_case(cases[name])
            rows.append({"room": room, "case": name, **row})
            if row["outcome"] not in ("refused", "harmless") or row["executed"] or row["written_outside"]:
                console.print(f"{room}, {name}: {row}", markup=False, highlight=False)
    figures = _figures(rows)
    console.print(_table(rows, figures))
    write_json(
        args.out,
        {
            "name": "hostile",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [],
            "quick": args.quick,
            "figures": figures,
            "rows": rows,
        },
    )
    console.print(f"written to {args.out}", highlight=False)
    return int(any(figures[key] for key in OUTCOMES[2:]))


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count the outcomes of cases; one case may count in several.

    Args:
        rows: what :func:`run_case` returned.
    """
    return {
        "tried": len(rows),
        **{key: sum(row["outcome"] == key for row in rows) for key in ("refused", "harmless", "crashed")},
        **{key: sum(bool(row[key]) for row in rows) for key in ("executed", "written_outside")},
        "over_memory": sum(row["mb"] > MAX_MB for row in rows),
        "over_time": sum(row["outcome"] == "over_time" for row in rows),
    }


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = dict(counts(rows))
    return {**figures, "most_mb": max(row["mb"] for row in rows), "most_seconds": max(row["seconds"] for row in rows)}


def _table(rows: Sequence[dict[str, Any]], figures: dict[str, float]) -> Table:
    table = Table(title="malicious files and servers", padding=0)
    table.add_column("what", no_wrap=True)
    for name in ("tried", *OUTCOMES):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for room in CASES:
        counted = counts([row for row in rows if row["room"] == room])
        table.add_row(room, *(str(counted[name]) for name in ("tried", *OUTCOMES)))
    table.add_row("all", *(f"{figures[name]:.0f}" for name in ("tried", *OUTCOMES)), style="bold")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
