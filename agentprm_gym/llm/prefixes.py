"""Token trees whose transcripts begin alike, without gradients: what they share is fed once, and kept from call to call.

A search reads one transcript again and again, with other commands and other imagined turns behind it. Read from the start each
time, that costs as much as the transcript is long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree

#: Nodes of a pass: attention among them costs the square of their number.
MAX_NODES = 1024


class PrefixCache:
    """Does what :meth:`LanguageModel.tree_hidden` does, for trees with a long beginning that stays the same.

    It belongs to one adapter, and holds for as long as that is not trained: call :meth:`forget` then.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Make an empty cache.

        Args:
            lm: the language model; the caller activates the adapter.
        """
        self.lm = lm
        self._decoder: TranscriptDecoder | None = None
        self._ids: list[int] = []

    @property
    def n_fed(self) -> int:
        """Tokens fed so far, those of nodes included."""
        return 0 if self._decoder is None else self._decoder.n_fed

    def forget(self) -> None:
        """Drop what is kept."""
        self._decoder, self._ids = None, []

    @torch.no_grad()
    def tree_hidden(
        self, trees: Sequence[TokenTree], wanted: Sequence[Iterable[int]] | None = None
    ) -> tuple[torch.Tensor, list[int]]:
        """See :meth:`LanguageModel.tree_hidden`, whose arguments and results these are."""
        read = [list(here) for here in wanted or (range(len(tree)) for tree in trees)]
        # The prefix ends at the first token that is read or has a node below it: of those before it nothing is known later.
        ends = [min((*here, *tree.parents), default=0) + 1 for tree, here in zip(trees, read, strict=True)]
        shared = min(_shared([tree.trunk for tree in trees]), *ends)
        if 2 * shared < max(len(tree.trunk) for tree in trees):
            return self.lm.tree_hidden(trees, read)
        prefix = trees[0].trunk[:shared]
        starts = [0]
        for tree in trees:
            starts.append(starts[-1] + len(tree))
        flat: torch.Tensor | None = None
        for part in _parts([len(tree) - shared for tree in trees]):
            below = TokenTree(prefix[-1:])
            rows, nodes = [], []
            for i in part:
                tree, first = trees[i], len(below)
                trunk = tree.trunk[shared:]
                below.chain(trunk, 0)
                # Where a token of the tree stands below the prefix, whose last token is node 0.
                below.tokens += tree.tokens
                below.parents += [first + parent - shared if parent >= shared else 0 for parent in tree.parents]
                rows += [starts[i] + shared - 1, *range(starts[i] + shared, starts[i + 1])]
                nodes += [0, *range(first, len(below))]
            hidden = self._extend(prefix, below)  # (1 + nodes, H)
            if flat is None:
                flat = hidden.new_zeros(starts[-1], hidden.shape[1])
            flat[torch.tensor(rows, device=flat.device)] = hidden[torch.tensor(nodes, device=flat.device)]
        assert flat is not None
        return flat, starts[:-1]

    def _extend(self, prefix: list[int], below: TokenTree) -> torch.Tensor:
        """Hidden states of the prefix's last token and of the nodes; what is cached is taken back to what is shared."""
        if self._decoder is None:
            self._decoder = TranscriptDecoder(self.lm, 1)
        self._decoder.rewind(0, _shared([self._ids, prefix]))
        self._ids = prefix
        (hidden,) = self._decoder.extend([Extension.below(0, prefix, below)])
        return hidden


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens texts have in common at their beginning."""
    n = min(len(text) for text in texts)
    first = list(texts[0][:n])
    for text in texts[1:]:
        other = list(text[: len(first)])
        if first != other:
            first = first[: next(i for i, (a, b) in enumerate(zip(first, other, strict=True)) if a != b)]
    return len(first)


def _parts(sizes: Sequence[int]) -> list[list[int]]:
    """Cut a list in parts of :data:`MAX_NODES` nodes at most, of one tree at least."""
    parts: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not parts or size > room:
            parts.append([])
            room = MAX_NODES
        parts[-1].append(i)
        room -= size
    return parts
