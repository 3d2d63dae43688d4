"""How samples are cut into minibatches, and minibatches into the pieces of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from algorithms.common.acting.ranks import ranks

Item = TypeVar("Item")


def pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a sequence into pieces, in order.

    Args:
        items: what is cut.
        size: length of a piece, 1 or more; the last one may be shorter.

    Example:
        >>> list(pieces("abcde", 2))
        ['ab', 'cd', 'e']
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def minibatches(items: Sequence[Item], size: int, rng: np.random.Generator) -> Iterator[Sequence[Item]]:
    """One pass over all items in random order.

    Args:
        items: what is drawn from.
        size: items a minibatch, 1 or more; the last one may be smaller.
        rng: random stream of the order.
    """
    yield from pieces([items[int(i)] for i in rng.permutation(len(items))], size)


def shared_pieces(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The pieces of a minibatch, of which each process feeds its own to the model.

    Where several processes train together (:mod:`algorithms.common.acting.ranks`), pieces are smaller where that leaves
    something for each of them.

    Args:
        items: the whole minibatch, the same in all processes.
        size: length of a piece at most, 1 or more.
    """
    return list(pieces(items, min(size, max(1, -(-len(items) // ranks().size)))))


def own_pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Those of :func:`shared_pieces` that this process feeds to the model; all of them, where it trains alone."""
    return ranks().mine(shared_pieces(items, size))
