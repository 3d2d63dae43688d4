"""ALFWorld's own games on a laptop: ``python -m benchmarks.real_games [--quick] [--seeds 0 1 2] [--out FILE]``.

Everything is trained on games of ``train``; AgentPRM keeps the iteration that wins most of the train games that it holds out.
Then every game of ``valid_seen`` and of ``valid_unseen`` that is installed is played once, sampled at temperature 1 and
greedily, with at most 30 turns, as in the paper. The policies:

* ``base``: the bundled model as it is;
* ``agentprm``: AgentPRM from there. No demonstration and no expert takes part, only whether games were won;
* ``sft``: cloned from 500 demonstrations of the searching expert;
* ``agentprm_sft``: AgentPRM from there.

The bundled model was trained on texts of generated games, which are of the same kind as these
(:mod:`agentprm_gym.llm.tiny.corpus`). What is finished is kept in ``--work``, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agentprm_gym.episodes import write_episodes
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from algorithms import SFT, AgentPRM, load_actor
from algorithms.cli.output import provenance, write_json
from algorithms.common.measure.comparison import mean_interval
from algorithms.common.measure.evaluation import evaluate, make_eval_env, wilson

RESULTS = Path(__file__).parent / "results"
MAX_STEPS = 30
SPLITS = ("valid_seen", "valid_unseen")
MODES = {"sampled": 1.0, "greedy": 0.0}
#: Demonstrations of SFT, passes over them, and iterations of AgentPRM.
N_DEMOS, EPOCHS, ITERATIONS = 500, 8, 4
#: AgentPRM's defaults when this was measured, where they are others now.
SETTINGS: dict[str, dict[str, Any]] = {
    "prm": {"form": "scalar"},
    "rollout": {"n_games": 600, "n_trunks": 200, "n_branch_states": 250},
    "improve": {"n_updates": 80},
}
#: What each policy is trained from, in the order of training.
STARTS = {"base": None, "agentprm": "tiny", "sft": "tiny", "agentprm_sft": "sft"}


def train(name: str, folder: Path, seed: int, games: str, quick: bool) -> None:
    """Train one policy and save it, with the seconds that it took.

    Args:
        name: a key of :data:`STARTS`.
        folder: of this seed.
        seed: of everything.
        games: where games come from.
        quick: a trial, as small as it can be.
    """
    start = STARTS[name]
    began = time.monotonic()
    venv = make_eval_env(n_envs=64, split="train", games=games, max_episode_steps=MAX_STEPS)
    model: Any
    if name == "sft":
        shown = demonstrations(find_games("train", games), 10 if quick else N_DEMOS, seed)
        model = SFT("tiny", venv, demonstrations=shown, seed=seed)
        model.learn((1 if quick else EPOCHS) * sum(len(episode.turns) for episode in shown), progress_bar=True)
    else:
        small: dict[str, Any] = {
            "prm": SETTINGS["prm"],
            "rollout": {"n_games": 16, "n_trunks": 16, "n_branch_states": 8},
            "improve": {"n_updates": 4},
            "n_validation_games": 8,
        }
        path = str(folder / f"{start}.zip") if start in STARTS else str(start)
        n = 1 if quick else ITERATIONS
        model = AgentPRM(path, venv, seed=seed, n_iterations=n, **(small if quick else SETTINGS))
        model.learn(progress_bar=True)
    venv.close()
    model.save(folder / f"{name}.zip")
    write_json(folder / f"{name}.json", {"seconds": time.monotonic() - began})


def measure(name: str, folder: Path, seed: int, games: str, n: int | None) -> dict[str, dict[str, int]]:
    """Play every game once in each mode; what is done is kept.

    Returns:
        By split and mode: how many games were played and how many were won.
    """
    out = {}
    for split in SPLITS:
        count = min(n or 10**9, len(find_games(split, games)))
        for mode, temperature in MODES.items():
            path = folder / f"{name}_{split}_{mode}.json"
            if not path.exists():
                venv = make_eval_env(n_envs=64, split=split, games=games, max_episode_steps=MAX_STEPS)
                policy = "tiny" if name == "base" else str(folder / f"{name}.zip")
                actor = load_actor(policy, venv, temperature=temperature)
                episodes = evaluate(actor, venv, games=range(count), seed=seed, policy_name=name)
                venv.close()
                write_episodes(path.with_suffix(".jsonl.gz"), episodes)
                write_json(path, {"won": sum(e.success for e in episodes), "n": len(episodes)})
            out[f"{split}_{mode}"] = json.loads(path.read_text(encoding="utf-8"))
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a trial of minutes that says nothing")
    parser.add_argument("--games", default="alfworld", choices=("alfworld", "generated"), help="which games")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--work", type=Path, help="where work is kept (default: runs/real_games, with --quick below it)"
    )
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/real_games.json)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = args.work or Path("runs/real_games") / ("quick" if args.quick else "")
    results: dict[str, list[dict[str, dict[str, int]]]] = {name: [] for name in STARTS}
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for seed in args.seeds[:1] if args.quick else args.seeds:
        folder = work / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, start in STARTS.items():
            if start is not None:
                if not (folder / f"{name}.json").exists():
                    train(name, folder, seed, args.games, args.quick)
                seconds[name].append(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["seconds"])
            results[name].append(measure(name, folder, seed, args.games, 6 if args.quick else None))
    figures = figures_of(results, seconds)
    show(figures, results)
    out = args.out or RESULTS / ("real_games_quick.json" if args.quick else "real_games.json")
    write_json(
        out,
        {"name": "real_games", **provenance(), "date": datetime.date.today().isoformat(), "seeds": args.seeds,
         "quick": args.quick, "games": args.games, "max_episode_steps": MAX_STEPS, "figures": figures, "results": results},
    )  # fmt: skip
    print(f"written to {out}")


def figures_of(
    results: dict[str, list[dict[str, dict[str, int]]]], seconds: dict[str, list[float]]
) -> dict[str, float]:
    """Success in percent: its mean over seeds with half its interval (Student's t), and of all games pooled Wilson's.

    ``real_unseen`` is the best policy's greedy success on ``valid_unseen``, the policy chosen on ``valid_seen``.
    """
    figures: dict[str, float] = {}
    for name, seeds in results.items():
        for key in seeds[0]:
            rates = 100 * np.array([one[key]["won"] / one[key]["n"] for one in seeds])
            mean, half = mean_interval(rates)
            low, high = wilson(sum(one[key]["won"] for one in seeds), sum(one[key]["n"] for one in seeds))
            figures |= {f"{name}_{key}": float(mean), f"{name}_{key}_half_interval": float(half)}
            figures |= {f"{name}_{key}_low": 100 * low, f"{name}_{key}_high": 100 * high}
        if seconds[name]:
            figures[f"{name}_minutes"] = float(np.mean(seconds[name])) / 60
    best: Callable[[str], float] = lambda name: figures[f"{name}_valid_seen_greedy"]  # noqa: E731
    chosen = max(results, key=best)
    figures["real_unseen"] = figures[f"{chosen}_valid_unseen_greedy"]
    figures["real_unseen_low"] = figures[f"{chosen}_valid_unseen_greedy_low"]
    return {key: value for key, value in figures.items() if np.isfinite(value)}


def show(figures: dict[str, float], results: dict[str, list[dict[str, dict[str, int]]]]) -> None:
    """Print the table."""
    table = Table(title="games won, %")
    table.add_column("policy")
    keys = [f"{split}_{mode}" for split in SPLITS for mode in MODES]
    for key in (*keys, "minutes"):
        table.add_column(key.replace("_", " "), justify="right")
    for name in results:
        cells = []
        for key in keys:
            half = figures.get(f"{name}_{key}_half_interval")
            cells.append(f"{figures[f'{name}_{key}']:.1f}" + ("" if half is None else f" ± {half:.1f}"))
        minutes = figures.get(f"{name}_minutes")
        table.add_row(name, *cells, "" if minutes is None else f"{minutes:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
