"""Ways to explore, by the steps they take to a fixed success: ``python -m benchmarks.exploration_study [--quick] [--jobs 2]``.

The bundled model as it is, with no demonstration, learns to play generated train games. Each way of exploring has the same
number of environment steps, all that it plays included, and the same three seeds. Every few hundred episodes the policy, which
then does not explore, plays 100 fixed ``valid_seen`` games, sampled at temperature 1. Two panels:

* RFT with each way to play train episodes: a reset distribution, a strategy in the prompt, hindsight, one deviation
  (:mod:`algorithms.common.acting.exploration`);
* GRPO with each reward for novelty beside the outcome: visit counts on exact states, RND, nearest neighbours, disagreement; and
  visit counts alone for the first quarter of the steps, then the outcome alone (URLB's two phases).

Curves are cut at the number of steps that each run has at least. ``steps_to_level``: the first evaluation with 60 % or more,
in environment steps; ``null`` where there is none. ``height``: mean of the curve. ``final``: at its end. Differences are to the
way without exploration, seed by seed. What was planned by the planner is privileged, and stands in the table as such.

Each run's curve is kept in ``--work``, so an interrupted study goes on; and so are those of the result file, so that
``--seeds 0 1 2`` adds a seed to the two that it has. A plot lies beside the result file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.rewards import make_reward
from agentprm_gym.wrappers.novelty import VisitCounts, VisitRewardWrapper
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import GRPO, RFT, GamesEvalCallback
from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.measure.comparison import Curve, draw, finite, mean_columns
from algorithms.common.measure.evaluation import draw_games, make_eval_env
from benchmarks._parts import end_with_study, take_over

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.6
MAX_STEPS = 30
#: The novelty of an episode is worth a quarter of a win at most: a policy that only explores stays worse than one that wins.
MAX_BONUS = 0.25
SHARED: dict[str, Any] = {"learning_rate": 1e-3, "verbose": 0, "device": "cpu"}
RFT_SETTINGS: dict[str, Any] = {"n_games": 100, "group_size": 2, "n_per_game": 1, **SHARED}
GRPO_SETTINGS: dict[str, Any] = {"n_games": 24, "group_size": 8, **SHARED}


@dataclass(frozen=True)
class Way:
    """One way of exploring.

    Attributes:
        name: in figures.
        explore: options of the policy's collector; RFT's panel.
        reward: reward for novelty: ``"visits"``, ``"two_phases"`` or the name of a class; GRPO's panel.
        privileged: whether it reads the game's true state or an expert.
    """

    name: str
    explore: dict[str, Any] | None = None
    reward: str | None = None
    privileged: bool = False

    @property
    def baseline(self) -> str:
        """What it is compared with."""
        return "grpo" if self.name.startswith("grpo") else "rft"


WAYS = [
    Way("rft"),
    Way("rft_reset_own", {"reset_share": 0.5}),
    Way("rft_reset_won", {"reset_share": 0.5, "reset_own": 0.0, "reset_won": 1.0}),
    Way("rft_reset_expert", {"reset_share": 0.5, "reset_own": 0.0, "reset_expert": 1.0}, privileged=True),
    Way("rft_steer", {"steer_share": 0.5}),
    Way("rft_deviation", {"deviation_share": 0.5}),
    Way("rft_hindsight", {"hindsight_states": 40}),
    Way("rft_hindsight_planner", {"hindsight_states": 40, "hindsight_by": "planner"}, privileged=True),
    Way("grpo"),
    Way("grpo_visits", reward="visits", privileged=True),
    Way("grpo_two_phases", reward="two_phases", privileged=True),
    Way("grpo_rnd", reward="RNDReward"),
    Way("grpo_nearest", reward="NearestReward"),
    Way("grpo_disagreement", reward="DisagreementReward"),
]


@dataclass
class Budget:
    """How much is played.

    Attributes:
        steps: environment steps of each run.
        every: steps between evaluations at the least.
        games: evaluation games.
        settings: changes to the algorithms' settings.
    """

    steps: int = 24_000
    every: int = 4_000
    games: int = 100
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Budget(steps=600, every=200, games=6, settings={"n_games": 4, "group_size": 2})


def train_env(way: Way, *, outcome: bool = True) -> VecEnv:
    """Environments of generated train games, with the way's reward.

    Args:
        way: the way of exploring.
        outcome: whether the outcome is paid; it always is but in the first of two phases.
    """
    kwargs: dict[str, Any] = {"games": "generated", "split": "train", "max_episode_steps": MAX_STEPS}
    counts = VisitCounts()

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make("ALFWorld-v0", **kwargs)
        if way.reward == "visits" or not outcome:
            env = VisitRewardWrapper(env, max_bonus=MAX_BONUS, outcome=outcome, counts=counts)
        return env

    venv = make_vec_env(make, n_envs=64)
    if way.reward in (None, "visits", "two_phases"):
        return venv
    name = f"agentprm_gym.prm.novelty:{way.reward}"
    return VecProcessReward(venv, make_reward(name, max_reward=MAX_BONUS / MAX_STEPS))


def curve(way: Way, seed: int, budget: Budget, path: Path) -> dict[str, Any]:
    """One run's curve, made or read.

    Args:
        way: the way of exploring.
        seed: of everything.
        budget: how much is played.
        path: where the curve is kept.
    """
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    begun = time.process_time()
    eval_env = make_eval_env(n_envs=64, games="generated", split="valid_seen", max_episode_steps=MAX_STEPS)
    types = [g.split("-", 1)[0] for g in eval_env.get_attr("games", indices=[0])[0].game_ids]
    games = draw_games(types, budget.games, 0)
    callback = GamesEvalCallback(eval_env, games=games, every=budget.every, temperature=1.0)
    policy_kwargs = {"explore": way.explore} if way.explore else {}
    make, settings = (GRPO, GRPO_SETTINGS) if way.baseline == "grpo" else (RFT, RFT_SETTINGS)
    first = train_env(way, outcome=way.reward != "two_phases")
    model: Any = make("tiny", first, seed=seed, policy_kwargs=policy_kwargs, **{**settings, **budget.settings})
    if way.reward == "two_phases":
        model.learn(budget.steps // 4, callback=callback)
        model.set_env(train_env(way))
        model.learn(budget.steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    else:
        model.learn(budget.steps, callback=callback)
    points = [(one.timesteps, one.success) for one in callback.evaluations]
    found = {"way": way.name, "seed": seed, "points": points, "cpu_seconds": time.process_time() - begun}
    write_json(path, found)
    return found


def finished(work: Path) -> list[dict[str, Any]]:
    """Runs that are done, in the order of the ways and of the seeds."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*_[0-9]*.json")]
    order = [way.name for way in WAYS]
    return sorted((row for row in rows if row["way"] in order), key=lambda row: (order.index(row["way"]), row["seed"]))


