"""RFT, rejection sampling fine-tuning: play, keep what won, imitate it, repeat.

Also known as expert iteration or filtered behaviour cloning (Yuan et al., arXiv 2308.01825; Singh et al., arXiv 2312.06585).
What is imitated is learnt at temperature 1, as SFT does, whatever the temperature was that it was sampled at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_choice, check_int
from agentprm_gym.llm.scoring import score_turns
from agentprm_gym.prm import ProcessRewardModel, load_prm
from agentprm_gym.rewards import EPISODE_SCORES, rank_episodes
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.ranks import ranks
from algorithms.common.learning.batches import minibatches, own_pieces
from algorithms.common.learning.grouped import GroupedLLMAlgorithm, Played


class RFT(GroupedLLMAlgorithm):
    """Imitation of the policy's own won episodes, the shortest few of each game or those that a PRM ranks first."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 60,
        group_size: int = 8,
        batch_size: int = 32,
        n_epochs: int = 2,
        n_per_game: int = 2,
        rank_by: str | None = None,
        episode_score: str = "mean",
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
            env: training environment, or its id.
            learning_rate: step size of the policy's adapter, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, 1 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's kept episodes, 1 or more.
            n_per_game: won episodes imitated of each game, 1 or more: the shortest, or those that rank first.
            rank_by: ``"prm:<path>"``: not the shortest, but those that this process reward model, on the same base,
                gives the best scores.
            episode_score: how the scores of an episode's turns become its own, with ``rank_by``; see
                :func:`agentprm_gym.rewards.episode_score`.
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
            ValueError: a value is out of range, or ``episode_score`` is given without ``rank_by``, where it has no
                effect.
        """
        self.n_per_game = check_int("n_per_game", n_per_game, 1)
        if rank_by is not None and not (isinstance(rank_by, str) and rank_by.startswith("prm:")):
            raise ValueError(f"rank_by must be None or 'prm:<path>', got {rank_by!r}")
        check_choice("episode_score", episode_score, EPISODE_SCORES)
        if rank_by is None and episode_score != "mean":
            raise ValueError(f"episode_score={episode_score!r} has no effect without rank_by: leave it out")
        self.rank_by, self.episode_score = rank_by, episode_score
        self._ranker: ProcessRewardModel | None = None
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

    def _prepare(self) -> None:
        if self.rank_by is not None and self._ranker is None:
            # On the policy's own base: it is in memory once, and a PRM of another one is refused.
            self._ranker = load_prm(self.rank_by.removeprefix("prm:"), self.lm)

    def kept(self, played: Sequence[Played]) -> list[Played]:
        """The won rollouts that are imitated: of each game the first few of its ranking."""
        self._prepare()
        by_game: dict[int, list[Played]] = {}
        for one in played:
            if one.episode.success:
                by_game.setdefault(one.group, []).append(one)
        chosen = {id(one) for won in by_game.values() for one in self._ranked(won)[: self.n_per_game]}
        return [one for one in played if id(one) in chosen]

    def _ranked(self, won: Sequence[Played]) -> list[Played]:
        """Won rollouts of one game, the one to imitate first at the beginning."""
        if self._ranker is None:
            return sorted(won, key=lambda one: len(one.episode.turns))
        ranking = rank_episodes(self._ranker, [one.episode for one in won], self.episode_score)
        return [won[i] for i, _ in ranking]

    def learn_from(self, played: Sequence[Played]) -> None:
        """Imitate the best of the won episodes."""
        kept = self.kept(played)
        self.logger.record("rollout/share_without_signal", 1 - len(kept) / len(played))
        rng = self._order()
        losses, norms = [], []
        for _ in range(self.n_epochs if kept else 0):
            for batch in minibatches(kept, self.batch_size, rng):
                loss, norm = self._update(batch)
                losses.append(loss)
                norms.append(norm)
        if losses:
            self.logger.record("train/policy_loss", float(np.mean(losses)))
            self.logger.record("train/grad_norm", float(np.mean(norms)))
        self.logger.record("train/n_updates", self._n_updates)

    def _update(self, batch: Sequence[Played]) -> tuple[float, float]:
        """One optimizer step; returns the loss, in nats a turn, and the gradient's norm."""
        n_turns = sum(len(one.episode.turns) - one.rollout.n_history for one in batch)
        total = 0.0
        with self.lm.active(POLICY, train=True, dropout=True):
            for piece in own_pieces(batch, self.micro_batch_size):
                loss = self.loss_sum(piece) / n_turns
                loss.backward()
                total += float(loss.detach())
        self._n_updates += 1
        total = ranks().total(total)
        return total, self.updater.step(batch, total)

    def loss_sum(self, batch: Sequence[Played]) -> torch.Tensor:
        """Summed negative log-probability of what was done, a scalar; the policy's adapter must be active."""
        scores = score_turns(self.policy.responder, [one.episode for one in batch])
        own = [row[one.rollout.n_history :] for one, row in zip(batch, scores, strict=True)]
        return -torch.stack([score.log_prob for row in own for score in row]).sum()

    @classmethod
    def _current_settings(cls, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
        # Saves of version 0.1 hold options about ratios and returns, which had no effect.
        settings = super()._current_settings(settings, path)
        return {name: value for name, value in settings.items() if name in cls.constructor_names()}
