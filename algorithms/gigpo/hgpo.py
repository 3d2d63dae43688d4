"""HGPO (arXiv 2602.22817): turns are compared within groups that share the last states too, from none to several of them.

GiGPO compares all turns of a game that begin in the same state, also where what was seen before differs. Formula::

    A_t     = A_episode + step_coef * sum_k w_k A_t^(k)            k = 0 .. n_history
    A_t^(k) = return-to-go less the mean of the turns whose last k + 1 states are equal
    w_k     proportional to (k + 1)^history_power, over the k at which a turn was not alone

A group with a longer history is smaller and a fairer comparison, hence its larger weight. ``n_history=0`` is GiGPO. A turn that
was alone at every k has no step advantage. That the weights of a turn are shared out among the groups where it is not alone is
this package's choice: only notes on the paper were at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float, check_int
from algorithms.common.learning.advantages import Floats, by_group, discounted_returns, group_advantages
from algorithms.common.learning.clipped import Sample
from algorithms.gigpo.gigpo import GiGPO


class HGPO(GiGPO):
    """Hierarchy-of-groups policy optimisation; ``agentprm train --algo algorithms.gigpo:HGPO``."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 24,
        group_size: int = 8,
        batch_size: int = 16,
        n_epochs: int = 1,
        normalize: str = "batch",
        step_coef: float = 1.0,
        n_history: int = 2,
        history_power: float = 1.0,
        gamma: float = 0.95,
        clip_range: float = 0.2,
        beta: float = 0.0,
        target_kl: float | None = None,
        max_grad_norm: float = 1.0,
        micro_batch_size: int = 16,
        n_envs: int = 64,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Build the policy and take the environments.

        Args:
            policy: see :class:`GiGPO`, as for all that is not explained here.
            env: training environment, or its id.
            learning_rate: step size of the policy's adapter, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, 2 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's episodes, 1 or more.
            normalize: divide advantages by the standard deviation of the ``"group"``, of the ``"batch"``, or by nothing
                (``"none"``).
            step_coef: weight of the step advantages, 0 or more.
            n_history: K: how many states before the present one the smallest groups share, 0 or more.
            history_power: alpha of the weights, 0 (all alike) or more; the paper's is 1.
            gamma: discount a turn, above 0 and at most 1; the paper's is 0.95.
            clip_range: how far from 1 a probability ratio counts, from 0 to 1.
            beta: weight of the KL divergence from the policy that training began with, 0 or more.
            target_kl: an iteration's updates end where the divergence exceeds 1.5 times this; ``None``: never.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: episodes a forward pass, 1 or more.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, or the policy's temperature is 0.
        """
        self.n_history = check_int("n_history", n_history, 0)
        self.history_power = check_float("history_power", history_power, 0.0)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            normalize=normalize,
            step_coef=step_coef,
            gamma=gamma,
            clip_range=clip_range,
            beta=beta,
            target_kl=target_kl,
            max_grad_norm=max_grad_norm,
            micro_batch_size=micro_batch_size,
            n_envs=n_envs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def advantages(self, samples: Sequence[Sample]) -> None:
        """``A_episode + step_coef * sum_k w_k A^(k)``."""
        super(GiGPO, self).advantages(samples)  # A_episode alone: the steps are compared here
        returns = np.concatenate([discounted_returns(s.rollout.rewards, self.gamma) for s in samples])
        of_turns = [(s, [(t.feedback, tuple(t.admissible_commands)) for t in s.episode.turns]) for s in samples]
        groups = [
            [(sample.group, tuple(row[max(0, t - k) : t + 1])) for sample, row in of_turns for t in range(len(row))]
            for k in range(self.n_history + 1)
        ]
        steps = hierarchy_advantages(returns, groups, self.history_power, self.normalize)
        self.logger.record("train/share_states_met_once", float(np.mean(~_shared(groups[0]))))
        start = 0
        for sample in samples:
            n = len(sample.episode.turns)
            sample.advantages = sample.advantages + self.step_coef * steps[start : start + n]
            start += n


def hierarchy_advantages(
    returns: Floats, groups: Sequence[Sequence[Any]], power: float, normalize: str = "none"
) -> Floats:
    """The weighted sum of the advantages of several groupings.

    Args:
        returns: (N,) of the turns.
        groups: for each k (N,), which group each turn belongs to.
        power: of ``(k + 1)`` in the weights.
        normalize: as for :func:`~algorithms.common.learning.advantages.group_advantages`.

    Returns:
        (N,); 0 where a turn is alone in every grouping.
    """
    total, weights = np.zeros(len(returns)), np.zeros(len(returns))
    for k, of_turns in enumerate(groups):
        weight = (k + 1.0) ** power * _shared(of_turns)  # (N,)
        total += weight * group_advantages(returns.tolist(), of_turns, normalize=normalize)
        weights += weight
    out: Floats = np.divide(total, weights, out=np.zeros(len(returns)), where=weights > 0)
    return out


def _shared(groups: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) whether a turn has company in its group."""
    out = np.zeros(len(groups), dtype=bool)
    for members in by_group(groups).values():
        out[members] = len(members) > 1
    return out
