"""The decoder of a small Llama, computed directly: the library's numbers without its passes over memory.

For a model of a few million parameters the matrix products are only half of the time of a training pass. The rest goes to
norms, rotations, residual sums and copies, one pass over memory each, and to a backward pass that repeats them. Here
residual sums and adapters are part of the products, the backward pass is written out, and of the last layer only those tokens
are computed that somebody reads. Models with the same layers (Mistral, Qwen 2) go the same way. All others take the library's
forward pass, as these do on a GPU or in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from agentprm_gym.llm.cache import RaggedCache
from agentprm_gym.llm.lora_linear import adapter_of
from agentprm_gym.llm.tree_attention import probabilities, read

#: Decoders whose layers are those that are computed here.
_DECODERS = (LlamaModel, MistralModel, Qwen2Model)
#: The linear layers of a layer, in the order in which their adapters are handed around.
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: What attends: queries, keys and values (heads, n, head_dim) of a layer to (n, heads, head_dim).
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Linear(NamedTuple):
    """A linear layer and its adapter.

    Attributes:
        weight: (out, in).
        bias: (out,) or ``None``.
        a: (r, in), or ``None`` without an adapter.
        b: (out, r), or ``None``.
        scale: what the adapter's output is multiplied by.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    scale: float

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs for (N, in), with a residual (N, out) added, and the adapter's inner (N, r)."""
        if add is None:
            add = self.bias
        out = x @ self.weight.t() if add is None else torch.addmm(add, x, self.weight.t())
        if self.a is None or self.b is None:
            return out, None
        inner = x @ self.a.t()
        return out.addmm_(inner, self.b.t(), alpha=self.scale), inner

    def back(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        inner: torch.Tensor | None,
        into: torch.Tensor | None = None,
        to_x: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Gradients of the input, added to ``into``, and of a and b."""
        dx = None
        if to_x:
            dx = grad @ self.weight if into is None else into.addmm_(grad, self.weight)
        if self.a is None or self.b is None or inner is None:
            return dx, None, None
        outer = grad @ self.b  # (N, r)
        if dx is not None:
            dx.addmm_(outer, self.a, alpha=self.scale)
        if not (self.a.requires_grad or self.b.requires_grad):
            return dx, None, None
        return dx, (outer.t() @ x).mul_(self.scale), (grad.t() @ inner).mul_(self.scale)


@dataclass(slots=True)
class Layer:
    """One layer: its two norms and its linear layers."""

    norms: tuple[torch.Tensor, torch.Tensor]
    linears: list[Linear]


@dataclass(slots=True)
class Weights:
    """What a pass computes with, under the adapter that is active.

    Attributes:
        layers: the layers.
        norm: (H,) the last norm's weight.
        eps: of the norms.
        heads: how many heads of queries.
        key_heads: how many heads of keys.
        dim: of a head.
        scale: what scores are multiplied by.
    """

    layers: list[Layer]
    norm: torch.Tensor
    eps: float
    heads: int
    key_heads: int
    dim: int
    scale: float

    @classmethod
    def of(cls, decoder: nn.Module) -> Weights | None:
        """The weights of a decoder, or ``None`` where it is not one that is computed here.

        Args:
            decoder: of a language model; layers of PEFT may stand in it.
        """
        config: Any = decoder.config
        embedding: Any = decoder.get_input_embeddings() if isinstance(decoder, _DECODERS) else None
        if type(embedding) is not nn.Embedding or config.hidden_act != "silu":
            return None
        if embedding.weight.dtype not in (torch.float32, torch.float64) or embedding.weight.device.type != "cpu":
            return None
        layers = []
        module: Any
        for module in decoder.layers:  # type: ignore[union-attr]
            linears = []
            for name in _LINEARS:
                found = _linear(getattr(module.self_attn if name[0] in "qkvo" else module.mlp, name))
                if found is None:
                    return None
                linears.append(found)
            if linears[3].bias is not None or linears[6].bias is not None:
                return None  # where the residual goes
            layers.append(Layer((module.input_layernorm.weight, module.post_attention_layernorm.weight), linears))
        attention: Any = module.self_attn
        last: Any = decoder.norm
        dim = int(attention.head_dim)
        heads, key_heads = (len(linear.weight) // dim for linear in layers[0].linears[:2])
        return cls(layers, last.weight, float(last.variance_epsilon), heads, key_heads, dim, float(attention.scaling))

    @property
    def trained(self) -> bool:
        """Whether the base's weights themselves get gradients, which the backward pass written out here does not give."""
        own = [t for layer in self.layers for x in layer.linears for t in (x.weight, x.bias) if t is not None]
        norms = [t for layer in self.layers for t in layer.norms]
        return torch.is_grad_enabled() and any(t.requires_grad for t in (*own, *norms, self.norm))

    @property
    def adapters(self) -> list[torch.Tensor]:
        """The adapters' tensors, in the order of :data:`_LINEARS`."""
        return [t for layer in self.layers for x in layer.linears for t in (x.a, x.b) if t is not None]


def _linear(layer: Any) -> Linear | None:
    base = layer.get_base_layer() if type(layer) is PeftLinear else layer
    if type(base) is not nn.Linear:
        return None
    if base is layer or layer.disable_adapters:
        return None if base is not layer and layer.merged else Linear(base.weight, base.bias, None, None, 0.0)
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return Linear(base.weight, base.bias, None, None, 0.0)
    found = adapter_of(layer, active[0]) if len(active) == 1 else None
    return None if found is None else Linear(*found)


# ---------------------------------------------------------------------- forward
def run(
    weights: Weights,
    x: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor],
    attending: Attend,
    rows: torch.Tensor | None = None,
    kept: list[Any] | None = None,
) -> torch.Tensor:
    """The decoder without its embeddings.

    Args:
        weights: the weights.
        x: (N, H) embeddings.
        rope: cosines and sines, (N, 1, head_dim / 2) each.
        attending: attends in a layer.
        rows: (K,) which tokens are wanted; ``None``: all.
        kept: gets what the backward pass needs, layer by layer.

    Returns:
        (K, H) hidden states behind the last norm.
    """
    for i, layer in enumerate(weights.layers):
        some = rows if i == len(weights.layers) - 1 else None
        to_q, to_k, to_v, to_o, to_gate, to_up, to_down = layer.linears
        root, normed = norm(x, layer.norms[0], weights.eps)
        asking = normed if some is None else normed[some]
        (q, q_in), (k, k_in), (v, v_in) = to_q(asking), to_k(normed), to_v(normed)
        q = turn(q, rope if some is None else (rope[0][some], rope[1][some]), weights.dim)
        k = turn(k, rope, weights.dim)
        heads = attending(i, *(heads_of(t, weights.dim) for t in (q, k, v)))
        said = heads.reshape(len(q), -1)
        y, o_in = to_o(said, x if some is None else x[some])
        root2, normed2 = norm(y, layer.norms[1], weights.eps)
        (gate, gate_in), (up, up_in) = to_gate(normed2), to_up(normed2)
        opened = functional.silu(gate)
        gated = opened * up
        z, down_in = to_down(gated, y)
        if kept is not None:
            inner = (q_in, k_in, v_in, o_in, gate_in, up_in, down_in)
            kept.append((x, root, normed, q, k, v, heads, y, root2, normed2, gate, up, opened, gated, inner))
        x = z
    if not weights.layers or (rows is not None and len(x) != len(rows)):
        raise ValueError("expected a decoder with one layer or more")
    root, out = norm(x, weights.norm, weights.eps)
    if kept is not None:
        kept.append((x, root))
    return out


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One over the root of the mean square, (N, 1), and the normed (N, H)."""
    root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return root, (x * root).mul_(weight)


def turn(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], dim: int, way: float = 1.0) -> torch.Tensor:
    """Rotary positions for (N, heads * head_dim); a ``way`` of -1 turns back."""
    cos, sin = rope
    parts = x.view(len(x), -1, 2, dim // 2)
    out = torch.empty_like(parts)
    first, second = parts[:, :, 0], parts[:, :, 1]
    torch.mul(first, cos, out=out[:, :, 0]).addcmul_(second, sin, value=-way)
    torch.mul(second, cos, out=out[:, :, 1]).addcmul_(first, sin, value=way)
    return out.view(len(x), -1)


def heads_of(x: torch.Tensor, dim: int) -> torch.Tensor:
    """(n, heads * head_dim) as (heads, n, head_dim)."""
    return x.view(len(x), -1, dim).transpose(0, 1)


class CachedRow(NamedTuple):
    """New tokens of one row of a cache.

    Attributes:
        new: which of the new tokens are its own.
        keys: what of the cache they attend to: the row's number, and how many slots, the new ones included.
        mask: (n, m) numbers that are added to the scores of the last m keys; ``None`` where the one query sees everything.
    """

    new: slice
    keys: tuple[int, int]
    mask: torch.Tensor | None


#: Scores of attention in memory at once, 32 MB in float32.
SCORES = 1 << 23


@torch.no_grad()
def extended(
    decoder: Any,
    weights: Weights,
    ids: torch.Tensor,
    positions: torch.Tensor,
    feeds: Sequence[CachedRow],
    cache: RaggedCache,
    wanted: Sequence[int],
) -> torch.Tensor:
    """Last hidden states of tokens that continue the rows of a cache.

    Args:
        decoder: the model's decoder, for its embeddings and rotary positions.
        weights: its weights now.
        ids: (1, N) int64, the tokens of one row behind the other.
        positions: (1, N) int64.
        feeds: the rows; their tokens are in this order.
        cache: it was told of them by :meth:`RaggedCache.begin_flat`.
        wanted: of each row how many hidden states are wanted, from its end; 1 or more.

    Returns:
        The hidden states of all rows, (sum of ``wanted``, H).
    """
    x = decoder.get_input_embeddings()(ids)[0]  # (N, H)
    ends = np.cumsum(wanted)
    rows = np.concatenate([np.arange(f.new.stop - n, f.new.stop) for f, n in zip(feeds, wanted, strict=True)])
    last_rows = [
        CachedRow(slice(int(end) - n, int(end)), feed.keys, None if feed.mask is None else feed.mask[-n:])
        for feed, n, end in zip(feeds, wanted, ends, strict=True)
    ]

    def attending(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = cache.write(i, k.transpose(0, 1), v.transpose(0, 1))
        out = torch.empty(q.shape[1], weights.heads, weights.dim, dtype=q.dtype)
        for feed in feeds if i < len(weights.layers) - 1 else last_rows:
            row, width = feed.keys
            seen, said = (t[row, :width].transpose(0, 1) for t in (keys, values))  # (key_heads, width, head_dim)
            _attend(out[feed.new], q[:, feed.new], seen, said, feed.mask, weights.scale)
        return out

    return run(weights, x, rotary(decoder, x, positions), attending, torch.from_numpy(rows))


def _attend(
    out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> None:
    """Write what the queries of a row read, (n, heads, head_dim): so many at a time that their scores are :data:`SCORES`.

    Where a whole transcript is read again, all scores would be gigabytes, and most of the time would go into page faults.
    """
    step = max(1, SCORES // (q.shape[0] * k.shape[1]))
    for first in range(0, q.shape[1], step):
        some = slice(first, first + step)
        p = probabilities(q[:, some], k, None if mask is None else mask[some], scale)  # (heads, step, keys)
        out[some] = read(p, v).transpose(0, 1)


def rotary(decoder: Any, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines at positions (1, N), each (N, 1, head_dim / 2)."""
    cos, sin = decoder.rotary_emb(x[None], position_ids=positions)
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
