"""Linear layers with an adapter, without the detours of PEFT's wrapper.

PEFT computes ``W x + (B (A x)) * s`` by separate layers: the products of all tokens are written, scaled, and added by passes
over memory of their own, in both directions. For a small model these passes take as long as the products themselves. Here they
are part of the products. Where the adapter's rank is so large that its own products cost more than ``dW``, the adapter is
folded: ``W + s B A`` is computed once a call, and the gradients of A and B follow exactly from that of the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import nn


class _LoraLinear(torch.autograd.Function):
    """``x W^T + b + s x A^T B^T`` for a frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Inputs (..., in), weight (out, in), a (r, in), b (out, r); returns (..., out)."""
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        fold = folds(weight.shape[1], weight.shape[0], a.shape[0], len(flat))
        if fold:
            weight = torch.addmm(weight, b, a, alpha=scale)
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        inner = None
        if not fold:
            inner = flat @ a.t()  # (N, r)
            out.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, inner)
        ctx.scale, ctx.fold, ctx.shape = scale, fold, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of the input and of the adapter."""
        flat, weight, a, b, inner = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (N, out)
        to_x, trains = ctx.needs_input_grad[0], ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        dx = grad @ weight if to_x else None
        da = db = None
        if ctx.fold:
            if trains:
                dw = grad.t() @ flat  # (out, in)
                da, db = (b.t() @ dw).mul_(ctx.scale), (dw @ a.t()).mul_(ctx.scale)
        else:
            back = grad @ b  # (N, r)
            if dx is not None:
                dx.addmm_(back, a, alpha=ctx.scale)
            if trains:
                da, db = (back.t() @ flat).mul_(ctx.scale), (grad.t() @ inner).mul_(ctx.scale)
        return None if dx is None else dx.view(ctx.shape), None, None, da, db, None


def folds(n_in: int, n_out: int, rank: int, n_tokens: int) -> bool:
    """Whether folding takes fewer multiplications.

    Folded, a token costs ``in * out`` more for ``dW``; else three products each with A and with B, in forward and backward.
    Both ways share the products with the weight itself.

    Args:
        n_in: inputs of the layer.
        n_out: its outputs.
        rank: of the adapter.
        n_tokens: in the batch.
    """
    once = 3 * rank * n_in * n_out  # the sum, and A's and B's gradients from the sum's
    return once + n_tokens * n_in * n_out < n_tokens * 3 * rank * (n_in + n_out)


#: Weight (out, in), bias (out,) or ``None``, A (r, in), B (out, r) and scale of a layer with an adapter.
Adapted = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float]


def adapter_of(layer: nn.Module, adapter: str) -> Adapted | None:
    """The tensors of a layer of PEFT with one plain adapter active.

    Args:
        layer: any module.
        adapter: the adapter that is to be active.

    Returns:
        The tensors, or ``None`` where only PEFT's own forward pass gives the right numbers: layers of another kind, adapters
        with dropout that is on, with a bias, or of another type than the weights.
    """
    if type(layer) is not PeftLinear or adapter not in layer.lora_A or layer.merged or layer.disable_adapters:
        return None
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or adapter in layer.lora_variant or layer.lora_bias.get(adapter, False):
        return None
    dropout = layer.lora_dropout[adapter]
    if not isinstance(dropout, nn.Identity) and dropout.training:
        return None
    weight, bias, scale = base.weight, base.bias, float(layer.scaling[adapter])
    a: Any = layer.lora_A[adapter].weight
    b: Any = layer.lora_B[adapter].weight
    if not weight.dtype == a.dtype == b.dtype or weight.requires_grad:
        return None
    return weight, bias, a, b, scale


def fast_forward(layer: nn.Module, adapter: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward pass for a layer of PEFT with one plain adapter active.

    Args:
        layer: any module.
        adapter: the adapter that is to be active.

    Returns:
        A function of the layer's input, or ``None`` as for :func:`adapter_of`.
    """
    found = adapter_of(layer, adapter)
    if found is None:
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _LoraLinear.apply(x, *found)
        return out

    return forward


@contextmanager
def fast_layers(layers: Sequence[nn.Module], adapter: str | None) -> Iterator[None]:
    """Let layers of PEFT be computed by :func:`fast_forward` inside, where they can.

    Args:
        layers: the layers; what an enclosing block did to them is put back at the end.
        adapter: the adapter that is active; ``None``: by PEFT's own forward passes.
    """
    before = [layer.__dict__.pop("forward", None) for layer in layers]
    try:
        for layer in layers if adapter is not None else ():
            forward = fast_forward(layer, str(adapter))
            if forward is not None:
                layer.__dict__["forward"] = forward
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if own is not None:
                layer.__dict__["forward"] = own


def adapter_tensors(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters in PEFT's naming: those of linear layers, of embeddings and of the output layer.

    Args:
        model: a model with layers of PEFT in it.
        adapter: the adapter.
    """
    out: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for kind in module.adapter_layer_names:
                held = getattr(module, kind)
                if adapter in held and isinstance(held[adapter], nn.Parameter):
                    out[f"{path}.{kind}"] = held[adapter]
                elif adapter in held:
                    out |= {f"{path}.{kind}.{key}": p for key, p in held[adapter].named_parameters()}
    return out


def shared_weights(model: nn.Module) -> set[int]:
    """Addresses of the weights that several layers share, as tied embeddings do with the output layer.

    Args:
        model: any model.
    """
    uses = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    return {address for address, n in uses.items() if n > 1}
