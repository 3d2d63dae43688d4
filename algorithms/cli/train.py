"""``agentprm train``: one algorithm, one output folder."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from agentprm_gym.games.demos import demonstrations
from algorithms.cli import common

if TYPE_CHECKING:
    from rich.progress import Progress
    from stable_baselines3.common.vec_env import VecEnv

    from algorithms.common.base import LLMAlgorithm

ALGORITHMS = ("sft", "agentprm")


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = common.add_verb(
        verbs,
        "train",
        help="train one algorithm",
        description="Train one algorithm and save it to OUT/model.zip, with TensorBoard curves in OUT/tb and the "
        "settings in OUT/settings.json. SFT clones the searching expert's demonstrations; AgentPRM starts from "
        "--policy, usually an SFT model. Ctrl-C keeps what is learnt so far in OUT/interrupted.zip, to go on from "
        "with --policy.",
    )
    parser.add_argument("--algo", required=True, choices=ALGORITHMS, help="which algorithm")
    parser.add_argument(
        "--policy",
        default="tiny",
        metavar="MODEL",
        help="where to start: tiny, a folder, a hub id, or a saved model.zip",
    )
    parser.add_argument(
        "--demos", metavar="FILE", help="sft: a .jsonl[.gz] file of demonstrations (default: the expert plays some)"
    )
    parser.add_argument(
        "--n-demos", type=common.positive, default=150, metavar="N", help="sft: how many the expert plays"
    )
    parser.add_argument(
        "--epochs", type=common.positive, default=8, metavar="N", help="sft: passes over the demonstrations"
    )
    parser.add_argument(
        "--iterations",
        type=common.positive,
        default=2,
        metavar="N",
        help="agentprm: iterations of roll out, fit, improve",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="arguments of the algorithm's constructor, e.g. --set gamma=0.9 n_games=128",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model.zip that is in the output folder")
    common.add_game_options(parser, "train")
    common.add_run_options(parser, "runs/train")
    parser.set_defaults(run=run)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are JSON where they parse as it, else strings.

    Raises:
        ValueError: for a pair without ``=``.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set expects KEY=VALUE, got {pair!r}")
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def check_settings(algorithm: type[LLMAlgorithm], settings: dict[str, Any]) -> None:
    """Refuse settings that an algorithm's constructor does not have.

    Raises:
        ValueError: listing those that it has.
    """
    from algorithms.common.base import LLMAlgorithm

    # These have options of their own, or are no plain values.
    taken = {"self", "kwargs", "policy", "env", "demonstrations", "seed", "device", "n_envs", "tensorboard_log"}
    taken |= {"n_iterations", "_init_setup_model"}
    known = {*inspect.signature(algorithm.__init__).parameters, *inspect.signature(LLMAlgorithm.__init__).parameters}
    for key in settings:
        if key not in known - taken:
            raise ValueError(
                f"--set: {algorithm.__name__} has no setting {key!r}; choose from {', '.join(sorted(known - taken))}"
            )


def run(args: argparse.Namespace, console: Console) -> int:
    """Train.

    Raises:
        FileExistsError: if the output folder holds a model already.
        ValueError: for a setting that the algorithm does not have.
    """
    from algorithms import SFT, AgentPRM
    from algorithms.common.evaluation import make_eval_env
    from algorithms.common.loading import check_model

    out: Path = args.out
    settings = parse_settings(args.settings)
    check_settings(SFT if args.algo == "sft" else AgentPRM, settings)
    if (out / "model.zip").exists() and not args.overwrite:
        raise FileExistsError(f"{out / 'model.zip'} is there already; choose another --out, or add --overwrite")
    check_model(args.policy)
    common.set_threads(args.threads)
    shared = {"seed": args.seed, "tensorboard_log": str(out / "tb"), "device": args.device, "verbose": 0, **settings}
    venv = make_eval_env(n_envs=args.n_envs, **common.env_kwargs(args))
    given = {key: str(value) for key, value in vars(args).items() if key != "run"}
    common.write_json(out / "settings.json", {**common.provenance(), "args": given})
    with common.progress(console) as bars:
        if args.algo == "sft":
            model = _train_sft(args, bars, venv, shared)
        else:
            agent = AgentPRM(args.policy, venv, n_iterations=args.iterations, **shared)
            with _kept_on_interrupt(agent, args), common.StageBars(bars, agent) as stages:
                agent.on_stage = stages.update
                agent.learn(10**12)
            model = agent
    model.save(out / "model.zip")
    path = escape(str(out / "model.zip"))
    console.print(f"saved [bold]{path}[/]; next: agentprm eval {path} --split valid_seen", soft_wrap=True)
    return 0


def _train_sft(args: argparse.Namespace, bars: Progress, venv: VecEnv, shared: dict[str, Any]) -> LLMAlgorithm:
    from agentprm_gym.episodes import read_episodes, write_episodes
    from algorithms import SFT

    if args.demos is not None:
        demos = list(read_episodes(args.demos))
    else:
        games = venv.get_attr("games", indices=[0])[0]
        with common.stage(bars, f"{args.n_demos} expert demonstrations", args.n_demos) as done:
            demos = demonstrations(games, args.n_demos, args.seed, on_episode=common.counted(done))
        write_episodes(args.out / "demos.jsonl.gz", demos)
    model = SFT(args.policy, venv, demonstrations=demos, **shared)
    total = args.epochs * sum(len(e.turns) for e in demos)
    with _kept_on_interrupt(model, args), common.stage(bars, f"SFT on {len(demos)} demonstrations", total) as done:
        model.learn(total, callback=common.on_timesteps(done))
    return model


@contextmanager
def _kept_on_interrupt(model: LLMAlgorithm, args: argparse.Namespace) -> Iterator[None]:
    """Save what is learnt so far when Ctrl-C ends the body; the interruption goes on."""
    try:
        yield
    except KeyboardInterrupt:
        path = args.out / "interrupted.zip"
        model.save(path)
        args.on_interrupt = f"What was learnt so far is in {path}; --policy {path} goes on from it."
        raise
