"""Options of ``agentprm train``: what there is, the defaults of each algorithm, and which contradict each other.

``agentprm sweep`` takes the same. Nothing here loads torch.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from agentprm_gym.games.names import SPLITS
from algorithms import registry
from algorithms.cli import arguments, configuration, environments, presets, processes, settings, workers
from algorithms.common.shell import folders

#: What the algorithms learn from that do not look at a process reward.
_LEARNS_FROM = {
    "sft": "demonstrations",
    "agentprm": "outcomes",
    "inverseprm": "demonstrations",
    "rft": "won episodes",
    "onlinedpo": "outcomes",
}

#: Options of some algorithms only, and their defaults; ``None``: without a default.
_OWN_OPTIONS: dict[str, dict[str, float | None]] = {
    "sft": {"demos": None, "n_demos": 150, "epochs": 8},
    "agentprm": {"iterations": 6, "minutes": None},
    "inverseprm": {"demos": None, "n_demos": 150, "iterations": 2, "minutes": None},
}
_OTHERS_OPTIONS: dict[str, float | None] = {"timesteps": 100_000, "minutes": None}

#: Where curves can be sent beside TensorBoard, as algorithms.common.shell.log_services has them, which loads torch.
LOG_SERVICES = ("wandb", "trackio", "mlflow")

RULES = configuration.Rules(
    "train",
    not_saved=("log",),
    may_change=("device", "threads", "n_envs", "minutes", "workers", "ray", "sampler", "log"),
    may_grow=("iterations", "timesteps", "epochs"),
)


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of what is trained, and how.

    Args:
        parser: where to.
        out: the default output folder.
    """
    parser.add_argument(
        "--algo",
        metavar="NAME",
        help=f"which algorithm: {', '.join(registry.BUILT_IN)}, or a class of your own, package.module:Class",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"a configuration that comes with the package: {', '.join(presets.names())}; '{presets.LIST}' says what each is "
        "for. A --config counts more, and so does what stands on the command line",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file of these options, their names without dashes ('algo: ppo', 'n_envs: 96', 'set: {gamma: 0.9}'); "
        "what stands on the command line counts more",
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in this output folder, which was killed, interrupted or out of time, as if nothing had "
        "happened: agentprm and inverseprm after the last stage that was done, the others after the last iteration. Other "
        "options are not needed; --iterations, --timesteps or --epochs may be larger than they were, and --device, --threads, "
        "--n-envs, --minutes, --workers, --ray, --sampler and --log may differ",
    )
    parser.add_argument(
        "--policy",
        default="tiny",
        metavar="MODEL",
        help="where to start: tiny, a folder, a hub id, a saved model.zip, or the folder of a run",
    )
    parser.add_argument(
        "--demos",
        metavar="FILE",
        help="sft, inverseprm: a .jsonl[.gz] file of demonstrations (default: the expert plays some, kept in "
        "OUT/demos.jsonl.gz)",
    )
    add_amounts(parser)
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="process reward to learn from, beside the task's own: progress, oracle_advantage, penalty, prm:SAVE.zip, sum, "
        "..., or a class of your own, package.module:Class (default: none); for "
        + ", ".join(name for name in registry.BUILT_IN if name not in _LEARNS_FROM),
    )
    parser.add_argument(
        "--reward-kwargs",
        type=arguments.json_object,
        metavar="JSON",
        help='arguments of the process reward, e.g. \'{"form": "value", "clip": [-1, 1]}\'',
    )
    settings.add_option(
        parser,
        "--set",
        "arguments of the algorithm's constructor, e.g. --set gamma=0.9 improve.beta=0.1",
        dest="settings",
    )
    parser.add_argument(
        "--seeds",
        type=arguments.positive,
        metavar="N",
        help="train so many times, with the seeds from --seed on, into OUT/seed_0, OUT/seed_1, ...",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        choices=LOG_SERVICES,
        default=[],
        metavar="SERVICE",
        help=f"send the curves there, too: {', '.join(LOG_SERVICES)} (each needs its extra; the service's own "
        "environment variables say where to, and whether offline)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model.zip that is in the output folder")
    arguments.add_game_options(parser, "train")
    arguments.add_trust_option(parser)
    arguments.add_env_options(parser)
    arguments.add_run_options(parser, out)
    workers.add_options(parser)
    arguments.add_json_option(parser)


