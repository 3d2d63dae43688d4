"""How the stages play: random streams by name, and a function that plays tasks with the policy as it is now."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agentprm_gym.episodes import Episode
from algorithms.common.acting.exploration import Exploration
from algorithms.common.acting.explorer import Explorer, PlayTasks
from algorithms.common.acting.planning.options import SearchOptions, make_planner
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.shell.base import StopLearning

if TYPE_CHECKING:
    from algorithms.common.prm.algorithm import PRMAlgorithm

#: The random streams of an iteration. The numbers are part of what a seed fixes.
_STREAMS = {
    "roll out": 1,
    "episodes": 2,
    "branch": 3,
    "branch episodes": 4,
    "answers": 4,
    "held-out games": 5,
    "fit": 6,
    "improve": 7,
    "validation": 8,
    "planner": 9,
    "diverged": 10,
    "diverged episodes": 11,
    "likeness": 11,
    "samples": 12,
    "search": 13,
    "search episodes": 14,
    "explore": 15,
    "values": 31,
    "peek": 32,
    "peek episodes": 33,
}


@dataclass(frozen=True, slots=True)
class Streams:
    """Random streams of one iteration, each a function of the run's seed, the iteration and a name.

    Attributes:
        base: the run's seed.
        iteration: which iteration, from 0.
    """

    base: int
    iteration: int

    def rng(self, name: str) -> np.random.Generator:
        """A random stream."""
        return np.random.default_rng([self.base, self.iteration, _STREAMS[name]])

    def seed(self, name: str) -> tuple[int, int, int]:
        """First entropy of the random streams of episodes."""
        return self.base, self.iteration, _STREAMS[name]

    def tasks(self, name: str, games: Iterable[int]) -> list[RolloutTask]:
        """A task for each game index, each with a random stream of its own."""
        return [RolloutTask({"game": int(game)}, (*self.seed(name), i)) for i, game in enumerate(games)]

    def validation_tasks(self, games: Iterable[int]) -> list[RolloutTask]:
        """Tasks for held-out games with the same random streams in every iteration."""
        return [
            RolloutTask({"game": int(game)}, (self.base, _STREAMS["validation"], i)) for i, game in enumerate(games)
        ]


@dataclass(frozen=True, slots=True)
class Planner:
    """A search that plans.

    Attributes:
        search: one of :data:`~algorithms.common.acting.planning.options.PLANNERS`.
        depth: how many steps ahead, 1 or more.
        options: of the search.
    """

    search: str
    depth: int
    options: SearchOptions


class Play:
    """Plays tasks with an algorithm's policy, counts the steps, and tells the callback of each."""

    def __init__(self, algorithm: PRMAlgorithm[Any], callback: BaseCallback, temperature: float) -> None:
        """Play with a policy.

        Args:
            algorithm: whose policy, environments and counters are used.
            callback: called after every step.
            temperature: of the policy, 0 (greedy) or more.
        """
        self.algorithm, self.callback, self.temperature = algorithm, callback, temperature

    def __call__(
        self,
        tasks: Sequence[RolloutTask],
        stage: str,
        *,
        snapshots: bool = False,
        n_candidates: int = 1,
        record: bool = True,
        best_of: int = 1,
        actor: Any = None,
        planner: Planner | None = None,
    ) -> list[Rollout]:
        """Play every task once.

        Args:
            tasks: what to play.
            stage: name of the stage, for progress displays.
            snapshots: keep the state before each turn, where the environment has ``snapshot()``.
            n_candidates: how many commands to write down as weighed at each turn.
            record: whether these are episodes of the policy from the start of a game, which ``rollout/*`` describes.
            best_of: commands drawn a turn; the PRM chooses where there are several.
            actor: who answers in the policy's place; ``None``: the policy.
            planner: the search that chooses among them; ``None``: the PRM alone.

        Raises:
            StopLearning: a callback ended learning.
        """
        algorithm = self.algorithm
        n_envs = algorithm.venv.num_envs

        def on_step(names: dict[str, Any]) -> bool:
            return algorithm.count_step(self.callback, names)

        own = actor is None
        if not own:
            pass
        elif best_of == 1:
            actor = algorithm.policy.actor(n_envs, temperature=self.temperature, n_candidates=n_candidates)
        elif planner is not None:
            policy = algorithm.policy.actor(n_envs, temperature=self.temperature)
            actor = make_planner(
                planner.search,
                policy,
                algorithm.prm,
                n_envs,
                n=best_of,
                depth=planner.depth,
                options=planner.options,
                cache_tokens=algorithm.policy.cache_tokens,
            )
        else:
            actor = algorithm.best_of_n(n_envs, best_of, temperature=self.temperature)
        on_episode = share_of(algorithm.on_progress, stage, len(tasks))
        explore = algorithm.policy.explore if record else None

        def play(some: Sequence[RolloutTask], keep: bool = False) -> list[Rollout]:
            rollouts = collect(
                actor,
                algorithm.venv,
                some,
                policy_name=f"{type(algorithm).__name__}:{algorithm.iteration}",
                snapshots=(snapshots or keep) and algorithm.venv.has_attr("snapshot"),
                on_step=on_step,
                workers=algorithm.workers if own and best_of == 1 and explore is None else None,  # workers have no PRM
                on_episode=on_episode,
            )
            if rollouts is None:
                raise StopLearning
            return rollouts

        # Where two adapters take turns, neither can be folded in.
        with algorithm.lm.merged(POLICY) if own and best_of == 1 else nullcontext():
            rollouts = play(tasks) if explore is None else self._explored(explore, tasks, play, stage)
        if own and best_of == 1:
            algorithm.record_acting(actor)
        if record:
            algorithm.record_episodes([r.episode for r in rollouts[: len(tasks)] if not r.n_history])
        return rollouts

    def _explored(
        self, explore: Exploration, tasks: Sequence[RolloutTask], play: PlayTasks, stage: str
    ) -> list[Rollout]:
        """Play tasks as exploration says; each is a group of its own."""
        algorithm = self.algorithm
        part = zlib.crc32(stage.encode())  # stages that play have streams of their own
        seed = (*algorithm.streams.seed("explore"), part)
        explorer = Explorer(
            explore,
            algorithm.venv,
            play,
            algorithm.policy.actor,
            np.random.default_rng(seed),
            seed,
            algorithm.gamma,
        )
        return [rollout for rollout, _ in explorer(tasks, range(len(tasks)))]


def share_of(on_progress: Callable[[str, float], None], stage: str, n: int) -> Callable[[Episode], None]:
    """Make a function that is called with each finished episode and passes on the share that is done."""
    done = 0

    def on_episode(_: Episode) -> None:
        nonlocal done
        done += 1
        on_progress(stage, done / n)

    return on_episode
