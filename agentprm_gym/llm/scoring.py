"""Log-probabilities of responses: of running transcripts, and of whole episodes with gradients.

See :mod:`agentprm_gym.llm.responder` for the three distributions. Names of that module and of
:mod:`agentprm_gym.llm.sampling` can be imported from here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.prefixes import PrefixCache
from agentprm_gym.llm.responder import MODES, NORMALIZATIONS, Responder
from agentprm_gym.llm.sampling import sample_commands, sample_tokens
from agentprm_gym.llm.transcripts import Passage
from agentprm_gym.llm.trie import CommandTrie, branch_log_probs

__all__ = [
    "MODES",
    "NORMALIZATIONS",
    "Responder",
    "TurnScore",
    "choice_log_probs",
    "command_log_probs",
    "episode_log_probs",
    "sample_commands",
    "sample_tokens",
    "score_turns",
]


def choice_log_probs(
    lm: LanguageModel, hidden: torch.Tensor, starts: Sequence[int], tries: Sequence[CommandTrie]
) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities of all choices of several tries.

    Args:
        lm: the language model, for its output layer.
        hidden: (N, H) hidden states; for trie i, ``hidden[starts[i]]`` is the root and the trie's nodes follow it.
        starts: index of each trie's root.
        tries: tries of one kind.

    Returns:
        (C,) log-probabilities, float32 or the model's float64, in the order of the tries' ``child_*`` lists, and where each
        trie's begin.
    """
    offsets, parts = [0], []
    n_groups = 0
    for start, trie in zip(starts, tries, strict=True):
        # Of each choice: the row of the hidden states that decide, the token, the softmax it takes part in.
        parts.append(trie.children + np.array([[start + 1], [0], [n_groups]]))
        offsets.append(offsets[-1] + trie.children.shape[1])
        n_groups += trie.n_groups
    device = hidden.device
    if not offsets[-1]:
        return torch.zeros(0, device=device), offsets[:-1]
    choices = np.concatenate(parts, axis=1)  # (3, C)
    if tries[0].full:
        rows, where = np.unique(choices[0], return_inverse=True)
        log_probs = lm.token_log_probs(
            hidden[torch.from_numpy(rows).to(device)],
            torch.from_numpy(where).to(device),
            torch.from_numpy(choices[1]).to(device),
        )
        return log_probs, offsets[:-1]
    return branch_log_probs(lm, hidden, torch.from_numpy(choices).to(device), n_groups), offsets[:-1]


def command_log_probs(
    lm: LanguageModel, hidden: torch.Tensor, starts: Sequence[int], tries: Sequence[CommandTrie]
) -> list[torch.Tensor]:
    """Log-probabilities of all commands of several turns; arguments as in :func:`choice_log_probs`.

    Returns:
        For each turn a (n_commands,) float32 tensor of log-probabilities that sum to one in probability.
    """
    log_probs, offsets = choice_log_probs(lm, hidden, starts, tries)
    return _sum_paths(log_probs, offsets, tries)


def _sum_paths(log_probs: torch.Tensor, offsets: Sequence[int], tries: Sequence[CommandTrie]) -> list[torch.Tensor]:
    """Add up the choices along each command's path; with full tries, normalise over the commands."""
    sizes = [len(trie.command_choices) for trie in tries]
    firsts = np.cumsum([0, *sizes])
    device = log_probs.device
    total = torch.zeros(int(firsts[-1]), dtype=log_probs.dtype, device=device)
    if len(log_probs):
        pairs = [
            trie.pairs + np.array([[offset], [n]]) for trie, offset, n in zip(tries, offsets, firsts[:-1], strict=True)
        ]
        choice, command = torch.from_numpy(np.concatenate(pairs, axis=1)).to(device)  # each (P,)
        total = total.index_add(0, command, log_probs[choice])
    if not (tries and tries[0].full):
        return list(total.split(sizes))
    divisors = torch.tensor([d for trie in tries for d in trie.divisors], device=device)
    return [torch.log_softmax(scores, 0) for scores in (total / divisors).split(sizes)]


