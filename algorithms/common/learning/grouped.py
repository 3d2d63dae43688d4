"""What algorithms that learn from their own fresh episodes share: play some games, several episodes each, learn, repeat.

An algorithm says how it learns from the episodes (:meth:`GroupedLLMAlgorithm.learn_from`); the rest is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Episode
from algorithms.common.acting.explorer import Explorer
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from algorithms.common.learning.optim import Updater
from algorithms.common.shell.base import LLMAlgorithm, StopLearning

#: Random streams of an iteration. The numbers are part of what a seed fixes.
GAMES, EPISODES, ORDER, EXPLORE = 1, 2, 3, 4


@dataclass(slots=True)
class Played:
    """A rollout and the game that it is of.

    Attributes:
        rollout: what was played.
        group: number of the game within the iteration, from 0; rollouts of a group are compared with each other.
    """

    rollout: Rollout
    group: int

    @property
    def episode(self) -> Episode:
        """The episode."""
        return self.rollout.episode


def check_group_size(group_size: int) -> None:
    """Refuse groups in which nothing can be compared.

    Args:
        group_size: episodes of each game.

    Raises:
        ValueError: fewer than two.
    """
    if check_int("group_size", group_size, 1) < 2:
        raise ValueError(
            f"group_size must be 2 or more: episodes of a game are compared with each other, got {group_size}"
        )


def play_groups(algorithm: LLMAlgorithm, callback: BaseCallback, n_games: int, group_size: int) -> list[Played]:
    """Play some games with an algorithm's policy as it is now.

    Args:
        algorithm: whose policy, environments, random streams and counters are used.
        callback: called after every step.
        n_games: how many games, 1 or more; without replacement as far as the list of games goes.
        group_size: episodes of each, 1 or more.

    Returns:
        ``n_games * group_size`` rollouts, those of a game one after the other; behind them what hindsight kept, where the
        policy's ``explore`` asks for it.

    Raises:
        StopLearning: a callback ended learning.
    """
    venv, seed = algorithm.venv, algorithm.seed_base
    rng = np.random.default_rng([seed, algorithm.iteration, GAMES])
    n = algorithm.count_games()
    # A toy has fewer games than an iteration asks for.
    chosen = np.concatenate([rng.permutation(n) for _ in range(-(-n_games // n))])[:n_games]
    groups = np.repeat(np.arange(n_games), group_size)
    tasks = [
        RolloutTask({"game": int(chosen[g])}, (seed, algorithm.iteration, EPISODES, i)) for i, g in enumerate(groups)
    ]
    actor = algorithm.policy.actor(venv.num_envs)

    def play(some: Sequence[RolloutTask], snapshots: bool = False) -> list[Rollout]:
        rollouts = collect(
            actor,
            venv,
            some,
            policy_name=f"{type(algorithm).__name__}:{algorithm.iteration}",
            snapshots=snapshots or bool(getattr(algorithm, "needs_snapshots", False)),
            on_step=lambda names: algorithm.count_step(callback, names),
            workers=algorithm.workers if algorithm.policy.explore is None else None,
        )
        if rollouts is None:
            raise StopLearning
        return rollouts

    with algorithm.lm.merged(POLICY):
        if algorithm.policy.explore is None:
            played = [Played(rollout, int(group)) for rollout, group in zip(play(tasks), groups, strict=True)]
        else:
            explorer = Explorer(
                algorithm.policy.explore,
                venv,
                play,
                algorithm.policy.actor,
                np.random.default_rng([seed, algorithm.iteration, EXPLORE]),
                (seed, algorithm.iteration, EXPLORE),
                float(getattr(algorithm, "gamma", 1.0)),
            )
            played = [Played(rollout, group) for rollout, group in explorer(tasks, groups.tolist())]
    # An episode that began in the middle says nothing about the policy's success rate.
    algorithm.record_episodes([one.episode for one in played[: len(tasks)] if not one.rollout.n_history])
    algorithm.record_acting(actor)
    return played


class GroupedLLMAlgorithm(LLMAlgorithm):
    """Base of the algorithms that play some games an iteration, several episodes each, and learn from those.

    Attributes:
        updater: the optimizer.
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float,
        *,
        n_games: int,
        group_size: int,
        batch_size: int,
        n_epochs: int,
        max_grad_norm: float,
        micro_batch_size: int,
        **shell: Any,
    ) -> None:
        """Check the options that all of these algorithms have; they explain them.

        Args:
            policy: see :class:`LLMAlgorithm`.
            env: see :class:`LLMAlgorithm`.
            learning_rate: step size, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, 1 or more.
            batch_size: samples an update, 1 or more.
            n_epochs: passes over an iteration's samples, 1 or more.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: samples a forward pass, 1 or more; it changes memory and speed alone.
            shell: arguments of :class:`LLMAlgorithm`.

        Raises:
            ValueError: a value is out of range.
        """
        self.n_games, self.group_size = check_int("n_games", n_games, 1), check_int("group_size", group_size, 1)
        self.batch_size, self.n_epochs = check_int("batch_size", batch_size, 1), check_int("n_epochs", n_epochs, 1)
        self.max_grad_norm = check_float("max_grad_norm", max_grad_norm, above=0)
        self.micro_batch_size = min(check_int("micro_batch_size", micro_batch_size, 1), self.batch_size)
        super().__init__(policy, env, learning_rate, **shell)
        self.updater = Updater(self.trained_parameters, self.learning_rate, self.max_grad_norm)

    # ------------------------------------------------------------------ what an algorithm says
    def learn_from(self, played: Sequence[Played]) -> None:
        """Learn from an iteration's rollouts."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement learn_from(played): learning from the rollouts"
        )

    def _prepare(self) -> None:
        """Make what an iteration needs before it is played: other models, adapters."""

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer trains."""
        return self.lm.adapter_parameters(POLICY)

    # ------------------------------------------------------------------ the loop
    def _iterate(self, callback: BaseCallback) -> bool:
        self._prepare()
        callback.on_rollout_start()
        played = play_groups(self, callback, self.n_games, self.group_size)
        callback.on_rollout_end()
        self.learn_from(played)
        return True

    def _order(self) -> np.random.Generator:
        """The random stream by which this iteration's samples are put in order."""
        return np.random.default_rng([self.seed_base, self.iteration, ORDER])

    # ------------------------------------------------------------------ checkpoints
    def _running_state(self) -> dict[str, Any]:
        return {**super()._running_state(), "optimizer": self.updater.state()}

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        super()._restore_running_state(state)
        self.updater.load_state(state["optimizer"])