def curves_of(rows: Sequence[dict[str, Any]], steps: int) -> dict[str, Curve]:
    """A curve a way, cut at so many steps: an iteration is not cut in the middle, and some would be compared later on."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for row in rows:
        at, success = np.array(row["points"], float).T  # (N,) each
        end = min(steps, at[-1])
        points = np.append(at[at < end], end), np.append(success[at < end], np.interp(end, at, success))
        found.setdefault(row["way"], {})[str(row["seed"])] = points
    return {
        name: Curve(name, "RFT" if name.startswith("rft") else "GRPO", "steps", seeds) for name, seeds in found.items()
    }


def with_seeds(curve: Curve, seeds: Sequence[str]) -> Curve:
    """The same curve with some of its seeds, in this order."""
    return Curve(curve.label, curve.tag, curve.axis, {seed: curve.seeds[seed] for seed in seeds})


def summary(ways: Sequence[Way], curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """One row a way: means over seeds with 95 % intervals, and differences to the baseline, paired by seed."""
    rows: list[dict[str, Any]] = []
    for way in ways:
        one, base = curves[way.name], curves.get(way.baseline)
        row: dict[str, Any] = {"way": way.name, "privileged": way.privileged, "seeds": len(one.seeds)}
        both = sorted(one.seeds.keys() & base.seeds.keys()) if base is not None and base is not one else []
        measures: dict[str, Callable[[Curve], Any]] = {"height": Curve.average, "final": Curve.last}
        for name, measure in measures.items():
            row |= mean_columns({name: measure(one)})
            if base is not None and both:
                row |= mean_columns({f"{name}_gain": measure(with_seeds(one, both)) - measure(with_seeds(base, both))})
        row["steps_to_level"] = [finite(x) for x in one.reached(LEVEL)]
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The summary to read."""
    shown = Table(title="from the base, sampled at T = 1, 95 % intervals over seeds; (p): privileged")
    for name in ("way", "seeds", "mean height %", "against none", "last %", "against none", f"steps to {LEVEL:.0%}"):
        shown.add_column(name, justify="left" if name == "way" else "right", no_wrap=name == "way")

    def cell(row: dict[str, Any], name: str, sign: str = "") -> str:
        if name not in row:
            return ""
        half = row[f"{name}_half"]
        return f"{100 * row[name]:{sign}.1f}" + ("" if half is None else f" ± {100 * half:.1f}")

    for row in rows:
        steps = " ".join("-" if x is None else f"{x / 1000:.0f}k" for x in row["steps_to_level"])
        cells = (cell(row, "height"), cell(row, "height_gain", "+"), cell(row, "final"), cell(row, "final_gain", "+"))
        shown.add_row(row["way"] + (" (p)" if row["privileged"] else ""), str(row["seeds"]), *cells, steps)
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few games: a first look")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=[w.name for w in WAYS], help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--work", type=Path, default=Path("runs/exploration_study"), help="where curves are kept")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "exploration_study.json", help="result file; a .png beside it"
    )
    parser.add_argument("--report", action="store_true", help="begin no run: report those that are finished")
    args = parser.parse_args(argv)
    budget, seeds = (QUICK, args.seeds[:1]) if args.quick else (Budget(), args.seeds)
    ways = [w for w in WAYS if not args.ways or w.name in args.ways]
    work = args.work / ("quick" if args.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    out = work / "exploration_study.json" if args.quick else args.out
    settings = {"rft": RFT_SETTINGS, "grpo": GRPO_SETTINGS, "max_bonus": MAX_BONUS, "level": LEVEL, **vars(budget)}
    take_over(out, {"settings": settings}, lambda row: work / f"{row['way']}_{row['seed']}.json")
    if not args.report:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, spawn, initializer=end_with_study) as pool:
            pairs = [(way, seed) for seed in seeds for way in ways]
            runs = [pool.submit(curve, way, seed, budget, work / f"{way.name}_{seed}.json") for way, seed in pairs]
            for run in runs:
                run.result()
    rows = finished(work)
    seeds = sorted({row["seed"] for row in rows})
    curves = curves_of(rows, budget.steps)
    ways = [way for way in WAYS if way.name in curves]
    shown = summary(ways, curves)
    console = PlainConsole()
    console.print(table(shown))
    picture = [Curve(c.label, f"success of {c.tag}", c.axis, c.seeds) for c in curves.values()]
    draw(picture, out.with_suffix(".png"), title="Exploration from the base, valid_seen, T = 1", level=LEVEL)
    keys = ("height", "final", "height_gain", "final_gain")
    figures = {f"{row['way']}_{key}": row[key] for row in shown for key in keys if key in row}
    about = {"date": datetime.date.today().isoformat(), "seeds": seeds, "quick": args.quick, "settings": settings}
    ways_said = {w.name: {"explore": w.explore, "reward": w.reward, "privileged": w.privileged} for w in ways}
    write_json(
        out,
        {"name": "exploration_study", **provenance(), **about, "ways": ways_said, "figures": figures, "summary": shown,
         "rows": rows},
    )  # fmt: skip
    console.print(f"written to {out}")


if __name__ == "__main__":
    main()
