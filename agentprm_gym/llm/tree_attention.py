"""Attention over token trees without the masked part of it.

A batch of token trees as one dense matrix would let every token look at every column, most of which the mask hides: a row of
a trunk of 300 tokens with 900 tokens in branches costs 1,200 x 1,200 scores, of which a fifth count. Here the trees lie one
behind the other without padding, and are cut into parts. A part of a trunk attends to the trunk up to its own end. A part of
the branches attends to the trunk up to the place where its last branch hangs, and to itself. One softmax goes over both, so
the numbers are those of the dense matrix up to rounding.

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
#: Tokens of a part of a trunk. Parts of branches end at the next place where they can, once they have this many tokens.
_BLOCK, _PIECE = 128, 48
#: Bytes of probabilities that a layer keeps for its gradients. Beyond that they are computed again.
_KEPT = 64_000_000
#: Arguments of the library's attention functions that change the numbers in a way that is not known here.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")


class Part(NamedTuple):
    """Queries that are computed in one call. Its keys are some of a trunk's tokens, and for branches their own.

    Attributes:
        queries: which queries, as a slice.
        trunk: the trunk's first tokens, as many as the last query sees.
        own: the other keys: the branches' own tokens; empty for a part of a trunk.
        mask: (n, m) bool, true where a query may attend to one of the last m keys. All queries see all keys before these.
    """

    queries: slice
    trunk: slice
    own: slice
    mask: npt.NDArray[np.bool_]

    @property
    def n_keys(self) -> int:
        """How many keys there are."""
        return self.trunk.stop - self.trunk.start + self.own.stop - self.own.start


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
    _masks: list[torch.Tensor] = field(default_factory=list)

    @property
    def masks(self) -> list[torch.Tensor]:
        """The masks of the parts as float32 numbers that are added to scores: 0, or minus infinity."""
        if not self._masks:
            self._masks = [torch.from_numpy(np.where(part.mask, 0, -np.inf).astype(np.float32)) for part in self.parts]
        return self._masks

    def only(self, wanted: npt.NDArray[np.int64]) -> FlatTrees:
        """The same trees, with some of the queries.

        Args:
            wanted: (K,) which tokens, ascending and distinct. They are counted from 0 in the parts' ``queries``.
        """
        parts = []
        for part in self.parts:
            first, last = np.searchsorted(wanted, (part.queries.start, part.queries.stop))
            if first < last:
                mask = part.mask[wanted[first:last] - part.queries.start]
                parts.append(Part(slice(int(first), int(last)), part.trunk, part.own, mask))
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
        for first in range(0, n, _BLOCK):
            here = slice(start + first, start + min(first + _BLOCK, n))
            causal = np.tri(here.stop - here.start, dtype=np.bool_)
            parts.append(Part(here, slice(start, here.stop), slice(start, start), causal))
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
        as in :class:`Part`; and the nodes' depths, (n,).
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
        some = np.arange(at.min() + 1, n_seen)  # all see what is before
        yield base, last + n_trunk, n_seen, np.hstack([some <= at[:, None], seen]), at + depth
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
    out: torch.Tensor = _Attention.apply(query, key, value, trees, scaling)
    return out, None


AttentionInterface.register(NAME, tree_attention)


class _Attention(torch.autograd.Function):
    """:func:`attend` with gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: FlatTrees, scale: float | None
    ) -> torch.Tensor:
        """Queries (1, heads, N, head_dim), and keys and values of as many heads or fewer, to (1, N, heads, head_dim)."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, kept = attend(q[0], k[0], v[0], trees, scale, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.trees, ctx.scale = trees, scale
        return out[None]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Gradients of queries, keys and values."""
        q, k, v, out, *kept = ctx.saved_tensors
        found = attend_back(grad[0], q[0], k[0], v[0], out, kept, ctx.trees, ctx.scale)
        return *(t[None] for t in found), None, None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: FlatTrees, scale: float, *, keep: bool = True
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention over trees.

    Args:
        q: (heads, K, head_dim): the queries of ``trees``.
        k: (key_heads, N, head_dim).
        v: (key_heads, N, head_dim).
        trees: who attends to whom.
        scale: what scores are multiplied by.
        keep: whether :func:`attend_back` will be called.

    Returns:
        (K, heads, head_dim), and the probabilities of each part, (heads, n, keys) each; without ``keep``, or where they are
        too many, none.
    """
    heads, n, dim = q.shape
    out = torch.empty(n, heads, dim, dtype=q.dtype, device=q.device)
    keep = keep and sum(part.mask.shape[0] * part.n_keys for part in trees.parts) * heads * q.element_size() <= _KEPT
    kept = []
    for part, mask in zip(trees.parts, trees.masks, strict=True):
        p = probabilities(q[:, part.queries], _keys(k, part), mask, scale)
        out[part.queries] = read(p, _keys(v, part)).transpose(0, 1)
        if keep:
            kept.append(p)
    return out, kept


def probabilities(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Whom queries attend to, (heads, n, keys).

    Args:
        q: (heads, n, head_dim).
        k: (key_heads, keys, head_dim); heads of queries that are neighbours share one of them.
        mask: (n, m) float32 numbers that are added to the scores of the last m keys; ``None``: nothing is.
        scale: what scores are multiplied by.
    """
    scores = torch.bmm(_sharing(q * scale, len(k)), k.transpose(1, 2)).view(*q.shape[:2], k.shape[1])
    if mask is not None:
        scores[:, :, scores.shape[2] - mask.shape[1] :] += mask
    # In half precision the softmax is taken in float32, as torch's own attention does.
    return torch.softmax(scores, -1, dtype=torch.float32 if scores.dtype.itemsize < 4 else None).to(q.dtype)


