"""``agentprm demo``: from nothing to a trained AgentPRM and a table, on a laptop."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import arguments, environments, output, progress, settings
from algorithms.common.shell import folders, machine

if TYPE_CHECKING:
    from rich.progress import Progress
    from stable_baselines3.common.vec_env import VecEnv

    from agentprm_gym.episodes import Episode
    from algorithms.common.acting.actors import Actor

#: Like AgentPRM's defaults, tuned on held-out *train* games of the generated world, never on the games it reports.
SFT_SETTINGS: dict[str, Any] = {"learning_rate": 2e-3}
#: Every policy of the table acts at this temperature: as it was trained, without sharpening.
TEMPERATURE = 1.0
BEST_OF = 8
_KEPT = "Finished stages are kept in the output folder; the same command goes on from there."

#: How much is done where nobody says otherwise, and with ``--quick``.
_AMOUNTS: dict[str, Any] = {"n_demos": 10, "iterations": 6, "max_games": 400, "out": Path("runs/demo")}
_QUICK: dict[str, Any] = {"n_demos": 20, "iterations": 1, "max_games": 24, "out": Path("runs/demo_quick")}
_QUICK_SETTINGS: dict[str, Any] = {
    "rollout": {"n_games": 12, "n_branch_states": 12},
    "improve": {"n_updates": 20},
    "n_validation_games": 12,
}


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "demo",
        help="watch AgentPRM beat its starting point on this machine",
        description="Clones a few expert demonstrations (SFT), then runs AgentPRM, and compares on held-out games, "
        "each played once: the base model, SFT, AgentPRM, and best-of-8 with the process reward model. Finished stages "
        "are kept in the output folder; the same command goes on after an interruption.",
    )
    positive = arguments.positive
    parser.add_argument("--policy", default="tiny", metavar="MODEL", help="base model: tiny, a folder or a hub id")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a first look: 20 demonstrations, one small iteration, 24 games, into runs/demo_quick; too little to see AgentPRM "
        "gain anything",
    )
    parser.add_argument("--n-demos", type=positive, metavar="N", help="demonstrations to clone (default: 10)")
    parser.add_argument("--epochs", type=positive, metavar="N", default=8, help="passes of SFT over the demonstrations")
    parser.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        help="how often AgentPRM rolls out, fits and improves (default: 6)",
    )
    parser.add_argument(
        "--max-games",
        type=positive,
        metavar="N",
        help="evaluation games at most, drawn by --seed and spread over the task types (default: 400)",
    )
    settings.add_option(parser, "--set", "arguments of AgentPRM, e.g. --set improve.beta=0.1", dest="settings")
    arguments.add_game_options(parser, "valid_seen")
    arguments.add_run_options(parser, None, no_out="runs/demo")
    arguments.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run all stages, skipping those that are done.

    Raises:
        OSError: the output folder cannot be written, is in use, or holds something else.
        ValueError: the folder holds a demo with other settings, or a model or game is unknown.
    """
    arguments.fill_games(args)
    _fill_amounts(args)
    folders.check_folder(args.out)
    folders.check_holds(args.out, "demo")
    from algorithms import AgentPRM
    from algorithms.common.shell.load import check_model

    settings.check_settings(AgentPRM, args.settings)
    machine.check_device(args.device)
    check_model(args.policy)
    if args.threads is not None:
        machine.set_threads(args.threads)
    with folders.locked(args.out):
        _check_settings(args)
        args.on_interrupt = _KEPT
        _run(args, console)
    return 0


