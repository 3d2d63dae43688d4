"""Distributions over admissible commands, for running transcripts and for whole episodes.

Both ways give the same numbers: the incremental one (rollouts) and the one with gradients (training) evaluate the same
token trees, the first from a cache and the second in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.trie import CommandTrie, grouped_log_softmax


class TrieCache:
    """Builds the trie of a list of admissible commands; equal lists share one."""

    def __init__(self, prompt: PromptFormat, max_size: int = 20_000) -> None:
        """Make a cache for one prompt format."""

        def build(commands: tuple[str, ...]) -> CommandTrie:
            return CommandTrie.build([prompt.response_ids(command) for command in commands])

        self.get = lru_cache(max_size)(build)


@dataclass(slots=True)
class EncodedEpisode:
    """An episode as tokens.

    Attributes:
        ids: the whole transcript.
        prompt_end: for each turn the index of the last prompt token (the response comes after it).
        response_end: for each turn the index of the response's end-of-turn token.
    """

    ids: list[int]
    prompt_end: list[int]
    response_end: list[int]


def encode_turns(prompt: PromptFormat, task: str, turns: Sequence[Turn]) -> EncodedEpisode:
    """Write an episode's turns as one transcript."""
    ids: list[int] = []
    prompt_end: list[int] = []
    response_end: list[int] = []
    for t, turn in enumerate(turns):
        ids += prompt.prompt_ids(task, turn.feedback, turn.admissible_commands, first=t == 0)
        prompt_end.append(len(ids) - 1)
        ids += prompt.response_ids(turn.command)
        response_end.append(len(ids) - 1)
    return EncodedEpisode(ids, prompt_end, response_end)


def trie_log_probs(
    model: LanguageModel, hidden: torch.Tensor, starts: Sequence[int], tries: Sequence[CommandTrie]
) -> list[torch.Tensor]:
    """Constrained log-probabilities of all commands of several turns.

    Args:
        model: the language model, for its output layer.
        hidden: (N, H) hidden states; for turn i, ``hidden[starts[i]]`` is the root and the trie's nodes follow it.
        starts: index of each turn's root.
        tries: each turn's trie.

    Returns:
        For each turn a (n_commands,) float32 tensor of log-probabilities that sum to one in probability.
    """
    node_rows: list[int] = []
    node_index: dict[int, int] = {}
    child_node: list[int] = []
    child_token: list[int] = []
    child_group: list[int] = []
    child_flat: list[int] = []
    command_flat: list[int] = []
    sizes: list[int] = []
    n_groups = n_commands = 0
    for start, trie in zip(starts, tries, strict=True):
        offset = len(child_node)
        for node, token, group in zip(trie.child_node, trie.child_token, trie.child_group, strict=True):
            row = start + 1 + node
            if row not in node_index:
                node_index[row] = len(node_rows)
                node_rows.append(row)
            child_node.append(node_index[row])
            child_token.append(token)
            child_group.append(n_groups + group)
        for i, choices in enumerate(trie.command_choices):
            for choice in choices:
                child_flat.append(offset + choice)
                command_flat.append(n_commands + i)
        n_groups += trie.n_groups
        n_commands += len(trie.command_choices)
        sizes.append(len(trie.command_choices))
    device = hidden.device
    total = torch.zeros(n_commands, dtype=torch.float32, device=device)
    if child_node:
        logits = model.logits(hidden[torch.tensor(node_rows, device=device)])  # (nodes, V)
        scores = logits[
            torch.tensor(child_node, device=device), torch.tensor(child_token, device=device)
        ]  # (children,)
        log_probs = grouped_log_softmax(scores, torch.tensor(child_group, device=device), n_groups)
        index = torch.tensor(command_flat, device=device)
        total = total.index_add(0, index, log_probs[torch.tensor(child_flat, device=device)])
    return list(total.split(sizes))


def episode_log_probs(
    model: LanguageModel, tries: TrieCache, episodes: Sequence[Episode], turns: Sequence[Sequence[int]] | None = None
) -> list[list[torch.Tensor]]:
    """Log-probabilities of every admissible command at turns of episodes, in one forward pass, with gradients.

    Args:
        model: the language model with the wanted adapter active.
        tries: the trie cache of its prompt format.
        episodes: a batch of episodes.
        turns: for each episode the turns that are wanted; all where ``None``.

    Returns:
        For each episode, for each wanted turn, a (n_commands,) tensor in the order of ``turn.admissible_commands``.
    """
    wanted = [range(len(e.turns)) for e in episodes] if turns is None else turns
    trees: list[TokenTree] = []
    rows: list[tuple[int, int, int, CommandTrie]] = []  # batch row, root, first node, trie
    for b, (episode, which) in enumerate(zip(episodes, wanted, strict=True)):
        encoded = encode_turns(model.prompt, episode.task, episode.turns[: max(which, default=-1) + 1])
        last = encoded.prompt_end[max(which)] if len(which) else 0
        tree = TokenTree(encoded.ids[: last + 1])
        for t in which:
            trie = tries.get(tuple(episode.turns[t].admissible_commands))
            first = tree.add(trie.tokens, trie.parents, encoded.prompt_end[t])
            rows.append((b, encoded.prompt_end[t], first, trie))
        trees.append(tree)
    packed = pack(trees, int(model.tokenizer.pad_token_id), model.device)
    hidden = model.hidden(packed)  # (B, L, H)
    width = hidden.shape[1]
    gather: list[int] = []
    starts: list[int] = []
    for b, root, first, trie in rows:
        starts.append(len(gather))
        gather.append(b * width + root)
        gather.extend(b * width + first + j for j in range(len(trie.tokens)))
    flat = hidden.flatten(0, 1)[torch.tensor(gather, device=hidden.device)]
    log_probs = iter(trie_log_probs(model, flat, starts, [trie for *_, trie in rows]))
    return [[next(log_probs) for _ in which] for which in wanted]


def sample_commands(
    log_probs: torch.Tensor, rng: np.random.Generator, *, temperature: float = 1.0, n: int = 1
) -> list[int]:
    """Draw ``n`` distinct commands without replacement (Gumbel top-k), the first being an exact sample.

    Args:
        log_probs: (n_commands,) log-probabilities.
        rng: the episode's own random stream.
        temperature: 0 takes the most likely ones.
        n: how many; fewer are returned where there are fewer commands.
    """
    scores = log_probs.double().cpu().numpy()
    if temperature > 0:
        scores = scores / temperature + rng.gumbel(size=len(scores))
    return [int(i) for i in np.argsort(-scores, kind="stable")[:n]]
