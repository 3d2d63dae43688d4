"""Incremental evaluation of many running transcripts: only new tokens are fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agentprm_gym.llm.cache import RaggedCache
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.packing import PackedTrees, fill_ancestors

#: A second forward for the long rows pays when it saves this many padded tokens.
_SPLIT_GAIN = 256


@dataclass(slots=True)
class Extension:
    """What is fed to one row: tokens that stay, and a tree below the last of them that does not.

    Attributes:
        row: the row.
        tokens: at least one token to commit to the transcript.
        tree_tokens: node tokens, scored and forgotten.
        tree_parents: parents relative to ``tree_tokens``; -1 is the last committed token.
    """

    row: int
    tokens: Sequence[int]
    tree_tokens: Sequence[int] = ()
    tree_parents: Sequence[int] = ()

    def __len__(self) -> int:
        """Number of tokens fed."""
        return len(self.tokens) + len(self.tree_tokens)


class TranscriptDecoder:
    """Key-value caches of running transcripts under one adapter."""

    def __init__(self, model: LanguageModel, n_rows: int) -> None:
        """Make empty rows.

        Args:
            model: the language model; the caller activates the adapter around :meth:`extend`.
            n_rows: how many transcripts run at once.
        """
        self.model = model
        self.cache = RaggedCache(n_rows)

    def reset(self, row: int) -> None:
        """Forget a row's transcript."""
        self.cache.lengths[row] = 0

    @torch.no_grad()
    def extend(self, extensions: Sequence[Extension]) -> list[torch.Tensor]:
        """Feed new tokens.

        Args:
            extensions: one for each row that goes on; rows are distinct.

        Returns:
            For each extension the hidden states of the last committed token and of the tree's nodes, (1 + nodes,
            hidden).
        """
        order = sorted(range(len(extensions)), key=lambda i: len(extensions[i]), reverse=True)
        out: list[torch.Tensor | None] = [None] * len(extensions)
        for group in _length_groups([len(extensions[i]) for i in order]):
            members = sorted((order[i] for i in group), key=lambda i: extensions[i].row)
            for i, hidden in zip(members, self._forward([extensions[i] for i in members]), strict=True):
                out[i] = hidden
        return [hidden for hidden in out if hidden is not None]

    def _forward(self, batch: list[Extension]) -> list[torch.Tensor]:
        rows = torch.tensor([extension.row for extension in batch])
        starts = self.cache.lengths[rows].numpy()  # (b,)
        n_new = max(len(extension) for extension in batch)
        width = self.cache.begin(rows, n_new)
        pad = int(self.model.tokenizer.pad_token_id)
        ids = np.full((len(batch), n_new), pad, dtype=np.int64)  # (b, n_new)
        positions = np.zeros((len(batch), n_new), dtype=np.int64)  # (b, n_new)
        mask = np.zeros((len(batch), n_new, width), dtype=np.bool_)  # (b, n_new, S)
        for b, extension in enumerate(batch):
            start, n, total = int(starts[b]), len(extension.tokens), len(extension)
            ids[b, :n] = extension.tokens
            ids[b, n:total] = extension.tree_tokens
            new = np.zeros((n_new, n_new), dtype=np.bool_)
            depth = np.zeros(n_new, dtype=np.int64)
            new[:n, :n] = np.tri(n, dtype=np.bool_)
            depth[:n] = np.arange(n)
            fill_ancestors(new, depth, [n - 1 if p < 0 else n + p for p in extension.tree_parents], n)
            pads = np.arange(total, n_new)
            new[pads, pads] = True
            mask[b, :, :start] = True
            mask[b, :, start : start + n_new] = new
            positions[b] = start + depth
        device = self.model.device
        packed = PackedTrees(
            ids=torch.from_numpy(ids).to(device),
            positions=torch.from_numpy(positions).to(device),
            mask=torch.from_numpy(mask).unsqueeze(1).to(device),
        )
        hidden = self.model.hidden(packed, self.cache)  # (b, n_new, H)
        for extension in batch:
            self.cache.lengths[extension.row] += len(extension.tokens)
        return [hidden[b, len(e.tokens) - 1 : len(e)] for b, e in enumerate(batch)]


def _length_groups(lengths: Sequence[int]) -> list[range]:
    """Cut a descending list of lengths in at most two groups, where that saves enough padding."""
    n = len(lengths)
    cut, best = 0, n * lengths[0] - _SPLIT_GAIN
    for k in range(1, n):
        if lengths[k] < lengths[k - 1]:
            cost = k * lengths[0] + (n - k) * lengths[k]
            if cost < best:
                cut, best = k, cost
    return [range(n)] if cut == 0 else [range(cut), range(cut, n)]