@dataclass(slots=True)
class TurnScore:
    """What a policy thinks of a turn that was played.

    Attributes:
        free: (F,) log-probabilities of the tokens that were written freely; one more says that a reason was ended there.
        commands: (n_commands,) log-probabilities of the admissible commands, given the reason; ``None`` where the whole
            response was written freely.
        path: (P,) log-probabilities of the choices that led to the executed command: one a branching token, or a single one
            with ``"score"`` and at a temperature other than 1, where a command is drawn as a whole; ``None`` where it was not
            admissible.
        free_entropy: (F,) entropies, in nats, of the distributions that the choices of ``free`` were drawn from; ``None``
            where they were not asked for.
    """

    free: torch.Tensor
    commands: torch.Tensor | None
    path: torch.Tensor | None
    free_entropy: torch.Tensor | None = None

    @property
    def choices(self) -> torch.Tensor:
        """Log-probabilities of everything that was chosen, (F + P,).

        Raises:
            ValueError: the executed command was not admissible, so the policy could not choose it.
        """
        if self.path is None:
            raise ValueError("the executed command was not admissible: this policy could not have chosen it")
        return torch.cat([self.free, self.path])

    @property
    def log_prob(self) -> torch.Tensor:
        """Log-probability of the response, a scalar."""
        return self.choices.sum()

    def to(self, device: torch.device | str) -> TurnScore:
        """The same on another device."""
        parts = (self.free, self.commands, self.path, self.free_entropy)
        free, commands, path, entropy = (None if part is None else part.to(device) for part in parts)
        assert free is not None
        return TurnScore(free, commands, path, entropy)


@dataclass(slots=True)
class _Wanted:
    """A turn to score: where it is in the batch."""

    episode: int
    turn: int
    row: int
    passage: Passage
    index: int  # among the passage's turns
    trie: CommandTrie | None
    first: int = -1  # of the trie's nodes, in the row

    @property
    def root(self) -> int:
        """Index of the token below which the command is chosen."""
        start = self.passage.responses[self.index].command_start
        assert start is not None
        return self.passage.prompt_end[self.index] + start

    @property
    def free_rows(self) -> range:
        """Indices of the tokens whose hidden states predict what was written freely."""
        response, end = self.passage.responses[self.index], self.passage.prompt_end[self.index]
        return range(end + response.free_start, end + response.free_end)

    @property
    def ended(self) -> bool:
        """Whether the model ended a reason itself, which is a choice of its own."""
        response = self.passage.responses[self.index]
        return response.stopped and response.command_start is not None


def score_turns(
    responder: Responder,
    episodes: Sequence[Episode],
    turns: Sequence[Sequence[int]] | None = None,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    prefixes: PrefixCache | None = None,
) -> list[list[TurnScore]]:
    """Score turns of episodes in one forward pass, with gradients; the caller activates the adapter.

    Args:
        responder: the policy's way to act.
        episodes: a batch of episodes.
        turns: for each episode the indices of the turns that are wanted; ``None``: all turns.
        temperature: at which the turns were sampled, above 0; scores are those of the distribution that was sampled from.
        entropies: whether to compute ``free_entropy``, which needs all of the vocabulary.
        prefixes: keeps what the episodes' transcripts share, for the adapter that is active; there are no gradients then.

    Returns:
        For each episode, for each wanted turn, its score. At temperature 1 it equals what acting gave.
    """
    lm = responder.lm
    order = [range(len(e.turns)) for e in episodes] if turns is None else turns
    wanted, trees = _plan(responder, episodes, order)
    if not trees:
        return [[] for _ in episodes]
    flat, starts = (prefixes or lm).tree_hidden(trees, _read(wanted, trees))  # (M, H)
    free = _score_free(responder, flat, starts, wanted, temperature, entropies)
    commands = _score_commands(lm, flat, starts, wanted, episodes, temperature)
    scores = {
        (w.episode, w.turn): TurnScore(f, c, p, h) for w, (f, h), (c, p) in zip(wanted, free, commands, strict=True)
    }
    return [[scores[b, t] for t in which] for b, which in enumerate(order)]


