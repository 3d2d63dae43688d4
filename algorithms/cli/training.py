"""What ``agentprm train`` does in one folder: make the environments and the algorithm, or take them up, and learn."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from agentprm_gym.episodes import write_episodes
from algorithms.cli import arguments, configuration, environments, output, processes, progress, workers
from algorithms.common.shell import folders, machine
from algorithms.common.shell.errors import KEPT, DivergedError

if TYPE_CHECKING:
    from rich.progress import Progress
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

    from agentprm_gym.episodes import Episode
    from algorithms.common.measure.eval_callback import GamesEvalCallback
    from algorithms.common.shell.base import LLMAlgorithm

#: What the expert plays for a run without --demos, in its folder.
_DEMOS = "demos.jsonl.gz"


def goes_on(args: argparse.Namespace, folder: Path) -> bool:
    """Whether a folder's run is to be taken up, rather than begun."""
    from algorithms.common.shell.checkpoints import state_path

    return args.resume is not None and state_path(folder).exists()


def clear(folder: Path) -> None:
    """Remove a run's results before another one begins in its folder, so that no old model stands beside a new description.

    The checkpoint goes first: what is left when this is killed is an old model with its own description, or nothing to resume.
    Files of the user's stay, and so do curves, which are numbered.
    """
    from algorithms.common.shell.checkpoints import remove_checkpoint

    remove_checkpoint(folder)
    for name in (folders.MODEL, folders.INTERRUPTED, folders.BEST, folders.EVALUATIONS, KEPT):
        (folder / name).unlink(missing_ok=True)


