"""The gradients of :mod:`agentprm_gym.llm.lean`, written out: of the embeddings and of the adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from agentprm_gym.llm.lean import Weights, heads_of, rotary, run, turn
from agentprm_gym.llm.tree_attention import FlatTrees, attend, attend_back


def _norm_back(
    grad: torch.Tensor, x: torch.Tensor, root: torch.Tensor, weight: torch.Tensor, into: torch.Tensor
) -> torch.Tensor:
    """Gradient of a norm's input, added to ``into``; ``grad`` is used up."""
    grad.mul_(weight)
    along = torch.linalg.vecdot(grad, x)[:, None].mul_(root.pow(3)).div_(x.shape[-1])  # (N, 1)
    return into.addcmul_(grad, root).addcmul_(x, along, value=-1)


class _Decoder(torch.autograd.Function):
    """:func:`run` over token trees, with gradients of the embeddings and of the adapters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: Weights,
        rope: tuple[torch.Tensor, torch.Tensor],
        trees: FlatTrees,
        rows: torch.Tensor | None,
        last: FlatTrees,
        *adapters: torch.Tensor,
    ) -> torch.Tensor:
        """Embeddings (N, H) to hidden states (K, H)."""
        sums: list[list[torch.Tensor]] = []

        def attending(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out, new = attend(q, k, v, _trees_of(i, weights, trees, last), weights.scale)
            sums.append(new)
            return out

        kept: list[Any] = []
        out = run(weights, x, rope, attending, rows, kept)
        ctx.everything = weights, rope, trees, rows, last, sums, kept
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of the embeddings and of the adapters' tensors."""
        weights, rope, trees, rows, last, sums, kept = ctx.everything
        ctx.everything = None  # the graph is used once
        x, root = kept[-1]
        dz = _norm_back(grad.clone(), x, root, weights.norm, torch.zeros_like(x))
        found: list[list[torch.Tensor | None]] = []
        for i in range(len(weights.layers) - 1, -1, -1):
            some = rows if i == len(weights.layers) - 1 else None
            to_x = i > 0 or ctx.needs_input_grad[0]
            dz, of_layer = _layer_back(
                dz,
                weights,
                i,
                kept[i],
                rope,
                some,
                lambda g, q, k, v, out, i=i: attend_back(
                    g, q, k, v, out, sums[i], _trees_of(i, weights, trees, last), weights.scale
                ),
                to_x,
            )
            found.append(of_layer)
            kept[i] = None
        flat = [t for of_layer in reversed(found) for t in of_layer]
        return dz if ctx.needs_input_grad[0] else None, None, None, None, None, None, *flat


def _trees_of(i: int, weights: Weights, trees: FlatTrees, last: FlatTrees) -> FlatTrees:
    return last if i == len(weights.layers) - 1 else trees


def _layer_back(
    dz: torch.Tensor,
    weights: Weights,
    i: int,
    kept: Sequence[Any],
    rope: tuple[torch.Tensor, torch.Tensor],
    some: torch.Tensor | None,
    attending_back: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    to_x: bool,
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Gradients of a layer's input and of its adapters; ``dz``, that of its output, is used up."""
    x, root, normed, q, k, v, heads, y, root2, normed2, gate, up, opened, gated, inner = kept
    layer, dim = weights.layers[i], weights.dim
    to_q, to_k, to_v, to_o, to_gate, to_up, to_down = layer.linears
    of: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []

    d_gated, *of_down = to_down.back(dz, gated, inner[6])
    assert d_gated is not None
    d_up = d_gated * opened
    d_gate = torch.ops.aten.silu_backward(d_gated.mul_(up), gate)
    d_normed2, *of_gate = to_gate.back(d_gate, normed2, inner[4])
    d_normed2, *of_up = to_up.back(d_up, normed2, inner[5], d_normed2)
    dy = _norm_back(d_normed2, y, root2, layer.norms[1], dz)  # type: ignore[arg-type]
    d_said, *of_o = to_o.back(dy, heads.reshape(len(q), -1), inner[3])
    assert d_said is not None
    dq, dk, dv = attending_back(d_said.view(heads.shape), *(heads_of(t, dim) for t in (q, k, v)), heads)
    dq, dk, dv = (t.transpose(0, 1).reshape(t.shape[1], -1) for t in (dq, dk, dv))  # (n, heads * head_dim)
    dq = turn(dq, rope if some is None else (rope[0][some], rope[1][some]), dim, -1.0)
    dk = turn(dk, rope, dim, -1.0)
    asking = normed if some is None else normed[some]
    d_asking, *of_q = to_q.back(dq, asking, inner[0], to_x=to_x)
    d_normed = d_asking
    if some is not None and to_x:
        assert d_asking is not None
        d_normed = torch.zeros_like(normed).index_add_(0, some, d_asking)
    d_normed, *of_k = to_k.back(dk, normed, inner[1], d_normed, to_x)
    d_normed, *of_v = to_v.back(dv, normed, inner[2], d_normed, to_x)
    if to_x:
        assert d_normed is not None
        into = dy if some is None else torch.zeros_like(x).index_add_(0, some, dy)
        dy = _norm_back(d_normed, x, root, layer.norms[0], into)
    of = [tuple(t) for t in (of_q, of_k, of_v, of_o, of_gate, of_up, of_down)]  # type: ignore[misc]
    return dy, [t for linear, pair in zip(layer.linears, of, strict=True) if linear.a is not None for t in pair]


def hidden_states(decoder: Any, weights: Weights, trees: FlatTrees, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Last hidden states of token trees.

    Args:
        decoder: the model's decoder, for its embeddings and rotary positions.
        weights: its weights now.
        trees: the trees.
        rows: (K,) int64, ascending: which tokens are wanted; ``None``: all.

    Returns:
        (K, H).
    """
    x = decoder.get_input_embeddings()(trees.ids)[0]  # (N, H)
    rope = rotary(decoder, x, trees.positions)
    last = trees if rows is None else trees.only(rows.numpy())
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights.adapters)):
        out: torch.Tensor = _Decoder.apply(x, weights, rope, trees, rows, last, *weights.adapters)
        return out

    def attending(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, _trees_of(i, weights, trees, last), weights.scale, keep=False)[0]

    return run(weights, x, rope, attending, rows)  # a layer's tensors are free when the next one begins
