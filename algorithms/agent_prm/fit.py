"""Stage 2 of Algorithm 1: fit the process reward model to the targets.

Formula (section 2, stage 2): soft binary cross-entropy ``-[q log Q + (1 - q) log(1 - Q)]`` with ``q = Q-hat(s, a)`` and
``Q = sigmoid(logit)``. The PRM is only asked to rank the commands *of one state*, so a relative loss within the state stands
beside it, over pairs or over lists (:mod:`algorithms.agent_prm.relative`); ``rank_coef=0`` leaves the paper's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.agent_prm.labels import make_targets
from algorithms.agent_prm.options import FitOptions
from algorithms.agent_prm.relative import list_loss, pairs_loss
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.target_td import progress_of
from algorithms.agent_prm.targets import LabelledEpisode, QTable
from algorithms.common.acting.ranks import ranks
from algorithms.common.learning.batches import minibatches, own_pieces
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater, warm_up_and_decay


@dataclass(frozen=True)
class FitStage(FitOptions):
    """Stage 2 with its options; ``prm=`` takes one, or a dict of its fields."""

    def targets(self, experience: Experience, gamma: float) -> QTable:
        """Q-hat of what a policy played; a subclass may return other targets."""
        return make_targets(self, experience, gamma)

    def __call__(
        self,
        prm: ProcessRewardModel,
        data: Sequence[LabelledEpisode],
        *,
        micro_batch_size: int,
        rng: np.random.Generator,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> list[float]:
        """Train the adapter and the head.

        Args:
            prm: the process reward model.
            data: episodes with targets.
            micro_batch_size: episodes a forward pass; it changes memory and speed alone.
            rng: shuffles.
            on_progress: called after each update with the share that is done.

        Returns:
            The loss of each update.

        Raises:
            ValueError: without data.
        """
        if not data:
            raise ValueError("no labelled episodes to fit the process reward model to; roll out more episodes")
        updater, losses = Updater(prm.parameters, self.learning_rate, MAX_GRAD_NORM, prm.rates()), list[float]()
        n_updates = -(-len(data) // self.batch_size) * self.n_epochs
        with prm.lm.active(prm.adapter, train=True, dropout=True):
            for batch in (batch for _ in range(self.n_epochs) for batch in minibatches(data, self.batch_size, rng)):
                warm_up_and_decay(updater.optimizer, self.learning_rate, len(losses), n_updates)
                weight = sum(visit_weight(row.count, self.count_weight) for e in batch for row in e.targets)
                batch = sorted(batch, key=lambda e: e.targets[-1].turn)  # of similar length in a forward pass
                batch_loss = 0.0
                for part in own_pieces(batch, micro_batch_size):
                    logits, targets, weights = forward(prm, part, self.count_weight)
                    tau = self.rank_scale if self.rank_loss == "list" else None
                    loss, _, _ = prm_loss(logits, targets, weights, self.rank_coef, tau)
                    if self.progress_coef > 0:
                        loss = loss + self.progress_coef * progress_of(part, logits, targets)
                    (loss / weight).backward()
                    batch_loss += loss.item() / weight
                batch_loss = ranks().total(batch_loss)
                updater.step(batch, batch_loss)
                losses.append(batch_loss)
                on_progress(len(losses) / n_updates)
        return losses


def prm_loss(
    logits: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    rank_coef: float,
    rank_scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The two losses, summed.

    Args:
        logits: for each state (n_commands,).
        targets: for each state (n_commands,), in [0, 1].
        weights: for each state (n_commands,), what each target counts. With the number of visits, the cross-entropy equals
            training on every visit by itself.
        rank_coef: weight of the relative loss.
        rank_scale: tau of the relative loss over lists; ``None``: the one over pairs.

    Returns:
        ``(loss_sum, weight_sum, n_compared)``: divide the first by the second; the third is the number of pairs that were
        compared, or of lists.
    """
    flat, q, n = torch.cat(list(logits)), torch.cat(list(targets)), torch.cat(list(weights))  # each (N,)
    loss = (functional.binary_cross_entropy_with_logits(flat, q, reduction="none") * n).sum()
    n_compared = 0
    for z, y, w in zip(logits, targets, weights, strict=True) if rank_coef > 0 else ():
        if rank_scale is None:
            relative, n_pairs = pairs_loss(z, y)
        else:
            relative, n_pairs = list_loss(z, y, w, rank_scale), int(len(z) > 1)
        loss, n_compared = loss + rank_coef * relative, n_compared + n_pairs
    return loss, n.sum(), n_compared


def visit_weight(n: int, count_weight: str) -> float:
    """What a target of ``n`` visits counts."""
    return {"visits": float(n), "sqrt": n**0.5, "equal": 1.0}[count_weight]


def forward(
    prm: ProcessRewardModel, batch: Sequence[LabelledEpisode], count_weight: str = "visits"
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Logits, targets and weights of a batch: three lists with a (n_commands,) tensor for each state."""
    items, targets, weights = [], [], []
    for labelled in batch:
        by_turn = labelled.by_turn()
        candidates = [(t, [row.command for row in rows]) for t, rows in by_turn.items()]
        items.append((labelled.episode.task, labelled.episode.turns, candidates))
        for rows in by_turn.values():
            targets.append(torch.tensor([row.target for row in rows], device=prm.lm.device))
            weights.append(torch.tensor([visit_weight(row.count, count_weight) for row in rows], device=prm.lm.device))
    return [z for item in prm.logits(items) for z in item], targets, weights
