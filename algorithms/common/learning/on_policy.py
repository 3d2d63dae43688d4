"""What policy gradient algorithms share: give every turn of the rollouts an advantage, and take clipped steps.

An algorithm says how advantages come about (:meth:`OnPolicyLLMAlgorithm.advantages`); the rest is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.clipped import REFERENCE, ClippedLoss, Sample, clipped_updates
from algorithms.common.learning.grouped import GroupedLLMAlgorithm, Played

#: The mean of equal returns may differ from them by a rounding step. Such an advantage says nothing, and moves no optimizer.
ROUNDING = 1e-9


class OnPolicyLLMAlgorithm(GroupedLLMAlgorithm):
    """Base of the algorithms that learn from their own fresh rollouts by policy gradients.

    Attributes:
        clipped: the loss with its options.
    """

    compares_log_probs = True

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
            group_size: episodes of each game, 1 or more.
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
        self.gamma = check_float("gamma", gamma, most=1.0, above=0.0)
        self.clipped = ClippedLoss(clip_range, clip_range_high, level, ent_coef, beta)
        self.clip_range, self.level = float(clip_range), level
        self.clip_range_high = None if clip_range_high is None else float(clip_range_high)
        self.ent_coef, self.beta = float(ent_coef), float(beta)
        self.target_kl = None if target_kl is None else check_float("target_kl", target_kl, above=0.0)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
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

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.policy.temperature == 0:
            raise ValueError(
                f"{type(self).__name__} learns from commands that were sampled, by the log-probabilities that they had then: "
                "expected a policy with a temperature above 0, got 0 (greedy); predict(deterministic=True) acts greedily"
            )

    # ------------------------------------------------------------------ what an algorithm says
    def advantages(self, samples: Sequence[Sample]) -> None:
        """Give every turn of every sample its advantage."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement advantages(samples): an advantage for each turn"
        )

    def extra_loss(self, batch: Sequence[Sample], n_turns: int) -> None:
        """Add gradients of another loss, already divided by the minibatch's number of turns."""

    # ------------------------------------------------------------------ the loop
    def _prepare(self) -> None:
        if self.beta > 0 and REFERENCE not in self.lm.adapters:
            self.lm.copy_adapter(POLICY, REFERENCE)

    def learn_from(self, played: Sequence[Played]) -> None:
        """Give advantages, and take clipped steps on the rollouts that have any."""
        samples = [Sample(_aligned(p.rollout), p.group) for p in played]
        self.advantages(samples)
        for sample in samples:
            sample.advantages[: sample.rollout.n_history] = 0.0  # somebody else's turns, or another episode's
        # Where nothing was better than anything else, only the entropy and the reference have something to teach.
        useful = [s for s in samples if np.any(np.abs(s.advantages) > ROUNDING) or len(s.returns)]
        self.logger.record("rollout/share_without_signal", 1 - len(useful) / len(samples))
        if self.clipped.needs_no_advantage:
            useful = samples
        stats = self._updates(useful) if useful else []
        self._n_updates += len(stats)
        for key in stats[0] if stats else ():
            self.logger.record(f"train/{key}", float(np.mean([step[key] for step in stats])))
        self.logger.record("train/n_updates", self._n_updates)

    def _updates(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Take clipped steps; returns what is logged of each."""
        return clipped_updates(
            self.clipped,
            self.policy,
            samples,
            self.updater,
            self._order(),
            n_epochs=self.n_epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            target_kl=self.target_kl,
            extra_loss=self.extra_loss,
        )


def _aligned(rollout: Rollout) -> Rollout:
    """A rollout with a reward for every turn of its episode: 0 for those of its history."""
    return replace(rollout, rewards=[0.0] * rollout.n_history + rollout.rewards) if rollout.n_history else rollout