def _plan(
    responder: Responder, episodes: Sequence[Episode], order: Sequence[Sequence[int]]
) -> tuple[list[_Wanted], list[TokenTree]]:
    """One row a passage that is wanted, cut behind the last token that matters, with the tries hanging off it."""
    wanted: list[_Wanted] = []
    trees: list[TokenTree] = []
    for b, (episode, which) in enumerate(zip(episodes, order, strict=True)):
        if not len(which):
            continue
        asked = set(which)
        for passage in responder.encode(episode.task, episode.turns[: max(which) + 1]):
            here = [i for i, t in enumerate(passage.turns) if t in asked]
            if not here:
                continue
            new = []
            for i in here:
                t = passage.turns[i]
                chosen = responder.mode != "generate"
                trie = responder.trie(tuple(episode.turns[t].admissible_commands)) if chosen else None
                new.append(_Wanted(b, t, len(trees), passage, i, trie))
            last = new[-1]
            cut = last.root if last.trie is not None else last.free_rows.stop - 1
            tree = TokenTree(passage.ids[: cut + 1])
            for w in new:
                if w.trie is not None:
                    w.first = tree.add(w.trie.tokens, w.trie.parents, w.root)
            trees.append(tree)
            wanted += new
    return wanted, trees


def _read(wanted: Sequence[_Wanted], trees: Sequence[TokenTree]) -> list[set[int]]:
    """Of each tree the tokens that decide something: those of the tries, the roots, and what was written freely."""
    read = [set(range(len(tree.trunk), len(tree))) for tree in trees]
    for w in wanted:
        read[w.row].update(w.free_rows)
        if w.trie is not None:
            read[w.row].add(w.root)
        if w.ended:
            read[w.row].add(w.free_rows.stop)
    return read


