"""How training grows with workers: ``python -m benchmarks.scaling [--quick] [--out FILE]``.

Measures the parts of an iteration with the bundled model (a step of the environments, the adapter's way to a worker, an
episode's way back, scoring by a process reward model, the learner's update), and simulates 1 to 512 workers with these costs.
Beside that it measures what 1 and 2 worker processes really do; these points belong on the simulated curve. For models of 3
and 8 billion parameters the costs come from formulas and from assumptions that the result lists: hours of a GPU for 70,000
rollouts and all else of an AgentPRM iteration, the bottleneck at each size, and what to buy first. docs/scaling.md explains it.

Writes FILE, and beside it a table (.md) and a plot (.png). The parts are measured by the clock on the wall with one thread:
it needs two free cores.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.prm.model import PRM, ProcessRewardModel, executed
from algorithms import SFT
from algorithms.cli.output import provenance, write_json, write_text
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.replicas import Order
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.acting.workers import RolloutWorkers
from algorithms.common.learning.clipped import ClippedLoss, Sample, clipped_updates
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater
from algorithms.common.measure.evaluation import make_eval_env
from benchmarks import _scaling_report as report
from benchmarks._scaling_costs import Texts
from benchmarks._scaling_simulation import Costs
from benchmarks._scaling_simulation import collect as simulate

RESULTS = Path(__file__).parent / "results"
GAMES = {"split": "train", "games": "generated"}


def tasks_of(n: int, seed: int, **how: Any) -> list[RolloutTask]:
    """Tasks of 8 episodes of each game, as GRPO plays them."""
    return [RolloutTask({"game": i // 8}, (seed, i), **how) for i in range(n)]


def trained(n_envs: int, n_demos: int, seed: int) -> SFT:
    """A policy after a short SFT, so that episodes end as they do in training."""
    demos = demonstrations(find_games("train", "generated"), n_demos, seed)
    model = SFT("tiny", make_eval_env(n_envs=n_envs, **GAMES), demonstrations=demos, seed=seed)
    model.learn(4 * sum(len(e.turns) for e in demos))
    return model


def measure_steps(
    policy: LLMPolicy, venv: VecEnv, n: int, repetitions: int
) -> tuple[float, float, list[Rollout], dict[str, list[float]]]:
    """Time each step of the environments, and fit a line to the number of episodes that ran.

    Returns:
        Seconds of a step, seconds for each running episode (medians over the repetitions), the rollouts of the last
        repetition, and both numbers of each repetition.
    """
    fits: dict[str, list[float]] = {"step": [], "step_row": []}
    rollouts: list[Rollout] = []
    for repetition in range(repetitions + 1):
        running, seconds = [], []
        last = time.perf_counter()

        def stepped(names: dict[str, Any], running: list[int] = running, seconds: list[float] = seconds) -> bool:
            nonlocal last
            now = time.perf_counter()
            running.append(int(names["n_running"]))
            seconds.append(now - last)
            last = now
            return True

        with policy.lm.merged(POLICY):
            rollouts = collect(policy.actor(venv.num_envs), venv, tasks_of(n, repetition), on_step=stepped) or []
        if repetition:  # the first one reads the games
            # The first step begins all episodes at once, which no later one does.
            slope, base = np.polyfit(running[1:], seconds[1:], 1)
            fits["step"].append(max(0.0, float(base)))
            fits["step_row"].append(float(slope))
    return statistics.median(fits["step"]), statistics.median(fits["step_row"]), rollouts, fits


def seconds_of(work: Any, repetitions: int) -> float:
    """Median time of some work, after a first time that does not count."""
    taken = []
    for repetition in range(repetitions + 1):
        start = time.perf_counter()
        work()
        if repetition:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure_messages(policy: LLMPolicy, rollouts: Sequence[Rollout], repetitions: int) -> dict[str, float]:
    """What the driver does for each worker and each episode: pack the adapter, unpack a rollout.

    ``ForkingPickler`` is what connections between processes of this program use.
    """
    state = policy.lm.adapter_state(POLICY)
    packed = [bytes(ForkingPickler.dumps(("episode", (i, r, {})))) for i, r in enumerate(rollouts)]
    return {
        # A new state each time, as in a collection: tensors are put into shared memory the first time.
        "send": seconds_of(lambda: ForkingPickler.dumps(Order(policy.lm.adapter_state(POLICY))), repetitions),
        "receive": seconds_of(lambda: [ForkingPickler.loads(one) for one in packed], repetitions) / len(packed),
        "adapter_bytes": float(sum(tensor.nbytes for tensor in state.values())),
    }


def measure_learner(model: SFT, rollouts: Sequence[Rollout], repetitions: int) -> dict[str, float]:
    """Seconds an episode of the process reward model's scores, and of GRPO's update."""
    policy, lm = model.policy, model.lm
    lm.copy_adapter(POLICY, PRM)
    prm = ProcessRewardModel(lm)
    episodes = [rollout.episode for rollout in rollouts]
    rng = np.random.default_rng(0)
    samples = [Sample(rollout, i // 8) for i, rollout in enumerate(rollouts)]
    for sample in samples:
        sample.advantages = rng.normal(size=len(sample.episode.turns))

    def score() -> None:
        with torch.no_grad():
            for start in range(0, len(episodes), 16):
                prm.score([(e.task, e.turns, executed(e.turns)) for e in episodes[start : start + 16]])

    def update() -> None:
        loss = ClippedLoss(0.2, None, "turn", 0.0, 0.0)
        updater = Updater(lambda: lm.adapter_parameters(POLICY), 1e-9, MAX_GRAD_NORM)
        order = np.random.default_rng(0)
        clipped_updates(loss, policy, samples, updater, order, n_epochs=1, batch_size=64, micro_batch_size=16)

    return {
        "scoring": seconds_of(score, repetitions) / len(episodes),
        "learning": seconds_of(update, repetitions) / len(samples),
    }


def measure_workers(policy: LLMPolicy, costs: Costs, n: int, repetitions: int) -> tuple[float, list[dict[str, Any]]]:
    """Rollouts a second of 1 and 2 worker processes, and what the simulation says of the same episodes.

    Returns:
        Seconds until a worker has taken the adapter up, and a row for each number of workers.
    """
    rows, begins = [], []
    make = partial(make_eval_env, n_envs=costs.slots, **GAMES)
    for n_workers in (1, 2):
        with RolloutWorkers(policy, make, n_workers) as workers:
            workers.collect(tasks_of(n, 0))  # the processes load the model and read the games
            if n_workers == 1:
                one_turn = seconds_of(lambda w=workers: w.collect(tasks_of(1, 0, max_turns=1)), repetitions)
                begins.append(max(0.0, one_turn - costs.step - costs.step_row - costs.send - costs.receive))
            costs = replace(costs, begin=begins[0])
            rates, expected = [], []
            for repetition in range(1, repetitions + 1):
                start = time.perf_counter()
                played = workers.collect(tasks_of(n, repetition))
                rates.append(n / (time.perf_counter() - start))
                turns = [len(rollout.episode.turns) for rollout in played]
                expected.append(n / simulate(costs, turns, n_workers, dealt=True)[1])
        rows.append(
            {
                "workers": n_workers,
                "measured": statistics.median(rates),
                "low": min(rates),
                "high": max(rates),
                "simulated": statistics.median(expected),
                "ratio": statistics.median(a / b for a, b in zip(rates, expected, strict=True)),
            }
        )
    return begins[0], rows


def texts_of(rollouts: Sequence[Rollout]) -> Texts:
    """Mean lengths of what the agent read."""
    turns = [turn for rollout in rollouts for turn in rollout.episode.turns]
    return Texts(
        float(np.mean([len(r.episode.task) + len(r.episode.turns[0].feedback) for r in rollouts])),
        float(np.mean([len(t.feedback) + sum(len(c) + 1 for c in t.admissible_commands) for t in turns])),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few episodes and one repetition, for a first look")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    repetitions, slots, n_demos = (1, 8, 10) if args.quick else (args.repetitions, 48, 100)
    # GRPO plays 480 episodes an iteration by default.
    n, sizes = (16, [16]) if args.quick else (192, [480, 8192])
    with Console().status("a short SFT") as status:
        model = trained(slots, n_demos, args.seed)
        status.update("steps of the environments")
        step, step_row, rollouts, fits = measure_steps(model.policy, model.env, n, repetitions)
        status.update("messages")
        messages = measure_messages(model.policy, rollouts, repetitions)
        costs = Costs(step, step_row, slots, send=messages["send"], receive=messages["receive"])
        status.update("1 and 2 worker processes")
        begin, measured = measure_workers(model.policy, costs, sizes[0], repetitions)
        costs = replace(costs, begin=begin)
        status.update("the process reward model's scores, and the learner's update")
        learner = measure_learner(model, rollouts, repetitions)
        status.update("512 workers")
        turns, texts = [len(rollout.episode.turns) for rollout in rollouts], texts_of(rollouts)
        small = report.bundled_curves(costs, learner, turns, sizes)
        large = report.large_models(texts, turns, quick=args.quick)
    data = {
        "name": "scaling",
        **provenance(),
        "date": datetime.date.today().isoformat(),
        "seeds": [args.seed],
        "quick": args.quick,
        "repetitions": repetitions,
        "measured": {
            "costs": asdict(costs),
            "steps": fits,
            **messages,
            **learner,
            "mean_turns": float(np.mean(turns)),
            "texts": asdict(texts),
            "workers": measured,
        },
        "bundled": small,
        **large,
    }
    write_json(args.out, {**data, "figures": report.figures_of(data)})
    write_text(args.out.with_suffix(".md"), report.tables(data))
    report.draw(data, args.out.with_suffix(".png"))
    print(report.tables(data))
    print(f"written to {args.out}, and beside it .md and .png")


if __name__ == "__main__":
    main()
