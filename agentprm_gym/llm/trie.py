"""The admissible commands of a turn as a token trie: the constrained distribution in one forward pass.

A policy that must choose an admissible command samples token by token, each time among the tokens that continue at
least one command. The log-probability of a command is therefore the sum, over the trie nodes with two or more children
on its path, of the log-softmax *over those children*; a forced token costs nothing. Only nodes from which a choice is
still to be made have to be fed to the model at all, and all of them can be fed at once, each attending to its
ancestors: the whole distribution costs one forward pass of a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class CommandTrie:
    """Commands as a tree of tokens below the last token of the prompt (the root).

    Attributes:
        tokens: token of each node to feed; the root is not among them.
        parents: index of each node's parent in ``tokens``, -1 for the root; a parent precedes its children.
        child_node: for each child of a branching node, the index in ``tokens`` of the node whose logits decide about it
            (-1 for the root).
        child_token: the child's token.
        child_group: which branching node it belongs to, counted from 0; equal numbers share a softmax.
        command_choices: for each command, the indices into the ``child_*`` lists along its path.
        n_groups: how many branching nodes there are.
        full: whether the log-probabilities are those of the whole vocabulary rather than of the children: then every node
            with a child counts as branching.
        divisors: with ``full``, what each command's log-probability is divided by.
    """

    tokens: list[int]
    parents: list[int]
    child_node: list[int]
    child_token: list[int]
    child_group: list[int]
    command_choices: list[list[int]]
    n_groups: int
    full: bool = False
    divisors: tuple[float, ...] = ()

    @classmethod
    def build(
        cls, commands: Sequence[Sequence[int]], *, full: bool = False, divisors: Sequence[float] = ()
    ) -> CommandTrie:
        """Build the trie of token sequences, each of which ends with the end-of-turn token.

        Args:
            commands: the token sequences.
            full: score tokens among the whole vocabulary; every token on the way has then to be fed.
            divisors: with ``full``, what to divide each command's log-probability by.

        Raises:
            ValueError: if two commands have the same tokens (they could not be told apart), or there is none.
        """
        if not commands:
            raise ValueError("a trie needs at least one command, got none")
        children, parent, token, paths = _grow(commands)
        if len({path[-1] for path in paths}) != len(paths):
            raise ValueError("two commands have the same tokens and cannot be told apart by this tokenizer")
        needed = [False] * len(children)  # a choice remains at or below the node
        for node in range(len(children) - 1, -1, -1):
            needed[node] = needed[node] or len(children[node]) > (0 if full else 1)
            if needed[node] and node:
                needed[parent[node]] = True
        fed = {0: -1}
        tokens: list[int] = []
        parents: list[int] = []
        for node in range(1, len(children)):
            if needed[node]:
                fed[node] = len(tokens)
                tokens.append(token[node])
                parents.append(fed[parent[node]])
        child_node: list[int] = []
        child_token: list[int] = []
        child_group: list[int] = []
        child_index: dict[int, int] = {}
        n_groups = 0
        for node in range(len(children)):
            if len(children[node]) > (0 if full else 1):
                for tok, child in children[node].items():
                    child_index[child] = len(child_node)
                    child_node.append(fed[node])
                    child_token.append(tok)
                    child_group.append(n_groups)
                n_groups += 1
        choices = [[child_index[node] for node in path if node in child_index] for path in paths]
        return cls(tokens, parents, child_node, child_token, child_group, choices, n_groups, full, tuple(divisors))


def _grow(
    commands: Sequence[Sequence[int]],
) -> tuple[list[dict[int, int]], list[int], list[int], list[list[int]]]:
    """The whole tree, node 0 being the root: each node's children by token, parent and token; each command's path."""
    children: list[dict[int, int]] = [{}]
    parent, token = [-1], [-1]
    paths: list[list[int]] = []
    for command in commands:
        node, path = 0, []
        for tok in command:
            child = children[node].get(tok)
            if child is None:
                child = len(children)
                children[node][tok] = child
                children.append({})
                parent.append(node)
                token.append(tok)
            node = child
            path.append(node)
        paths.append(path)
    return children, parent, token, paths


def grouped_log_softmax(scores: torch.Tensor, groups: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Log-softmax within groups.

    Args:
        scores: (N,) logits.
        groups: (N,) int64 group of each.
        n_groups: how many groups there are.

    Returns:
        (N,) log-probabilities, normalised within each group.
    """
    peak = torch.full((n_groups,), -torch.inf, dtype=scores.dtype, device=scores.device)
    peak = peak.scatter_reduce(0, groups, scores.detach(), reduce="amax")
    total = torch.zeros(n_groups, dtype=scores.dtype, device=scores.device)
    total = total.index_add(0, groups, (scores - peak[groups]).exp())
    return scores - peak[groups] - total.log()[groups]
