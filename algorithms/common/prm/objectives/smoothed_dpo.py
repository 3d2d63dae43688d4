"""Online DPO with labels that may be wrong."""

from __future__ import annotations

import torch

from algorithms.common.prm.objectives.online_dpo import dpo_loss


def smoothed_dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    beta: float,
    epsilon: torch.Tensor,
) -> torch.Tensor:
    """DPO of N pairs whose labels are wrong with probability epsilon, all (N,); (N,).

    ``-(1 - epsilon) log sigmoid(beta * m) - epsilon log sigmoid(-beta * m)`` (Xie et al., arXiv 2405.00451).
    """
    right = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    wrong = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta)
    return (1 - epsilon) * right + epsilon * wrong
