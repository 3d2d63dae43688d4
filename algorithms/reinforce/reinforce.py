"""REINFORCE (Williams, Machine Learning 8, 1992) with return-to-go and a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_choice
from algorithms.common.learning.advantages import discounted_returns
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm

BASELINES = ("batch", "turn", "none")


class REINFORCE(OnPolicyLLMAlgorithm):
    """Policy gradient with each turn's return-to-go, less a baseline that does not depend on the turn's own action."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 192,
        group_size: int = 1,
        batch_size: int = 16,
        n_epochs: int = 1,
        baseline: str = "turn",
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
            group_size: episodes of each game, 1 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's episodes, 1 or more.
            baseline: mean return-to-go of the whole ``"batch"``, of all turns with the same number (``"turn"``), or
                ``"none"``.
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
        check_choice("baseline", baseline, BASELINES)
        self.baseline = baseline
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
        """Each turn's discounted return-to-go less the baseline."""
        for sample in samples:
            sample.advantages = discounted_returns(sample.rollout.rewards, self.gamma)
        if self.baseline == "batch":
            mean = float(np.mean(np.concatenate([s.advantages for s in samples])))
            for sample in samples:
                sample.advantages = sample.advantages - mean
        elif self.baseline == "turn":
            longest = max(len(s.advantages) for s in samples)
            means = [np.mean([s.advantages[t] for s in samples if t < len(s.advantages)]) for t in range(longest)]
            for sample in samples:
                sample.advantages = sample.advantages - np.array(means[: len(sample.advantages)])
