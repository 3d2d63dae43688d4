"""``agentprm demos``: an expert shows how to play."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from agentprm_gym.experts.demos import EXPERTS, demonstrations
from agentprm_gym.games.listing import find_games
from algorithms.cli import arguments, output, progress
from algorithms.common.shell.folders import check_file


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "demos",
        help="write an expert's demonstrations",
        description="Lets an expert play games, once each and in an order drawn by the seed, and writes the episodes that "
        "it won, with a reason for each command, for 'agentprm train --algo sft --demos'.",
    )
    arguments.add_game_options(parser, "train")
    group = parser.add_argument_group("demonstrations")
    group.add_argument(
        "--expert",
        choices=EXPERTS,
        default="search",
        help="'search' knows what a player knows: it looks where things usually are, and remembers; 'planner' knows where "
        "everything is and takes a shortest way",
    )
    group.add_argument(
        "--n", type=arguments.positive, metavar="N", help="how many games to win (default: all that it can)"
    )
    group.add_argument(
        "--seed", type=arguments.seed, default=0, metavar="N", help="of the order of the games, and of the noise"
    )
    group.add_argument(
        "--noise",
        type=arguments.number(0),
        default=0.0,
        metavar="X",
        help="search: how disorderly it searches; 1 is clearly so, 0 not at all",
    )
    group.add_argument(
        "--max-steps", type=arguments.positive, default=30, metavar="N", help="longer episodes are not written"
    )
    group.add_argument(
        "--out",
        type=Path,
        default=Path("demos.jsonl.gz"),
        metavar="FILE",
        help="where to write them: JSON Lines, one episode a line, gzipped if the name ends in .gz",
    )
    group.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Play and write.

    Raises:
        OSError: the file exists already, or cannot be written.
        ValueError: an unknown game source or task type, or noise for an expert without it.
    """
    from agentprm_gym.episodes import write_episodes

    check_file(args.out, overwrite=args.overwrite)
    arguments.fill_games(args)
    games = find_games(args.split, args.games, args.task_types)
    wanted = min(args.n or len(games), len(games))
    with progress.progress(console) as bars, progress.stage(bars, "the expert plays", wanted) as done:
        episodes = demonstrations(
            games,
            args.n,
            args.seed,
            expert=args.expert,
            noise=args.noise,
            max_steps=args.max_steps,
            on_episode=progress.counted(done),
        )
    write_episodes(args.out, episodes)
    n_turns = sum(len(episode.turns) for episode in episodes)
    console.print(
        f"wrote {len(episodes)} demonstrations ({n_turns} turns) on {escape(games.source)} games of {games.split} to "
        f"[bold]{escape(str(args.out))}[/]",
        soft_wrap=True,
    )
    if len(episodes) < (args.n or len(games)):
        console.print(f"the expert wins no more than {len(episodes)} of these {len(games)} games")
    told = {"file": str(args.out), "episodes": len(episodes), "turns": n_turns, "games": games.source}
    output.show_json(args, {**told, "split": games.split, "content_hash": games.content_hash})
    return 0
