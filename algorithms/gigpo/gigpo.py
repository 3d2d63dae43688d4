"""GiGPO (Feng et al., arXiv 2505.10978): groups of episodes of a game, and within them groups of turns in the same state.

``A_t = A_episode + step_coef * A_step``. The first is GRPO's. For the second, turns of a game's episodes that begin in the
same *anchor state* (same text before the agent, same admissible commands) are compared by their discounted return-to-go. A turn
whose state was met once only has no step advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float
from algorithms.common.learning.advantages import discounted_returns, group_advantages
from algorithms.common.learning.clipped import Sample
from algorithms.grpo.grpo import GRPO


class GiGPO(GRPO):
    """Group-in-group policy optimisation."""

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
            step_coef: weight of the step advantages, 0 or more; 0 is GRPO.
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
        self.step_coef = check_float("step_coef", step_coef, 0.0)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            normalize=normalize,
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
        """``A_episode + step_coef * A_step``."""
        super().advantages(samples)
        returns = np.concatenate([discounted_returns(s.rollout.rewards, self.gamma) for s in samples])
        # The anchor: a game's state as the agent is shown it. Hashing is the dictionary's.
        anchors = [(s.group, t.feedback, tuple(t.admissible_commands)) for s in samples for t in s.episode.turns]
        steps = group_advantages(returns.tolist(), anchors, normalize=self.normalize)
        alone = len(anchors) - sum(n for n in _sizes(anchors) if n > 1)
        self.logger.record("train/share_states_met_once", alone / len(anchors))
        start = 0
        for sample in samples:
            n = len(sample.episode.turns)
            sample.advantages = sample.advantages + self.step_coef * steps[start : start + n]
            start += n


def _sizes(anchors: Sequence[Any]) -> list[int]:
    counts: dict[Any, int] = {}
    for anchor in anchors:
        counts[anchor] = counts.get(anchor, 0) + 1
    return list(counts.values())
