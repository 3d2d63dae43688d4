"""``agentprm sweep``: settings of an algorithm that win most games of train that were held out, searched for with Optuna.

Each trial is a run of ``agentprm train`` in a folder of its own. A part of the train games is held out from all of them, and
the success there is what is maximised; the games of the valid splits are not played, so that they can still measure the result.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from algorithms import registry
from algorithms.cli import arguments, configuration, environments, output, settings, train, train_options
from algorithms.common.shell import folders
from algorithms.common.shell.errors import DivergedError

if TYPE_CHECKING:
    from agentprm_gym.episodes import Episode

RULES = replace(
    train_options.RULES, verb="sweep", may_grow=("trials",), may_change=(*train_options.RULES.may_change, "space")
)
#: One of so many train games is held out. It has no divisor in common with 6, the number of task types.
HELD_OUT = 7
_SPACE = "space.yaml"
_RESULT, _BEST, _DEMOS = "result.json", "best", "demos.jsonl.gz"


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "sweep",
        help="search for settings that win held-out train games",
        description="Train with settings out of a space again and again, and keep what wins most train games that were held "
        "out from all trials (Optuna's TPE; pip install 'agentprm-gym[sweep]'). Options are those of 'agentprm train'; each "
        "trial is a run in OUT/trial_0, trial_1, ... Prints a table, and writes OUT/result.json and OUT/best/config.yaml, "
        "which 'agentprm train --config' takes. However a sweep ends, --resume OUT goes on with it.",
    )
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--space",
        metavar="FILE",
        help="a YAML file: for each setting (as in --set) a list of choices, or {low: 1e-4, high: 1e-2, log: true}; 'step' for "
        "numbers on a grid",
    )
    group.add_argument(
        "--trials", type=arguments.positive, default=20, metavar="N", help="how many, with those of earlier sittings"
    )
    group.add_argument(
        "--eval-games",
        type=arguments.positive,
        default=100,
        metavar="N",
        help="held-out games that a trial is measured on",
    )
    group.add_argument(
        "--temperature", type=arguments.number(0), default=1.0, metavar="T", help="of that measurement; 0 is greedy"
    )
    train_options.add_options(parser, "runs/sweep")
    parser.set_defaults(run=run, rules=RULES, parser=parser)


# ---------------------------------------------------------------------- the space
@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting of a space.

    Attributes:
        name: with dots, as in ``--set``.
        choices: what it may be; empty for a range.
        low: least number of a range.
        high: largest number of a range.
        log: whether numbers are drawn by their logarithm.
        step: distance of two numbers; ``None``: any number.
        whole: whether numbers are whole.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False

    @classmethod
    def read(cls, name: str, told: Any) -> Dimension:
        """Read a dimension out of a file.

        Args:
            name: the setting.
            told: a list of choices, or a mapping with ``low``, ``high``, and maybe ``log`` and ``step``.

        Raises:
            ValueError: it is neither, or the range is empty.
        """
        expected = (
            f"expected {name} to be a list of choices, or such as {{low: 1e-4, high: 1e-2, log: true}}, got {told!r}"
        )
        if isinstance(told, list):
            if not told or not all(one is None or isinstance(one, (bool, int, float, str)) for one in told):
                raise ValueError(f"{expected}: choices are texts, numbers, true, false or null")
            return cls(name, tuple(settings.plain_value(one) for one in told))
        if not isinstance(told, Mapping) or not {"low", "high"} <= set(told) <= {"low", "high", "log", "step"}:
            raise ValueError(expected)
        numbers = {key: settings.plain_value(told[key]) for key in ("low", "high", "step") if told.get(key) is not None}
        log = told.get("log", False)
        wrong = any(type(one) not in (int, float) or not math.isfinite(one) for one in numbers.values())
        if wrong or not isinstance(log, bool) or not numbers["low"] < numbers["high"] or numbers.get("step", 1) <= 0:
            raise ValueError(f"{expected}: low must be below high, and step above 0")
        if log and (numbers["low"] <= 0 or "step" in numbers):
            raise ValueError(f"{expected}: with log, low must be above 0, and there is no step")
        whole = all(type(one) is int for one in numbers.values())
        return cls(name, (), numbers["low"], numbers["high"], log, numbers.get("step"), whole)

    def ends(self) -> tuple[Any, ...]:
        """The choices, or the ends of the range."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Any) -> Any:
        """Ask a trial of Optuna for a value."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)


def read_space(path: Path) -> list[Dimension]:
    """Read a space.

    Args:
        path: a YAML file, which may be somebody else's: it cannot let code run.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a space.
    """
    told = configuration.read_mapping(
        path, "--space", "settings such as 'learning_rate: {low: 1e-4, high: 1e-2, log: true}'"
    )
    try:
        found = [Dimension.read(str(name), one) for name, one in told.items()]
    except ValueError as error:
        raise ValueError(f"--space: {path}: {error}") from None
    if not found:
        raise ValueError(f"--space: expected settings in {path}, got none")
    every = settings.nested({one.name: list(one.ends()) for one in found})
    configuration.check_harmless({"settings": every}, path, ())
    return found


# ---------------------------------------------------------------------- the sweep
def run(args: argparse.Namespace, console: Console) -> int:
    """Search.

    Raises:
        ImportError: Optuna is missing.
        OSError: the output folder cannot be written, is in use, or holds something else.
        ValueError: an option or the space does not fit.
    """
    if find_spec("optuna") is None:
        raise ModuleNotFoundError("agentprm sweep needs optuna: pip install 'agentprm-gym[sweep]'")
    space = _check_options(args)
    with folders.locked(args.out):
        if args.resume is None:
            configuration.write_config(args.parser, args.out, args, RULES)
            output.write_text(args.out / _SPACE, Path(args.space).read_text(encoding="utf-8"))
        study = _study(args.out, args.seed)
        _drop_unfinished(study)
        held_out, args.all_demos = _held_out_ids(args), args.demos
        _without_held_out_demos(args, held_out, console)
        args.on_interrupt = f"--resume {args.out} goes on with this sweep."
        while (done := len(_finished(study))) < args.trials:
            _try(args, study, space, done, console)
        _report(args, study, held_out, console)
    return 0


def _check_options(args: argparse.Namespace) -> list[Dimension]:
    """Refuse what does not fit, before anything is written; returns the space."""
    if args.preset == "list" or args.overwrite:
        raise ValueError("a sweep is not overwritten and lists no presets: leave out --overwrite and --preset list")
    folders.check_folder(args.out)
    folders.check_holds(args.out, "sweep")
    begun = (args.out / folders.STUDY).exists()
    if begun != (args.resume is not None):
        there = f"{args.out} holds a sweep: --resume {args.out} goes on with it, and another --out begins one"
        raise ValueError(there if begun else f"--resume: {args.out} holds no sweep ({folders.STUDY} is missing)")
    if args.resume is not None:
        args.space = str(args.out / _SPACE)
    if args.space is None:
        raise ValueError("--space is missing: a YAML file of the settings to search, see docs/command_line.md")
    if not arguments.is_alfworld(args):
        raise ValueError(
            f"a sweep holds out some of ALFWorld's train games, and --env {args.env} is another environment"
        )
    if args.split not in (None, "train"):
        raise ValueError(
            f"a sweep plays train games only, so that {args.split} can still measure its result: leave out --split"
        )
    if "subset" in (args.env_kwargs or {}):
        raise ValueError("a sweep holds games out itself: leave 'subset' out of --env-kwargs")
    space = read_space(Path(args.space))
    train_options.check_options(_trial_args(args, args.out / "trial", {}))
    algorithm = registry.find_algorithm(args.algo)
    for one in space:
        settings.check_settings(algorithm, settings.merged(args.settings, settings.nested({one.name: one.ends()[0]})))
    return space


def _trial_args(args: argparse.Namespace, folder: Path, chosen: Mapping[str, Any]) -> argparse.Namespace:
    """The options of ``agentprm train`` for one trial."""
    from algorithms.cli.main import build_parser

    trains = build_parser()[1]["train"]
    # Lists and groups are a trial's own.
    values = {
        action.dest: copy.deepcopy(getattr(args, action.dest, action.default))
        for action in configuration.options_of(trains).values()
    }
    values |= {
        # A trial is measured when it is over.
        "eval_every": None,
        "eval_games": None,
        "out": folder,
        "resume": None,
        "overwrite": True,  # what a trial that was killed left
        "json": False,
        "settings": settings.merged(args.settings, settings.nested(chosen)),
        "env_kwargs": {**(args.env_kwargs or {}), "subset": {"every": HELD_OUT, "leave_out": 0}},
        "default_split": args.default_split,
        "rules": train_options.RULES,
        "parser": trains,
        "on_interrupt": "",
    }
    return argparse.Namespace(**values)


def _study(folder: Path, seed: int) -> Any:
    """The trials so far, which stand in a file that grows."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(
            str(folder / folders.STUDY),
            lock_obj=optuna.storages.journal.JournalFileOpenLock(str(folder / folders.STUDY)),
        )
    )
    study = optuna.create_study(
        study_name="agentprm", storage=storage, direction="maximize", load_if_exists=True, sampler=None
    )
    # Each sitting has a stream of its own: with the same one, it would draw again what was drawn.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _finished(study: Any) -> list[Any]:
    """Trials with a value."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]


def _drop_unfinished(study: Any) -> None:
    """Give up trials that were under way when a sweep was killed; their settings come first in what follows."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _try(args: argparse.Namespace, study: Any, space: Sequence[Dimension], done: int, console: Console) -> None:
    """Train and measure with one choice of settings."""
    trial = study.ask()
    chosen = {one.name: one.suggest(trial) for one in space}
    folder = args.out / f"trial_{trial.number}"
    told = " ".join(f"{name}={_shown(value)}" for name, value in chosen.items())
    console.print(f"[bold]trial {done + 1} of {args.trials}[/] {escape(told)}", highlight=False, soft_wrap=True)
    begun = time.perf_counter()
    trial.set_user_attr("folder", folder.name)
    try:
        train.run(_trial_args(args, folder, chosen), console)
        episodes = [episode for path in _models(args, folder) for episode in _play(args, path)]
    except DivergedError as error:
        # Settings to keep away from: as if no game was won.
        console.print(f"[yellow]diverged:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        trial.set_user_attr("diverged", True)
        episodes = []
    won = sum(episode.success for episode in episodes)
    trial.set_user_attr("won", won)
    trial.set_user_attr("played", len(episodes))
    trial.set_user_attr("seconds", round(time.perf_counter() - begun, 1))
    study.tell(trial, won / len(episodes) if episodes else 0.0)


def _models(args: argparse.Namespace, folder: Path) -> list[Path]:
    """What a trial saved: a model, or one for each seed."""
    if args.seeds is None:
        return [folder / folders.MODEL]
    return [folder / f"seed_{seed}" / folders.MODEL for seed in range(args.seed, args.seed + args.seeds)]


def _measuring_env(args: argparse.Namespace) -> Any:
    """Environments over the games that were held out."""
    asked = {**(args.env_kwargs or {}), "subset": {"every": HELD_OUT, "keep": 0}}
    options = {name: getattr(args, name) or default for name, default in (("split", "train"), ("games", "auto"))}
    return environments.make_env(argparse.Namespace(**{**vars(args), **options, "env_kwargs": asked}))


def _play(args: argparse.Namespace, model: Path) -> list[Episode]:
    """Play held-out games once each."""
    from algorithms.common.measure.evaluation import evaluate
    from algorithms.common.shell.load import load_actor

    venv = _measuring_env(args)
    games = environments.drawn_games(venv, args.eval_games, args.seed)
    episodes = evaluate(
        load_actor(str(model), venv, temperature=args.temperature, device=args.device),
        venv,
        games=games,
        seed=args.seed,
    )
    venv.close()
    return episodes


def _held_out_ids(args: argparse.Namespace) -> set[str]:
    """Ids of the games that no trial trains on."""
    venv = _measuring_env(argparse.Namespace(**{**vars(args), "n_envs": 1}))
    ids = set(venv.get_attr("games", indices=[0])[0].game_ids)
    venv.close()
    return ids


def _without_held_out_demos(args: argparse.Namespace, held_out: set[str], console: Console) -> None:
    """Leave demonstrations of held-out games out of those that trials learn from."""
    if args.demos is None:
        return
    from agentprm_gym.episodes import read_episodes, write_episodes

    every = list(read_episodes(args.demos))
    kept = [episode for episode in every if episode.game_id not in held_out]
    if not kept:
        raise ValueError(f"--demos {args.demos} holds no demonstration of a game that is not held out: give it more")
    args.demos = str(args.out / _DEMOS)
    write_episodes(args.demos, kept)
    if len(kept) < len(every):
        console.print(f"left out: {len(every) - len(kept)} of {len(every)} demonstrations, whose games are held out")


# ---------------------------------------------------------------------- the result
def _report(args: argparse.Namespace, study: Any, held_out: set[str], console: Console) -> None:
    """Print the trials, the best first, and write the result and a configuration."""
    from algorithms.common.measure.evaluation import wilson

    rows = []
    for trial in sorted(_finished(study), key=lambda trial: (-trial.value, trial.number)):
        told = trial.user_attrs
        low, high = wilson(told["won"], told["played"]) if told["played"] else (0.0, 0.0)
        rows.append(
            {
                "folder": told["folder"],
                "success": trial.value,
                "low": low,
                "high": high,
                "won": told["won"],
                "played": told["played"],
                "seconds": told["seconds"],
                "diverged": bool(told.get("diverged", False)),
                "settings": dict(trial.params),
            }
        )
    table = output.make_table("settings", "success %\n[95 % interval]", "minutes", "trial")
    for row in rows[:20]:
        told = " ".join(f"{name}={_shown(value)}" for name, value in row["settings"].items())
        success = f"{100 * row['success']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        table.add_row(escape(told), success, f"{row['seconds'] / 60:.1f}", row["folder"].removeprefix("trial_"))
    console.print(table)
    best = rows[0]
    chosen = settings.merged(args.settings, settings.nested(best["settings"]))
    trains = _trial_args(args, args.out, {}).parser
    # What a sweep calls eval_games is not train's option of that name.
    best_of_all = {"settings": chosen, "seeds": None, "demos": args.all_demos, "eval_games": None}
    configuration.write_config(trains, args.out / _BEST, args, train_options.RULES, **best_of_all)
    result = {
        "name": "sweep",
        **output.provenance(),
        "algo": args.algo,
        "held_out": {"every": HELD_OUT, "keep": 0, "games": len(held_out)},
        "temperature": args.temperature,
        "best": best,
        "rows": rows,
    }
    output.write_json(args.out / _RESULT, result)
    config = args.out / _BEST / configuration.FILE
    console.print(
        f"the best of {len(rows)} trials looks better than it is: measure it on games of a valid split\n"
        f"next: agentprm train --config {escape(str(config))} --out {escape(str(args.out) + '_best')}",
        highlight=False,
        soft_wrap=True,
    )
    output.show_json(args, result)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
