"""``agentprm games``: what there is to play, and more of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentprm_gym.games import SPLITS, TASK_TYPES, DataNotFoundError, GameList, find_games
from agentprm_gym.games.generation.knobs import ROOMS, read_generator_kwargs
from agentprm_gym.games.generation.writing import write_games
from algorithms.cli import arguments, output, progress
from algorithms.common.shell.folders import check_folder

#: Enough of a hash to tell two sets of games apart at a glance.
_SHOWN_HASH = 12


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "games",
        help="list the games that are found, or generate some",
        description="Prints what each split holds: where its games come from, how many there are of each "
        "task type, and a hash that two reports about the same games share. 'agentprm games generate' writes games in "
        "ALFWorld's own layout, which ALFWorld and TextWorld can play, too.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="list",
        choices=("list", "generate"),
        help="list games (default), or generate some",
    )
    arguments.add_game_options(parser, None, no_split="all of them; generate: train")
    listing = parser.add_argument_group("list")
    listing.add_argument("--list", action="store_true", dest="ids", help="print the games' ids, one on each line")
    arguments.add_json_option(parser)
    listing.add_argument("--check", action="store_true", help="read every game and name those that cannot be played")
    generate = parser.add_argument_group("generate")
    generate.add_argument("--n", type=arguments.positive, default=1000, metavar="N", help="how many games")
    generate.add_argument(
        "--seed", type=arguments.seed, default=0, metavar="N", help="another seed is another series of games"
    )
    generate.add_argument("--out", type=Path, default=Path("generated"), metavar="FOLDER", help="where to write them")
    generate.add_argument(
        "--force",
        action="store_true",
        help="overwrite games that are there and differ; without, others are added and the same are left as they are",
    )
    knobs = parser.add_argument_group("generated games", "what they are like (default: like the real ones)")
    knobs.add_argument("--rooms", nargs="+", metavar="ROOM", help=f"only these: {', '.join(ROOMS)}")
    for name, what in (
        ("receptacles", "receptacles there are"),
        ("objects", "objects are in them"),
        ("distractors", "of these objects the task does not ask for"),
    ):
        knobs.add_argument(
            f"--n-{name}",
            nargs="+",
            type=arguments.whole(0),
            metavar="N",
            help=f"how many {what}: a number, or lowest and highest",
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """List games, or generate some.

    Raises:
        DataNotFoundError: games were not found.
        OSError: the output folder cannot be written.
        ValueError: an option does not fit.
    """
    arguments.fill_games(args)
    if args.what == "generate":
        return _generate(args, console)
    found = _find(args)
    if args.ids and args.json:
        output.show_json(args, {games.split: list(games.game_ids) for games in found})
        return 0
    if args.ids:
        for games in found:
            sys.stdout.writelines(f"{game_id}\n" for game_id in games.game_ids)
        return 0
    if args.check:
        return _check(args, found, console)
    if args.json:
        output.show_json(args, [_row(games) for games in found])
        return 0
    console.print(_table(found))
    if args.games == "auto" and any(games.source == "generated" for games in found):
        console.print("ALFWorld's own games: run alfworld-download, or set ALFWORLD_DATA to the folder with json_2.1.1")
    return 0


def _find(args: argparse.Namespace) -> list[GameList]:
    """The splits that are asked for. Without ``--split`` a source that lacks some shows the others.

    Raises:
        DataNotFoundError: not one split was found.
    """
    if args.split is not None:
        return [find_games(args.split, args.games, args.task_types, generator_kwargs=_knobs(args))]
    found, missing = [], None
    for split in SPLITS:
        try:
            found.append(find_games(split, args.games, args.task_types, generator_kwargs=_knobs(args)))
        except DataNotFoundError as error:
            missing = missing or error
    if missing is not None and not found:
        raise missing
    return found


def _row(games: GameList) -> dict[str, Any]:
    counts = Counter(game_id.split("-", 1)[0] for game_id in games.game_ids)
    types = {task_type: counts[task_type] for task_type in TASK_TYPES}
    return {
        "split": games.split,
        "from": games.source,
        "games": len(games),
        "task_types": types,
        "content_hash": games.content_hash,
    }


def _table(found: list[GameList]) -> Table:
    table = Table()
    table.add_column("")
    for games in found:
        table.add_column(games.split, justify="right")
    counts = [Counter(game_id.split("-", 1)[0] for game_id in games.game_ids) for games in found]
    table.add_row("from", *(escape(games.source) for games in found))
    table.add_row("games", *(str(len(games)) for games in found), style="bold", end_section=True)
    for task_type in TASK_TYPES:
        table.add_row(task_type, *(str(count[task_type]) for count in counts))
    table.add_section()
    table.add_row("content hash", *(games.content_hash[:_SHOWN_HASH] for games in found))
    return table


def _check(args: argparse.Namespace, found: list[GameList], console: Console) -> int:
    """Parse every game; the status is 1 if some cannot be played."""
    n_bad = 0
    with progress.progress(console) as bars:
        for games in found:
            with progress.stage(bars, f"{games.split}: {len(games)} games", len(games)) as done:
                for i in range(len(games)):
                    games.playable(i)
                    done(i + 1)
            for error in games.bad_games.values():
                console.print(f"  [red]bad:[/] {escape(error)}", highlight=False, soft_wrap=True)
            n_bad += len(games.bad_games)
    console.print("all games can be played" if not n_bad else f"{n_bad} games cannot be played")
    bad = {games.split: [str(error) for error in games.bad_games.values()] for games in found}
    output.show_json(args, [{**_row(games), "bad": bad[games.split]} for games in found])
    return 1 if n_bad else 0


def _knobs(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say about generated games, as ``generator_kwargs``."""
    numbers = {key: getattr(args, key) for key in ("n_receptacles", "n_objects", "n_distractors")}
    ranges = {key: value[0] if len(value) == 1 else value for key, value in numbers.items() if value}
    return ({"rooms": args.rooms} if args.rooms else {}) | ranges


def _generate(args: argparse.Namespace, console: Console) -> int:
    if args.games not in ("auto", "generated"):
        raise ValueError(f"'agentprm games generate' makes games and does not read any: leave out --games {args.games}")
    check_folder(args.out)
    split = args.split or "train"
    generator = read_generator_kwargs({**_knobs(args), "task_types": args.task_types, "seed": args.seed})
    start = time.monotonic()
    with progress.progress(console) as bars, progress.stage(bars, f"generate {args.n} games", args.n) as done:
        n_new = write_games(args.out, args.n, split, generator, overwrite=args.force, on_game=progress.counted(done))
    seconds = time.monotonic() - start
    there = f"; {args.n - n_new} were there already" if n_new < args.n else ""
    console.print(
        f"wrote {n_new} games of {split} to [bold]{escape(str(args.out))}[/], {args.n / seconds:.0f} a second{there}",
        highlight=False,
    )
    console.print(f"Play them: agentprm play --games {escape(str(args.out))} --split {split}", highlight=False)
    output.show_json(args, {"folder": str(args.out), "split": split, "games": args.n, "new": n_new})
    return 0