def train_one(
    args: argparse.Namespace, algorithm: type[LLMAlgorithm], console: Console, begin: Callable[[], None]
) -> None:
    """Train with one seed, into one folder.

    Args:
        args: the options, checked; ``out`` and ``seed`` are this run's.
        algorithm: the algorithm.
        console: where to report.
        begin: called when everything was found to be right and before anything is written.
    """
    out: Path = args.out
    path = escape(str(out / folders.MODEL))
    if args.resume is not None and not goes_on(args, out) and (out / folders.MODEL).exists():
        console.print(f"{path} was saved without a checkpoint; it stays as it is", soft_wrap=True)
        return
    with progress.progress(console) as bars, ExitStack() as stack:
        venv = environments.make_training_env(args)
        model, total, played = _make_model(args, algorithm, bars, venv)
        resumed = goes_on(args, out)
        is_finished = resumed and _is_finished(args, model, total)
        if not is_finished:
            model.workers = stack.enter_context(workers.rollout_workers(args, model))
        evaluations = None if args.eval_every is None else environments.make_eval_callback(args, out)
        if evaluations is not None:
            stack.callback(evaluations.eval_env.close)
        begin()
        if played is not None and processes.is_main():
            write_episodes(out / _DEMOS, played)
        if is_finished:
            limit = "iterations" if args.iterations else "epochs" if args.epochs else "timesteps"
            console.print(
                f"{path} is finished: --{limit} {getattr(args, limit)} are done, and a larger --{limit} goes on",
                soft_wrap=True,
            )
            venv.close()
            return
        if processes.is_main():
            _write_settings(args, resumed=resumed)
            configuration.write_config(args.parser, out, args, args.rules)
        with _kept_on_error(model, args):
            in_time = _learn(args, bars, model, total, evaluations, resumed=resumed)
    if processes.is_main():
        model.save(out / folders.MODEL)
    model.logger.close()
    venv.close()
    if not in_time:
        console.print(
            f"stopped after {args.minutes:g} minutes and {model.iteration} iterations; "
            f"--resume {escape(str(args.resumed_by))} goes on",
            soft_wrap=True,
        )
    best = None if evaluations is None else evaluations.best
    if best is not None:
        console.print(
            f"best on {best.n} games: {100 * best.success:.1f} % won after {best.timesteps} turns "
            f"[{100 * best.low:.1f}, {100 * best.high:.1f}], {escape(str(out / folders.BEST))}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"saved [bold]{path}[/]; next: agentprm eval {path}{_next_split(args)}", soft_wrap=True)


def _next_split(args: argparse.Namespace) -> str:
    return " --split valid_seen" if arguments.is_alfworld(args) else f" --env {args.env} --max-games 100"


def _make_model(
    args: argparse.Namespace, algorithm: type[LLMAlgorithm], bars: Progress, venv: VecEnv
) -> tuple[LLMAlgorithm, int, list[Episode] | None]:
    """The algorithm, new or as a checkpoint has it; how many timesteps it is to learn; and demonstrations to be kept."""
    from algorithms.common.shell.base import NO_LIMIT

    out: Path = args.out
    played: list[Episode] | None = None
    if args.threads is not None:
        machine.set_threads(args.threads)
    shared: dict[str, Any] = {"tensorboard_log": str(out / "tb"), "device": args.device, "verbose": 0}
    total = args.timesteps or NO_LIMIT
    if args.iterations:
        shared["n_iterations"] = args.iterations
    if "demonstrations" in algorithm.constructor_names():
        demos, is_new = _demonstrations(args, bars, venv)
        shared["demonstrations"], played = demos, demos if is_new else None
        if args.epochs:
            total = args.epochs * sum(len(e.turns) for e in demos)
    if goes_on(args, out):
        trusted = bool((args.settings.get("policy_kwargs") or {}).get("trust_remote_code"))
        return algorithm.resume(out, venv, trust_remote_code=trusted, **shared), total, played
    make: Any = algorithm
    try:
        model: LLMAlgorithm = make(args.policy, venv, **{"seed": args.seed, **shared, **args.settings})
    except TypeError as error:
        # Of a constructor that does not check its arguments.
        raise ValueError(f"{algorithm.__name__} does not take --set {args.settings}: {error}") from error
    model.checkpoint_dir = out
    return model, total, played


def _demonstrations(args: argparse.Namespace, bars: Progress, venv: VecEnv) -> tuple[list[Episode], bool]:
    """The demonstrations of a file, or those that the expert plays; and whether it played them now, so that they are kept."""
    from agentprm_gym.episodes import read_episodes
    from agentprm_gym.experts import demonstrations

    kept = args.out / _DEMOS
    if args.demos is not None or (goes_on(args, args.out) and kept.exists()):
        return list(read_episodes(args.demos or kept)), False
    games = venv.get_attr("games", indices=[0])[0]
    with progress.stage(bars, f"{args.n_demos} expert demonstrations", args.n_demos) as done:
        demos = demonstrations(games, args.n_demos, args.seed, on_episode=progress.counted(done))
    return demos, True


def _is_finished(args: argparse.Namespace, model: LLMAlgorithm, total: int) -> bool:
    """Whether a run that is taken up is at its end, and its result saved."""
    from agentprm_gym.llm.saving import read_save

    path = args.out / folders.MODEL
    at_end = model.iteration >= args.iterations if args.iterations else model.num_timesteps >= total
    # A model.zip may be that of a shorter run, or of one that ran out of time.
    return at_end and path.exists() and read_save(path).manifest["counters"]["iteration"] >= model.iteration


def _learn(
    args: argparse.Namespace,
    bars: Progress,
    model: LLMAlgorithm,
    total: int,
    evaluations: GamesEvalCallback | None,
    *,
    resumed: bool,
) -> bool:
    """Train to the end; returns whether it came before the time was over."""
    from algorithms.common.shell.deadline import Deadline
    from algorithms.common.shell.log_services import LogTo

    deadline = None if args.minutes is None else Deadline(args.minutes)
    # Held-out games are played before the clock is looked at, so that the last model is among those measured.
    callbacks: list[BaseCallback] = [one for one in (evaluations, deadline) if one is not None]
    services = [LogTo(service, os.fspath(args.out)) for service in dict.fromkeys(args.log)]
    callbacks += services
    # What was learnt before counts.
    rest = total - model.num_timesteps if resumed else total
    try:
        _learn_with_bars(bars, model, total, rest, callbacks, resumed=resumed)
    finally:
        for service in services:  # where an error ended learn
            service.close()
    return deadline is None or not deadline.is_over


def _learn_with_bars(
    bars: Progress, model: LLMAlgorithm, total: int, rest: int, callbacks: list[BaseCallback], *, resumed: bool
) -> None:
    """Train, with a bar for the whole or for each stage.

    Args:
        bars: where to show them.
        model: the algorithm.
        total: turns of the whole run.
        rest: turns that are left of them.
        callbacks: of ``learn``.
        resumed: whether this goes on with a run.
    """
    from stable_baselines3.common.callbacks import ConvertCallback

    from algorithms.common.prm.algorithm import PRMAlgorithm

    if isinstance(model, PRMAlgorithm):
        with progress.StageBars(bars, model) as stages:
            model.on_stage = stages.update
            model.learn(rest, callback=callbacks, reset_num_timesteps=not resumed)
    else:
        label, demos = type(model).__name__, getattr(model, "demonstrations", None)
        if demos:
            label += f" on {len(demos)} demonstrations"
        with progress.stage(bars, label, total) as done:
            shown = ConvertCallback(progress.on_timesteps(done))
            model.learn(rest, callback=[*callbacks, shown], reset_num_timesteps=not resumed)


def _write_settings(args: argparse.Namespace, *, resumed: bool) -> None:
    """Note what a run is made with; where it goes on, beside what it was begun with."""
    given = {key: str(value) for key, value in vars(args).items() if key not in ("run", "rules", "parser")}
    note, path = {**output.provenance(), "args": given}, args.out / "settings.json"
    if resumed and path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        note = {**begun, "resumed": [*begun.get("resumed", []), note]}
    output.write_json(path, note)


@contextmanager
def _kept_on_error(model: LLMAlgorithm, args: argparse.Namespace) -> Iterator[None]:
    """Save what is learnt so far when Ctrl-C or an error ends the body; the interruption goes on."""
    from algorithms.common.shell.checkpoints import state_path

    try:
        yield
    except DivergedError:
        raise  # what is learnt is worth nothing, and to go on would end there again
    except BaseException:
        if not processes.is_main():
            raise
        path = args.out / folders.INTERRUPTED
        with suppress(OSError, RuntimeError):  # the disk or the memory may be what is full
            model.save(path)
            args.on_interrupt = f"What was learnt so far is in {path}; --policy {path} begins another run from it."
        if state_path(args.out).exists():
            told = getattr(args, "on_interrupt", "")
            args.on_interrupt = (
                f"{told} --resume {args.resumed_by} goes on with this one, from its last checkpoint.".strip()
            )
        raise
