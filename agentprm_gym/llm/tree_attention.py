"""Attention over token trees without the masked part of it.

A batch of token trees as one dense matrix would let every token look at every column, most of which the mask hides: a row of
a trunk of 300 tokens with 900 tokens in branches costs 1,200 x 1,200 scores, of which a fifth count. Here the trees lie one
behind the other without padding. A trunk attends causally to itself. The branches are cut into pieces, and each piece
attends to the trunk up to the place where its last branch hangs, and to itself. One softmax goes over both, so the numbers are
those of the dense matrix up to rounding.

The function is registered with transformers under :data:`NAME`. A decoder that takes its attention from the library's
interface calls it (:meth:`agentprm_gym.llm.model.LanguageModel.tree_hidden` switches it on for one pass).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AttentionInterface

from agentprm_gym.llm.packing import TokenTree, tree_block

#: The name under which transformers knows the function.
NAME = "agentprm_tree"
#: Pieces of branches end at the next place where they can, once they have this many tokens.
_PIECE = 48
#: Arguments of the library's attention functions that change the numbers in a way that is not known here.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")


class Part(NamedTuple):
    """Queries that are computed in one call. Its keys are a trunk's first tokens, and some others.

    Attributes:
        queries: which queries, as a slice.
        trunk: the trunk's tokens among the keys; empty where the queries are a trunk.
        own: the other keys: the piece's own tokens.
        mask: (n, keys) bool, true where a query may attend to a key; ``None`` where the queries are a trunk, which is causal.
    """

    queries: slice
    trunk: slice
    own: slice
    mask: npt.NDArray[np.bool_] | None


@dataclass(slots=True)
class FlatTrees:
    """Token trees, one behind the other.

    Attributes:
        ids: (1, N) int64 token ids.
        positions: (1, N) int64 depth of each token in its tree.
        starts: where each tree begins.
        parts: all queries, trunks before what hangs off them.
        depth: tokens on the longest way from a root down.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: list[int]
    parts: list[Part]
    depth: int
    _masks: dict[torch.dtype, list[torch.Tensor | None]] = field(default_factory=dict)

    def masks(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        """The masks of the parts as numbers that are added to scores: 0, or minus infinity."""
        if dtype not in self._masks:
            self._masks[dtype] = [
                None
                if part.mask is None
                else torch.zeros(part.mask.shape, dtype=dtype).masked_fill_(torch.from_numpy(~part.mask), -torch.inf)
                for part in self.parts
            ]
        return self._masks[dtype]

    def only(self, wanted: npt.NDArray[np.int64]) -> FlatTrees:
        """The same trees, with some of the queries.

        Args:
            wanted: (K,) which tokens, ascending and distinct. They are counted from 0 in the parts' ``queries``.
        """
        parts = []
        for part in self.parts:
            first, last = np.searchsorted(wanted, (part.queries.start, part.queries.stop))
            here = wanted[first:last] - part.queries.start
            if not len(here):
                continue
            trunk, own, mask = part.trunk, part.own, part.mask
            if mask is None:
                n_seen = int(here[-1]) + 1
                trunk, own = slice(own.start, own.start + n_seen), slice(own.start, own.start)
                mask = np.arange(n_seen) <= here[:, None]
            else:
                mask = mask[here]
            parts.append(Part(slice(int(first), int(last)), trunk, own, mask))
        return FlatTrees(self.ids, self.positions, self.starts, parts, self.depth)


def flatten(trees: Sequence[TokenTree], device: torch.device | str = "cpu") -> FlatTrees:
    """Lay token trees one behind the other.

    Args:
        trees: the trees, one or more, each with one token or more.
        device: where the tensors go.
    """
    starts = np.cumsum([0, *(len(tree) for tree in trees)])
    ids = np.empty(int(starts[-1]), dtype=np.int64)  # (N,)
    positions = np.empty(int(starts[-1]), dtype=np.int64)  # (N,)
    parts: list[Part] = []
    for tree, start in zip(trees, starts[:-1].tolist(), strict=True):
        n = len(tree.trunk)
        ids[start : start + n], ids[start + n : start + len(tree)] = tree.trunk, tree.tokens
        positions[start : start + n] = np.arange(n)
        parts.append(Part(slice(start, start + n), slice(start, start), slice(start, start + n), None))
        for first, last, n_seen, mask, depth in _pieces(tree.parents, n):
            here = slice(start + first, start + last)
            parts.append(Part(here, slice(start, start + n_seen), here, mask))
            positions[here] = depth
    return FlatTrees(
        torch.from_numpy(ids)[None].to(device),
        torch.from_numpy(positions)[None].to(device),
        starts[:-1].tolist(),
        parts,
        int(positions.max()) + 1,
    )


def _pieces(
    parents: Sequence[int], n_trunk: int
) -> Iterator[tuple[int, int, int, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
    """Cut the nodes of a tree into pieces that see nothing of each other.

    Args:
        parents: of each node, as an index into trunk and nodes.
        n_trunk: tokens of the trunk, 1 or more.

    Yields:
        The piece's first node and one past its last, as such indices; how many tokens of the trunk it sees; who sees whom,
        (n, n_seen + n); and the nodes' depths, (n,).
    """
    n = len(parents)
    # A cut is possible where no later node hangs below an earlier one.
    least = n + n_trunk
    can_cut = [True] * (n + 1)
    for i in range(n - 1, -1, -1):
        if parents[i] >= n_trunk:
            least = min(least, parents[i])
        can_cut[i] = least >= i + n_trunk
    first = 0
    for last in range(1, n + 1):
        if last < n and not (can_cut[last] and last - first >= _PIECE):
            continue
        base = first + n_trunk
        attached = [-1] * (last - first)  # of each node, the trunk's token that it hangs off
        below = []
        for i, parent in enumerate(parents[first:last]):
            inside = parent >= n_trunk
            attached[i] = attached[parent - base] if inside else parent
            below.append(parent - base if inside else -1)
        seen, depth = tree_block(tuple(below))
        at = np.array(attached)
        n_seen = int(at.max()) + 1
        yield base, last + n_trunk, n_seen, np.hstack([np.arange(n_seen) <= at[:, None], seen]), at + depth
        first = last


# ---------------------------------------------------------------------- the library's interface
_current: ContextVar[FlatTrees | None] = ContextVar("agentprm_tree", default=None)


@contextmanager
def attending(config: Any, trees: FlatTrees) -> Iterator[None]:
    """Let a decoder with this configuration attend by :func:`tree_attention` inside.

    Args:
        config: the decoder's configuration; it is put back.
        trees: what is fed inside.
    """
    before, token = config._attn_implementation, _current.set(trees)
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before
        _current.reset(token)


def available() -> bool:
    """Whether this version of torch has the kernels that are called here."""
    return all(hasattr(torch.ops.aten, name) for name in (FORWARD, BACKWARD))


def tree_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over the trees that :func:`attending` was given; transformers calls it.

    Args:
        module: the attention layer.
        query: (1, heads, N, head_dim).
        key: (1, key_heads, N, head_dim).
        value: (1, key_heads, N, head_dim).
        attention_mask: not used: the trees say who attends to whom.
        dropout: must be 0.
        scaling: what scores are multiplied by; ``None``: one over the root of ``head_dim``.
        kwargs: further arguments of the library.

    Returns:
        (1, N, heads, head_dim), and ``None`` in the place of the weights.

    Raises:
        NotImplementedError: the layer asks for something else than this.
    """
    trees = _current.get()
    odd = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if trees is None or odd or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"tree attention: expected plain causal attention over trees, got {odd}, {dropout=}")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out: torch.Tensor = _Attention.apply(query, key, value, trees, scaling)
    return out, None


AttentionInterface.register(NAME, tree_attention)

#: Names of torch's kernels for a CPU, in its list of operators.
FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: FlatTrees, scale: float | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention over trees, by the kernels that torch's own attention uses on a CPU.

    Args:
        q: (1, heads, K, head_dim): the queries of ``trees``.
        k: (1, heads, N, head_dim).
        v: (1, heads, N, head_dim).
        trees: who attends to whom.
        scale: what scores are multiplied by; ``None``: one over the root of ``head_dim``.

    Returns:
        (1, K, heads, head_dim), and the logarithms of the softmaxes' divisors, by part.
    """
    flash = getattr(torch.ops.aten, FORWARD)
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)  # (1, K, heads, head_dim)
    sums = []
    for part, mask in zip(trees.parts, trees.masks(q.dtype), strict=True):
        queries = q[:, :, part.queries]
        o, lse = flash(queries, _keys(k, part), _keys(v, part), 0.0, mask is None, attn_mask=mask, scale=scale)
        out[:, part.queries] = o.transpose(1, 2)
        sums.append(lse)
    return out, sums


def attend_back(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    sums: Sequence[torch.Tensor],
    trees: FlatTrees,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values, in their shapes.

    Args:
        grad: (1, K, heads, head_dim) gradient of what :func:`attend` returned.
        q: as for :func:`attend`.
        k: as for :func:`attend`.
        v: as for :func:`attend`.
        out: what :func:`attend` returned.
        sums: what it returned beside it.
        trees: as for :func:`attend`.
        scale: as for :func:`attend`.
    """
    flash = getattr(torch.ops.aten, BACKWARD)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for part, mask, lse in zip(trees.parts, trees.masks(q.dtype), sums, strict=True):
        to_q, to_k, to_v = flash(
            grad[:, part.queries].transpose(1, 2),
            q[:, :, part.queries],
            _keys(k, part),
            _keys(v, part),
            out[:, part.queries].transpose(1, 2),
            lse,
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scale,
        )
        dq[:, :, part.queries] = to_q
        n = part.trunk.stop - part.trunk.start
        for total, new in ((dk, to_k), (dv, to_v)):
            total[:, :, part.own] += new[:, :, n:]
            if n:
                total[:, :, part.trunk] += new[:, :, :n]
    return dq, dk, dv


def _keys(x: torch.Tensor, part: Part) -> torch.Tensor:
    """Keys or values (1, heads, N, head_dim) that a part attends to."""
    if part.trunk.start == part.trunk.stop:
        return x[:, :, part.own]
    if part.own.start == part.own.stop:
        return x[:, :, part.trunk]
    return torch.cat([x[:, :, part.trunk], x[:, :, part.own]], 2)


class _Attention(torch.autograd.Function):
    """:func:`attend` with gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: FlatTrees, scale: float | None
    ) -> torch.Tensor:
        """Queries, keys and values (1, heads, N, head_dim) to (1, N, heads, head_dim)."""
        out, sums = attend(q, k, v, trees, scale)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.trees, ctx.scale = trees, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of queries, keys and values."""
        q, k, v, out, *sums = ctx.saved_tensors
        return *attend_back(grad, q, k, v, out, sums, ctx.trees, ctx.scale), None, None
