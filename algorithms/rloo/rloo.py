"""RLOO (Ahmadian et al., arXiv 2402.14740, eq. 8): REINFORCE with the other episodes of the same game as the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from algorithms.common.learning.advantages import discounted_returns, leave_one_out
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.grouped import check_group_size
from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm


class RLOO(OnPolicyLLMAlgorithm):
    """REINFORCE leave-one-out: advantages are neither normalised nor, with one epoch, much clipped."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 24,
        group_size: int = 8,
        batch_size: int = 16,
        n_epochs: int = 1,
        gamma: float = 0.98,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        level: str = "turn",
        ent_coef: float = 0.0,
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
            policy: alias of a bundled model, folder or hub id of a causal language model, or the zip of a trained
                algorithm to start from.
            env: training environment, or its id; process rewards that it pays are learnt from, too.
            learning_rate: step size of the policy's adapter, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, which are compared with each other, 2 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's episodes, 1 or more.
            gamma: discount a turn, above 0 and at most 1.
            clip_range: how far below 1 a probability ratio counts, from 0 to 1.
            clip_range_high: how far above 1 it counts, 0 or more; ``None``: as far as below.
            level: one ratio a ``"turn"`` (the whole response) or one a ``"token"`` that was a choice.
            ent_coef: weight of the entropy of what is chosen at a turn, in nats, 0 or more.
            beta: weight of the KL divergence, in nats a turn, from the policy that training began with, 0 or more.
            target_kl: an iteration's updates end where the divergence from the policy that acted exceeds 1.5 times this
                (nats a ratio, above 0), as in SB3's PPO; ``None``: never.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: episodes a forward pass, 1 or more; it changes memory and speed alone.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device; ``"auto"`` takes a GPU where one is found.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, or the policy's temperature is 0.
        """
        check_group_size(group_size)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            clip_range=clip_range,
            clip_range_high=clip_range_high,
            level=level,
            ent_coef=ent_coef,
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
        """An episode's discounted return less the mean of the others of its group, at each of its turns."""
        returns = [discounted_returns(s.rollout.rewards, self.gamma)[0] for s in samples]
        for sample, advantage in zip(samples, leave_one_out(returns, [s.group for s in samples]), strict=True):
            sample.advantages = np.full(len(sample.episode.turns), advantage)
