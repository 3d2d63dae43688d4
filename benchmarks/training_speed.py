"""Training before and after its fast ways: ``python -m benchmarks.training_speed [--quick] [--out FILE]``.

Side by side in one run, on the same data and with the same model. *Before* is a dense mask over each padded row, PEFT's own
layers, and the library's forward pass (``LanguageModel.fast = False``, what version 0.2.0 computes); *after* is the default.

* ``sft_ratio``: tokens a second of an epoch of SFT on 100 demonstrations.
* ``fit_ratio``: of AgentPRM's fit to rollouts with branches.
* ``update_ratio``: of GRPO's clipped update of 64 episodes, which are one minibatch.
* ``dpo_ratio``: of AgentPRM's online DPO, the scores of the reference and of the PRM included.
* ``rollout_steps_per_second``: environment steps a second of one process, choosing among the admissible commands;
  ``rollout_ratio``: the same against before.
* ``workers_ratio``: steps a second of two processes against one, both by the clock on the wall; ``workers_same_share``:
  share of the episodes that are the same, command for command.

Ratios are medians over repetitions, each of which measures both sides one after the other. All but ``workers_*`` are measured
in the processor's seconds (``time.process_time``) with one thread, which a busy machine stretches less than those on the wall.
Tokens are counted without padding: of an episode's transcript and of what hangs off it.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.prm.model import PRM, ProcessRewardModel
from algorithms import SFT
from algorithms.agent_prm.branching import branch_tasks
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.improve import AgentImproveStage
from algorithms.agent_prm.options import RolloutOptions
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.targets import QTable, label_episodes
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.acting.workers import RolloutWorkers
from algorithms.common.learning.clipped import REFERENCE, ClippedLoss, Sample, clipped_updates
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater
from algorithms.common.measure.evaluation import make_eval_env
from algorithms.common.prm.bandit import Bandit

RESULTS = Path(__file__).parent / "results"
GAMES = {"split": "train", "games": "generated"}


@dataclass(slots=True)
class Counter:
    """Counts the tokens that a language model is asked for."""

    tokens: int = 0

    def watch(self, lm: LanguageModel) -> None:
        """Count from here on."""
        original = lm.tree_hidden

        def counted(trees: Any, *args: Any, **kwargs: Any) -> Any:
            self.tokens += sum(len(tree) for tree in trees)
            return original(trees, *args, **kwargs)

        lm.tree_hidden = counted  # type: ignore[method-assign]

    def of(self, work: Callable[[], None], repetition: int) -> int:
        """Do some work, and return the tokens that it took."""
        before = self.tokens
        work()
        return self.tokens - before


def paired(lm: LanguageModel, work: Callable[[int], int], repetitions: int) -> dict[str, float]:
    """Rates of some work before and after, in turns, and the median of their ratios.

    Args:
        lm: the model, whose fast ways are switched.
        work: is given the number of the repetition; returns how many tokens or steps it did.
        repetitions: how often each is timed; one more before them fills caches.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    for repetition in range(repetitions + 1):
        for fast in (True, False):
            lm.fast = fast
            start = time.process_time()
            done = work(repetition)
            seconds = time.process_time() - start
            if repetition:
                rates[fast].append(done / seconds)
    lm.fast = True
    ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "after": statistics.median(rates[True]),
        "before": statistics.median(rates[False]),
    }


# ---------------------------------------------------------------------- what is measured
def play(policy: LLMPolicy, venv: VecEnv, tasks: Sequence[RolloutTask], **how: Any) -> list[Rollout]:
    """Play tasks with the adapter folded in, as the algorithms do."""
    with policy.lm.merged(POLICY):
        return collect(policy.actor(venv.num_envs, **how), venv, tasks, snapshots="n_candidates" in how) or []


