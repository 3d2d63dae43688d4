"""Folding a LoRA adapter into the weights of the layers that it is on, and taking it out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


def layer_delta(layer: LoraLayer, adapter: str) -> torch.Tensor | None:
    """What an adapter adds to the weight of a layer, in that weight's shape; ``None`` where the layer has no such adapter."""
    if adapter not in layer.lora_A and adapter not in layer.lora_embedding_A:
        return None
    kind: Any = layer  # LoraLayer leaves the method to its subclasses
    delta: torch.Tensor = kind.get_delta_weight(adapter)
    return delta


@contextmanager
def folded(layers: Sequence[Any], adapter: str, shared: set[int]) -> Iterator[None]:
    """Add an adapter to the weights of its layers inside; then the layers have their own weights again, bit for bit.

    Args:
        layers: PEFT's.
        adapter: the adapter.
        shared: addresses of weights that further layers have, see :func:`agentprm_gym.llm.lora_linear.shared_weights`.
    """
    undo: list[tuple[Any, nn.Parameter, torch.Tensor | None]] = []  # layers, their weights, and copies of the numbers
    try:
        with torch.no_grad():
            for layer in layers:
                delta = layer_delta(layer, adapter)
                if delta is not None:
                    holder: Any = layer.get_base_layer()
                    weight = holder.weight
                    if weight.data_ptr() in shared:
                        # Other layers go on with the weight as it is.
                        undo.append((holder, weight, None))
                        holder.weight = nn.Parameter(weight.clone().add_(delta), requires_grad=False)
                    else:
                        # In place: matrix products round by where in memory a weight begins.
                        undo.append((holder, weight, weight.detach().clone()))
                        weight.add_(delta)
        yield
    finally:
        with torch.no_grad():
            for holder, weight, numbers in undo:
                holder.weight = weight if numbers is None else weight.copy_(numbers)
