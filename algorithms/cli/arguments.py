"""Options of the verbs: how a word becomes a value, and the groups of options that verbs share.

A reader of a word (``whole``, ``number``, ``json_object``) is also the reader of the same option in a configuration.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentprm_gym.games.names import SPLITS, TASK_TYPES

#: Ids of the environments that have games, splits and task types to choose from.
ALFWORLD_IDS = ("ALFWorld-v0", "ALFWorldPRM-v0")
#: Defaults of the options that choose ALFWorld's games; the split is each verb's own.
_GAME_DEFAULTS = {"games": "auto", "task_types": None}


class HelpFormatter(argparse.HelpFormatter):
    """Adds defaults to the help texts that do not have them."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default in (None, False, [], {}, argparse.SUPPRESS) or not action.option_strings
        return text if silent or "default" in text else f"{text} (default: %(default)s)"


def add_verb(verbs: Any, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
    """Add a verb's parser.

    Args:
        verbs: what ``add_subparsers`` returned.
        name: the verb.
        help: a line for the list of verbs.
        description: a paragraph for ``agentprm VERB --help``.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=description, formatter_class=HelpFormatter
    )
    return parser


def add_json_option(parser: Any) -> None:
    """The option that prints a verb's result for a program; :func:`~algorithms.cli.output.show_json` writes it."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON on standard output, and everything else on standard error",
    )


# ---------------------------------------------------------------------- readers of words
def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make a reader of whole numbers; ``1e5`` and ``100_000`` are whole numbers, too.

    Args:
        least: the smallest number allowed.
        most: the largest number allowed; ``None``: any.
    """
    bounds = f"of {least} or more" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        value = _number(text)
        if value is None or value != int(value) or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        return int(value)

    return read


def number(least: float = -math.inf, *, above: float | None = None) -> Callable[[str], float]:
    """Make a reader of finite numbers.

    Args:
        least: the smallest number allowed.
        above: the number must be larger than this.
    """
    bounds = "" if least == -math.inf else f" of {least:g} or more"
    bounds = bounds if above is None else f" above {above:g}"

    def read(text: str) -> float:
        value = _number(text)
        if value is None or value < least or (above is not None and value <= above):
            raise argparse.ArgumentTypeError(f"expected a number{bounds}, got {text!r}")
        return value

    return read


def _number(text: str) -> float | None:
    """A finite number; ``None`` for other texts. Whole numbers stay exact."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


positive, seed = whole(1), whole(0)


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected JSON such as '{{\"top_p\": 0.9}}', got {text!r} ({error})"
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def device(text: str) -> str:
    """Read the name of a torch device; whether it is there is seen later, since torch takes seconds to load."""
    kind, colon, index = text.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps", "xpu") or (colon and not (kind != "auto" and index.isdigit())):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:<number>, got {text!r}")
    return text


# ---------------------------------------------------------------------- groups of options
def add_game_options(parser: argparse.ArgumentParser, split: str | None, *, no_split: str = "") -> None:
    """Options that choose ALFWorld's games; :func:`fill_games` gives them their defaults.

    Args:
        parser: where to.
        split: the default split; ``None`` for a verb that can go on without one.
        no_split: what that verb does then, for the help text.
    """
    group = parser.add_argument_group("games")
    default = f" (default: {split or no_split})"
    group.add_argument("--split", choices=SPLITS, help="which games" + default)
    group.add_argument(
        "--games",
        metavar="SOURCE",
        help="where they come from: 'auto' (ALFWorld's own if ALFWORLD_DATA or ~/.cache/alfworld has them, else "
        "generated ones), 'alfworld', 'generated', or a folder (default: auto)",
    )
    group.add_argument(
        "--task-types", nargs="+", metavar="TYPE", help=f"only these: {', '.join(TASK_TYPES)} (default: all)"
    )
    parser.set_defaults(default_split=split)


def add_trust_option(parser: Any) -> None:
    """The option that lets games run code."""
    parser.add_argument(
        "--trust-games",
        action="store_true",
        help="let the stock engine (textworld) play games whose grammar holds Python code, which then runs on this machine: "
        "only for games of people you trust. A configuration cannot say this",
    )


def add_env_options(parser: argparse.ArgumentParser) -> None:
    """Options for an environment of the user's own; behind :func:`add_game_options`."""
    group = parser.add_argument_group("environments and classes of your own")
    group.add_argument(
        "--env",
        metavar="ID",
        help="a registered environment, or module:ID (default: ALFWorld-v0); see docs/command_line.md",
    )
    group.add_argument(
        "--env-kwargs", type=json_object, metavar="JSON", help="its arguments, e.g. '{\"max_episode_steps\": 50}'"
    )
    add_import_option(group)


def add_import_option(parser: Any) -> None:
    """The option that imports modules of the user's own."""
    parser.add_argument(
        "--import",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE",
        dest="modules",
        help="import these modules first: they may register environments, rewards and algorithms",
    )