def experience_of(policy: LLMPolicy, venv: VecEnv, n: int, seed: int) -> Experience:
    """Rollouts as AgentPRM's first stage plays them, with as many branches for each as by default."""
    options = RolloutOptions()
    games = np.repeat(np.arange(-(-n // options.n_repeats)), options.n_repeats)[:n]
    tasks = [RolloutTask({"game": int(g)}, (seed, 1, i)) for i, g in enumerate(games)]
    trunks = play(policy, venv, tasks, temperature=options.temperature, n_candidates=options.n_branch_candidates)
    assert options.n_trunks is not None
    branches = branch_tasks(
        trunks,
        n_states=-(-n * options.n_branch_states // options.n_trunks),
        n_candidates=options.n_branch_candidates,
        max_turns=None,
        seed=(seed, 2),
        rng=np.random.default_rng(seed),
    )
    played = play(policy, venv, branches, temperature=options.temperature) if branches else []
    for rollout in (*trunks, *played):
        rollout.snapshots = []
    return Experience(trunks, [], played)


def works(model: SFT, prm: ProcessRewardModel, venv: VecEnv, n: int, seed: int) -> dict[str, Callable[[], None]]:
    """The work of each kind, each on the same data at every call. Steps are taken with a rate of nearly nothing."""
    policy, lm, rate = model.policy, model.lm, 1e-9
    experience = experience_of(policy, venv, n, seed)
    table = experience.add_visits(QTable(gamma=0.95))
    labelled = label_episodes(experience.episodes, table)
    tasks = [RolloutTask({"game": i // 8}, (seed, 3, i)) for i in range(n)]  # 8 episodes of each game
    samples = [Sample(rollout, i // 8) for i, rollout in enumerate(play(policy, venv, tasks))]
    rng = np.random.default_rng(seed)
    for sample in samples:
        sample.advantages = rng.normal(size=len(sample.episode.turns))
    lessons = model._read_demonstrations()
    lm.copy_adapter(POLICY, REFERENCE)

    def sft() -> None:
        updater = Updater(lambda: lm.adapter_parameters(POLICY), rate, MAX_GRAD_NORM)
        for start in range(0, len(lessons), model.batch_size):
            with lm.active(POLICY, train=True, dropout=True):
                torch.autograd.backward(model.loss_sum(lessons[start : start + model.batch_size]))
            updater.step()

    def fit() -> None:
        stage = FitStage(learning_rate=rate)
        stage(prm, labelled, micro_batch_size=16, rng=np.random.default_rng(seed))

    def update() -> None:
        loss = ClippedLoss(0.2, None, "turn", 0.0, 0.0)
        updater = Updater(lambda: lm.adapter_parameters(POLICY), rate, MAX_GRAD_NORM)
        order = np.random.default_rng(seed)
        clipped_updates(loss, policy, samples, updater, order, n_epochs=1, batch_size=64, micro_batch_size=16)

    def dpo() -> None:
        stage = AgentImproveStage(n_updates=4, prior_visits=None, margin=0.0)
        bandit = Bandit(lm, POLICY, REFERENCE, policy.responder, prm)
        states, _ = stage.states(experience, lambda: table)
        stage(
            bandit,
            states,
            stage.won(experience),
            learning_rate=rate,
            micro_batch_size=16,
            rng=np.random.default_rng(seed),
        )

    return {"sft": sft, "fit": fit, "update": update, "dpo": dpo}


def measure_rollouts(policy: LLMPolicy, venv: VecEnv, n: int, repetitions: int) -> dict[str, float]:
    """Environment steps a second of one process before and after."""

    def work(repetition: int) -> int:
        played = play(policy, venv, [RolloutTask({"game": g}, (repetition, g)) for g in range(n)])
        return sum(len(r.episode.turns) for r in played)

    return paired(policy.lm, work, repetitions)


def measure_workers(policy: LLMPolicy, venv: VecEnv, n: int, repetitions: int) -> dict[str, float]:
    """Steps a second on the wall of one process and of two that share its environments; they play the same episodes."""
    rates: tuple[list[float], list[float]] = ([], [])
    same = total = 0
    make = partial(make_eval_env, n_envs=max(1, venv.num_envs // 2), **GAMES)
    with RolloutWorkers(policy, make, 2) as workers:
        for repetition in range(repetitions + 1):
            tasks = [RolloutTask({"game": g}, (repetition, g)) for g in range(n)]
            start = time.perf_counter()
            alone = play(policy, venv, tasks)
            middle = time.perf_counter()
            shared = workers.collect(tasks)
            end = time.perf_counter()
            steps = [sum(len(r.episode.turns) for r in played) for played in (alone, shared)]
            if repetition:  # in the first one the processes load the model
                rates[0].append(steps[0] / (middle - start))
                rates[1].append(steps[1] / (end - middle))
                said = [[[t.command for t in r.episode.turns] for r in played] for played in (alone, shared)]
                same += sum(a == b for a, b in zip(*said, strict=True))
                total += len(tasks)
    ratios = [b / a for a, b in zip(*rates, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "after": statistics.median(rates[1]),
        "before": statistics.median(rates[0]),
        "same": same / total,
    }


# ---------------------------------------------------------------------- report
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few episodes and one repetition, for a first look")
    parser.add_argument("--model", default="tiny", help="alias or folder of the base")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-workers", action="store_true", help="leave out what needs two free cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    repetitions, n, n_demos = (1, 16, 20) if args.quick else (args.repetitions, 64, 100)
    console, counter = Console(), Counter()
    with console.status("a short SFT, so that episodes end as they do in training") as status:
        venv = make_eval_env(n_envs=n, **GAMES)
        demos = demonstrations(find_games("train", "generated"), n_demos, args.seed)
        model = SFT(args.model, venv, demonstrations=demos, seed=args.seed)
        model.learn(4 * sum(len(e.turns) for e in demos))
        model.lm.copy_adapter(POLICY, PRM)
        prm = ProcessRewardModel(model.lm)
        status.update("rollouts to learn from")
        kinds = works(model, prm, venv, n, args.seed)
        counter.watch(model.lm)
        found: dict[str, dict[str, float]] = {}
        for name, work in kinds.items():
            status.update(f"{name}, before and after")
            found[name] = paired(model.lm, partial(counter.of, work), repetitions)
        status.update("rollouts, before and after")
        found["rollout"] = measure_rollouts(model.policy, venv, n, repetitions)
        if not args.skip_workers:
            status.update("rollouts by two processes")
            found["workers"] = measure_workers(model.policy, venv, 2 * n, repetitions)
    figures: dict[str, float] = {}
    for name, data in found.items():
        figures |= {
            f"{name}_ratio": data["ratio"],
            f"{name}_ratio_low": data["low"],
            f"{name}_ratio_high": data["high"],
        }
        unit = "steps_per_second" if name in ("rollout", "workers") else "tokens_per_second"
        figures |= {f"{name}_{unit}": data["after"], f"{name}_{unit}_before": data["before"]}
    if "workers" in found:
        figures["workers_same_share"] = found["workers"]["same"]
    table = Table(title=f"{args.model!r}, one thread, medians of {repetitions}")
    for column in ("a second", "before", "after", "ratio", "from", "to"):
        table.add_column(column, justify="left" if column == "a second" else "right")
    for name, data in found.items():
        what = f"{name}, steps" if name in ("rollout", "workers") else f"{name}, tokens"
        numbers = [
            f"{data['before']:,.0f}",
            f"{data['after']:,.0f}",
            *(f"{data[k]:.2f}" for k in ("ratio", "low", "high")),
        ]
        table.add_row(what, *numbers)
    console.print(table)
    write_json(
        args.out,
        {
            "name": "training_speed",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [args.seed],
            "quick": args.quick,
            "repetitions": repetitions,
            "model": args.model,
            "figures": figures,
        },
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
