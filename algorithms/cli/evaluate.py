"""``agentprm eval``: every game of a split exactly once."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from algorithms.cli import actors, arguments, configuration, environments, output, progress, results, settings
from algorithms.common.acting.players import is_player
from algorithms.common.shell import folders, machine

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from agentprm_gym.episodes import Episode
    from algorithms.common.measure.evaluation import Rate

RULES = configuration.Rules(
    "eval",
    may_change=(
        *("device", "threads", "n_envs", "concurrency", "timeout", "max_retries", "price"),
        *("api_key_env", "base"),
    ),
)
_STEP_LIMIT = 30
#: Searches that plan, in :mod:`algorithms.common.acting.planning.options`, which loads torch.
_PLANNERS = ("vote-similar", "vote-prm", "predictive", "beam", "tree", "backtrack", "refine")
#: What an evaluation belongs to, beside its configuration; and its result.
_ABOUT, _RESULT = "about.json", "result.json"


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "eval",
        help="play every game of a split once and print success per task type",
        description="Play every game of a split exactly once. Prints success per task type with 95 % Wilson intervals "
        "and mean steps (failures count at the step limit), and writes OUT/episodes.jsonl.gz and OUT/result.json. Every "
        "episode is kept as soon as it is over; however the evaluation ends, --resume OUT goes on with it. 'agentprm compare' "
        "compares two of them, game by game.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="a saved model (.zip), a run's folder, a base model (tiny, a folder, a hub id), one on a server: openai:URL, or a "
        "player without a model: random (admissible commands), expert (searches) or planner (sees the whole game)",
    )
    parser.add_argument("--policy", metavar="MODEL", help="another way to name the model")
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of these options; what stands on the command line counts more"
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the evaluation in this folder: games that were played are not played again, and other options are not "
        "needed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation that is in the output folder")
    parser.add_argument(
        "--engine", choices=("native", "textworld"), help="what runs ALFWorld's games (default: native)"
    )
    parser.add_argument(
        "--max-games",
        type=arguments.positive,
        metavar="N",
        help="only so many games, drawn by --seed and spread over the task types (default: all); needed in an environment that "
        "does not list its games",
    )
    parser.add_argument(
        "--max-steps",
        type=arguments.positive,
        metavar="N",
        help=f"step limit of an episode (default: {_STEP_LIMIT}; the environment's own with --env)",
    )
    arguments.add_base_option(parser)
    acting = arguments.add_acting_options(parser)
    acting.add_argument(
        "--search",
        choices=("none", "best-of-n", "vote", "prm-greedy", "look-ahead", *_PLANNERS),
        help="how a turn's command is found: drawn (none), the PRM's favourite of N draws (best-of-n) or of all admissible "
        "commands (prm-greedy), the one drawn most often (vote), the draw most like the others (vote-similar), by the sum of "
        "the PRM's scores of equal draws (vote-prm), drawn until its advantage suffices (refine), or tried first in the true "
        "game (look-ahead: privileged), as predictive, beam, tree and backtrack do, too, unless --search-options world=ZIP "
        "names a fitted model of the world",
    )
    settings.add_option(
        acting,
        "--search-options",
        "options of vote-similar, vote-prm, predictive, beam, tree, backtrack and refine, e.g. --search-options alpha=0.2",
    )
    acting.add_argument(
        "--best-of",
        type=arguments.positive,
        metavar="N",
        help="short for --search best-of-n --n N; 1: without a search",
    )
    acting.add_argument(
        "--n", type=arguments.positive, default=8, metavar="N", help="draws a turn; breadth of look-ahead"
    )
    acting.add_argument("--depth", type=arguments.positive, default=1, metavar="K", help="steps to look ahead")
    acting.add_argument(
        "--policy-weight",
        type=arguments.number(0.0),
        metavar="W",
        help="best-of-n: what the policy's log-probability counts beside the PRM's score (default: 0.05; 0 is the paper's)",
    )
    acting.add_argument("--prm", metavar="ZIP", help="save with the process reward model (default: the policy's own)")
    arguments.add_game_options(parser, "valid_seen")
    arguments.add_trust_option(parser)
    arguments.add_env_options(parser)
    arguments.add_run_options(parser, None, no_out="runs/eval/MODEL-SPLIT")
    arguments.add_server_options(parser)
    arguments.add_json_option(parser)
    parser.set_defaults(run=run, rules=RULES, parser=parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate.

    Raises:
        OSError: the output folder cannot be written, is in use, or holds another evaluation.
        ValueError: options contradict each other, or a model, an environment or a game is unknown.
        ServerError: a server stopped answering; the episodes that were done are kept.
    """
    model = _check_options(args)
    from algorithms.common.shell.machine import check_device

    check_device(args.device)
    if args.threads is not None:
        machine.set_threads(args.threads)
    with folders.locked(args.out):
        _evaluate(args, model, console)
    return 0


