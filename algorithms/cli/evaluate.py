"""``agentprm eval``: every game of a split exactly once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from algorithms.cli import common


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = common.add_verb(
        verbs,
        "eval",
        help="play every game of a split once and print success per task type",
        description="Play every game of a split exactly once. Prints success per task type with 95 % Wilson intervals "
        "and mean steps (failures count at the step limit), and writes episodes.jsonl.gz and result.json.",
    )
    parser.add_argument("model", help="a saved model (.zip), or a base model: tiny, a folder, a hub id")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of sampling; 0 takes the likeliest command"
    )
    parser.add_argument("--engine", default="native", choices=("native", "textworld"), help="what runs the games")
    parser.add_argument(
        "--max-games", type=common.positive, metavar="N", help="only the first so many games (default: all)"
    )
    parser.add_argument("--max-steps", type=common.positive, default=30, metavar="N", help="step limit of an episode")
    acting = parser.add_argument_group("acting")
    acting.add_argument(
        "--action-mode", choices=("constrained", "generate", "score"), help="how it answers (default: as it was saved)"
    )
    acting.add_argument("--reason", action="store_true", help="write a reason before each command")
    acting.add_argument("--template", metavar="NAME", help="prompt template: compact, full, react, or a .jinja file")
    acting.add_argument(
        "--search",
        choices=("none", "best-of-n", "vote", "prm-greedy", "look-ahead"),
        help="how a turn's command is found: drawn (none), the PRM's favourite of N draws (best-of-n) or of all admissible "
        "commands (prm-greedy), the one drawn most often (vote), or tried in the true game first (look-ahead: privileged)",
    )
    acting.add_argument(
        "--best-of", type=common.positive, metavar="N", help="short for --search best-of-n --n N; 1: no search"
    )
    acting.add_argument("--n", type=common.positive, default=8, metavar="N", help="draws a turn; breadth of look-ahead")
    acting.add_argument("--depth", type=common.positive, default=1, metavar="K", help="steps to look ahead")
    acting.add_argument("--prm", metavar="ZIP", help="save with the process reward model (default: the policy's own)")
    common.add_game_options(parser, "valid_seen")
    common.add_run_options(parser, "runs/eval")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate."""
    from agentprm_gym.episodes import write_episodes
    from algorithms.common.evaluation import by_task_type, evaluate, make_eval_env
    from algorithms.common.loading import load_actor

    common.set_threads(args.threads)
    if args.temperature < 0:
        raise ValueError(f"--temperature must be 0 or more, got {args.temperature}")
    venv = make_eval_env(
        n_envs=args.n_envs, **common.env_kwargs(args, engine=args.engine), max_episode_steps=args.max_steps
    )
    n_games = int(venv.get_attr("n_games", indices=[0])[0])
    games = range(min(args.max_games or n_games, n_games))
    actor = load_actor(
        args.model,
        venv,
        search=_search(args),
        n=args.best_of or args.n,
        depth=args.depth,
        prm=args.prm,
        temperature=args.temperature,
        device=args.device,
        **common.policy_kwargs(args),
    )
    label = f"playing {len(games)} games of {args.split}"
    with common.progress(console) as bars, common.stage(bars, label, len(games)) as done:
        episodes = evaluate(
            actor,
            venv,
            games=games,
            seed=args.seed,
            policy_name=Path(args.model).name,
            on_episode=common.counted(done),
        )
    rows = by_task_type(episodes)
    games_list = venv.get_attr("games", indices=[0])[0]
    title = f"{args.model} on {args.split} ({games_list.source} games)"
    console.print(common.rates_table(title, rows, "task type"))
    write_episodes(args.out / "episodes.jsonl.gz", episodes)
    common.write_json(
        args.out / "result.json",
        {
            **common.provenance(),
            "seed": args.seed,
            "games": {"source": games_list.source, "split": args.split, "content_hash": games_list.content_hash},
            "rows": [common.rate_row(row) for row in rows],
        },
    )
    console.print(f"episodes and result in [bold]{args.out}[/]")
    return 0


def _search(args: argparse.Namespace) -> str:
    """The search that the options ask for.

    Raises:
        ValueError: they contradict each other.
    """
    if args.best_of is None:
        return args.search or "none"
    if args.search not in (None, "best-of-n"):
        raise ValueError(f"--best-of is short for --search best-of-n; leave it out, or --search {args.search}")
    return "best-of-n" if args.best_of > 1 else "none"
