"""Shaping study: PPO under five rewards, ``python -m benchmarks.shaping_study [--quick] [--seeds 0 1 2] [--jobs 2]``.

For each seed one start, SFT on demonstrations of the searching expert, and one process reward model, fitted by one iteration of
AgentPRM from that start. Then PPO from the start under each reward, on generated train games, always with the same
settings and as many environment steps. Every final policy plays every ``valid_seen`` game once. Curves are those of the
training episodes' true success, whatever the reward.

Each part is a run of ``agentprm`` in a folder of its own; what is finished is taken as it is, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.measure.comparison import Curve, draw, finite, mean_columns, read_curves

RESULTS = Path(__file__).parent / "results"
TAG = "rollout/success_rate"
GAMMA = 0.98

#: Sizes of the iteration that fits the PRM; AgentPRM's default when this was measured.
_SIZES = ("rollout.n_games=600", "rollout.n_trunks=200", "rollout.n_branch_states=250")
_QUICK_SIZES = ("rollout.n_games=40", "rollout.n_repeats=1", "rollout.n_branch_states=20")
#: Name, whether it is potential-based (so that no policy gains against another), and the options of ``agentprm train``.
REWARDS: dict[str, tuple[bool, list[str]]] = {
    "outcome": (True, []),
    "progress": (True, ["--reward", "progress", "--reward-kwargs", json.dumps({"gamma": GAMMA})]),
    # A wasted turn costs an optimal player (1 - gamma) of its value: ten times that is seen beside the outcome.
    "oracle_advantage": (
        False,
        ["--reward", "oracle_advantage", "--reward-kwargs", json.dumps({"gamma": GAMMA, "coef": 10.0})],
    ),
    "prm_potential": (
        True,
        ["--reward", "prm:{prm}", "--reward-kwargs", json.dumps({"form": "potential", "gamma": GAMMA})],
    ),
    "prm_q": (False, ["--reward", "prm:{prm}", "--reward-kwargs", json.dumps({"form": "value", "coef": 0.1})]),
}


class Study:
    """Folders and commands of the study."""

    def __init__(self, folder: Path, *, quick: bool, timesteps: int, settings: Sequence[str]) -> None:
        self.folder, self.quick, self.timesteps, self.settings = folder, quick, timesteps, list(settings)

    def run(self, *args: object) -> None:
        """Run ``agentprm`` in a process of its own, on one core.

        Raises:
            RuntimeError: with what it said, if it failed.
        """
        command = [sys.executable, "-m", "algorithms.cli.main", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, args))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def train(self, out: Path, seed: int, *args: object) -> Path:
        """Train into a folder, unless that is done; returns the model."""
        model = out / "model.zip"
        if not model.exists():
            shared = ["--games", "generated", "--threads", 1, "--seed", seed, "--out", out]
            self.run("train", *args, *shared)
        return model

    def begin(self, seed: int) -> None:
        """The start and the PRM of a seed."""
        demos, small = (20, 1) if self.quick else (40, 8)
        sft = self.train(self.start(seed), seed, "--algo", "sft", "--n-demos", demos, "--epochs", small)
        # Of this only the PRM is used: the policy stays where it is.
        less = [
            "improve.n_updates=1",
            *(_QUICK_SIZES if self.quick else _SIZES),
        ]
        agent = ("--algo", "agentprm", "--policy", sft, "--iterations", 1, "--set", *less)
        self.train(self.folder / "prm" / f"seed_{seed}", seed, *agent)

    def start(self, seed: int) -> Path:
        """Folder of the policy that a seed's runs begin with."""
        return self.folder / "start" / f"seed_{seed}"

    def improve(self, reward: str, seed: int) -> None:
        """PPO under a reward."""
        prm = self.folder / "prm" / f"seed_{seed}" / "model.zip"
        options = [option.format(prm=prm) if option.startswith("prm:") else option for option in REWARDS[reward][1]]
        out = self.folder / reward / f"seed_{seed}"
        policy = self.start(seed) / "model.zip"
        self.train(
            out,
            seed,
            *("--algo", "ppo", "--policy", policy, "--timesteps", self.timesteps, "--n-envs", 128),
            *("--set", f"gamma={GAMMA}", *self.settings),
            *options,
        )
        self.evaluate(out, seed)

    def evaluate(self, run: Path, seed: int) -> None:
        """Let a run's policy play every game of ``valid_seen`` once."""
        if not (run / "eval" / "result.json").exists():
            games = ["--max-games", 40] if self.quick else []
            shared = ["--games", "generated", "--threads", 1, "--seed", seed, "--out", run / "eval"]
            self.run("eval", run / "model.zip", "--split", "valid_seen", *games, *shared)

    def success(self, run: Path) -> float:
        """Share of the evaluation games that a run's policy won."""
        rows = json.loads((run / "eval" / "result.json").read_text())["rows"]
        return float(rows[-1]["success"])


