"""``agentprm serve``: the environment as an OpenEnv server."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "serve",
        help="serve the environment over OpenEnv, for trainers of others",
        description="Serve ALFWorld with a process reward over OpenEnv's websocket (pip install 'agentprm-gym[openenv]'). Each "
        "connection plays its own episodes. There is no password: by default only this machine reaches it. See "
        "docs/integrations.md.",
    )
    arguments.add_game_options(parser, "train")
    group = parser.add_argument_group("environment")
    group.add_argument("--reward", default="outcome", metavar="NAME", help="process reward: a name, or prm:<zip>")
    group.add_argument("--reward-kwargs", type=arguments.json_object, default={}, metavar="JSON", help="its arguments")
    group.add_argument("--max-steps", type=arguments.positive, default=30, metavar="N", help="step limit of an episode")
    group.add_argument("--oracle", action="store_true", help="tell clients Q* of the commands where they ask for it")
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0: whoever reaches this machine may play"
    )
    group.add_argument("--port", type=arguments.whole(0, 65_535), default=8000, metavar="N", help="port")
    group.add_argument("--max-sessions", type=arguments.positive, default=256, metavar="N", help="connections at once")
    group.add_argument(
        "--session-timeout",
        type=arguments.number(above=0),
        default=3600.0,
        metavar="S",
        help="seconds without a message after which a session is freed",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until Ctrl-C.

    Raises:
        ImportError: openenv-core is missing.
        ValueError: an option does not fit.
    """
    from agentprm_gym.integrations import openenv

    arguments.fill_games(args)
    app = openenv.make_app(
        max_sessions=args.max_sessions,
        session_timeout=args.session_timeout,
        oracle=args.oracle,
        reward=args.reward,
        reward_kwargs=args.reward_kwargs,
        max_episode_steps=args.max_steps,
        **arguments.env_kwargs(args),
    )
    console.print(
        f"OpenEnv at [bold]ws://{escape(args.host)}:{args.port}/ws[/] (schema: /schema, pages: /docs); Ctrl-C ends it",
        highlight=False,
        soft_wrap=True,
    )
    openenv.serve(app, args.host, args.port)
    return 0
