"""Validation: held-out train games are played, and the best policy so far is kept (Algorithm 1, last line)."""

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


class BestPolicy:
    """The policy, and its PRM, with the highest success on validation games.

    Attributes:
        success: its share of games won; below 0 before the first validation.
        iteration: after how many iterations it was reached; 0 is the starting point.
    """

    def __init__(self) -> None:
        """Begin without a policy."""
        self.success, self.iteration = -1.0, 0
        self._kept: dict[str, Any] | None = None

    def offer(self, algorithm: PRMAlgorithm[Any], success: float) -> None:
        """Keep the policy as it is now, if it wins more."""
        if success > self.success:
            self.success = success
            self.iteration = algorithm.iteration + (1 if self._kept is not None else 0)
            self._kept = {"policy": algorithm.lm.adapter_state(POLICY), **_prm_state(algorithm)}

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
        return {"best": self._kept, "best_success": self.success, "best_iteration": self.iteration}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        self._kept, self.success, self.iteration = state["best"], state["best_success"], state["best_iteration"]


def _prm_state(algorithm: PRMAlgorithm[Any]) -> dict[str, Any]:
    return {"prm": algorithm.lm.adapter_state(PRM), "heads": algorithm.prm.heads_state()}


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
    """Play held-out games, log their success, and keep the best policy; steps are not counted.

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
    success = float(np.mean([r.episode.success for r in rollouts]))
    algorithm.logger.record("eval/validation_success_rate", success)
    algorithm.best.offer(algorithm, success)
    return [r.episode for r in rollouts]