def seed_row(study: Study, curve: Curve, reward: str, seeds: Sequence[int]) -> dict[str, Any]:
    """One reward's row: final success and how fast it came, means over seeds with 95 % intervals."""
    final = np.array([study.success(study.folder / reward / f"seed_{seed}") for seed in seeds])
    outcome = np.array([study.success(study.folder / "outcome" / f"seed_{seed}") for seed in seeds])
    reached = curve.reached(0.5)
    row: dict[str, Any] = {"reward": reward, "potential_based": REWARDS[reward][0], "seeds": len(seeds)}
    row |= mean_columns({"success": final, "against_outcome": final - outcome, "mean_height": curve.average()})
    row["reached_half_by"] = int(np.isfinite(reached).sum())
    row["steps_to_half"] = [finite(x) for x in reached]
    seconds = [x[-1] for x, _ in read_curves({reward: study.folder / reward}, [TAG], "seconds")[0].seeds.values()]
    row["seconds"] = float(np.mean(seconds))
    return row


def print_table(rows: Sequence[dict[str, Any]], start: Any, n_seeds: int) -> None:
    """Show the rows."""
    title = f"PPO from SFT ({100 * start:.1f} %), {n_seeds} seeds, valid_seen, 95 % intervals; (p): potential-based"
    table = Table(title=title)
    for name in ("reward", "success %", "against outcome", "mean height %", "steps to 50 %", "seconds"):
        table.add_column(name, justify="left" if name == "reward" else "right")
    for row in rows:

        def cell(name: str, sign: str = "", row: dict[str, Any] = row) -> str:
            half = row[f"{name}_half"]
            return f"{100 * row[name]:{sign}.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")

        steps = " ".join("-" if x is None else f"{x / 1000:.0f}k" for x in row["steps_to_half"])
        name = row["reward"] + (" (p)" if row["potential_based"] and row["reward"] != "outcome" else "")
        against = "" if row["reward"] == "outcome" else cell("against_outcome", "+")
        table.add_row(name, cell("success"), against, cell("mean_height"), steps, f"{row['seconds']:.0f}")
    PlainConsole(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few games: a first look")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rewards", nargs="+", choices=REWARDS, default=list(REWARDS), help="outcome is always among them"
    )
    parser.add_argument("--timesteps", type=int, default=30_000, help="environment steps of each PPO run")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/shaping"), help="where the run folders are")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "shaping_study.json", help="result file; a .png beside it"
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=["n_games=128", "n_epochs=1", "learning_rate=1e-3"],
        metavar="KEY=VALUE",
        help="arguments of PPO",
    )
    args = parser.parse_args()
    folder, seeds, timesteps, settings = args.runs, args.seeds, args.timesteps, list(args.set)
    if args.quick:
        folder, seeds, timesteps = folder.with_name(folder.name + "_quick"), seeds[:1], 400
        settings += ["n_games=16", "batch_size=16"]
    rewards = ["outcome", *(name for name in args.rewards if name != "outcome")]
    study = Study(folder, quick=args.quick, timesteps=timesteps, settings=settings)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(study.begin, seeds))
        starts = pool.map(lambda seed: study.evaluate(study.start(seed), seed), seeds)
        pairs = [(reward, seed) for seed in seeds for reward in rewards]
        for (reward, seed), _ in zip(pairs, pool.map(lambda pair: study.improve(*pair), pairs), strict=True):
            print(f"{reward}, seed {seed}: {100 * study.success(folder / reward / f'seed_{seed}'):.1f} %", flush=True)
        list(starts)
    start = np.mean([study.success(study.start(seed)) for seed in seeds])
    curves = read_curves({name: folder / name for name in rewards}, [TAG])
    rows = [seed_row(study, curve, name, seeds) for name, curve in zip(rewards, curves, strict=True)]
    print_table(rows, start, len(seeds))
    draw(
        curves,
        args.out.with_suffix(".png"),
        title="PPO from the same start under five rewards, true success",
        level=0.5,
    )
    figures = {f"{row['reward']}_{key}": row[key] for row in rows for key in ("success", "mean_height", "seconds")}
    write_json(
        args.out,
        {
            "name": "shaping_study",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": seeds,
            "quick": args.quick,
            "settings": {
                "timesteps": timesteps,
                "gamma": GAMMA,
                "ppo": settings,
                "rewards": {n: REWARDS[n][1] for n in rewards},
            },
            "figures": {"start_success": float(start), **figures},
            "rows": rows,
        },
    )
    print(f"written to {args.out} and {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
