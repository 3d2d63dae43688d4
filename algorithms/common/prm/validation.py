"""Validation: held-out train games are played, and they say which policy is kept (Algorithm 1, last line)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agentprm_gym.episodes import Episode
from agentprm_gym.prm.model import PRM
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import collect
from algorithms.common.prm.play import Streams, share_of

if TYPE_CHECKING:
    from algorithms.common.prm.algorithm import PRMAlgorithm


#: So many standard errors of the paired difference below the best a policy is clearly worse.
CLEARLY = 2.0


class BestPolicy:
    """The policy that is kept, and its PRM: the last one that is not clearly worse on validation games than the best so far.

    The highest of several noisy success rates is high by luck in part, so the maximum would often keep an early policy.
    A policy is clearly worse where it wins fewer games than the best did, by more than :data:`CLEARLY` standard errors of the
    paired difference: all policies play the same games with the same random streams.

    Attributes:
        success: its share of games won; below 0 before the first validation.
        iteration: after how many iterations it was reached; 0 is the starting point.
    """

    def __init__(self) -> None:
        """Begin without a policy."""
        self.success, self.iteration = -1.0, 0
        self._kept: dict[str, Any] | None = None
        self._most: list[bool] = []  # by game, what the policy won that won most
        self._before: dict[str, Any] = self.state()

    def offer(self, algorithm: PRMAlgorithm[Any], wins: Sequence[bool]) -> None:
        """Keep the policy as it is now, if it is not clearly worse than the best.

        Args:
            algorithm: whose policy it is.
            wins: which of the validation games it won, in the order of the games.
        """
        self._before = self.state()
        first = self._kept is None
        if first or not clearly_worse(wins, self._most):
            self.success = float(np.mean(wins))
            self.iteration = algorithm.iteration + (0 if first else 1)
            self._kept = {"policy": algorithm.lm.adapter_state(POLICY), **_prm_state(algorithm)}
        if sum(wins) >= sum(self._most):
            self._most = [bool(won) for won in wins]

    def withdraw(self) -> None:
        """Take the last offer back."""
        self.restore(self._before)

    def keep_prm(self, algorithm: PRMAlgorithm[Any]) -> None:
        """Let the PRM of now belong to the policy that is kept."""
        if self._kept is not None:
            self._kept |= _prm_state(algorithm)

    def take(self, algorithm: PRMAlgorithm[Any]) -> None:
        """Put the best policy and its PRM in place."""
        if self._kept is not None:
            algorithm.lm.load_adapter_state(POLICY, self._kept["policy"])
            algorithm.lm.load_adapter_state(PRM, self._kept["prm"])
            algorithm.prm.load_heads_state(self._kept["heads"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        kept = {"best": self._kept, "best_success": self.success, "best_iteration": self.iteration}
        return {**kept, "most_wins": self._most}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        self._kept, self.success, self.iteration = state["best"], state["best_success"], state["best_iteration"]
        self._most = list(state.get("most_wins", []))  # not in checkpoints up to version 0.2


def _prm_state(algorithm: PRMAlgorithm[Any]) -> dict[str, Any]:
    return {"prm": algorithm.lm.adapter_state(PRM), "heads": algorithm.prm.heads_state()}


def clearly_worse(wins: Sequence[bool], most: Sequence[bool]) -> bool:
    """Whether one policy wins fewer games than another by more than :data:`CLEARLY` standard errors.

    Args:
        wins: which games it won.
        most: which of the same games the other won, in the same order; empty where that is not known.
    """
    if not most:
        return False
    lost = np.asarray(most, float) - np.asarray(wins, float)  # (N,), games
    return bool(lost.mean() > CLEARLY * lost.std() / np.sqrt(len(lost)))


def split_games(n_games: int, n_validation: int) -> tuple[list[int], list[int]]:
    """Split games by a fixed shuffle.

    Args:
        n_games: how many there are.
        n_validation: how many to hold out, a quarter of all at most.

    Returns:
        Indices of the games to train on, and of those held out.
    """
    n_validation = min(n_validation, n_games // 4)
    order = np.random.default_rng(7).permutation(n_games)
    return [int(i) for i in order[n_validation:]], [int(i) for i in order[:n_validation]]


def validate(algorithm: PRMAlgorithm[Any], games: Sequence[int], streams: Streams, temperature: float) -> list[Episode]:
    """Play held-out games, log their success, and offer the policy to be kept; steps are not counted.

    Args:
        algorithm: whose policy plays.
        games: their indices; without any nothing happens.
        streams: of the iteration; validation has the same streams in every iteration.
        temperature: of the policy.

    Returns:
        The episodes.
    """
    if not games:
        return []
    actor = algorithm.policy.actor(algorithm.venv.num_envs, temperature=temperature)
    with algorithm.lm.merged(POLICY):
        rollouts = collect(
            actor,
            algorithm.venv,
            streams.validation_tasks(games),
            workers=algorithm.workers,
            on_episode=share_of(algorithm.on_progress, "validate", len(games)),
        )
    assert rollouts is not None
    wins = [r.episode.success for r in rollouts]
    algorithm.logger.record("eval/validation_success_rate", float(np.mean(wins)))
    algorithm.best.offer(algorithm, wins)
    return [r.episode for r in rollouts]
