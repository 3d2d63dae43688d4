"""Scores of episodes that are being played: each transcript is read once, and a turn costs what is new in it.

A process reward is asked turn by turn, with the whole transcript each time. To read all of it each time would make an episode
of T turns cost T * (T + 1) / 2 turns. So key-value caches are kept. They are found by the tokens that they hold: it does not
matter which environment a transcript comes from, whether it was restored, or in which order the turns are scored.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch

from agentprm_gym.episodes import Turn
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.prm.model import ProcessRewardModel, times_executed
from agentprm_gym.prm.tree import Place, Reply, hang_reply

#: Transcripts whose caches are kept, and the tokens that these may hold together.
N_ROWS, MAX_TOKENS = 256, 400_000
#: Transcripts whose scores are remembered for each row that is kept.
_SCORES_PER_ROW = 8

#: A task, the turns so far, whose last one is to be judged, and other commands that are to be judged in its place.
Item = tuple[str, Sequence[Turn], Sequence[str]]
#: An answer by its tokens: the same command may have been written with another reason.
_Tokens = tuple[int, ...]


@dataclass(slots=True)
class _Known:
    """What is known of a transcript up to a prompt: the row that caches it, if it still does, and scores of answers."""

    row: int | None
    scores: dict[_Tokens, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """One item: its tokens up to the last prompt, the key of the prompt before, and the answers that are to be judged.

    ``before`` tells how often each command was executed in the turns before.
    """

    ids: _Tokens
    previous: _Tokens
    answers: dict[str, Reply]
    judge: Sequence[int]
    admissible: Sequence[str]
    before: Counter[str]

    def key(self, command: str) -> _Tokens:
        """What the score of an answer is kept by; a shortened transcript does not tell how often a command was executed."""
        return (*self.answers[command].ids, *self.judge, self.before[command])


class RunningScores:
    """Q of the last turn of transcripts that grow.

    Attributes:
        model: the process reward model.
        decoder: holds the caches; its ``n_fed`` counts tokens.
    """

    def __init__(self, model: ProcessRewardModel, n_rows: int = N_ROWS, max_tokens: int | None = MAX_TOKENS) -> None:
        """Begin with nothing read.

        Args:
            model: the process reward model. Its scores are kept, so it must not be trained between calls.
            n_rows: how many transcripts' caches are kept, 1 or more.
            max_tokens: tokens that these may hold together, 1 or more; ``None``: no limit.
        """
        self.model = model
        self.decoder = TranscriptDecoder(model.lm, n_rows, max_tokens=max_tokens)
        self._known: OrderedDict[_Tokens, _Known] = OrderedDict()
        self._n_known = n_rows * _SCORES_PER_ROW
        self._next_row = 0

    def score(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Judge the last turns.

        Args:
            items: ``(task, turns, commands)``; ``commands`` are judged beside the last turn's own one.

        Returns:
            For each item the Q in (0, 1) of its last turn's command, and of the other commands.
        """
        readings = [self._reading(*item) for item in items]
        todo: dict[_Tokens, tuple[_Reading, dict[_Tokens, Reply]]] = {}
        for reading in readings:
            known = self._known.get(reading.ids)
            keys = {reading.key(command): reply for command, reply in reading.answers.items()}
            missing = {key: reply for key, reply in keys.items() if known is None or key not in known.scores}
            if missing:
                # The same transcript from two environments is read once.
                todo.setdefault(reading.ids, (reading, {}))[1].update(missing)
        if todo:
            self._read(list(todo.values()))
        out = []
        for reading in readings:
            scores = self._known[reading.ids].scores
            self._known.move_to_end(reading.ids)
            out.append({command: scores[reading.key(command)] for command in reading.answers})
        while len(self._known) > self._n_known:
            _, old = self._known.popitem(last=False)
            if old.row is not None:
                self.decoder.reset(old.row)
        return out

    def _reading(self, task: str, turns: Sequence[Turn], commands: Sequence[str]) -> _Reading:
        passage, judge = self.model.encode(task, turns)[-1], self.model.judge_ids(task)
        end, response = passage.prompt_end[-1], passage.responses[-1]
        done = turns[-1].command
        # The turn's own answer is judged as it was given, with its reason.
        answers = {done: Reply(response.ids, done, response.command_start)}
        for command in commands:
            if command not in answers:
                answers[command] = self.model.reply(command)
        previous = tuple(passage.ids[: passage.prompt_end[-2] + 1]) if len(passage.prompt_end) > 1 else ()
        admissible, before = tuple(turns[-1].admissible_commands), times_executed(turns[:-1])
        return _Reading(tuple(passage.ids[: end + 1]), previous, answers, judge, admissible, before)

    def _row(self, reading: _Reading) -> int:
        """The row that has read most of a transcript, or a new one."""
        for key in (reading.ids, reading.previous):
            known = self._known.get(key)
            if known is not None and known.row is not None:
                row, known.row = known.row, None
                return row
        self._next_row += 1
        return self._next_row

    @torch.no_grad()
    def _read(self, todo: Sequence[tuple[_Reading, dict[_Tokens, Reply]]]) -> None:
        extensions, rows = [], []
        wanted: list[list[Place]] = []
        for reading, answers in todo:
            tree = TokenTree([reading.ids[-1]])
            wanted.append(
                [
                    hang_reply(tree, 0, r, reading.judge, reading.admissible, reading.before[r.command])
                    for r in answers.values()
                ]
            )
            rows.append(self._row(reading))
            extensions.append(Extension.below(rows[-1], reading.ids, tree))
        with self.model.lm.active(self.model.adapter):
            hidden = self.decoder.extend(extensions)  # (1 + n_tokens, H) each
            starts = np.cumsum([0, *(len(nodes) for nodes in hidden)])
            places = [
                place.shifted(int(start)) for here, start in zip(wanted, starts[:-1], strict=True) for place in here
            ]
            logits = self.model.read(torch.cat(hidden), places)
        values = iter(torch.sigmoid(logits).tolist())
        for (reading, answers), row in zip(todo, rows, strict=True):
            known = self._known.setdefault(reading.ids, _Known(None))
            known.row = row
            known.scores |= {answer: next(values) for answer in answers}


#: By the model's id. An entry holds its model, so an id is not given to another model while the entry is there.
_SHARED: WeakValueDictionary[int, RunningScores] = WeakValueDictionary()


def shared_scores(model: ProcessRewardModel) -> RunningScores:
    """The running scores of a model, which all process rewards made of it share, so that they share what it has read.

    Args:
        model: the process reward model.
    """
    scores = _SHARED.get(id(model))
    if scores is None:
        scores = _SHARED[id(model)] = RunningScores(model)
    return scores
