"""Rollouts on Ray: ``python -m benchmarks.ray_speed [--quick] [--out FILE]``; needs ``pip install 'agentprm-gym[ray]'``.

A cluster of this machine plays the same tasks with one actor and with two, in turns, and once more with two of which one is
killed in the middle.

* ``ratio``: rollouts a second of two actors against one; the goal is 1.7 on two free cores.
* ``killed_ratio``: the same with an actor killed after a quarter of the episodes; another one loads the model and plays again
  what was lost.
* ``same_share``, ``killed_same_share``: share of the episodes that are those of this process alone, command for command.
* ``replaced``: actors that were replaced, one a repetition.
* ``alone_rollouts_per_second``: this process without Ray, for comparison.

Ratios are medians over repetitions, each of which plays all ways one after the other, in another order each time. Times are
those of the clock on the wall. Actors run at the niceness of this process: Ray's own default is 15, which starves them on a
machine with other work.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from agentprm_gym.episodes import Episode
from algorithms.cli.output import make_table, provenance, write_json
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.ray_workers import RayWorkers
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.measure.evaluation import make_eval_env
from benchmarks.scaling import GAMES, RESULTS, tasks_of, trained

#: Throughput of two actors against one that was aimed at.
GOAL = 1.7


@dataclass
class Way:
    """A way to play, and what was measured of it.

    Attributes:
        play: plays tasks.
        rates: rollouts a second of each repetition.
        same: episodes that were those of this process alone.
        total: episodes.
    """

    play: Callable[[Sequence[RolloutTask]], list[Rollout]]
    rates: list[float] = field(default_factory=list)
    same: int = 0
    total: int = 0


def commands(rollouts: Sequence[Rollout]) -> list[list[str]]:
    """What was said, episode by episode."""
    return [[turn.command for turn in rollout.episode.turns] for rollout in rollouts]


def play_with_a_kill(workers: RayWorkers, tasks: Sequence[RolloutTask]) -> list[Rollout]:
    """Play tasks, and kill an actor after a quarter of the episodes."""
    pids, n_played = workers.pids, 0

    def kill(_: Episode) -> None:
        nonlocal n_played
        n_played += 1
        if n_played == max(1, len(tasks) // 4):
            os.kill(pids[0], signal.SIGKILL)

    return workers.collect(tasks, on_episode=kill)


def measure(ways: dict[str, Way], n: int, repetitions: int, tell: Callable[[str], None]) -> None:
    """Play all ways in turns, in another order each time."""
    names = list(ways)
    for repetition in range(repetitions + 1):  # in the first one actors load the model and read the games
        tasks, played = tasks_of(n, repetition), {}
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            tell(f"{name}, repetition {repetition} of {repetitions}")
            start = time.perf_counter()
            played[name] = commands(ways[name].play(tasks))
            if repetition:
                ways[name].rates.append(n / (time.perf_counter() - start))
        for name, way in ways.items():
            way.same += sum(a == b for a, b in zip(played[name], played["alone"], strict=True))
            way.total += n


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few episodes and one repetition, for a first look")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=960, help="a repetition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "ray_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")
    repetitions, n, slots, n_demos = (1, 32, 8, 10) if args.quick else (args.repetitions, args.rollouts, 48, 100)
    with Console().status("a short SFT") as status:
        model = trained(slots, n_demos, args.seed)
        policy, venv = model.policy, model.env
        make = partial(make_eval_env, n_envs=slots, **GAMES)

        def alone(tasks: Sequence[RolloutTask]) -> list[Rollout]:
            with policy.lm.merged(POLICY):
                return collect(policy.actor(venv.num_envs), venv, tasks) or []

        status.update("a cluster")
        # The first one starts the cluster, with room for all of them; it leaves it last.
        with (
            RayWorkers(policy, partial(make_eval_env, n_envs=1, **GAMES), 5) as _cluster,
            RayWorkers(policy, make, 1) as one,
            RayWorkers(policy, make, 2) as two,
            RayWorkers(policy, make, 2) as hurt,
        ):
            ways = {
                "alone": Way(alone),
                "1 actor": Way(one.collect),
                "2 actors": Way(two.collect),
                "2 actors, one killed": Way(partial(play_with_a_kill, hurt)),
            }
            measure(ways, n, repetitions, status.update)
            replaced, unhurt = hurt.n_replaced, one.n_replaced + two.n_replaced
    rates = {name: way.rates for name, way in ways.items()}
    ratios = {
        name: [a / b for a, b in zip(rates[name], rates["1 actor"], strict=True)]
        for name in ("2 actors", "2 actors, one killed")
    }
    two_ratio, killed_ratio = ratios.values()
    figures = {
        "ratio": statistics.median(two_ratio),
        "ratio_low": min(two_ratio),
        "ratio_high": max(two_ratio),
        "goal": GOAL,
        "killed_ratio": statistics.median(killed_ratio),
        "same_share": ways["2 actors"].same / ways["2 actors"].total,
        "one_same_share": ways["1 actor"].same / ways["1 actor"].total,
        "killed_same_share": ways["2 actors, one killed"].same / ways["2 actors, one killed"].total,
        "replaced": replaced,
        "replaced_without_a_kill": unhurt,
        **{f"{name.replace(' ', '_').replace(',', '')}_rollouts_per_second": statistics.median(r) for name, r in rates.items()},
    }  # fmt: skip
    table = make_table("who plays", "rollouts a second", "against 1 actor", "same episodes")
    for name, way in ways.items():
        against = [a / b for a, b in zip(way.rates, rates["1 actor"], strict=True)]
        told = (
            f"{statistics.median(way.rates):.1f}",
            f"{statistics.median(against):.2f}",
            f"{way.same} of {way.total}",
        )
        table.add_row(name, *told)
    Console().print(table)
    data = {"name": "ray_speed", **provenance(), "date": datetime.date.today().isoformat(), "seeds": [args.seed]}
    data |= {"quick": args.quick, "repetitions": repetitions, "rollouts": n, "rates": rates, "figures": figures}
    write_json(args.out, data)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