def add_amounts(parser: argparse.ArgumentParser) -> None:
    """Options that say how much is learnt; each algorithm takes some of them."""
    positive = arguments.positive
    parser.add_argument(
        "--n-demos", type=positive, metavar="N", help="sft, inverseprm: how many the expert plays (default: 150)"
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="sft: passes over the demonstrations (default: 8)")
    parser.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        help="agentprm, inverseprm: iterations of roll out, fit, improve (default: 6 and 2)",
    )
    parser.add_argument(
        "--timesteps", type=positive, metavar="N", help="the others: turns to play at least (default: 100000)"
    )
    parser.add_argument(
        "--minutes",
        type=arguments.number(above=0),
        metavar="M",
        help="all but sft: stop after so many minutes, too, when the iteration that runs then is over (default: never)",
    )


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Options for evaluations while it trains."""
    group = parser.add_argument_group("evaluations while it trains")
    group.add_argument(
        "--eval-every",
        type=arguments.positive,
        metavar="TURNS",
        help="after so many turns of training, when the iteration that runs then is over, play the same held-out games "
        "greedily (first before training). The curve is eval/success_rate, OUT/evaluations.json has the numbers, and "
        "OUT/best.zip the policy that won most (default: never)",
    )
    group.add_argument(
        "--eval-games",
        type=arguments.positive,
        metavar="N",
        help="how many, spread over the task types (default: 100)",
    )
    group.add_argument(
        "--eval-split",
        choices=[split for split in SPLITS if split != "train"],
        help="of which split of ALFWorld's games; report on the other one (default: valid_seen). In another environment the "
        "games are seeds that training does not draw",
    )


def own_options(name: str) -> dict[str, float | None]:
    """Options that an algorithm has and others may not have, with their defaults.

    Those of this package are known by name, so that a wrong option is refused before torch is loaded; those of a class of the
    user's own follow from its constructor's arguments.
    """
    if name in registry.BUILT_IN:
        return _OWN_OPTIONS.get(name, _OTHERS_OPTIONS)
    names = registry.find_algorithm(name).constructor_names()
    clones = "demonstrations" in names
    if "n_iterations" in names:
        return _OWN_OPTIONS["inverseprm" if clones else "agentprm"]
    return _OWN_OPTIONS["sft"] if clones else _OTHERS_OPTIONS


def learns_from(name: str) -> str | None:
    """What an algorithm learns from that does not look at a process reward; ``None`` for one that does."""
    if name in registry.BUILT_IN:
        return _LEARNS_FROM.get(name)
    parents = [f"{cls.__module__}:{cls.__name__}" for cls in registry.find_algorithm(name).__mro__]
    for known, path in registry.BUILT_IN.items():
        module, _, cls = path.partition(":")
        if any(parent.startswith(module + ".") and parent.endswith(":" + cls) for parent in parents):
            return _LEARNS_FROM.get(known)
    return None


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, fill in defaults, and import the user's modules; torch is not loaded.

    Raises:
        OSError: the output folder cannot be written, or holds something else; or the zip to start from is missing.
        ValueError: an option is missing, or is not one of the algorithm's.
        ModuleNotFoundError: the package of a service for curves is not installed.
    """
    if args.algo is None:
        names = ", ".join(registry.BUILT_IN)
        raise ValueError(
            f"--algo is missing: choose from {names} (or write 'algo:' into the --config, or choose a --preset)"
        )
    environments.import_modules(args)
    registry.check_algorithm_name(args.algo)
    _fill_defaults(args)
    arguments.fill_games(args)
    if args.reward is not None and learns_from(args.algo) is not None:
        raise ValueError(f"--reward: {args.algo} learns from {learns_from(args.algo)}, not from a process reward")
    if args.reward is None and args.reward_kwargs is not None:
        raise ValueError("--reward-kwargs are for a --reward: add one")
    _check_eval_options(args)
    for service in args.log:
        if find_spec(service) is None:
            raise ModuleNotFoundError(f"--log {service}: not installed: pip install 'agentprm-gym[{service}]'")
    workers.check(args)
    if not arguments.is_alfworld(args) and "demos" in own_options(args.algo) and args.demos is None:
        raise ValueError(
            f"--demos is missing: the expert plays ALFWorld's games only, and --env {args.env} is another one"
        )
    folders.check_folder(args.out)
    if args.resume is None and processes.is_main():
        folders.check_holds(args.out, "run" if args.seeds is None else "seeds")
    start = folders.saved_model(args.policy)
    if start.endswith(".zip") and not Path(start).is_file():
        raise FileNotFoundError(f"--policy: no saved model at {start}")
    if args.demos is not None and not Path(args.demos).is_file():
        raise FileNotFoundError(f"--demos: no file {args.demos!r}")


def _fill_defaults(args: argparse.Namespace) -> None:
    """Give the options of the algorithm their defaults.

    Raises:
        ValueError: an option of another algorithm was given.
    """
    own = own_options(args.algo)
    for name in {name: None for options in (*_OWN_OPTIONS.values(), _OTHERS_OPTIONS) for name in options}:
        if getattr(args, name) is None:
            setattr(args, name, own.get(name))
        elif name not in own:
            takes = ", ".join("--" + n.replace("_", "-") for n in own)
            raise ValueError(f"--{name.replace('_', '-')} is not for {args.algo}, which takes {takes}")


def _check_eval_options(args: argparse.Namespace) -> None:
    """Give the options of evaluations their defaults.

    Raises:
        ValueError: they are given without ``--eval-every``, or a split for an environment without any.
    """
    if args.eval_every is None:
        for name in ("eval_games", "eval_split"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is for evaluations while it trains: add --eval-every TURNS"
                )
        return
    args.eval_games = args.eval_games or 100
    if arguments.is_alfworld(args):
        args.eval_split = args.eval_split or "valid_seen"
    elif args.eval_split is not None:
        raise ValueError(f"--eval-split is one of ALFWorld's splits, and --env {args.env} is another environment")