def _score_free(
    responder: Responder,
    flat: torch.Tensor,
    begins: Sequence[int],
    wanted: Sequence[_Wanted],
    temperature: float,
    entropies: bool,
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Log-probabilities of what was written freely and, where asked for, entropies: two (F,) tensors a turn."""
    rows: list[int] = []
    tokens: list[int] = []
    sizes: list[int] = []
    ends: list[tuple[int, int]] = []  # of the choices to end a reason: which turn, which row
    for k, w in enumerate(wanted):
        base, response = begins[w.row], w.passage.responses[w.index]
        rows += [base + j for j in w.free_rows]
        tokens += response.ids[response.free_start : response.free_end]
        sizes.append(len(w.free_rows))
        if w.ended:
            ends.append((k, base + w.free_rows.stop))
    device = flat.device
    empty = torch.zeros(0, device=device)
    out = [empty] * len(wanted)
    spread = [empty] * len(wanted)
    if rows:
        which, hidden = torch.tensor(tokens, device=device), flat[torch.tensor(rows, device=device)]
        if temperature == 1 and not entropies:
            log_probs = responder.lm.token_log_probs(hidden, torch.arange(len(rows), device=device), which)
        else:
            log_probs, spreads = _free_choices(responder, hidden, which, temperature)
            spread = list(spreads.split(sizes))
        out = list(log_probs.split(sizes))
    if ends:
        hidden = flat[torch.tensor([row for _, row in ends], device=device)]
        stop = responder.stop_tokens()
        logits = responder.lm.logits(hidden) / temperature  # (E, V)
        log_probs = logits.masked_fill(~stop, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)  # (E,)
        for (k, _), value in zip(ends, log_probs, strict=True):
            out[k] = torch.cat([out[k], value[None]])
        if entropies:
            for (k, _), h in zip(ends, _entropies(responder, logits), strict=True):
                spread[k] = torch.cat([spread[k], h[None]])
    return [(f, h if entropies else None) for f, h in zip(out, spread, strict=True)]


def _free_choices(
    responder: Responder, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of tokens (N,) behind hidden states (N, H), and entropies of what they were drawn from, (N,)."""
    log_probs, spreads = [], []
    # A slice at a time: without gradients, (N, V) of a large vocabulary is never held whole.
    for part, which in zip(hidden.split(256), tokens.split(256), strict=True):
        logits = responder.lm.logits(part) / temperature  # (n, V)
        log_probs.append(logits.gather(-1, which[:, None]).squeeze(-1) - logits.logsumexp(-1))
        spreads.append(_entropies(responder, logits))
    return torch.cat(log_probs), torch.cat(spreads)


def _entropies(responder: Responder, logits: torch.Tensor) -> torch.Tensor:
    """Entropies (N,) of choices with logits (N, V). All tokens that end a reason are one choice, as acting has it."""
    log_probs = logits.log_softmax(-1)
    if responder.mode != "generate":
        stop = responder.stop_tokens()
        end = log_probs.masked_fill(~stop, -torch.inf).logsumexp(-1, keepdim=True)  # (N, 1)
        log_probs = torch.cat([log_probs[:, ~stop], end], -1)
    return -(log_probs.exp() * log_probs).sum(-1)


def _score_commands(
    lm: LanguageModel,
    flat: torch.Tensor,
    begins: Sequence[int],
    wanted: Sequence[_Wanted],
    episodes: Sequence[Episode],
    temperature: float,
) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Distribution over the commands and the executed one's path, for each turn."""
    gather: list[int] = []
    starts: list[int] = []
    tries: list[CommandTrie] = []
    for w in wanted:
        if w.trie is not None:
            starts.append(len(gather))
            base = begins[w.row]
            gather.append(base + w.root)
            gather.extend(base + w.first + j for j in range(len(w.trie.tokens)))
            tries.append(w.trie)
    if not tries:
        empty = torch.zeros(0, device=flat.device)
        return [(None, empty) for _ in wanted]
    log_probs, offsets = choice_log_probs(lm, flat[torch.tensor(gather, device=flat.device)], starts, tries)
    out: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []
    for w, trie, offset, commands in zip(wanted, tries, offsets, _sum_paths(log_probs, offsets, tries), strict=True):
        turn = episodes[w.episode].turns[w.turn]
        path = None
        if temperature != 1:
            commands = torch.log_softmax(commands / temperature, 0)
        if turn.command in turn.admissible_commands:
            i = list(turn.admissible_commands).index(turn.command)
            choices = torch.tensor([offset + c for c in trie.command_choices[i]], dtype=torch.long, device=flat.device)
            path = commands[i][None] if trie.full or temperature != 1 else log_probs[choices]
        out.append((commands, path))
    return out


def episode_log_probs(
    responder: Responder,
    episodes: Sequence[Episode],
    turns: Sequence[Sequence[int]] | None = None,
    *,
    prefixes: PrefixCache | None = None,
) -> list[list[torch.Tensor]]:
    """Log-probabilities of every admissible command at turns of episodes.

    Args:
        responder: the policy's way to act.
        episodes: a batch of episodes.
        turns: as for :func:`score_turns`.
        prefixes: as for :func:`score_turns`.

    Returns:
        For each episode, for each wanted turn, a (n_commands,) tensor in the order of ``turn.admissible_commands``.

    Raises:
        ValueError: the mode is ``"generate"``, which has no distribution over commands.
    """
    if responder.mode == "generate":
        raise ValueError('action_mode="generate" has no distribution over the admissible commands; use "constrained"')
    return [
        [score.commands for score in row if score.commands is not None]
        for row in score_turns(responder, episodes, turns, prefixes=prefixes)
    ]
