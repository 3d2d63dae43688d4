"""Advantage-weighted regression (Peng et al., arXiv 1910.00177), the theory of ReAd (Zhang et al., arXiv 2405.14314).

``L = -E_{a ~ pi_ref} [ min(exp(A(s, a) / beta), w_max) log pi(a|s) ]``. Without the cap its optimum is
``pi*(a|s) ~ pi_ref(a|s) exp(A(s, a) / beta)``, that of the objective ``"closed_form"``, whose loss it is up to the factor
``Z(s) = sum_a pi_ref(a|s) exp(A(s, a) / beta)``. Commands are drawn from the present policy, so a command counts
``pi_ref / pi`` times its draws. The baseline of A is the mean score of the drawn commands under the reference, and A is not
normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from algorithms.common.prm.objectives.choice import Choice

#: The largest weight of a command.
MAX_WEIGHT = 20.0


def awr(choices: Sequence[Choice], beta: float) -> list[torch.Tensor]:
    """The loss at each state, scalars."""
    return [_loss(choice, beta) for choice in choices]


def _loss(choice: Choice, beta: float) -> torch.Tensor:
    options = list(choice.scores)
    draws = np.array([choice.counts[o] for o in options], dtype=np.float64)  # (n_distinct,)
    scores = np.array([choice.scores[o] for o in options])  # (n_distinct,)
    reference = choice.reference[options].detach().double().cpu().numpy()  # (n_distinct,)
    present = choice.log_probs[options].detach().double().cpu().numpy()  # (n_distinct,)
    weights = np.exp(reference - reference.max())
    advantages = scores - float(weights @ scores) / float(weights.sum())
    capped = np.minimum(np.exp(np.minimum(advantages / beta, 100.0)), MAX_WEIGHT)
    factors = draws / draws.sum() * np.exp(reference - present) * capped
    row = choice.log_probs
    return -(torch.as_tensor(factors, dtype=row.dtype, device=row.device) * row[options]).sum()
