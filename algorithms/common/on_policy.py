"""What on-policy algorithms share: roll out, give every turn an advantage, take clipped policy gradient steps, repeat.

An algorithm says how advantages come about (:meth:`OnPolicyLLMAlgorithm._advantages`); the rest is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import TurnScore, score_turns
from algorithms.common.advantages import Floats
from algorithms.common.base import LLMAlgorithm
from algorithms.common.policy import POLICY
from algorithms.common.rollouts import Rollout, RolloutTask, collect
from algorithms.common.surrogate import LEVELS, divergence, entropy, surrogate

REFERENCE = "reference"


@dataclass(slots=True)
class Sample:
    """A rollout as training sees it.

    Attributes:
        rollout: what was played.
        group: which game it is of; rollouts of a group are compared with each other.
        advantages: (T,) one a turn.
        returns: (T,) what a value head is to predict; empty without one.
        old: for each turn the log-probabilities of its choices under the policy that acted.
        reference: the turns' scores under the reference policy; empty without one.
    """

    rollout: Rollout
    group: int
    advantages: Floats = field(default_factory=lambda: np.zeros(0))
    returns: Floats = field(default_factory=lambda: np.zeros(0))
    old: list[torch.Tensor] = field(default_factory=list)
    reference: list[TurnScore] = field(default_factory=list)

    @property
    def episode(self) -> Episode:
        """The episode."""
        return self.rollout.episode


class OnPolicyLLMAlgorithm(LLMAlgorithm):
    """Base of the algorithms that learn from their own fresh rollouts by policy gradients."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 60,
        group_size: int = 8,
        batch_size: int = 64,
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
        **kwargs: Any,
    ) -> None:
        """Set up.

        Args:
            policy: see :class:`LLMAlgorithm`.
            env: training environment; its rewards, process rewards included, are what is learnt from.
            learning_rate: of the policy's adapter.
            n_games: games an iteration.
            group_size: episodes of each game.
            batch_size: episodes an update.
            n_epochs: passes over an iteration's episodes.
            gamma: discount a turn, in (0, 1].
            clip_range: how far below 1 a probability ratio earns.
            clip_range_high: how far above 1; ``None``: as far.
            level: one ratio a ``"turn"`` or one a ``"token"``.
            ent_coef: weight of the entropy of the command distribution.
            beta: weight of the divergence from the policy that training began with; 0 never makes nor runs it.
            target_kl: end an iteration's updates where the divergence from the policy that acted exceeds this (nats a
                ratio), as in SB3's PPO at 1.5 times this; ``None`` never does.
            max_grad_norm: gradient clipping.
            micro_batch_size: episodes a forward pass; gradients are accumulated.
            kwargs: see :class:`LLMAlgorithm`.

        Raises:
            ValueError: for values out of range.
        """
        if level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        sizes = {"n_games": n_games, "group_size": group_size, "batch_size": batch_size, "n_epochs": n_epochs}
        for name, value in {**sizes, "micro_batch_size": micro_batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.n_games, self.group_size, self.batch_size, self.n_epochs = n_games, group_size, batch_size, n_epochs
        self.gamma, self.clip_range, self.clip_range_high, self.level = gamma, clip_range, clip_range_high, level
        self.ent_coef, self.beta, self.target_kl = ent_coef, beta, target_kl
        self.max_grad_norm, self.micro_batch_size = max_grad_norm, min(micro_batch_size, batch_size)
        self._optimizer: torch.optim.Optimizer | None = None
        super().__init__(policy, env, learning_rate, **kwargs)

    # ------------------------------------------------------------------ what an algorithm says
    def _advantages(self, samples: Sequence[Sample]) -> None:
        """Give every turn of every sample its advantage."""
        raise NotImplementedError

    def _parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer trains."""
        return self.lm.adapter_parameters(POLICY)

    def _extra_loss(self, batch: Sequence[Sample], n_turns: int) -> None:
        """Add gradients of another loss, already divided by the minibatch's number of turns."""

    # ------------------------------------------------------------------ the loop
    def _iterate(self, callback: BaseCallback) -> bool:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(
                self._parameters(), lr=self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
            )
            if self.beta > 0:
                self.lm.copy_adapter(POLICY, REFERENCE)
        callback.on_rollout_start()
        samples = self._roll_out(callback)
        if samples is None:
            return False
        callback.on_rollout_end()
        self._advantages(samples)
        # Where nothing was better than anything else there is nothing to learn, and no reason to compute it.
        useful = [s for s in samples if np.any(s.advantages != 0) or len(s.returns)]
        self.logger.record("rollout/share_without_signal", 1 - len(useful) / len(samples))
        if useful:
            self._remember_old(useful)
            self._train(useful)
        return True

    def _roll_out(self, callback: BaseCallback) -> list[Sample] | None:
        """Play some games, several episodes each; ``None`` if a callback ended it."""
        venv = self._venv()
        seed = 0 if self.seed is None else self.seed
        rng = np.random.default_rng([seed, self.iteration, 1])
        n = int(venv.get_attr("n_games", indices=[0])[0])
        # Without replacement as far as it goes: a toy has fewer games than an iteration asks for.
        chosen = np.concatenate([rng.permutation(n) for _ in range(-(-self.n_games // n))])[: self.n_games]
        groups = np.repeat(np.arange(self.n_games), self.group_size)
        tasks = [RolloutTask({"game": int(chosen[g])}, (seed, self.iteration, 2, i)) for i, g in enumerate(groups)]

        def on_step(names: dict[str, Any]) -> bool:
            return self._count_step(callback, names, int(np.sum(names["actions"] != "")))

        actor = self.policy.actor(venv.num_envs)
        with self.lm.merged(POLICY):
            rollouts = collect(
                actor,
                venv,
                tasks,
                policy_name=f"{type(self).__name__}:{self.iteration}",
                on_step=on_step,
            )
        if rollouts is None:
            return None
        self._record_episodes([rollout.episode for rollout in rollouts])
        self._record_acting(actor)
        return [Sample(rollout, int(group)) for rollout, group in zip(rollouts, groups, strict=True)]

    @torch.no_grad()
    def _remember_old(self, samples: Sequence[Sample]) -> None:
        """Score what was played under the policy that played it, by the pass that training uses: ratios begin at 1."""
        for batch in self._pieces(samples, self.micro_batch_size):
            episodes = [s.episode for s in batch]
            with self.lm.active(POLICY):
                for sample, scores in zip(batch, score_turns(self.policy.responder, episodes), strict=True):
                    sample.old = [score.choices for score in scores]
            if self.beta > 0:
                with self.lm.active(REFERENCE):
                    for sample, scores in zip(batch, score_turns(self.policy.responder, episodes), strict=True):
                        sample.reference = scores

    @staticmethod
    def _pieces(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
        for start in range(0, len(samples), size):
            yield samples[start : start + size]

    def _train(self, samples: Sequence[Sample]) -> None:
        """Clipped policy gradient steps on an iteration's samples."""
        assert self._optimizer is not None
        rng = np.random.default_rng([0 if self.seed is None else self.seed, self.iteration, 3])
        stats: dict[str, list[float]] = {}
        for _ in range(self.n_epochs):
            order = [samples[int(i)] for i in rng.permutation(len(samples))]
            for batch in self._pieces(order, self.batch_size):
                step = self._update(batch)
                for key, value in step.items():
                    stats.setdefault(key, []).append(value)
                if self.target_kl is not None and step["approx_kl"] > 1.5 * self.target_kl:
                    break
            else:
                continue
            break
        for key, values in stats.items():
            self.logger.record(f"train/{key}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates)

    def _update(self, batch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step; returns means over the minibatch."""
        assert self._optimizer is not None
        n_turns = sum(len(s.episode.turns) for s in batch)
        n_ratios = n_turns if self.level == "turn" else sum(len(o) for s in batch for o in s.old)
        totals = {"policy_loss": 0.0, "approx_kl": 0.0, "clip_fraction": 0.0, "entropy": 0.0, "kl": 0.0}
        with self.lm.active(POLICY, train=True):
            for piece in self._pieces(batch, self.micro_batch_size):
                loss, sums = self.loss_sums(piece, n_ratios, n_turns)
                loss.backward()
                for key, value in sums.items():
                    totals[key] += value
        self._extra_loss(batch, n_turns)
        parameters = self._parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._n_updates += 1
        return totals | {"grad_norm": float(norm)}

    def loss_sums(self, batch: Sequence[Sample], n_ratios: int, n_turns: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a part of a minibatch, divided by the size of the whole; the policy's adapter must be active.

        Args:
            batch: samples with advantages and old log-probabilities.
            n_ratios: how many ratios the whole minibatch has.
            n_turns: how many turns it has.

        Returns:
            A scalar with gradients, and the summands of what is logged.
        """
        scores = score_turns(self.policy.responder, [s.episode for s in batch])
        flat = [score for row in scores for score in row]
        terms = surrogate(
            [score.choices for score in flat],
            [old for s in batch for old in s.old],
            [float(a) for s in batch for a in s.advantages],
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            level=self.level,
        )
        loss = terms.loss / n_ratios
        entropies = torch.stack([entropy(score) for score in flat]).sum()
        if self.ent_coef:
            loss = loss - self.ent_coef * entropies / n_turns
        sums = {
            "policy_loss": float(terms.loss.detach()) / n_ratios,
            "approx_kl": terms.kl / n_ratios,
            "clip_fraction": terms.n_clipped / n_ratios,
            "entropy": float(entropies.detach()) / n_turns,
        }
        if self.beta > 0:
            reference = [score for s in batch for score in s.reference]
            kl = torch.stack([divergence(a, b) for a, b in zip(flat, reference, strict=True)]).sum() / n_turns
            loss = loss + self.beta * kl
            sums["kl"] = float(kl.detach())
        return loss, sums
