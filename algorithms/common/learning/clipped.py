"""Clipped policy gradient steps on rollouts that have advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agentprm_gym.checks import check_choice, check_float
from agentprm_gym.llm.scoring import TurnScore, score_turns
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.ranks import ranks
from algorithms.common.learning.advantages import Floats
from algorithms.common.learning.batches import minibatches, own_pieces, pieces
from algorithms.common.learning.grouped import Played
from algorithms.common.learning.optim import Updater
from algorithms.common.learning.surrogate import LEVELS, divergence, entropy, surrogate

#: Name of the adapter with the policy that training began with.
REFERENCE = "reference"


@dataclass(slots=True)
class Sample(Played):
    """A rollout as training sees it.

    Attributes:
        advantages: (T,) one a turn.
        returns: (T,) what a value head is to predict; empty without one.
        old: for each turn the log-probabilities of its choices under the policy that acted, (F + P,); empty where the policy
            that is trained still is this one.
        reference: the turns' scores under the reference policy; empty without one.
    """

    advantages: Floats = field(default_factory=lambda: np.zeros(0))
    returns: Floats = field(default_factory=lambda: np.zeros(0))
    old: list[torch.Tensor] = field(default_factory=list)
    reference: list[TurnScore] = field(default_factory=list)


@dataclass(frozen=True)
class ClippedLoss:
    """The loss of a policy on samples with advantages, and its options.

    ``-surrogate + beta * KL(policy || reference) - ent_coef * entropy``. The surrogate is a mean over ratios, the others are
    means over turns. All are about the distribution that was acted by, at the policy's own temperature.

    Attributes:
        clip_range: how far below 1 a ratio counts, from 0 to 1.
        clip_range_high: how far above 1, 0 or more; ``None``: as far as below.
        level: one ratio a ``"turn"`` or a ``"token"``.
        ent_coef: weight of the entropy, 0 or more.
        beta: weight of the divergence, 0 or more; with 0 no reference is made.
    """

    clip_range: float
    clip_range_high: float | None
    level: str
    ent_coef: float
    beta: float

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        check_choice("level", self.level, LEVELS)
        check_float("clip_range", self.clip_range, 0.0, 1.0)
        if self.clip_range_high is not None:
            check_float("clip_range_high", self.clip_range_high, 0.0)
        check_float("ent_coef", self.ent_coef, 0.0)
        check_float("beta", self.beta, 0.0)

    @property
    def needs_no_advantage(self) -> bool:
        """Whether a turn is learnt from that was as good as the others."""
        return self.ent_coef > 0 or self.beta > 0

    @torch.no_grad()
    def remember(
        self, policy: LLMPolicy, samples: Sequence[Sample], micro_batch_size: int, *, at_once: Sequence[Sample] = ()
    ) -> None:
        """Score what was played under the policy that played it, by the pass that training uses: ratios begin at 1.

        Args:
            policy: the policy, as it was when it acted.
            samples: get ``old`` and, with a divergence, ``reference``.
            micro_batch_size: episodes a forward pass, 1 or more.
            at_once: those of the first update, which begins with this very policy: they get no ``old``, and no pass for it.
        """
        known = {id(sample) for sample in at_once}

        def scored(batch: Sequence[Sample]) -> list[tuple[list[torch.Tensor], list[TurnScore]]]:
            old: list[list[torch.Tensor]] = [[] for _ in batch]
            if id(batch[0]) not in known:
                with policy.lm.active(POLICY):
                    old = [[score.choices.cpu() for score in scores] for scores in self._scores(policy, batch)]
            reference: list[list[TurnScore]] = [[] for _ in batch]
            if self.beta > 0:
                with policy.lm.active(REFERENCE):
                    reference = [[score.to("cpu") for score in row] for row in self._scores(policy, batch)]
            return list(zip(old, reference, strict=True))

        device, later = policy.lm.device, [sample for sample in samples if id(sample) not in known]
        parts = [*pieces(later, micro_batch_size), *(pieces(at_once, micro_batch_size) if self.beta > 0 else ())]
        for batch, found in zip(parts, ranks().spread(parts, scored), strict=True):
            for sample, (old, reference) in zip(batch, found, strict=True):
                sample.old = [choices.to(device) for choices in old]
                sample.reference = [score.to(device) for score in reference]

    def _scores(self, policy: LLMPolicy, batch: Sequence[Sample], *, entropies: bool = False) -> list[list[TurnScore]]:
        """The turns' scores as they were sampled, at the policy's temperature."""
        episodes = [s.episode for s in batch]
        return score_turns(policy.responder, episodes, temperature=policy.temperature, entropies=entropies)

    def n_ratios(self, batch: Sequence[Sample]) -> int:
        """How many ratios a minibatch has."""
        if self.level == "turn":
            return sum(len(s.episode.turns) for s in batch)
        return sum(len(old) for s in batch for old in s.old)

    def sums(
        self, policy: LLMPolicy, batch: Sequence[Sample], n_ratios: int, n_turns: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a part of a minibatch, divided by the size of the whole; the policy's adapter must be active.

        Args:
            policy: the policy.
            batch: samples with advantages and old log-probabilities.
            n_ratios: how many ratios the whole minibatch has.
            n_turns: how many turns it has.

        Returns:
            A scalar with gradients, and the summands of what is logged.
        """
        rows = self._scores(policy, batch, entropies=self.ent_coef > 0)
        flat = [score for row in rows for score in row]
        before = [s.old or [score.choices.detach() for score in row] for s, row in zip(batch, rows, strict=True)]
        terms = surrogate(
            [score.choices for score in flat],
            [old for row in before for old in row],
            [float(a) for s in batch for a in s.advantages],
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            level=self.level,
        )
        loss = terms.loss / max(1, n_ratios)
        with torch.set_grad_enabled(self.ent_coef > 0):  # else it is only logged
            entropies = torch.stack([entropy(score) for score in flat]).sum()
        if self.ent_coef:
            loss = loss - self.ent_coef * entropies / n_turns
        sums = {
            "policy_loss": float(terms.loss.detach()) / max(1, n_ratios),
            "approx_kl": terms.kl / max(1, n_ratios),
            "clip_fraction": terms.n_clipped / max(1, n_ratios),
            "entropy": float(entropies.detach()) / n_turns,
        }
        if self.beta > 0:
            reference = [score for s in batch for score in s.reference]
            kl = torch.stack([divergence(a, b) for a, b in zip(flat, reference, strict=True)]).sum() / n_turns
            loss = loss + self.beta * kl
            sums["kl"] = float(kl.detach())
        return loss, sums


