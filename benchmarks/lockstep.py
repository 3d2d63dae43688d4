"""Lockstep: ``python -m benchmarks.lockstep [--games N] [--grammar G] [--jobs J] [--seed S] [--quick] [--stock] [--out FILE]``.

Plays games in the native engine and in the stock TextWorld + ALFWorld stack, and compares every feedback, every list of
admissible commands and every ``won``. A game is played five times from its start: its walkthrough, the searching expert's
episode, random admissible commands (the kind is drawn first, so that all rules are used), the same mixed with nonsense, and
the same with wrong case and extra spaces. Also, every game that is found is loaded, and its walkthrough must win. The exit
status is 1 if there is a difference. ``--grammar 2.1.1`` plays all games in the older wording.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentprm_gym.engines.base import Engine
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.games import GRAMMARS, SPLITS, TASK_TYPES, BadGameError, DataNotFoundError, GameList, find_games
from benchmarks._lockstep_play import Difference, play_game

RESULTS = Path(__file__).parent / "results"


@dataclass
class Report:
    """The result of one game.

    Attributes:
        index: Its position among the games that were asked for.
        split: The game's split.
        kinds: Steps by kind of command.
        difference: The first difference, if any.
    """

    index: int
    split: str
    kinds: Counter[str] = field(default_factory=Counter)
    difference: Difference | None = None


# Which games --------------------------------------------------------------------------------------


def at_hand(source: str, grammar: str | None = None) -> list[GameList]:
    """Return the games of every split that is found.

    Args:
        source: ``"alfworld"``, ``"generated"`` or a folder.
        grammar: The wording of all games; ``None`` for each game's own.

    Raises:
        DataNotFoundError: Not one split is found.
    """
    found: list[GameList] = []
    for split in SPLITS:
        try:
            found.append(find_games(split, source, grammar=grammar))
        except DataNotFoundError as error:
            missing = error
    if not found:
        raise missing
    return found


def spread(lists: Sequence[GameList], n: int, seed: int) -> list[tuple[str, int]]:
    """Draw games, equally many of each split and task type as far as there are enough.

    Args:
        lists: The games of each split.
        n: How many games.
        seed: Seed of the draw.

    Returns:
        Split and index of each game.
    """
    rng = random.Random(seed)
    cells: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for s, games in enumerate(lists):
        for t, task_type in enumerate(TASK_TYPES):
            cell = [(games.split, i) for i, name in enumerate(games.game_ids) if name.split("-", 1)[0] == task_type]
            # Diagonally: the first few games are of different splits and of different types.
            diagonal = (t - s) % len(TASK_TYPES)
            cells[diagonal % 3, diagonal * len(lists) + s] = rng.sample(cell, len(cell))
    in_turn = chain.from_iterable(zip_longest(*(cells[key] for key in sorted(cells))))
    return [chosen for chosen in in_turn if chosen is not None][:n]


# Worker processes ---------------------------------------------------------------------------------


@cache
def _engines(cached: bool) -> tuple[Engine, Engine]:
    from agentprm_gym.engines.textworld import TextWorldEngine

    return NativeEngine(), TextWorldEngine(cached=cached)


def _play_one(job: tuple[int, str, str | None, str, int, int, bool]) -> Report:
    position, source, grammar, split, index, seed, cached = job
    native, stock = _engines(cached)
    kinds, difference = play_game(native, stock, find_games(split, source, grammar=grammar)[index], seed)
    return Report(position, split, kinds, difference)


def _load_some(job: tuple[str, str | None, str, int, int]) -> tuple[str, int, list[str], list[str]]:
    """Load games natively; return the split, the number of games, those that did not load, and those that were not won."""
    source, grammar, split, start, stop = job
    games, engine = find_games(split, source, grammar=grammar), NativeEngine()
    bad, lost = [], []
    for index in range(start, stop):
        try:
            game = games[index]
        except BadGameError as error:
            bad.append(str(error))
            continue
        frame = engine.reset(game)
        for command in game.walkthrough:
            frame = engine.step(command)
        if not frame.won:
            lost.append(game.path or game.game_id)
    return split, stop - start, bad, lost


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _pool(n_jobs: int) -> Iterator[Any]:
    """Yield worker processes, which are terminated at the end, also after an error."""
    pool = multiprocessing.get_context("spawn").Pool(n_jobs, _leave_interrupts_to_the_parent)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


# The measurement ----------------------------------------------------------------------------------


def run(args: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[Difference], list[str]]:
    """Play and load; return the results, the differences, and the games that did not load or were not won."""
    from algorithms.cli.progress import counted, progress, stage

    lists = at_hand(args.source, args.grammar)
    chosen = spread(lists, min(args.games, 9) if args.quick else args.games, args.seed)
    loads = [
        (args.source, args.grammar, games.split, start, min(start + 100, len(games)))
        for games in lists
        for start in range(0, len(games), 100)
        if args.load_all
    ]
    plays = [
        (i, args.source, args.grammar, split, index, args.seed, not args.stock)
        for i, (split, index) in enumerate(chosen)
    ]
    start = time.monotonic()
    with _pool(args.jobs) as pool, progress(console) as bars:
        loaded = []
        if loads:
            with stage(bars, f"load {sum(map(len, lists))} games", len(loads)) as done:
                tick = counted(done)
                loaded = [result for result in pool.imap_unordered(_load_some, loads) if tick(result) is None]
        with stage(bars, f"play {len(plays)} games in both engines", len(plays)) as done:
            tick = counted(done)
            played = [report for report in pool.imap_unordered(_play_one, plays) if tick(report) is None]
    played.sort(key=lambda report: report.index)
    rows = []
    for games in lists:
        mine = [report for report in played if report.split == games.split]
        row = {
            "split": games.split,
            "games": len(mine),
            "steps": sum(report.kinds.total() for report in mine),
            "differences": sum(report.difference is not None for report in mine),
        }
        if args.load_all:
            of_split = [result for result in loaded if result[0] == games.split]
            row["at_hand"] = sum(n for _, n, _, _ in of_split)
            row["loaded"] = row["at_hand"] - sum(len(bad) for _, _, bad, _ in of_split)
            row["walkthroughs_won"] = row["loaded"] - sum(len(lost) for _, _, _, lost in of_split)
        rows.append(row)
    kinds = sum((report.kinds for report in played), Counter[str]())
    figures: dict[str, float] = {key: sum(row[key] for row in rows) for key in rows[0] if key != "split"}
    figures |= {f"steps_{kind}": n for kind, n in sorted(kinds.items())}
    figures["seconds"] = round(time.monotonic() - start, 1)
    differences = [report.difference for report in played if report.difference is not None]
    failures = sorted(chain.from_iterable((*bad, *(f"{name}: not won" for name in lost)) for _, _, bad, lost in loaded))
    return {"figures": figures, "rows": rows}, differences, failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    # Imported here and not above: worker processes do not need it.
    from algorithms.cli.arguments import positive
    from algorithms.cli.output import PlainConsole, provenance, write_json
    from algorithms.common.shell.machine import n_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=positive, default=300, metavar="N", help="games to play (default: 300)")
    parser.add_argument("--jobs", type=positive, default=n_cores(), metavar="J", help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of games and commands (default: 0)")
    parser.add_argument("--source", default="alfworld", help="alfworld (default), generated, or a folder")
    parser.add_argument("--grammar", choices=GRAMMARS, help="the wording of all games (default: each game's own)")
    parser.add_argument("--stock", action="store_true", help="the stock stack without our caches: slow")
    parser.add_argument(
        "--load-all",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load every game that is found natively, and win its walkthrough (default: yes)",
    )
    parser.add_argument("--quick", action="store_true", help="nine games, for a first look")
    parser.add_argument("--out", type=Path, help="result file (default: in benchmarks/results)")
    args = parser.parse_args(argv)
    out = args.out or RESULTS / (f"lockstep_{args.grammar}.json" if args.grammar else "lockstep.json")
    console = PlainConsole()
    try:
        results, differences, failures = run(args, console)
    except (DataNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    for table in _tables(results):
        console.print(table)
    made_with = provenance()
    made_with["versions"]["textworld"] = metadata.version("textworld")
    first = str(differences[0]) if differences else None
    write_json(
        out,
        {
            "name": "lockstep",
            **made_with,
            "date": datetime.date.today().isoformat(),
            "seeds": [args.seed],
            "quick": args.quick,
            "source": args.source,
            "grammar": args.grammar,
            "stock": "uncached" if args.stock else "cached",
            **results,
            "first_difference": first,
            "failures": failures,
        },
    )
    console.print(f"written to {out}", highlight=False)
    for text in (*([first] if first else []), *failures[:10]):
        print(text)
    return int(bool(differences or failures))


def _tables(results: dict[str, Any]) -> list[Table]:
    rows, figures = results["rows"], results["figures"]
    by_split = Table(title="both engines, step by step")
    for column in rows[0]:
        by_split.add_column(column.replace("_", " "), justify="left" if column == "split" else "right")
    total = {"split": "all", **figures}
    for row in (*rows, total):
        by_split.add_row(*(str(row[key]) for key in rows[0]), style="bold" if row is total else None)
    kinds = Table(title="steps by kind of command")
    kinds.add_column("kind")
    kinds.add_column("steps", justify="right")
    for key, n in figures.items():
        if key.startswith("steps_"):
            kinds.add_row(key.removeprefix("steps_"), str(n))
    return [by_split, kinds]


if __name__ == "__main__":
    raise SystemExit(main())
