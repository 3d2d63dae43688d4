"""What a role trains beside or in place of the base's weights: a LoRA adapter by its settings, or weights of its own.

``None`` in place of LoRA settings asks for full fine-tuning. So the default of an argument ``lora`` is :data:`DEFAULT_LORA`
and not ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from agentprm_gym.llm.peft_folder import SETTINGS

#: LoRA settings used where the caller gives none.
DEFAULT_LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
#: Stands in an adapter's configuration where PEFT's has ``"LORA"``: all weights are its own.
FULL = "FULL"
#: The configuration of full weights, as a save holds it. Versions that know LoRA only refuse it by its type.
FULL_CONFIG: dict[str, Any] = {"peft_type": FULL}


#: What to do where one model has LoRA and the other full weights.
OTHER_KIND = (
    "give the new model the settings of the trained one (lora=None is full fine-tuning), or export the trained one as a whole "
    "(agentprm export --as merged) and name that folder as the base"
)


def is_full(config: Mapping[str, Any]) -> bool:
    """Whether an adapter's configuration is that of full weights."""
    return config.get("peft_type") == FULL


def lora_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What makes another adapter of the same kind and shape, for :meth:`AdapterSet.add_adapter`.

    Args:
        config: an adapter's configuration.

    Returns:
        The part of a PEFT configuration that says the shape, JSON-able; ``None`` for full weights.
    """
    if is_full(config):
        return None
    chosen = {k: config[k] for k in SETTINGS if config.get(k) not in (None, False, {})}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in chosen.items()}


def kind_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """What an adapter's tensors are, for messages: ``"a LoRA adapter"`` or ``"full weights"``."""
    return "a LoRA adapter" if all(key.startswith("base_model.") for key in tensors) else "full weights"