def clipped_updates(
    loss: ClippedLoss,
    policy: LLMPolicy,
    samples: Sequence[Sample],
    updater: Updater,
    rng: np.random.Generator,
    *,
    n_epochs: int,
    batch_size: int,
    micro_batch_size: int,
    target_kl: float | None = None,
    extra_loss: Callable[[Sequence[Sample], int], None] = lambda batch, n_turns: None,
) -> list[dict[str, float]]:
    """Take optimizer steps on an iteration's samples.

    Args:
        loss: what is minimised.
        policy: what is trained, as it was when it acted.
        samples: with advantages.
        updater: the optimizer.
        rng: random stream of the samples' order.
        n_epochs: passes over the samples, 1 or more.
        batch_size: samples an update, 1 or more.
        micro_batch_size: samples a forward pass, 1 or more.
        target_kl: the updates end where the divergence from the policy that acted exceeds 1.5 times this; ``None``: never.
        extra_loss: adds gradients of another loss on a minibatch, divided by the number of turns that it is told.

    Returns:
        For each update the means over its minibatch.
    """
    stats: list[dict[str, float]] = []
    batches = list(minibatches(samples, batch_size, rng))
    # Later passes need what the first update's samples had before it, and a mean over tokens their number.
    at_once = batches[0] if n_epochs == 1 and loss.level == "turn" else ()
    loss.remember(policy, samples, micro_batch_size, at_once=at_once)
    for epoch in range(n_epochs):
        for batch in minibatches(samples, batch_size, rng) if epoch else batches:
            n_turns, n_ratios = sum(len(s.episode.turns) for s in batch), loss.n_ratios(batch)
            totals = {"policy_loss": 0.0, "approx_kl": 0.0, "clip_fraction": 0.0, "entropy": 0.0, "kl": 0.0}
            with policy.lm.active(POLICY, train=True):
                for piece in own_pieces(batch, micro_batch_size):
                    value, sums = loss.sums(policy, piece, n_ratios, n_turns)
                    value.backward()
                    for key, summand in sums.items():
                        totals[key] += summand
            extra_loss(batch, n_turns)
            totals = dict(zip(totals, ranks().totals(list(totals.values())), strict=True))
            stats.append(totals | {"grad_norm": updater.step(batch, totals["policy_loss"])})
            if target_kl is not None and totals["approx_kl"] > 1.5 * target_kl:
                return stats
    return stats