def _fill_amounts(args: argparse.Namespace) -> None:
    """Give the options that say how much is done their defaults, those of ``--quick`` where it is wanted."""
    for name, value in (_QUICK if args.quick else _AMOUNTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        args.settings = settings.merged(_QUICK_SETTINGS, args.settings)


def _run(args: argparse.Namespace, console: Console) -> None:
    """Train what is missing, evaluate, and report."""
    train = environments.make_env(args, split="train")
    test = environments.make_env(args)
    games, test_games = (venv.get_attr("games", indices=[0])[0] for venv in (train, test))
    chosen = environments.drawn_games(test, args.max_games, args.seed)
    console.print(
        f"[bold]AgentPRM demo[/] on {escape(games.source)} games: train on {len(games)} of train, "
        f"report on {len(chosen)} of {args.split}, each played once"
    )
    with progress.progress(console) as bars:
        _train(args, bars, train)
        results = _evaluate_all(args, bars, test, chosen)
    _report(args, console, results, test_games)


def _train(args: argparse.Namespace, bars: Progress, venv: VecEnv) -> None:
    """Make ``sft.zip`` and ``agentprm.zip``, where they are missing."""
    from agentprm_gym.episodes import write_episodes
    from agentprm_gym.experts import demonstrations
    from algorithms import SFT, AgentPRM

    out: Path = args.out
    shared = {"seed": args.seed, "device": args.device, "tensorboard_log": str(out / "tb")}
    sft_path, prm_path = out / "sft.zip", out / "agentprm.zip"
    if not sft_path.exists():
        games = venv.get_attr("games", indices=[0])[0]
        with progress.stage(bars, f"{args.n_demos} expert demonstrations", args.n_demos) as done:
            demos = demonstrations(games, args.n_demos, args.seed, on_episode=progress.counted(done))
            write_episodes(out / "demos.jsonl.gz", demos)
        total = args.epochs * sum(len(e.turns) for e in demos)
        sft = SFT(args.policy, venv, demonstrations=demos, **shared, **SFT_SETTINGS)
        with progress.stage(bars, f"SFT on {len(demos)} demonstrations", total) as done:
            sft.learn(total, callback=progress.on_timesteps(done))
        sft.save(sft_path)
    if not prm_path.exists():
        model = AgentPRM(str(sft_path), venv, n_iterations=args.iterations, **{**shared, **args.settings})
        with progress.StageBars(bars, model) as stages:
            model.on_stage = stages.update
            model.learn()
        model.save(prm_path)


def _evaluate_all(
    args: argparse.Namespace, bars: Progress, test: VecEnv, games: Sequence[int]
) -> dict[str, Sequence[Episode]]:
    """Play the games with each policy, where that was not done yet; the episodes by the policies' names."""
    from agentprm_gym.episodes import read_episodes, write_episodes
    from algorithms import AgentPRM
    from algorithms.common.measure.evaluation import evaluate
    from algorithms.common.shell.load import load_policy

    sft, trained = (str(args.out / name) for name in ("sft.zip", "agentprm.zip"))

    def single(model: str, temperature: float) -> Callable[[], Actor]:
        def make() -> Actor:
            policy: Any = load_policy(model, test, args.device)
            return policy.actor(args.n_envs, temperature=temperature)

        return make

    def best_of() -> Actor:
        return AgentPRM.load(trained, test, device=args.device).best_of_n(args.n_envs, BEST_OF, temperature=TEMPERATURE)

    policies: dict[str, tuple[str, Callable[[], Actor]]] = {
        "base model": ("base", single(args.policy, TEMPERATURE)),
        "SFT": ("sft", single(sft, TEMPERATURE)),
        "AgentPRM": ("agentprm", single(trained, TEMPERATURE)),
        f"AgentPRM, best of {BEST_OF} by the PRM": ("best_of", best_of),
        "SFT, greedy": ("sft_greedy", single(sft, 0.0)),
        "AgentPRM, greedy": ("agentprm_greedy", single(trained, 0.0)),
    }
    results: dict[str, Sequence[Episode]] = {}
    for name, (file, make) in policies.items():
        path = args.out / "eval" / f"{file}.jsonl.gz"
        if not path.exists():
            with progress.stage(bars, f"evaluate {name}", len(games)) as done:
                count = progress.counted(done)
                episodes = evaluate(make(), test, games=games, seed=args.seed, policy_name=name, on_episode=count)
                write_episodes(path, episodes)
        results[name] = list(read_episodes(path))
    return results


def _check_settings(args: argparse.Namespace) -> None:
    """A folder belongs to one setting; anything else would mix two runs in one table.

    Raises:
        ValueError: the folder holds a demo with other settings.
    """
    keys = (
        "policy",
        "n_demos",
        "epochs",
        "iterations",
        "max_games",
        "split",
        "games",
        "task_types",
        "seed",
        "settings",
    )
    asked = {key: getattr(args, key) for key in keys}
    path = args.out / "settings.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        # Version 0.1 did not have these two.
        changed = [key for key in keys if {"epochs": 8, "settings": {}, **found}.get(key) != asked[key]]
        if changed:
            raise ValueError(
                f"{args.out} holds a demo with other settings ({', '.join(changed)}); choose another --out or delete it"
            )
    output.write_json(path, asked)


def _report(args: argparse.Namespace, console: Console, results: dict[str, Sequence[Episode]], games: Any) -> None:
    """Print the table, and write it."""
    from algorithms.common.measure.evaluation import by_task_type, paired_difference, rate

    table = output.make_table(
        "policy",
        "success %\n[95 % interval]",
        "against SFT,\nsame mode, paired",
        "mean\nsteps",
        title="success on held-out games",
    )
    rows = []
    for name, episodes in results.items():
        row = rate(name, episodes)
        entry = output.rate_row(row)
        against = ""
        # Like against like: a greedy policy with greedy SFT, a sampled one with sampled SFT.
        start = "SFT, greedy" if name.endswith("greedy") else "SFT"
        if name != start:
            d = paired_difference(results[start], episodes)
            against = output.signed(d.difference, d.low, d.high)
            entry["against_sft"] = {"difference": d.difference, "low": d.low, "high": d.high}
        entry["by_task_type"] = [output.rate_row(r) for r in by_task_type(episodes)]
        rows.append(entry)
        table.add_row(name.removesuffix(" by the PRM"), output.percent(row), against, f"{row.mean_steps:.1f}")
    console.print(table)
    console.print(
        f"{rows[0]['n']} {escape(games.source)} games of {args.split}; drawn at temperature {TEMPERATURE:g} unless greedy; "
        f"best of {BEST_OF}: draws among which the PRM chooses",
        soft_wrap=True,
    )
    source = {"source": games.source, "split": args.split, "content_hash": games.content_hash}
    result = {**output.provenance(), "seed": args.seed, "games": source, "rows": rows}
    output.write_json(args.out / "result.json", result)
    out, tb, model = (escape(str(args.out / name)) for name in ("", "tb", "agentprm.zip"))
    console.print(
        f"everything is in [bold]{out}[/]; curves: make tensorboard, or tensorboard --logdir {tb}\n"
        f"watch it play: agentprm play --policy {model}",
        soft_wrap=True,
    )
    output.show_json(args, result)
