"""Online DPO and IPO: away from the worst sample of a state and towards the best one.

``DPO = -log sigmoid(beta * m)`` and ``IPO = (m - 1 / (2 beta))^2`` with the margin
``m = [log pi - log pi_ref](best) - [log pi - log pi_ref](worst)`` (Rafailov et al., arXiv 2305.18290; Azar et al., arXiv
2310.12036). AgentPRM's paper uses DPO with two samples a state and every pair (section 2, stage 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from algorithms.common.prm.objectives.choice import Choice


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """DPO of N pairs of log-probabilities, all (N,); (N,)."""
    return -functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def ipo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """IPO of N pairs of log-probabilities, all (N,); (N,)."""
    return (((chosen - ref_chosen) - (rejected - ref_rejected)) - 1 / (2 * beta)) ** 2


def pairs(choices: Sequence[Choice]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the best and the worst command of N states: chosen, rejected, and the reference's of both."""
    chosen = torch.stack([c.log_probs[c.best] for c in choices])  # (N,)
    rejected = torch.stack([c.log_probs[c.worst] for c in choices])  # (N,)
    ref_chosen = torch.stack([c.reference[c.best] for c in choices])  # (N,)
    ref_rejected = torch.stack([c.reference[c.worst] for c in choices])  # (N,)
    return chosen, rejected, ref_chosen, ref_rejected


def dpo(choices: Sequence[Choice], beta: float) -> list[torch.Tensor]:
    """DPO at each state, scalars."""
    return list(dpo_loss(*pairs(choices), beta))


def ipo(choices: Sequence[Choice], beta: float) -> list[torch.Tensor]:
    """IPO at each state, scalars."""
    return list(ipo_loss(*pairs(choices), beta))


def pair_accuracy(choices: Sequence[Choice]) -> list[float]:
    """For each state 1 where the policy prefers the best command more than the reference does, else 0."""
    chosen, rejected, ref_chosen, ref_rejected = pairs(choices)
    return ((chosen - ref_chosen) > (rejected - ref_rejected)).float().tolist()
