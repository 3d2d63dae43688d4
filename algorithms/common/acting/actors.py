"""Actors: what answers a batch of running episodes with one response each.

An actor keeps its own caches for the rows (running episodes) it is told about, so that each turn feeds only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agentprm_gym.answers import Reader
from agentprm_gym.episodes import Turn
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, command_log_probs, sample_commands
from algorithms.common.acting.free_text import FreeText
from algorithms.common.acting.requests import Actor, Answer, LookAhead, Request, Sampler, candidate_row, count_reading
from algorithms.common.acting.rows import TranscriptRows

__all__ = [
    "Actor",
    "Answer",
    "LookAhead",
    "PolicyActor",
    "Request",
    "Sampler",
    "TranscriptRows",
    "candidate_row",
    "count_reading",
]


class PolicyActor:
    """Samples responses from a policy's adapter, in any of the three modes.

    Attributes:
        counts: ``turns``, how many of them were ``shortened`` (see :mod:`agentprm_gym.llm.transcripts`); where the policy
            writes freely also ``responses``, and how many of these were ``cut`` (hit the limit on their length),
            ``malformed``, ``repaired`` or ``inadmissible`` (see :func:`count_reading`).
    """

    def __init__(
        self,
        responder: Responder,
        adapter: str | None,
        n_rows: int,
        *,
        temperature: float = 1.0,
        n_candidates: int = 1,
        cache_tokens: int | None = None,
        reader: Reader | None = None,
    ) -> None:
        """Make an actor.

        Args:
            responder: the model and its way to act.
            adapter: the policy's adapter; ``None`` is the bare base.
            n_rows: how many episodes run at once, 1 or more.
            temperature: sampling temperature, 0 (greedy) or more.
            n_candidates: how many distinct commands to record a turn, 1 or more: the executed one and others drawn at
                temperature 1, so that alternatives of a policy that is sure are seen too. A policy that writes freely writes
                this many responses a turn and executes the first.
            cache_tokens: budget of the key-value cache, in tokens over all rows; ``None``: no limit.
            reader: reads responses that were written freely as a whole; ``None``: the template's own reader.
        """
        self.responder, self.adapter = responder, adapter
        self.temperature, self.n_candidates = temperature, n_candidates
        self._n_rows = n_rows
        decoder = TranscriptDecoder(responder.lm, n_rows, max_tokens=cache_tokens)
        self.rows = TranscriptRows(decoder, responder.reserve, responder.mode == "generate")
        self.counts = self.rows.counts
        self._free = FreeText(responder, adapter, self.rows, temperature, reader)

    @property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.responder.lm

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode; see :class:`Actor`."""
        self.rows.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """Take note of what was executed; see :class:`Actor`."""
        self.rows.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose a response for each request; see :class:`Actor`."""
        if not self.responder.writes_freely:
            return self._choose(requests)
        answers = []
        for request, drawn in zip(requests, self.sample(requests, self.n_candidates), strict=True):
            answer = drawn[0]
            if len(drawn) > 1:
                answer.candidates = [candidate_row(a.command, None, a.log_prob, a.response) for a in drawn]
            # The caches of the other responses are not used again.
            for i in range(1, len(drawn)):
                self.rows.decoder.reset((request.row, i))
            answers.append(answer)
        return answers

    # Commands ---------------------------------------------------------------------------------
    def log_probs(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """Compute the log-probability of every admissible command of every request, without reasons.

        Returns:
            A tensor (n_commands,) for each request, in nats.

        Raises:
            ValueError: this policy writes freely.
        """
        if self.responder.writes_freely:
            raise ValueError("a policy that writes freely has no distribution over commands alone: use sample()")
        extensions, tries = [], []
        for request in requests:
            writer = self.rows.read(request)
            writer.say(self.lm.prompt.lead)
            trie = self.responder.trie(tuple(request.admissible_commands))
            tries.append(trie)
            extensions.append(Extension(request.row, writer.ids, trie.tokens, trie.parents))
        with torch.no_grad(), self.lm.active(self.adapter):
            hidden = self.rows.decoder.extend(extensions)
            starts = np.cumsum([0, *(len(h) for h in hidden)])[:-1].tolist()
            return command_log_probs(self.lm, torch.cat(hidden), starts, tries)

    def _choose(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for request, log_probs in zip(requests, self.log_probs(requests), strict=True):
            (chosen,) = sample_commands(log_probs, request.rng, temperature=self.temperature)
            values = log_probs.tolist()
            candidates = None
            if self.n_candidates > 1:
                drawn = sample_commands(log_probs, request.rng, temperature=1.0, n=self.n_candidates)
                distinct = list(dict.fromkeys((chosen, *drawn)))[: self.n_candidates]
                candidates = [candidate_row(request.admissible_commands[i], None, values[i]) for i in distinct]
            answers.append(Answer(request.admissible_commands[chosen], values[chosen], candidates))
        return answers

    # Free text --------------------------------------------------------------------------------
    def sample(self, requests: Sequence[Request], n: int) -> list[list[Answer]]:
        """Draw ``n`` responses for each request, all from one reading of the transcript.

        A policy that does not write freely draws independently from its distribution over the admissible commands.

        Args:
            requests: the episodes that wait.
            n: responses to each, 1 or more.
        """
        if not self.responder.writes_freely:
            return self._draw(requests, n)
        self.rows.decoder.make_room(self._n_rows * n)  # each response is written in a copy of its transcript
        return self._free.sample(requests, n)

    def _draw(self, requests: Sequence[Request], n: int) -> list[list[Answer]]:
        out = []
        for request, log_probs in zip(requests, self.log_probs(requests), strict=True):
            values = log_probs.tolist()
            drawn = [sample_commands(log_probs, request.rng, temperature=self.temperature)[0] for _ in range(n)]
            out.append([Answer(request.admissible_commands[i], values[i]) for i in drawn])
        return out