def _check_options(args: argparse.Namespace) -> str:
    """Refuse options that contradict each other, fill in defaults, and return the model; torch is not loaded."""
    model = _model(args)
    environments.import_modules(args)
    arguments.fill_games(args)
    if not arguments.is_alfworld(args) and args.engine is not None:
        raise ValueError(f"--engine runs ALFWorld's games, and --env {args.env} is another environment: leave it out")
    model = model if is_player(model) else folders.saved_model(model)
    for option, name in (("", model), ("--prm: ", args.prm)):
        if name is not None and name.endswith(".zip") and not Path(name).is_file():
            raise FileNotFoundError(f"{option}no saved model at {name}")
    _search(args)
    if args.out is None:
        args.out = Path("runs/eval") / f"{_slug(args.model_name or model)}-{args.split or _slug(args.env)}"
    folders.check_folder(args.out)
    folders.check_holds(args.out, "evaluation")
    if args.resume is None and not args.overwrite:
        if (args.out / folders.EPISODES).exists():
            raise FileExistsError(f"{args.out} holds an evaluation already; choose another --out, or add --overwrite")
        if (args.out / folders.UNFINISHED).exists():
            raise FileExistsError(
                f"{args.out} holds an evaluation that did not end; --resume {args.out} goes on with it, --overwrite starts "
                "again, and another --out leaves it as it is"
            )
    args.step_limit = args.max_steps or (_STEP_LIMIT if arguments.is_alfworld(args) else None)
    # In a configuration the model is an option.
    args.policy, args.model = model, None
    return model


def _model(args: argparse.Namespace) -> str:
    """The model, named in one of two ways.

    Raises:
        ValueError: it was not named, or twice.
    """
    if args.config is not None and args.model is not None:
        args.policy, args.model = args.model, None
    if (args.model is None) == (args.policy is None):
        raise ValueError("which model? Name one: agentprm eval MODEL, or agentprm eval --policy MODEL")
    return str(args.policy if args.model is None else args.model)


def _slug(name: str) -> str:
    """A name for a folder: ``runs/agentprm/iterations/1.zip`` becomes ``agentprm-iterations-1``."""
    path = name.removesuffix(".zip").removeprefix("./").removeprefix("runs/").removesuffix("/model")
    return re.sub(r"[^\w.-]+", "-", path).strip("-.") or "model"


# ---------------------------------------------------------------------- playing
def _evaluate(args: argparse.Namespace, model: str, console: Console) -> None:
    """Play, print the table, and write the result."""
    from agentprm_gym.episodes import write_episodes
    from algorithms.common.measure.evaluation import by_task_type
    from algorithms.common.shell.load import load_actor

    # Not more environments than games: each has a cache, and for a large model memory counts.
    n_envs = min(args.n_envs, args.max_games or args.n_envs)
    venv = environments.make_env(argparse.Namespace(**{**vars(args), "n_envs": n_envs}), **_limits(args))
    actor = load_actor(
        model,
        venv,
        search=_search(args),
        n=args.best_of or args.n,
        depth=args.depth,
        policy_weight=args.policy_weight,
        search_options=args.search_options,
        prm=args.prm,
        temperature=args.temperature,
        device=args.device,
        base=args.base,
        **arguments.policy_kwargs(args),
        **arguments.server_kwargs(args, model),
    )
    games = _games(args, venv)
    search = _search(args)
    about = results.about(args, venv, model, search=search, planned=search in ("look-ahead", *_PLANNERS))
    kept = _kept(args, about)
    spent = results.Spent(args.out, actor, resumed=args.resume is not None)
    name = Path(model).name if args.model_name is None else args.model_name
    is_over = (args.out / _RESULT).exists()
    episodes = [*kept, *_play(args, venv, actor, games, kept, name, spent, console)]
    episodes.sort(key=lambda episode: int(episode.seed or 0))
    rows = by_task_type(episodes, args.step_limit)
    where = f"{args.split} ({about['games']['source']} games)" if about["games"] else args.env
    console.print(f"[bold]{escape(f'{args.model_name or model} on {where}')}[/]", highlight=False, soft_wrap=True)
    console.print(output.rates_table(rows, "task type"))
    if not is_over:  # else nothing was played, and the file says what it took
        # Episodes of environments without ids have their seeds.
        protocol = results.protocol(about, args, venv, actor, [e.game_id or str(e.seed) for e in episodes])
        total = spent.total()
        result = results.result(about, protocol, rows, total, actors.server(actor))
        _tell(result, rows, total, console)
        write_episodes(args.out / folders.EPISODES, episodes)
        output.write_json(args.out / _RESULT, result)
        for done in (args.out / folders.UNFINISHED, spent.path):
            done.unlink(missing_ok=True)
    console.print(f"episodes and result in [bold]{escape(str(args.out))}[/]")
    output.show_json(args, json.loads((args.out / _RESULT).read_text(encoding="utf-8")))


