"""What policy improvement minimises, one file an objective."""

from collections.abc import Callable, Sequence

import torch

from algorithms.common.prm.objectives.awr import awr
from algorithms.common.prm.objectives.choice import Choice, Scored
from algorithms.common.prm.objectives.closed_form import closed_form_losses
from algorithms.common.prm.objectives.imitation import imitate, imitation
from algorithms.common.prm.objectives.online_dpo import dpo, ipo, pair_accuracy
from algorithms.common.prm.objectives.policy_gradient import policy_gradient
from algorithms.common.prm.objectives.rejection import rejection

#: Objectives over commands that are sampled from the policy and scored: ``losses(choices, beta)``.
SAMPLED: dict[str, Callable[[Sequence[Choice], float], list[torch.Tensor]]] = {
    "online_dpo": dpo,
    "online_ipo": ipo,
    "rejection": rejection,
    "policy_gradient": policy_gradient,
    "awr": awr,
}
#: All objectives by name.
OBJECTIVES = (*SAMPLED, "closed_form", "imitation")

__all__ = ["OBJECTIVES", "SAMPLED", "Choice", "Scored", "closed_form_losses", "imitate", "imitation", "pair_accuracy"]
