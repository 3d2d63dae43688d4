"""``agentprm play``: play a game in the terminal, or watch a policy play one."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from algorithms.cli import arguments, environments, prompt
from algorithms.common.shell import folders, machine

if TYPE_CHECKING:
    from agentprm_gym.envs.base import Observation, TextGameEnv
    from algorithms.common.acting.actors import Actor

_KEYS = "a number or a command; [bold]hint[/], [bold]undo[/], [bold]quit[/] (or h, u, q)"
_WORDS = ("hint", "undo", "quit")
#: Candidates that are drawn at each turn to be shown; the first is played.
SHOWN = 4


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "play",
        help="play a game yourself, or watch a policy play",
        description="Play a household game in the terminal: read, type a number or a command. 'hint' asks an expert "
        "that sees what you see, 'undo' takes a turn back. With --policy, watch a model play: the commands it weighs "
        "with their probabilities. It plays what it draws first; with --best-of the save's process reward model chooses "
        "(AgentPRM's saves hold one), and its scores are shown.",
    )
    parser.add_argument(
        "--policy",
        metavar="MODEL",
        help="watch it: a saved model (.zip), the folder of a run, tiny, a folder, a hub id, or a server: openai:URL",
    )
    parser.add_argument("--game", metavar="GAME", help="a game's id, path or index (default: drawn by --seed)")
    parser.add_argument(
        "--seed",
        type=arguments.seed,
        default=0,
        metavar="N",
        help="which games are drawn; watching: also the policy's draws",
    )
    parser.add_argument("--engine", default="native", choices=("native", "textworld"), help="what runs the game")
    parser.add_argument(
        "--reward",
        default="progress",
        metavar="NAME",
        help="process reward that is counted beside the task's own: progress, outcome (none), prm:<save.zip>, a class of your "
        "own (package.module:Class), ...",
    )
    arguments.add_import_option(parser)
    arguments.add_game_options(parser, "valid_seen")
    arguments.add_trust_option(parser)
    watch = parser.add_argument_group("watching")
    arguments.add_base_option(watch)
    watch.add_argument(
        "--best-of",
        type=arguments.positive,
        metavar="N",
        default=1,
        help="draw N commands a turn and let the save's process reward model choose (default: 1, the policy alone)",
    )
    watch.add_argument(
        "--temperature",
        type=arguments.number(0),
        default=1.0,
        metavar="T",
        help="of sampling; 0 takes the likeliest command",
    )
    watch.add_argument(
        "--max-steps", type=arguments.positive, default=30, metavar="N", help="give up after so many turns"
    )
    watch.add_argument(
        "--delay",
        type=arguments.number(0),
        metavar="S",
        help="seconds between turns (default: 1 on a terminal, else 0)",
    )
    watch.add_argument(
        "--template",
        "--prompt",
        dest="template",
        metavar="NAME",
        help="prompt template: compact, full, react, or a file",
    )
    arguments.add_device_options(watch)
    arguments.add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Play or watch.

    Raises:
        FileNotFoundError: the save is missing.
        ValueError: an unknown game, model or reward.
    """
    environments.import_modules(args)
    arguments.fill_games(args)
    if args.policy is not None:
        args.policy = folders.saved_model(args.policy)
        if args.policy.endswith(".zip") and not Path(args.policy).is_file():
            raise FileNotFoundError(f"--policy: no saved model at {args.policy}")
    # Without the step limit's wrapper: a person may think, and a turn that is taken back is not counted.
    kwargs = arguments.env_kwargs(args, engine=args.engine, reward=environments.reward_name(args.reward))
    env: Any = gym.make("agentprm_gym:ALFWorldPRM-v0", **kwargs).unwrapped
    game = args.game
    if game is not None and game.lstrip("-").isdigit():
        game = int(game)
    options = None if game is None else {"game": game}
    observation, _ = env.reset(seed=args.seed, options=options)
    try:
        if args.policy is None:
            _play(env, observation, console)
        else:
            machine.check_device(args.device)
            _watch(env, observation, args, console)
    except (EOFError, KeyboardInterrupt):
        console.print("\nGoodbye.")
    finally:
        env.close()
    return 0


# ---------------------------------------------------------------------- a person plays
def _play(env: TextGameEnv, observation: Observation, console: Console) -> None:
    """One game after the other, until the player stops."""
    while True:
        _play_game(env, observation, console)
        if prompt.ask(console, "Enter for another game, [bold]quit[/] to stop").lower() in ("q", "quit", "n", "no"):
            raise EOFError
        observation, _ = env.reset()


