"""``agentprm train``: one algorithm, one output folder; or several seeds of it, a folder each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
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

#: What ``--algo`` takes, and the class in :mod:`algorithms` that it is.
ALGORITHMS = {
    "sft": "SFT",
    "agentprm": "AgentPRM",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "gigpo": "GiGPO",
    "rft": "RFT",
    "onlinedpo": "OnlineDPO",
}

#: What those learn from that look at no reward.
_LEARNS_FROM = {
    "sft": "demonstrations",
    "agentprm": "outcomes",
    "rft": "won episodes",
    "onlinedpo": "outcomes",
}

#: Options of some algorithms only, and their defaults; ``None``: there is none.
_OWN_OPTIONS: dict[str, dict[str, int | None]] = {
    "sft": {"demos": None, "n_demos": 150, "epochs": 8},
    "agentprm": {"iterations": 2},
}
_OTHERS_OPTIONS: dict[str, int | None] = {"timesteps": 100_000}

#: Options that say where or how, not what: a configuration is saved without them. It may have them.
_NOT_SAVED = ("out", "overwrite")


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb."""
    parser = common.add_verb(
        verbs,
        "train",
        help="train one algorithm",
        description="Train one algorithm and save it to OUT/model.zip, with TensorBoard curves in OUT/tb, the "
        "settings in OUT/settings.json, and in OUT/config.yaml what --config takes to run it again. SFT clones the "
        "searching expert's demonstrations; the others start from --policy, usually an SFT model. Ctrl-C keeps what is "
        "learnt so far in OUT/interrupted.zip, to go on from with --policy. 'agentprm compare' draws the curves.",
    )
    parser.add_argument("--algo", choices=ALGORITHMS, help="which algorithm")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file of these options, their names without dashes ('algo: ppo', 'n_envs: 96', 'set: {gamma: 0.9}'); "
        "what stands on the command line counts more",
    )
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
        "--n-demos", type=common.positive, metavar="N", help="sft: how many the expert plays (default: 150)"
    )
    parser.add_argument(
        "--epochs", type=common.positive, metavar="N", help="sft: passes over the demonstrations (default: 8)"
    )
    parser.add_argument(
        "--iterations",
        type=common.positive,
        metavar="N",
        help="agentprm: iterations of roll out, fit, improve (default: 2)",
    )
    parser.add_argument(
        "--timesteps", type=common.positive, metavar="N", help="the others: turns to play at least (default: 100000)"
    )
    parser.add_argument(
        "--reward",
        metavar="NAME",
        help="process reward to learn from, beside the task's own: progress, oracle_advantage, penalty, prm:SAVE.zip, sum, ... "
        "(the README lists them all; default: none); for "
        + ", ".join(name for name in ALGORITHMS if name not in _LEARNS_FROM),
    )
    parser.add_argument(
        "--reward-kwargs",
        type=common.json_object,
        metavar="JSON",
        help='arguments of the process reward, e.g. \'{"form": "value", "clip": [-1, 1]}\'',
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="arguments of the algorithm's constructor, e.g. --set gamma=0.9 n_games=128",
    )
    parser.add_argument(
        "--seeds",
        type=common.positive,
        metavar="N",
        help="train so many times, with the seeds from --seed on, into OUT/seed_0, OUT/seed_1, ...",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model.zip that is in the output folder")
    common.add_game_options(parser, "train")
    common.add_run_options(parser, "runs/train")
    parser.set_defaults(run=run)
    return parser


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
    # These have options of their own, or are no plain values.
    taken = {"self", "kwargs", "policy", "env", "demonstrations", "seed", "device", "n_envs", "tensorboard_log"}
    taken |= {"n_iterations", "_init_setup_model"}
    known = set(algorithm.constructor_names())
    for key in settings:
        if key not in known - taken:
            raise ValueError(
                f"--set: {algorithm.__name__} has no setting {key!r}; choose from {', '.join(sorted(known - taken))}"
            )


# ---------------------------------------------------------------------- configurations
def with_config(argv: Sequence[str], path: str) -> list[str]:
    """A command line with a configuration's options put before its own, which so count more.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no YAML mapping, or an option that ``train`` does not have.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"--config: no file {path!r}")
    try:
        config = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config: expected {path} to hold options such as 'algo: ppo', got {type(config).__name__}")
    known = {name for name in _options() if name not in ("help", "config")}
    at = list(argv).index("train") + 1
    words: list[str] = []
    for key, value in config.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(f"--config: {path} has an option {key!r}; choose from {', '.join(sorted(known))}")
        words += _words(name, value, path)
    return [*argv[:at], *words, *argv[at:]]


def _options() -> dict[str, argparse.Action]:
    """All options by their names in a configuration."""
    parser = add_parser(argparse.ArgumentParser().add_subparsers())
    return {action.option_strings[-1].removeprefix("--").replace("-", "_"): action for action in parser._actions}


def _words(name: str, value: Any, path: str) -> list[str]:
    """An option of a configuration as on the command line, where it is checked."""
    flag = "--" + name.replace("_", "-")
    if name == "set":
        if not isinstance(value, dict):
            raise ValueError(f"--config: {path}: expected 'set: {{gamma: 0.9, ...}}', got {value!r}")
        # Texts as they are: YAML takes 1e-3 for one.
        pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]
        return [flag, *pairs] if pairs else []
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]


def _write_config(args: argparse.Namespace, settings: dict[str, Any], *, seeds: int | None) -> None:
    """Write what ``--config`` takes to run this again."""
    import yaml

    values = {**vars(args), "settings": settings, "seeds": seeds}
    options = {name: values.get(action.dest) for name, action in _options().items() if name not in _NOT_SAVED}
    config = {name: value for name, value in options.items() if name != "config" and value not in (None, {}, [])}
    common.write_text(args.out / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _fill_defaults(args: argparse.Namespace) -> None:
    """Give the options of the algorithm their defaults.

    Raises:
        ValueError: for an option of another algorithm.
    """
    own = _OWN_OPTIONS.get(args.algo, _OTHERS_OPTIONS)
    for options in (*_OWN_OPTIONS.values(), _OTHERS_OPTIONS):
        for name, default in options.items():
            if options is own:
                setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
            elif getattr(args, name) is not None:
                takes = ", ".join("--" + n.replace("_", "-") for n in own)
                raise ValueError(f"--{name.replace('_', '-')} is not for {args.algo}, which takes {takes}")


# ---------------------------------------------------------------------- training
def run(args: argparse.Namespace, console: Console) -> int:
    """Train.

    Raises:
        FileExistsError: if an output folder holds a model already.
        ValueError: for a setting or an option that the algorithm does not have, or no algorithm.
    """
    if args.algo is None:
        raise ValueError(f"--algo is missing: choose from {', '.join(ALGORITHMS)} (or write 'algo:' into the --config)")
    _fill_defaults(args)
    if args.reward is not None and args.algo in _LEARNS_FROM:
        raise ValueError(f"--reward: {args.algo} learns from {_LEARNS_FROM[args.algo]}, not from a process reward")
    if args.reward is None and args.reward_kwargs is not None:
        raise ValueError("--reward-kwargs are for a --reward, and there is none")
    import algorithms
    from algorithms.common.loading import check_model

    settings = parse_settings(args.settings)
    check_settings(getattr(algorithms, ALGORITHMS[args.algo]), settings)
    out: Path = args.out
    runs = [(args.seed, out)]
    if args.seeds is not None:
        runs = [(seed, out / f"seed_{seed}") for seed in range(args.seed, args.seed + args.seeds)]
    for _, folder in runs:
        if (folder / "model.zip").exists() and not args.overwrite:
            raise FileExistsError(f"{folder / 'model.zip'} is there already; choose another --out, or add --overwrite")
    check_model(args.policy)
    common.set_threads(args.threads)
    if args.seeds is not None:
        _write_config(args, settings, seeds=args.seeds)
    for seed, folder in runs:
        if args.seeds is not None:
            console.print(f"seed {seed}")
        args.seed, args.out = seed, folder
        _train_one(args, console, settings)
    if args.seeds is not None:
        console.print(f"next: agentprm compare {escape(str(out))}", soft_wrap=True)
    return 0


def _train_one(args: argparse.Namespace, console: Console, settings: dict[str, Any]) -> None:
    """Train with one seed, into one folder."""
    import algorithms

    out: Path = args.out
    algorithm = getattr(algorithms, ALGORITHMS[args.algo])
    shared = {"seed": args.seed, "tensorboard_log": str(out / "tb"), "device": args.device, "verbose": 0, **settings}
    venv = _make_env(args)
    given = {key: str(value) for key, value in vars(args).items() if key != "run"}
    common.write_json(out / "settings.json", {**common.provenance(), "args": given})
    _write_config(args, settings, seeds=None)
    model: LLMAlgorithm
    with common.progress(console) as bars:
        if args.algo == "sft":
            model = _train_sft(args, bars, venv, shared)
        elif args.algo == "agentprm":
            model = agent = algorithm(args.policy, venv, n_iterations=args.iterations, **shared)
            with _kept_on_interrupt(agent, args), common.StageBars(bars, agent) as stages:
                agent.on_stage = stages.update
                agent.learn(10**12)
        else:
            model = algorithm(args.policy, venv, **shared)
            with _kept_on_interrupt(model, args), common.stage(bars, algorithm.__name__, args.timesteps) as done:
                model.learn(args.timesteps, callback=common.on_timesteps(done))
    model.save(out / "model.zip")
    model.logger.close()
    venv.close()
    path = escape(str(out / "model.zip"))
    console.print(f"saved [bold]{path}[/]; next: agentprm eval {path} --split valid_seen", soft_wrap=True)


def _make_env(args: argparse.Namespace) -> VecEnv:
    """The training environments, with the process reward that is asked for."""
    from agentprm_gym.rewards import make_reward, needs_of
    from algorithms.common.evaluation import make_eval_env

    shared = {"n_envs": args.n_envs, **common.env_kwargs(args)}
    if args.reward is None:
        return make_eval_env(**shared)
    kwargs = args.reward_kwargs or {}
    reward = make_reward(args.reward, **kwargs)
    if needs_of(reward):  # what only each game's own environment can tell
        return make_eval_env("ALFWorldPRM-v0", **shared, reward=args.reward, reward_kwargs=kwargs)
    from agentprm_gym.wrappers.vec_process_reward import VecProcessReward

    return VecProcessReward(make_eval_env(**shared), reward)


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
