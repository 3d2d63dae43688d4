"""A state at which commands compete, as the objectives see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


class Scored:
    """Options that have scores, by their indices."""

    __slots__ = ()
    scores: Mapping[int, float]

    @property
    def best(self) -> int:
        """Index of the option with the highest score, the first of equals."""
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def worst(self) -> int:
        """Index of the option with the lowest score, the first of equals."""
        return min(self.scores, key=self.scores.__getitem__)


@dataclass(slots=True)
class Choice(Scored):
    """A state, the policy's and the reference's distribution over its commands, and scores of some commands.

    Attributes:
        log_probs: (n_commands,) log pi(a|s) with gradients, in nats.
        reference: (n_commands,) log pi_ref(a|s).
        counts: how often each command, by its index, was drawn from the policy.
        scores: what the drawn commands that have a score are worth, Q or its logit.
    """

    log_probs: torch.Tensor
    reference: torch.Tensor
    counts: Mapping[int, int] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)


def kl_to_reference(choice: Choice) -> torch.Tensor:
    """Exact ``KL(pi || pi_ref)`` over the admissible commands of a state, a scalar in nats."""
    p, q = choice.log_probs, choice.reference
    return (p.exp() * (p - q)).sum()
