"""A key-value cache whose rows have lengths of their own.

Each row is one running episode. Tokens are written at the row's own end, so rows may differ in length. The space beyond a
row's committed length is for the nodes of a token tree, which live for the one forward pass that scores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: Share of the memory that is free which a cache may take. There may be two: a policy's and a process reward model's.
_SHARE = 0.4


def available_memory() -> int | None:
    """Bytes of this machine's memory that programs can get now; ``None`` where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one token take in all layers.

    Args:
        config: of the decoder of text.
        dtype: of the keys and values.
    """
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * key_heads * dim * dtype.itemsize


def tokens_that_fit(config: Any, dtype: torch.dtype, n_rows: int, context: int) -> int | None:
    """How many tokens a cache in this machine's memory may hold, where its rows could outgrow it.

    On a GPU too little memory is an error that can be caught. On the CPU the operating system ends the program.

    Args:
        config: of the decoder of text.
        dtype: of the keys and values.
        n_rows: how many transcripts are kept at once.
        context: tokens that a transcript can have.

    Returns:
        Tokens over all rows, at least those of two transcripts; ``None`` where all rows fit, or the memory is not known.
    """
    free = available_memory()
    if free is None:
        return None
    fits = int(_SHARE * free) // token_bytes(config, dtype)
    return None if n_rows * context <= fits else max(fits, 2 * context)


class RaggedCache:
    """Keys and values of every layer, each (rows, slots, heads, head_dim).

    It has the two methods that Hugging Face decoders call on a cache: ``update`` and ``get_seq_length``.
    """

    #: Some decoders of transformers 5.0 ask for it (GPT-Neo, StableLM).
    is_compileable = False

    def __init__(self, n_rows: int, *, max_tokens: int | None = None) -> None:
        """Make an empty cache.

        Args:
            n_rows: how many rows it holds.
            max_tokens: the most slots over all rows to which the cache grows ahead of need. The caller keeps the need
                itself within it. ``None``: no limit.
        """
        self.max_tokens = max_tokens
        self.lengths = torch.zeros(n_rows, dtype=torch.int64)  # (R,) committed tokens
        self._layers: list[list[torch.Tensor]] = []
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._slots = torch.zeros(0, dtype=torch.int64)
        self._width = 0
        self._all_rows = False

    @property
    def width(self) -> int:
        """Slots a row has in memory now."""
        return self._layers[0][0].shape[1] if self._layers and self._layers[0] else 0

    def begin(self, rows: torch.Tensor, n_new: int) -> int:
        """Say where the next forward pass writes.

        Args:
            rows: (b,) int64 row indices, ascending.
            n_new: tokens a row, padding included.

        Returns:
            How many slots the forward pass attends over, S.
        """
        starts = self.lengths[rows]  # (b,)
        self._rows = rows
        self._all_rows = len(rows) == len(self.lengths)
        self._slots = starts[:, None] + torch.arange(n_new)  # (b, n_new)
        self._width = int(starts.max()) + n_new
        return self._width

    def begin_flat(self, rows: torch.Tensor, counts: torch.Tensor) -> None:
        """Say where the next forward pass writes with :meth:`write`.

        Args:
            rows: (b,) int64 row indices.
            counts: (b,) int64, how many new tokens each row gets.
        """
        starts = self.lengths[rows]  # (b,)
        self._width = int((starts + counts).max())
        self._rows = rows.repeat_interleave(counts)  # (N,)
        before = counts.cumsum(0) - counts
        self._slots = torch.arange(len(self._rows)) + (starts - before).repeat_interleave(counts)  # (N,)

    def write(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        """Write a layer's new keys and values, one row's behind the other's, and return all that the layer has.

        Args:
            layer_idx: which layer.
            keys: (N, heads, head_dim).
            values: (N, heads, head_dim).

        Returns:
            Keys and values, each (rows, slots, heads, head_dim): the cache itself.
        """
        like = keys.transpose(0, 1)[None]
        for i, new in enumerate((keys, values)):
            store = self._store(layer_idx, i, like)
            store.flatten(0, 1).index_copy_(0, self._rows * store.shape[1] + self._slots, new)
        return self._layers[layer_idx]

    def _store(self, layer_idx: int, which: int, like: torch.Tensor) -> torch.Tensor:
        """The keys (0) or the values (1) of a layer, with enough slots."""
        while len(self._layers) <= layer_idx:
            self._layers.append([])
        layer = self._layers[layer_idx]
        if not layer:
            layer += [self._empty(like, self._width), self._empty(like, self._width)]
        store = layer[which]
        if store.shape[1] < self._width:
            layer[which] = store = self._grown(store, max(self._width, self._ahead(store.shape[1])))
        elif len(store) < len(self.lengths):
            layer[which] = store = self._grown(store, store.shape[1])
        return store

    def _grown(self, store: torch.Tensor, width: int) -> torch.Tensor:
        """Keys or values with room for all rows, and so many slots in each."""
        bigger = store.new_zeros(len(self.lengths), width, *store.shape[2:])
        bigger[: len(store), : store.shape[1]] = store
        return bigger

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values and return all that the forward pass attends over.

        Args:
            keys: (b, heads, n_new, head_dim).
            values: (b, heads, n_new, head_dim).
            layer_idx: which layer.

        Returns:
            Keys and values, each (b, heads, S, head_dim).
        """
        out = []
        for i, new in enumerate((keys, values)):
            store = self._store(layer_idx, i, new)
            store[self._rows[:, None], self._slots] = new.transpose(1, 2)
            seen = store[:, : self._width] if self._all_rows else store[self._rows, : self._width]
            out.append(seen.transpose(1, 2))
        return out[0], out[1]

    def _ahead(self, width: int) -> int:
        """How many slots to have when the cache grows: copying at every step would take longer than the model."""
        ahead = min(2 * width, width + 512)
        return ahead if self.max_tokens is None else min(ahead, self.max_tokens // len(self.lengths))

    def copy_row(self, source: int, targets: list[int]) -> None:
        """Copy what one row holds to other rows.

        Args:
            source: the row to copy.
            targets: rows that hold the same afterwards.
        """
        n = int(self.lengths[source])
        for layer in self._layers:
            for store in layer:
                store[targets, :n] = store[source, :n].clone()
        self.lengths[targets] = n

    def add_rows(self, n: int, *, max_tokens: int | None) -> None:
        """Add empty rows behind the others.

        Args:
            n: how many.
            max_tokens: in place of the limit so far, see :meth:`__init__`.
        """
        self.max_tokens = max_tokens
        # Memory is taken where the next forward pass writes, as ever: there the device may say that it has too little.
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(n)])

    def keep_rows(self, rows: list[int]) -> None:
        """Forget all but some rows.

        Args:
            rows: the rows to keep; they are numbered in this order afterwards.
        """
        index = torch.tensor(rows)
        for layer in self._layers:
            for i, store in enumerate(layer):
                whole = store if len(store) == len(self.lengths) else self._grown(store, store.shape[1])
                layer[i] = whole[index.to(store.device)].contiguous()
        self.lengths = self.lengths[index]

    def _empty(self, like: torch.Tensor, width: int) -> torch.Tensor:
        _, heads, _, dim = like.shape
        return torch.zeros(len(self.lengths), width, heads, dim, dtype=like.dtype, device=like.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Committed length of the longest row; decoders use it for positions only, which are always given here."""
        return int(self.lengths.max())
