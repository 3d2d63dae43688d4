"""Actors: what answers a batch of running episodes with one command each.

An actor keeps its own caches for the rows (running episodes) it is told about, so that each turn feeds only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from agentprm_gym.episodes import Turn
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.scoring import TrieCache, encode_turns, sample_commands, trie_log_probs
from agentprm_gym.llm.trie import CommandTrie


@dataclass(slots=True)
class Request:
    """One running episode that waits for a command.

    Attributes:
        row: which running episode.
        task: the task's text.
        feedback: what the game just said.
        admissible_commands: what may be done.
        rng: the episode's own random stream.
    """

    row: int
    task: str
    feedback: str
    admissible_commands: list[str]
    rng: np.random.Generator


@dataclass(slots=True)
class Answer:
    """An actor's choice.

    Attributes:
        command: the command to execute.
        log_prob: its log-probability under the acting distribution at temperature 1.
        candidates: what was weighed, as ``{"command", "response", "score", "log_prob"}``; ``None`` where nothing was.
    """

    command: str
    log_prob: float
    candidates: list[dict[str, Any]] | None = None


class Actor(Protocol):
    """Answers running episodes."""

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode in a row, with turns that were played already."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose a command for each request."""

    def executed(self, row: int, command: str) -> None:
        """Say which command was really executed (it may differ from the answer)."""


@dataclass(slots=True)
class _Rows:
    """Transcript caches of one adapter, and the tokens each row has still to be fed."""

    decoder: TranscriptDecoder
    pending: dict[int, list[int]] = field(default_factory=dict)

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        self.decoder.reset(row)
        self.pending[row] = encode_turns(self.decoder.model.prompt, task, history).ids

    def prompt(self, request: Request) -> list[int]:
        """Take the row's unfed tokens and this turn's prompt."""
        before = self.pending.pop(request.row)
        first = not before and int(self.decoder.cache.lengths[request.row]) == 0
        return before + self.decoder.model.prompt.prompt_ids(
            request.task, request.feedback, request.admissible_commands, first
        )


class PolicyActor:
    """Samples commands from the constrained distribution of a policy adapter."""

    def __init__(
        self,
        model: LanguageModel,
        adapter: str | None,
        n_rows: int,
        *,
        temperature: float = 1.0,
        n_candidates: int = 1,
        tries: TrieCache | None = None,
    ) -> None:
        """Make an actor.

        Args:
            model: the language model.
            adapter: the policy's adapter; ``None`` is the bare base.
            n_rows: how many episodes run at once.
            temperature: of sampling; 0 is greedy.
            n_candidates: how many distinct commands to record a turn: the executed one and others drawn at temperature
                1, so that a sharp policy's alternatives are seen too.
            tries: a trie cache to share.
        """
        self.model, self.adapter = model, adapter
        self.temperature, self.n_candidates = temperature, n_candidates
        self._rows = _Rows(TranscriptDecoder(model, n_rows))
        self._tries = tries or TrieCache(model.prompt)

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self._rows.start(row, task, history)

    def executed(self, row: int, command: str) -> None:
        """See :class:`Actor`."""
        self._rows.pending[row] = self.model.prompt.response_ids(command)

    def log_probs(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """Log-probabilities of every admissible command of every request, each (n_commands,)."""
        tries: list[CommandTrie] = [self._tries.get(tuple(r.admissible_commands)) for r in requests]
        extensions = [
            Extension(r.row, self._rows.prompt(r), trie.tokens, trie.parents)
            for r, trie in zip(requests, tries, strict=True)
        ]
        with torch.no_grad(), self.model.active(self.adapter):
            hidden = self._rows.decoder.extend(extensions)
            starts = np.cumsum([0, *(len(h) for h in hidden)])[:-1].tolist()
            return trie_log_probs(self.model, torch.cat(hidden), starts, tries)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`."""
        answers = []
        for request, log_probs in zip(requests, self.log_probs(requests), strict=True):
            (chosen,) = sample_commands(log_probs, request.rng, temperature=self.temperature)
            values = log_probs.tolist()
            candidates = None
            if self.n_candidates > 1:
                drawn = sample_commands(log_probs, request.rng, temperature=1.0, n=self.n_candidates)
                distinct = list(dict.fromkeys((chosen, *drawn)))[: self.n_candidates]
                candidates = [_candidate(request.admissible_commands[i], None, values[i]) for i in distinct]
            answers.append(Answer(request.admissible_commands[chosen], values[chosen], candidates))
        return answers


class BestOfNActor:
    """Draws N commands from a policy and executes the one that the process reward model scores highest.

    The draws are independent samples of the same distribution that single-sample acting uses, so duplicates occur and
    N = 1 is that acting exactly (paper section 1.7: execute the argmax of Q over N samples).
    """

    def __init__(
        self, policy: PolicyActor, prm: LanguageModel, adapter: str, head: torch.nn.Module, n_rows: int, n: int
    ) -> None:
        """Make an actor.

        Args:
            policy: where the candidates come from.
            prm: the language model of the process reward model (the same base object where it is shared).
            adapter: the process reward model's adapter.
            head: maps hidden states to a scalar logit.
            n_rows: how many episodes run at once.
            n: candidates a turn.
        """
        self.policy, self.prm, self.adapter, self.head, self.n = policy, prm, adapter, head, n
        self._rows = _Rows(TranscriptDecoder(prm, n_rows))

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.policy.start(row, task, history)
        self._rows.start(row, task, history)

    def executed(self, row: int, command: str) -> None:
        """See :class:`Actor`."""
        self.policy.executed(row, command)
        self._rows.pending[row] = self.prm.prompt.response_ids(command)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`."""
        all_log_probs = self.policy.log_probs(requests)
        drawn: list[list[int]] = []
        extensions = []
        ends: list[list[int]] = []
        for request, log_probs in zip(requests, all_log_probs, strict=True):
            draws = [
                sample_commands(log_probs, request.rng, temperature=self.policy.temperature)[0] for _ in range(self.n)
            ]
            distinct = list(dict.fromkeys(draws))
            tokens: list[int] = []
            parents: list[int] = []
            last: list[int] = []
            for i in distinct:
                ids = self.prm.prompt.response_ids(request.admissible_commands[i])
                ids = ids + self.prm.prompt.judge_ids(request.task)
                parents += [-1, *range(len(tokens), len(tokens) + len(ids) - 1)]
                tokens += ids
                last.append(len(tokens) - 1)
            drawn.append(distinct)
            ends.append(last)
            extensions.append(Extension(request.row, self._rows.prompt(request), tokens, parents))
        with torch.no_grad(), self.prm.active(self.adapter):
            hidden = self._rows.decoder.extend(extensions)
        answers = []
        for request, log_probs, distinct, last, states in zip(
            requests, all_log_probs, drawn, ends, hidden, strict=True
        ):
            with torch.no_grad():
                scores = torch.sigmoid(self.head(states[torch.tensor(last) + 1])).flatten().tolist()
            values = log_probs.tolist()
            best = int(np.argmax(scores))
            candidates = [
                _candidate(request.admissible_commands[i], s, values[i]) for i, s in zip(distinct, scores, strict=True)
            ]
            answers.append(Answer(request.admissible_commands[distinct[best]], values[distinct[best]], candidates))
        return answers


def _candidate(command: str, score: float | None, log_prob: float) -> dict[str, Any]:
    return {"command": command, "response": command, "score": score, "log_prob": log_prob}
