"""``agentprm train``: one algorithm, one output folder."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from agentprm_gym.games.demos import demonstrations
from algorithms.cli import common

ALGORITHMS = ("sft", "agentprm")


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "train",
        help="train one algorithm",
        description="Train one algorithm and save it to OUT/model.zip, with TensorBoard curves in OUT/tb and the settings in "
        "OUT/settings.json. SFT clones the searching expert's demonstrations; AgentPRM starts from --policy, usually an SFT "
        "model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--algo", required=True, choices=ALGORITHMS, help="which algorithm")
    parser.add_argument("--policy", default="tiny", help="tiny, a folder, a hub id, or a saved model.zip to go on from")
    parser.add_argument("--demos", help="sft: a .jsonl[.gz] file of demonstrations (default: the expert plays some)")
    parser.add_argument("--n-demos", type=int, default=150, help="sft: how many the expert plays")
    parser.add_argument("--epochs", type=int, default=8, help="sft: passes over the demonstrations")
    parser.add_argument("--iterations", type=int, default=2, help="agentprm: iterations of roll out, fit, improve")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="constructor arguments, e.g. gamma=0.9",
    )
    common.add_game_options(parser, "train")
    common.add_run_options(parser, "runs/train")
    parser.set_defaults(run=run)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are JSON where they parse as it, else strings.

    Raises:
        ValueError: for a pair without ``=``.
    """
    import json

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


def run(args: argparse.Namespace, console: Console) -> int:
    """Train."""
    from agentprm_gym.episodes import write_episodes
    from algorithms import SFT, AgentPRM
    from algorithms.common.evaluation import make_eval_env

    common.set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = parse_settings(args.settings)
    shared = {"seed": args.seed, "tensorboard_log": str(args.out / "tb"), "device": args.device, "verbose": 0}
    common.write_json(
        args.out / "settings.json", {**common.provenance(), "args": {k: str(v) for k, v in vars(args).items()}}
    )
    venv = make_eval_env(n_envs=args.n_envs, **common.env_kwargs(args))
    model: SFT | AgentPRM
    with common.progress(console) as bars:
        try:
            if args.algo == "sft":
                demos: Any = args.demos
                if demos is None:
                    demos = demonstrations(venv.get_attr("games", indices=[0])[0], args.n_demos, args.seed)
                    write_episodes(args.out / "demos.jsonl.gz", demos)
                model = SFT(args.policy, venv, demonstrations=demos, **shared, **settings)
                assert model.demonstrations is not None
                total = args.epochs * sum(len(e.turns) for e in model.demonstrations)
                bar = bars.add_task(f"SFT on {len(model.demonstrations)} demonstrations", total=total)
                model.learn(
                    total, callback=lambda names, _: bars.update(bar, completed=names["self"].num_timesteps) or True
                )
            else:
                model = AgentPRM(args.policy, venv, n_iterations=args.iterations, **shared, **settings)
                model.on_stage = common.StageBars(bars, model).update
                model.learn(10**12)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(f"--set: {error}; see the constructor's documentation for its arguments") from error
    model.save(args.out / "model.zip")
    console.print(
        f"saved [bold]{args.out / 'model.zip'}[/]; next: agentprm eval {args.out / 'model.zip'} --split valid_seen"
    )
    return 0
