"""RFT, rejection sampling fine-tuning: play, keep what won, imitate it, repeat.

Also known as expert iteration or filtered behaviour cloning (Yuan et al., arXiv 2308.01825; Singh et al., arXiv 2312.06585).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from algorithms.common.on_policy import OnPolicyLLMAlgorithm, Sample


class RFT(OnPolicyLLMAlgorithm):
    """Imitation of the policy's own won episodes, the shortest few of each game."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        batch_size: int = 32,
        n_epochs: int = 2,
        n_per_game: int = 2,
        **kwargs: Any,
    ) -> None:
        """Set up.

        Args:
            policy: see :class:`OnPolicyLLMAlgorithm`.
            env: likewise.
            learning_rate: likewise.
            batch_size: likewise.
            n_epochs: likewise.
            n_per_game: won episodes imitated of each game, the shortest.
            kwargs: see :class:`OnPolicyLLMAlgorithm`; what is about ratios has no effect.

        Raises:
            ValueError: for ``n_per_game`` below 1.
        """
        if n_per_game < 1:
            raise ValueError(f"n_per_game must be 1 or more, got {n_per_game}")
        self.n_per_game = n_per_game
        super().__init__(policy, env, learning_rate, batch_size=batch_size, n_epochs=n_epochs, **kwargs)

    def _advantages(self, samples: Sequence[Sample]) -> None:
        by_game: dict[int, list[Sample]] = {}
        for sample in samples:
            sample.advantages = np.zeros(len(sample.episode.turns))
            if sample.episode.success:
                by_game.setdefault(sample.group, []).append(sample)
        for won in by_game.values():
            for sample in sorted(won, key=lambda s: len(s.episode.turns))[: self.n_per_game]:
                sample.advantages = np.ones(len(sample.episode.turns))

    def loss_sums(self, batch: Sequence[Sample], n_ratios: int, n_turns: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Negative log-probability of what was done in the kept episodes, divided by the whole minibatch's turns."""
        from agentprm_gym.llm.scoring import score_turns

        scores = score_turns(self.policy.responder, [s.episode for s in batch])
        log_probs = torch.stack([score.log_prob for row in scores for score in row])  # (T,)
        loss = -log_probs.sum() / n_turns
        return loss, {"policy_loss": float(loss.detach())}
