"""Relative losses of the fit: what the PRM thinks of the commands of one state, against each other. The paper has none.

* Pairs: ``-log sigmoid(z_better - z_worse)`` over pairs whose targets are at least :data:`MIN_GAP` apart, weighted by the
  gap. It suits outcomes of single rollouts, which differ by much and are noisy.
* List: the divergence of ``softmax(Q / tau)`` from ``softmax(Q-hat / tau)`` over the state's labelled commands. Their values
  often differ by one discount only, the action gap; with tau near that gap the loss sees it. Both it and the cross-entropy of
  each command are smallest at ``Q = Q-hat``. It suits targets with little noise.
"""

from __future__ import annotations

import torch
from torch.nn import functional

#: Two targets of one state count as different from this gap on.
MIN_GAP = 0.1


def pairs_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The loss of a state, a scalar summed over its pairs, and their number.

    Args:
        logits: (n_commands,).
        targets: (n_commands,), in [0, 1].
    """
    gap = targets[:, None] - targets[None, :]  # (n_commands, n_commands)
    better = gap >= MIN_GAP
    ahead = (logits[:, None] - logits[None, :])[better]  # (n_pairs,)
    return (functional.softplus(-ahead) * gap[better]).sum(), int(better.sum())


def list_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, tau: float) -> torch.Tensor:
    """The loss of a state, a scalar, times the mean weight of its commands; 0 where there is one command.

    Args:
        logits: (n_commands,).
        targets: (n_commands,), in [0, 1].
        weights: (n_commands,).
        tau: which gap of values counts, above 0.
    """
    wanted = torch.log_softmax(targets / tau, 0)  # (n_commands,)
    given = torch.log_softmax(torch.sigmoid(logits) / tau, 0)  # (n_commands,)
    return weights.mean() * functional.kl_div(given, wanted, reduction="sum", log_target=True)