def _play_game(env: TextGameEnv, observation: Observation, console: Console) -> None:
    _show_task(env, observation, console)
    states: list[Any] = []
    rewards: list[tuple[float, float]] = []  # of each turn, the task's and the process reward
    shown: list[str] = []
    while True:
        commands = _arranged(observation["admissible_commands"].split("\n"))
        if commands != shown:
            console.print(_numbered(commands))
            shown = commands
        told = prompt.ask(console, _KEYS, [*_WORDS, *commands])
        word = told.lower()
        if word in ("q", "quit", "exit"):
            raise EOFError
        if word in ("h", "hint"):
            console.print(f"[green]{escape(_hint(env, observation))}[/]", highlight=False)
        elif word in ("u", "undo"):
            if not states:
                console.print("[yellow]Nothing to take back.[/]")
                continue
            observation, _ = env.restore(states.pop())
            rewards.pop()
            console.print("[yellow]Taken back.[/]")
            _show_feedback(env, observation, console)
            _show_state(env, rewards, console)
        elif (command := _command(told, commands)) is None:
            console.print(f"[yellow]{escape(_not_possible(told, commands))}[/]", highlight=False)
        else:
            states.append(env.snapshot())
            observation, _, terminated, _, info = env.step(command)
            rewards.append((float(info["reward/env"]), float(info["reward/prm"])))
            console.print(f"[bold cyan]> {escape(info['command'])}[/]")
            _show_feedback(env, observation, console)
            _show_state(env, rewards, console)
            if terminated:
                n = len(env.turns)
                console.print(f"[bold green]Done, in {n} turns.[/] Agents are given 30.")
                return


def _arranged(commands: list[str]) -> list[str]:
    """Commands in the order of the list: what can be done here, then where to go, by number, then the rest."""

    def rank(command: str) -> tuple[int, list[tuple[int, int, str]]]:
        words = [(1, int(w), "") if w.isdigit() else (0, 0, w) for w in command.split()]
        return (1 if command.startswith("go to ") else 2 if len(words) == 1 else 0), words

    return sorted(commands, key=rank)


def _command(told: str, commands: list[str]) -> str | None:
    """The command that a player means: a number of the list, a command, or ``!`` and any text; ``None`` for other words."""
    if told.isdigit():
        return commands[int(told) - 1] if 1 <= int(told) <= len(commands) else None
    if told.startswith("!"):
        return told[1:].strip() or None
    plain = " ".join(told.lower().split())
    return plain if plain in commands else None