def add_run_options(parser: argparse.ArgumentParser, out: str | None, *, no_out: str = "") -> None:
    """Options of verbs that run a model and write a folder.

    Args:
        parser: where to.
        out: the default output folder; ``None`` where it depends on other options.
        no_out: what it is then, for the help text.
    """
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out",
        type=Path,
        default=None if out is None else Path(out),
        metavar="FOLDER",
        help=f"output folder (default: {out or no_out})",
    )
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of every random stream, 0 or more")
    group.add_argument("--n-envs", type=positive, default=96, metavar="N", help="episodes played side by side")
    add_device_options(group)


def add_device_options(group: Any) -> None:
    """Options of verbs that run a model."""
    group.add_argument("--device", type=device, default="auto", help="torch device: auto, cpu, cuda or cuda:1")
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads of torch (default: one for a small model, else what a second of measuring finds fastest)",
    )


def add_base_option(parser: Any) -> None:
    """The option that says where a save's base model is now."""
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="the save's base model, if it was moved: a folder or a hub id (default: where it was)",
    )


def add_acting_options(parser: argparse.ArgumentParser) -> Any:
    """Options of how a policy answers; returns their group."""
    group = parser.add_argument_group("acting")
    group.add_argument(
        "--temperature", type=number(0), default=1.0, metavar="T", help="of sampling; 0 takes the likeliest command"
    )
    group.add_argument(
        "--action-mode", choices=("constrained", "generate", "score"), help="how it answers (default: as it was saved)"
    )
    group.add_argument("--reason", action="store_true", help="write a reason before each command")
    group.add_argument(
        "--template",
        "--prompt",
        dest="template",
        metavar="NAME",
        help="prompt template: compact, full, react (a prompted baseline), or a .jinja file (default: as it was saved)",
    )
    return group


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Options of a policy on a server (``openai:<base url>``)."""
    group = parser.add_argument_group(
        "server", "for a policy openai:URL; its API key is read from the environment and from nowhere else"
    )
    group.add_argument("--model-name", metavar="NAME", help="the model's name at the server")
    group.add_argument("--concurrency", type=positive, metavar="N", help="requests under way at once (default: 8)")
    group.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer in tokens")
    group.add_argument(
        "--max-context", type=positive, metavar="N", help="shorten transcripts to about so many tokens (default: never)"
    )
    group.add_argument(
        "--timeout", type=number(above=0), metavar="S", help="seconds to wait for an answer (default: 60)"
    )
    group.add_argument("--max-retries", type=whole(0), metavar="N", help="attempts after the first (default: 5)")
    group.add_argument("--api-key-env", metavar="VAR", help="variable that holds the key (default: OPENAI_API_KEY)")
    group.add_argument(
        "--price", type=number(0), nargs=2, metavar=("IN", "OUT"), help="of a million prompt and completion tokens"
    )
    group.add_argument(
        "--fields", type=json_object, metavar="JSON", help="added to each request; null takes a field out"
    )


# ---------------------------------------------------------------------- what the options ask for
def is_alfworld(args: argparse.Namespace) -> bool:
    """Whether the environment has ALFWorld's games to choose from."""
    env = getattr(args, "env", None)
    return env is None or env.split(":")[-1] in ALFWORLD_IDS


def fill_games(args: argparse.Namespace) -> None:
    """Give the game options their defaults.

    Raises:
        ValueError: game options for an environment that is not ALFWorld.
    """
    defaults = {"split": args.default_split, **_GAME_DEFAULTS}
    for name, default in defaults.items():
        if is_alfworld(args):
            if getattr(args, name) is None:
                setattr(args, name, default)
        elif getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} chooses among ALFWorld's games, and --env {args.env} is another environment: leave {option} out, "
                "and put the arguments of your environment into --env-kwargs"
            )


def env_kwargs(args: argparse.Namespace, **override: Any) -> dict[str, Any]:
    """The environment's keyword arguments that the options ask for; :func:`fill_games` was called before."""
    games = {"split": args.split, "games": args.games, "task_types": args.task_types} if is_alfworld(args) else {}
    if games and getattr(args, "trust_games", False):
        games["trust_games"] = True
    return {**games, **override, **(getattr(args, "env_kwargs", None) or {})}


def policy_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """The policy's keyword arguments that the options ask for; what was not said is left as it was saved."""
    wanted = {"action_mode": args.action_mode, "reason": args.reason or None, "template": args.template}
    return {key: value for key, value in wanted.items() if value is not None}


def server_kwargs(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """The keyword arguments of a policy on a server that the options ask for.

    Raises:
        ValueError: such options with a model that is not on a server.
    """
    names = (
        "model_name",
        "concurrency",
        "max_new_tokens",
        "max_context",
        "timeout",
        "max_retries",
        "api_key_env",
        "fields",
    )
    wanted = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.price is not None:
        wanted["price_in"], wanted["price_out"] = args.price
    # Local models write and read so many tokens, too.
    foreign = [name for name in wanted if name not in ("max_new_tokens", "max_context")]
    if foreign and not model.startswith("openai:"):
        option = "--" + foreign[0].replace("_", "-").replace("price-in", "price")
        raise ValueError(f"{option} is for models on servers (openai:URL), and {model!r} is a local one")
    return wanted
