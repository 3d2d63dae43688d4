"""A prompted judge: a language model on any OpenAI-compatible server gives every command of a state a mark."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentprm_gym.answers import without_thoughts
from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.states import BenchState
from agentprm_gym.episodes import Turn
from agentprm_gym.rewards.judge import Ask, JudgeReward
from algorithms.bench.saves import BatchedRanker

QUESTION = """\
An agent plays a text game. Its task: {task}

What happened before:
{history}

What it sees now:
{now}

These commands are possible now:
{commands}

How good is each command for doing the task? Give each a mark from 0 (useless or harmful) to 10 (best). Answer with one line \
for each command that holds its number, a colon and its mark, for example "1: 5", and with nothing else."""

#: The highest mark.
_BEST = 10.0
_LINE = re.compile(r"[\s*\-#(]*(\d+)[\s*.)]*[:=][\s*]*(\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s*.]*")


class JudgeRanker(BatchedRanker):
    """Marks of a language model, one question a state.

    An answer counts if it has one mark from 0 to 10 for each command. From an answer that lacks one nothing is taken: the
    commands of that state score alike, and it is counted. Judges may fail in this way often, so ``counts`` belongs beside a
    judge's result.

    Attributes:
        counts: how many questions were ``"asked"``, and how many answers were ``"unparsable"``.
    """

    def __init__(self, ask: Ask, name: str = "judge", *, n_history: int = 10) -> None:
        """Make a ranker.

        Args:
            ask: answers a list of questions, for example with a local model.
            name: for tables and messages.
            n_history: how many of the latest turns the judge is told, 0 or more.

        Raises:
            ValueError: the number is negative.
        """
        if n_history < 0:
            raise ValueError(f"n_history must be 0 or more, got {n_history}")
        self.ask, self.name, self.n_history = ask, name, n_history
        self.counts: Counter[str] = Counter(asked=0, unparsable=0)

    @classmethod
    def of_server(
        cls,
        base_url: str,
        model: str,
        *,
        max_tokens: int = 1024,
        n_history: int = 10,
        **server: Any,
    ) -> JudgeRanker:
        """Make a judge of a model behind an OpenAI-compatible chat API; nothing is sent yet.

        Args:
            base_url: the address without ``/chat/completions``, for example ``http://127.0.0.1:8000/v1``.
            model: the model's name there.
            max_tokens: longest answer in tokens, 1 or more; models that think first need more.
            n_history: how many of the latest turns the judge is told, 0 or more.
            **server: ``api_key_env``, ``timeout``, ``max_retries`` and ``concurrency``, as for
                :meth:`agentprm_gym.rewards.JudgeReward.of_server`.

        Raises:
            TypeError: there is no such option.
            ValueError: the address is not one or holds a secret, the model's name is missing, or a number is out of range.
        """
        judge = JudgeReward.of_server(base_url, model=model, max_tokens=max_tokens, **server)
        return cls(judge.ask, f"judge:{model}@{base_url}", n_history=n_history)

    def question(self, task: str, history: Sequence[Turn]) -> str:
        """Return what the judge is asked about a state.

        Args:
            task: the task in words.
            history: the turns; the last one is to be decided.
        """
        *earlier, last = history
        told = earlier[len(earlier) - min(self.n_history, len(earlier)) :]
        return QUESTION.format(
            task=task,
            history="\n".join(f"{turn.feedback.strip()}\n> {turn.command}" for turn in told) or "(nothing)",
            now=last.feedback.strip(),
            commands="\n".join(f"{i}. {command}" for i, command in enumerate(last.admissible_commands, 1)),
        )

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`.

        Raises:
            JudgeError: the server refused, or did not answer.
            ValueError: ``ask`` did not return one answer for each question.
        """
        answers = list(self.ask([self.question(state.task, state.history) for state in states]))
        if len(answers) != len(states):
            raise ValueError(f"ranker {self.name!r} gave {len(answers)} answers to {len(states)} questions")
        self.counts["asked"] += len(states)
        return [self._read(answer, len(s.commands)) for answer, s in zip(answers, states, strict=True)]

    def _read(self, answer: str, n: int) -> Floats:
        marks = read_marks(answer, n)
        if marks is not None:
            return np.array(marks)
        self.counts["unparsable"] += 1
        bad = self.counts["unparsable"]
        if bad & (bad - 1) == 0:
            warnings.warn(
                f"ranker {self.name!r} gave {bad} unparsable of {self.counts['asked']} answers, whose commands score alike; "
                f"expected a line 'number: mark' for each of {n} commands, the last: {answer[-200:]!r}",
                UserWarning,
                stacklevel=2,
            )
        return np.zeros(n)


def read_marks(answer: str, n: int) -> list[float] | None:
    r"""Return the marks of an answer; ``None`` where a command has none, has two, or has one outside 0 to 10.

    Args:
        answer: any text; lines that hold no number and mark are passed over, and so are thoughts (``<think>``).
        n: how many commands there are.

    Example:
        >>> read_marks("Marks: 1: 3", 1) is None, read_marks("1: 3\n**2:** 7.5", 2), read_marks("1: 3", 2)
        (True, [3.0, 7.5], None)
    """
    marks: dict[int, float] = {}
    for line in without_thoughts(answer).strip().splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        i, mark = int(found[1]), float(found[2])
        if not 1 <= i <= n or i in marks or mark > _BEST:
            return None
        marks[i] = mark
    return [marks[i] for i in range(1, n + 1)] if len(marks) == n else None