def _tell(result: dict[str, Any], rows: Sequence[Rate], total: dict[str, Any], console: Console) -> None:
    """Say what an evaluation took, and what was wrong with answers."""
    console.print(results.told(rows, result), highlight=False)
    if "server" in total:
        console.print(actors.told(total["server"]), highlight=False)
    elif any(result.get("acting", {}).values()):
        told = ", ".join(f"{100 * share:.1f} % {what}" for what, share in result["acting"].items())
        console.print(told, highlight=False)


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the environment that only evaluations have."""
    if arguments.is_alfworld(args):
        return {"engine": args.engine or "native", "max_episode_steps": args.step_limit}
    return {} if args.max_steps is None else {"max_episode_steps": args.max_steps}


def _games(args: argparse.Namespace, venv: VecEnv) -> list[int]:
    """Indices of the games to play; seeds of ``reset`` where the environment does not list its games."""
    from algorithms.common.measure.evaluation import draw_games, lists_games

    if not lists_games(venv):
        if args.max_games is None:
            raise ValueError(
                f"--max-games is missing: --env {args.env} does not list its games, so say how many to play"
            )
        return list(range(args.max_games))
    n = int(venv.get_attr("n_games", indices=[0])[0])
    if args.max_games is None or args.max_games >= n:
        return list(range(n))
    return draw_games(environments.task_types(venv, n), args.max_games, args.seed)


def _play(
    args: argparse.Namespace,
    venv: VecEnv,
    actor: Any,
    games: list[int],
    kept: list[Episode],
    name: str,
    spent: results.Spent,
    console: Console,
) -> list[Episode]:
    """Play the games that were not played yet; each episode is kept as soon as it is over."""
    from agentprm_gym.episodes import write_episodes
    from algorithms.common.measure.evaluation import evaluate

    played = {episode.seed for episode in kept}
    games = [game for game in games if game not in played]
    if not games:
        return []
    n = len(games)
    label = f"playing {n} games of {args.split or args.env}" + (f", {len(kept)} were played before" if kept else "")
    with progress.progress(console) as bars, progress.stage(bars, label, n) as done:
        count = progress.counted(done)

        path, n_kept, n_turns = args.out / folders.UNFINISHED, len(kept), 0

        def on_episode(episode: Episode) -> None:
            nonlocal n_kept
            write_episodes(path, [episode], append=True)
            spent.keep()
            n_kept += 1
            args.on_interrupt = (
                f"The {n_kept} episodes that were done are in {path}; 'agentprm eval --resume {args.out}' goes on."
            )
            count(episode)

        def on_turns(n: int) -> None:
            # With as many environments as games, no game is over for a long time.
            nonlocal n_turns
            n_turns += n
            done.tell(f"{n_turns:,} turns")

        told: dict[str, Any] = {"on_episode": on_episode, "on_turns": on_turns}
        with actors.merged(actor):
            return evaluate(actor, venv, games=games, seed=args.seed, policy_name=name, **told)


def _kept(args: argparse.Namespace, about: dict[str, Any]) -> list[Episode]:
    """The episodes that an evaluation which goes on has already; of a new one the folder is prepared.

    Raises:
        ValueError: the model or the games changed.
    """
    from agentprm_gym.episodes import read_episodes

    path, unfinished, whole = (args.out / name for name in (_ABOUT, folders.UNFINISHED, folders.EPISODES))
    if args.resume is None:
        # The configuration last: what is killed here cannot be resumed, and is begun again.
        for old in (args.out / configuration.FILE, unfinished, whole, args.out / _RESULT):
            old.unlink(missing_ok=True)
        output.write_json(path, about)
        configuration.write_config(args.parser, args.out, args, args.rules)
        return []
    begun = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key, value in about.items() if begun.get(key) != value]
    if changed:
        raise ValueError(
            f"--resume: {args.out} was begun with another {' and '.join(changed)}: "
            f"{begun.get(changed[0])} then, {about[changed[0]]} now; choose another --out"
        )
    if whole.exists():
        return list(read_episodes(whole))
    return _mended(unfinished) if unfinished.exists() else []


def _mended(path: Path) -> list[Episode]:
    """The episodes of a file to which one after the other was added; a kill in the middle of the last one costs that one."""
    from agentprm_gym.episodes import read_episodes, write_episodes

    episodes: list[Episode] = []
    try:
        for episode in read_episodes(path):
            episodes.append(episode)
    except ValueError:
        write_episodes(path, episodes)  # so that the next one is not added behind half a row
    return episodes


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
