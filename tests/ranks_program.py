"""What each process of ``tests/test_ranks.py`` runs: ``python -m tests.ranks_program MODEL OUT ALGORITHM ...``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger

from algorithms import SFT, join
from algorithms.common.learning.optim import Updater
from tests.algorithm_helpers import ALGORITHMS, household_demonstrations, make_toy, merged, not_saved

#: Pieces of which two make a minibatch, so that each of two processes has something to do; and enough updates to tell.
SPLIT: dict[str, dict[str, Any]] = {
    "SFT": {"batch_size": 5},
    "GRPO": {"n_games": 3, "n_epochs": 2},
    "PPO": {"n_epochs": 2},
    "RFT": {"n_games": 4, "n_epochs": 2},
    "OnlineDPO": {"n_games": 4, "n_epochs": 2},
    # Without evidence and margin the PRM alone makes pairs, whatever was won.
    "AgentPRM": {"improve": {"prior_visits": None, "margin": 0.0, "n_updates": 3}},
    "InversePRM": {},
}


class Kept(KVWriter):
    """Keeps what is logged, times aside."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(
            {k: float(v) for k, v in key_values.items() if isinstance(v, (int, float)) and not k.startswith("time/")}
        )

    def close(self) -> None:
        pass


def train(name: str, base: str, folder: Path) -> dict[str, Any]:
    """A short run; returns the loss of each update, what was logged, and the policy's adapter."""
    losses: list[float] = []
    step = Updater.step

    def noted(self: Updater, batch: Iterable[Any] = (), loss: float = 0.0) -> float:
        losses.append(float(loss))
        return step(self, batch, loss)

    Updater.step = noted  # type: ignore[method-assign]
    algorithm, small = ALGORITHMS[name]
    settings = merged(small, not_saved(algorithm), {"micro_batch_size": 3}, SPLIT[name])
    if algorithm is SFT:
        settings["demonstrations"] = household_demonstrations(11)
    model = algorithm(base, make_toy(4), **settings)
    kept = Kept()
    model.set_logger(Logger(folder=None, output_formats=[kept]))
    model.checkpoint_dir = folder / name
    model.learn(100 if algorithm is SFT else 1)
    Updater.step = step  # type: ignore[method-assign]
    weights = torch.cat([p.detach().reshape(-1) for p in model.lm.adapter_parameters("policy")])
    return {
        "losses": losses,
        "logged": kept.rows,
        "weights": weights.tolist(),
        "timesteps": model.num_timesteps,
        "tokens": model.total_tokens,
    }


def main(base: str, out: str, *names: str) -> None:
    """Train and write what came out, one file a process."""
    torch.set_num_threads(1)
    crew = join()
    found = {name: train(name, base, Path(out)) for name in names}
    Path(out, f"{crew.size}_{crew.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