def read(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What queries read, (heads, n, head_dim).

    Args:
        p: (heads, n, keys) whom they attend to.
        v: (key_heads, keys, head_dim).
    """
    return torch.bmm(_sharing(p, len(v)), v).view(*p.shape[:2], v.shape[2])


def _sharing(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(heads, n, d) as (key_heads, heads that share a key * n, d): nobody has to copy keys and values for each head."""
    return x if len(x) == key_heads else x.reshape(key_heads, -1, x.shape[2])


def attend_back(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    kept: Sequence[torch.Tensor],
    trees: FlatTrees,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values, in their shapes.

    Args:
        grad: (K, heads, head_dim) gradient of what :func:`attend` returned.
        q: as for :func:`attend`.
        k: as for :func:`attend`.
        v: as for :func:`attend`.
        out: what :func:`attend` returned.
        kept: what it returned beside it.
        trees: as for :func:`attend`.
        scale: as for :func:`attend`.
    """
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    along = (grad * out).sum(-1).t()[:, :, None]  # (heads, K, 1)
    grad = grad.transpose(0, 1)  # (heads, K, head_dim)
    for i, (part, mask) in enumerate(zip(trees.parts, trees.masks, strict=True)):
        here, keys, values = part.queries, _keys(k, part), _keys(v, part)
        queries, g = q[:, here], grad[:, here]
        p = kept[i] if kept else probabilities(queries, keys, mask, scale)
        ds = read(g, values.transpose(1, 2)).sub_(along[:, here]).mul_(p).mul_(scale)  # (heads, n, keys)
        dq[:, here] = read(ds, keys)
        n = part.trunk.stop - part.trunk.start
        for total, left, right in ((dv, p, g), (dk, ds, queries)):
            left, right = _sharing(left, len(k)).transpose(1, 2), _sharing(right, len(k))
            total[:, part.trunk].baddbmm_(left[:, :n], right)
            if part.own.start < part.own.stop:
                total[:, part.own] = torch.bmm(left[:, n:], right)
    return dq, dk, dv


def _keys(x: torch.Tensor, part: Part) -> torch.Tensor:
    """Keys or values (key_heads, N, head_dim) that a part attends to."""
    trunk = x[:, part.trunk]
    return trunk if part.own.start == part.own.stop else torch.cat([trunk, x[:, part.own]], 1)