def _not_possible(told: str, commands: list[str]) -> str:
    """What to say about words that are not a command here: the turn is not spent."""
    known = f"Type a number from 1 to {len(commands)}, or a command."
    if not told or told.isdigit():
        return known
    close = difflib.get_close_matches(told.lower(), commands, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"'{told}' is not possible here.{hint} {known} '!{told}' plays it nevertheless."


def _hint(env: TextGameEnv, observation: Observation) -> str:
    """What an expert would do that has seen what the player has seen."""
    from agentprm_gym.experts.search import SearchExpert

    expert = SearchExpert()
    task = observation["task"]
    try:
        for turn in env.turns:
            expert.act(task, turn.feedback, turn.admissible_commands)
            expert.executed(turn.command)
        reason, command = expert.act(task, observation["feedback"], observation["admissible_commands"].split("\n"))
    except ValueError as error:
        return f"no hint: {error}"
    return f"{reason} Try: {command}"


# ---------------------------------------------------------------------- a policy plays
def _watch(env: TextGameEnv, observation: Observation, args: argparse.Namespace, console: Console) -> None:
    """Show a policy's game, turn by turn."""
    import numpy as np

    from agentprm_gym.answers import write_response
    from algorithms.common.acting.actors import Request

    actor = _load(args, console)
    delay = args.delay if args.delay is not None else float(console.is_terminal)
    rng = np.random.default_rng([args.seed, 12])
    actor.start(0, observation["task"], [])
    _show_task(env, observation, console)
    rewards: list[tuple[float, float]] = []
    terminated = False
    while not terminated and len(env.turns) < args.max_steps:
        commands = observation["admissible_commands"].split("\n")
        request = Request(0, observation["task"], observation["feedback"], commands, rng, env.look_ahead)
        (answer,) = actor.answer([request])
        actor.executed(0, answer.turn(request))
        if answer.reason:
            console.print(f"[italic]{escape(answer.reason)}[/]", highlight=False)
        if answer.candidates:
            console.print(_weighed(answer.candidates, answer.command))
        time.sleep(delay)
        observation, _, terminated, _, info = env.step(write_response(answer.reason, answer.command, commands))
        rewards.append((float(info["reward/env"]), float(info["reward/prm"])))
        console.print(f"[bold cyan]{len(env.turns)} > {escape(info['command'])}[/]")
        _show_feedback(env, observation, console)
        _show_state(env, rewards, console)
    if terminated:
        console.print(f"[bold green]Done, in {len(env.turns)} turns.[/]")
    else:
        console.print(f"[bold yellow]Not done after {len(env.turns)} turns.[/]")


def _load(args: argparse.Namespace, console: Console) -> Actor:
    """The actor that ``--policy`` and ``--best-of`` ask for."""
    from algorithms.common.acting.server import is_server
    from algorithms.common.measure.evaluation import make_eval_env
    from algorithms.common.shell.load import load_actor, load_policy

    kwargs: dict[str, Any] = {**arguments.server_kwargs(args, args.policy), "device": args.device, "base": args.base}
    if args.template is not None:
        kwargs["template"] = args.template
    if args.threads is not None:
        machine.set_threads(args.threads)
    venv = make_eval_env(n_envs=1, **arguments.env_kwargs(args))
    with console.status("loading the model"):
        if args.best_of > 1:
            actor = load_actor(
                args.policy, venv, search="best-of-n", n=args.best_of, temperature=args.temperature, **kwargs
            )
            chooser = f"its process reward model chooses from {args.best_of} draws"
        else:
            policy = load_policy(args.policy, venv, **kwargs)
            # What a server writes may cost money: nothing is drawn only to be shown.
            shown = 1 if is_server(args.policy) else SHOWN
            actor = policy.actor(1, temperature=args.temperature, n_candidates=shown)
            chooser = "it plays what it draws first"
    venv.close()
    lm = getattr(getattr(actor, "policy", actor), "lm", None)
    if args.threads is None and lm is not None:
        machine.use_fast_threads(lm)
    console.print(f"watching [bold]{escape(args.policy)}[/]; {chooser}")
    return actor


def _weighed(candidates: list[dict[str, Any]], chosen: str) -> Table:
    """The commands that were weighed: their scores, where a process reward model scored them, and log-probabilities."""
    scored = any(c["score"] is not None for c in candidates)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("weighed")
    if scored:
        table.add_column("PRM", justify="right")
    table.add_column("log prob", justify="right")
    key = "score" if scored else "log_prob"
    for c in sorted(candidates, key=lambda c: -float(c[key])):
        score = [f"{c['score']:.3f}"] if scored else []
        style = "bold" if c["command"] == chosen else "dim"
        table.add_row(escape(c["command"]), *score, f"{c['log_prob']:.2f}", style=style)
    return table


# ---------------------------------------------------------------------- what both show
def _show_task(env: TextGameEnv, observation: Observation, console: Console) -> None:
    episode = env.episode()
    title = escape(f"{episode.task_type}, {episode.split}")
    console.print(Panel(f"[bold]{escape(observation['task'])}[/]", title=title, subtitle=escape(episode.game_id)))
    # The opening text ends with the task, which stands above.
    opening = observation["feedback"].split("\n\nYour task is to:")[0]
    console.print(escape(opening.split("=-")[-1].strip()), highlight=False)


def _show_feedback(env: TextGameEnv, observation: Observation, console: Console) -> None:
    if env.turns:
        console.print(escape(observation["feedback"]), highlight=False)
    else:
        _show_task(env, observation, console)


def _show_state(env: TextGameEnv, rewards: Sequence[tuple[float, float]], console: Console) -> None:
    """What the player holds, the last turn's reward, and all so far with its parts."""
    ((carried, _, _),) = env.look_ahead([["inventory"]])
    held = carried.split(":", 1)[1].strip(" .") if ":" in carried else "nothing"
    task, process = sum(r[0] for r in rewards), sum(r[1] for r in rewards)
    last = f"{sum(rewards[-1]):+.2f}" if rewards else "none"
    console.print(
        f"[dim]turn {len(env.turns)} | holding {escape(held)} | last reward {last} | "
        f"total {task + process:.2f} = task {task:.2f} + process {process:.2f}[/]",
        highlight=False,
    )


def _numbered(commands: list[str]) -> Columns:
    width = len(str(len(commands)))
    items = [f"[dim]{i:>{width}}[/] {escape(command)}" for i, command in enumerate(commands, 1)]
    return Columns(items, column_first=True, padding=(0, 3))
