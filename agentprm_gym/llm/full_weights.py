"""Full fine-tuning: sets of weights that take the place of the base's own while their role is active.

Each role that is fully tuned owns a copy of every weight of the base. The base's own weights never change, so that LoRA
adapters and fingerprints go on to mean the same. Nothing is copied when roles change: modules are given other parameters. A
weight that several modules share (embeddings and output layer) is one parameter in each set, so it stays shared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

#: Where a weight stands: the module, and the name of its attribute.
Place = tuple[nn.Module, str]


def is_quantized(base: Any) -> bool:
    """Whether the base's weights are packed, so that nothing can be added to them."""
    return bool(getattr(base, "is_quantized", False))


def bare_name(name: str) -> str:
    """The name that a module or a weight of the base has without PEFT's layers around it."""
    return name.replace(".base_layer", "")


class FullWeights:
    """The base's weights, and further sets of them by name.

    In a model that reads more than text, a set holds the weights of the decoder of text and of its output layer; the others are
    shared.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        """Begin with the base's own weights alone.

        Args:
            base: the model; its own weights are in it.
        """
        self._base = base
        self._sets: dict[str, dict[str, nn.Parameter]] = {}
        self._own: dict[str, nn.Parameter] = {}
        self._places: dict[str, list[Place]] = {}
        self._held: str | None = None

    def __contains__(self, name: object) -> bool:
        """Whether there is a set of this name."""
        return name in self._sets

    @property
    def names(self) -> list[str]:
        """Names of the sets."""
        return list(self._sets)

    def add(self, name: str, adapters: Collection[nn.Parameter] = ()) -> None:
        """Add a set that begins as the base's own weights.

        Args:
            name: of the set.
            adapters: parameters in the base that are not its own: those of LoRA adapters.

        Raises:
            ValueError: the base is quantized, or its weights are less exact than float32.
        """
        if not self._own:
            self._find(adapters)
        _check_trainable(self._base, name, self._own)
        self._sets[name] = {
            key: nn.Parameter(own.detach().clone(), requires_grad=False) for key, own in self._own.items()
        }

    def remove(self, name: str) -> None:
        """Forget a set.

        Raises:
            RuntimeError: it is in the modules now.
        """
        if name == self._held:
            raise RuntimeError(f"adapter {name!r} is active: leave active() before it is removed")
        del self._sets[name]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of a set, by the names that they have in the bare base."""
        return self._sets[name]

    @contextmanager
    def holding(self, name: str | None) -> Iterator[None]:
        """Put a set into the modules inside; then put back what was there.

        Args:
            name: of the set; ``None``, or what is no set's name: the base's own weights.
        """
        before = self._held
        self._hold(name if name in self._sets else None)
        try:
            yield
        finally:
            self._hold(before)

    def _hold(self, name: str | None) -> None:
        if name == self._held:
            return
        weights = self._own if name is None else self._sets[name]
        for key, places in self._places.items():
            for module, attribute in places:
                setattr(module, attribute, weights[key])
        self._held = name

    def _find(self, adapters: Collection[nn.Parameter]) -> None:
        """Note the base's own weights and where they stand."""
        parts = (self._base.get_decoder(), self._base.get_output_embeddings())
        inside = {id(p) for part in parts if part is not None for p in part.parameters()} - {id(p) for p in adapters}
        names: dict[int, str] = {}
        for path, module in self._base.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                if id(parameter) in inside:
                    key = names.setdefault(id(parameter), bare_name(f"{path}.{attribute}" if path else attribute))
                    self._own[key] = parameter
                    self._places.setdefault(key, []).append((module, attribute))


def _check_trainable(base: PreTrainedModel, name: str, own: dict[str, nn.Parameter]) -> None:
    """Refuse weights that cannot be trained themselves.

    Raises:
        ValueError: the base is quantized, or its weights are less exact than float32.
    """
    if is_quantized(base):
        raise ValueError(
            f"{name!r} with lora=None trains all weights, and the weights of a quantized base cannot be trained: leave "
            "quantization out, or train a LoRA adapter (leave lora out, or give its settings)"
        )
    coarse = next((p.dtype for p in own.values() if p.dtype not in (torch.float32, torch.float64)), None)
    if coarse is not None:
        kind = str(coarse).removeprefix("torch.")
        raise ValueError(
            f"{name!r} with lora=None trains all weights, and those of this base are {kind}, in which small updates are lost: "
            'load the base with dtype="float32" (policy_kwargs={"lora": None, "dtype": "float32"}), or train a LoRA adapter'
        )
