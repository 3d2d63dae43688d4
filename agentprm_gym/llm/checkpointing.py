"""Gradient checkpointing: a layer keeps its input only, and is computed again when its gradients are asked for.

The library does this in models that are in training mode. The base stays in evaluation mode here, so that dropout of its own
is off. So only the layers themselves are told that they train, and not what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def checkpointing(decoder: nn.Module) -> Iterator[None]:
    """Let the layers of a decoder keep their inputs only, for what is computed inside.

    The backward pass may come later, but with the same adapter active.

    Args:
        decoder: of a language model.

    Raises:
        ValueError: it has no layers that can be computed again.
    """
    layers: list[Any] = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(decoder).__name__} has no layers of a kind that can be computed again: leave gradient_checkpointing out"
        )
    before = [(layer, layer.training, layer.gradient_checkpointing) for layer in layers]
    try:
        for layer in layers:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = layer.training = True
        yield
    finally:
        for layer, training, on in before:
            layer.training, layer.gradient_checkpointing = training, on
