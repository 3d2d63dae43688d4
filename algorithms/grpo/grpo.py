"""GRPO (Shao et al., arXiv 2402.03300): an episode is as good as it did better than others of the same game.

Every turn of an episode gets the same advantage: its discounted return less the mean of its group (section 4.1.2).
Differences from the paper:

1. The divergence from the reference is off by default (``beta=0``). Where it is on, its gradient is that of
   KL(policy || reference); that of the paper's estimate is the other way round (see
   :func:`~algorithms.common.learning.surrogate.divergence`).
2. Advantages are divided by the deviation over the whole batch, not by each group's own, which would make one lucky win in
   eight of a hard game count as much as half the wins of a fair one. ``normalize="group"`` is the paper's.
3. The reference is the policy that training began with, in all iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_choice
from algorithms.common.learning.advantages import NORMALIZATIONS, discounted_returns, group_advantages
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.grouped import check_group_size
from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm


class GRPO(OnPolicyLLMAlgorithm):
    """Group-relative policy optimisation over groups of the same game.

    Example:
        >>> from algorithms import GRPO
        >>> model = GRPO("sft.zip", "ALFWorld-v0")  # doctest: +SKIP
        >>> model.learn(100_000).save("grpo")  # doctest: +SKIP
    """

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
            normalize: divide advantages by the standard deviation of the ``"group"``, of the ``"batch"``, or by nothing
                (``"none"``).
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
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_group_size(group_size)
        self.normalize = normalize
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
        """An episode's discounted return less the mean of its group, at each of its turns."""
        returns = [discounted_returns(s.rollout.rewards, self.gamma)[0] for s in samples]
        groups = [s.group for s in samples]
        for sample, advantage in zip(samples, group_advantages(returns, groups, normalize=self.normalize), strict=True):
            sample.advantages = np.full(len(sample.episode.turns), advantage)
