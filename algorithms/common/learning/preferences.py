"""A reward learnt from preferences: RL-VLM-F (Wang et al., arXiv 2402.03681) with text in place of images.

A judge is asked which of two situations of one task is closer to having it done. A reward ``r`` is fitted to many answers, and
the judge is not asked while the policy plays. Formulas (section 4 there, after Christiano et al., arXiv 1706.03741)::

    P(1 preferred to 0) = exp r(o_1) / (exp r(o_0) + exp r(o_1))            cross-entropy; "unsure" is dropped
    r = mean of three heads, each with a tanh output

It is used as a process reward that is an object, with a callback that refits it after each iteration's rollouts::

    reward = PreferenceReward("tiny", text_judge(ask))
    env = make_vec_env("ALFWorldPRM-v0", env_kwargs={"reward": reward})
    GRPO("sft.zip", env).learn(100_000, callback=RefitPreferences(reward))

Differences: the three heads share an adapter (three networks there); situations hold the whole transcript; on-policy algorithms
have no replay buffer, so nothing is relabelled, and a refit is for the next iteration. As r is in [-1, 1], P is at most .88.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.nn import functional

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.rewards.base import ScoredTurn, check_coef
from agentprm_gym.rewards.judge import Ask, read_answer
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater
from algorithms.common.learning.value import ValueModel

#: Name of the adapter.
PREFERENCE = "preference"

QUESTION = """\
An agent plays a text game. Its task: {task}

Situation 0:
{first}

Situation 1:
{second}

In which of the two situations is the agent closer to having done the task? Answer with one line that holds only 0 \
(situation 0), 1 (situation 1), or -1 (no difference, or you are not sure)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the agent has seen and done, up to where it is to act.

    Attributes:
        task: the task in words.
        turns: the transcript; the last turn's command is not read.
    """

    task: str
    turns: tuple[Turn, ...]

    @classmethod
    def after(cls, scored: ScoredTurn) -> Situation:
        """The situation behind a turn."""
        turn = Turn(feedback=scored.feedback, admissible_commands=tuple(scored.admissible_commands), command="")
        return cls(scored.task, (*scored.turns, turn))

    def text(self, n_turns: int = 6) -> str:
        """The last few turns as a judge reads them."""
        *earlier, last = self.turns[-n_turns:]
        return "\n".join([*(f"{t.feedback.strip()}\n> {t.command}" for t in earlier), last.feedback.strip()])


#: Answers pairs of situations of one task: 1 where the second is closer, 0 where the first is, -1 where it is not sure.
Judge = Callable[[Sequence[tuple[Situation, Situation]]], Sequence[int]]


def text_judge(ask: Ask) -> Judge:
    """Make a judge of whatever answers questions, for example a model on a server; what cannot be read counts as -1.

    Args:
        ask: takes questions, returns one answer for each, in order; see :class:`agentprm_gym.rewards.judge.JudgeReward`.
    """
    # `read_answer` tells 1.0 for situation 1, -1.0 for situation 0 and 0.0 for "not sure".
    meanings = {1.0: 1, -1.0: 0, 0.0: -1, None: -1}

    def judge(pairs: Sequence[tuple[Situation, Situation]]) -> list[int]:
        questions = [QUESTION.format(task=a.task, first=a.text(), second=b.text()) for a, b in pairs]
        return [meanings[read_answer(answer)] for answer in ask(questions)]

    return judge


class PreferenceReward:
    """``coef * r(situation behind the turn)``; what it scored is what pairs are drawn from at the next refit.

    Attributes:
        labels: pairs that a judge was sure about, with 1 where the second is closer, else 0.
    """

    name = "preferences"
    privileged = False

    def __init__(
        self,
        base: str | LanguageModel,
        judge: Judge,
        *,
        coef: float = 1.0,
        n_heads: int = 3,
        n_pairs: int = 60,
        max_epochs: int = 50,
        target_accuracy: float = 0.97,
        learning_rate: float = 1e-3,
        batch_size: int = 16,
        max_kept: int = 5000,
        seed: int = 0,
    ) -> None:
        """Make a reward that is 0 everywhere until its first refit.

        Args:
            base: a language model of its own, by alias, folder or hub id. It must not be a policy's: while that plays, its
                base has another adapter folded in.
            judge: answers pairs of situations.
            coef: weight; any finite number.
            n_heads: how many heads, 1 or more.
            n_pairs: how many pairs are asked about at a refit, 1 or more; the paper's 40 to 100.
            max_epochs: most passes over all labels at a refit, 1 or more.
            target_accuracy: a refit ends where the share of labels that r agrees with is above this, in [0, 1].
            learning_rate: step size, above 0.
            batch_size: pairs an update, 1 or more.
            max_kept: situations that are kept to draw pairs from, 2 or more; the oldest go first.
            seed: of heads, pairs and order.

        Raises:
            ValueError: a number is out of range.
        """
        check_coef(coef)
        least = {"n_heads": n_heads, "n_pairs": n_pairs, "max_epochs": max_epochs, "batch_size": batch_size}
        for key, value in least.items():
            check_int(key, value, 1)
        self.coef, self.judge, self.n_pairs, self.max_epochs = coef, judge, n_pairs, max_epochs
        self.batch_size = batch_size
        self.target_accuracy = check_float("target_accuracy", target_accuracy, 0.0, 1.0)
        lm = LanguageModel.load(base) if isinstance(base, str) else base
        self._reader = ValueModel(Responder(lm), PREFERENCE)
        self._heads = nn.Linear(lm.hidden_size, n_heads).to(lm.device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # heads that began alike would stay alike
            drawn = torch.randn(self._heads.weight.shape, generator=generator) / lm.hidden_size**0.5
            self._heads.weight.copy_(drawn)
            self._heads.bias.zero_()
        self._updater = Updater(self._parameters, check_float("learning_rate", learning_rate, above=0.0), MAX_GRAD_NORM)
        self._rng = np.random.default_rng(seed)
        self._seen: deque[Situation] = deque(maxlen=check_int("max_kept", max_kept, 2))
        self.labels: list[tuple[Situation, Situation, int]] = []
        self.n_refits = 0

    def _parameters(self) -> list[nn.Parameter]:
        return [*self._reader.lm.adapter_parameters(PREFERENCE), *self._heads.parameters()]

    # ------------------------------------------------------------------ the reward
    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Score the situation behind each turn, and remember it.

        Args:
            turns: the batch.

        Returns:
            Shape ``(len(turns),)``; 0 before the first refit.
        """
        situations = [Situation.after(turn) for turn in turns]
        self._seen.extend(situations)
        if not self.n_refits or not situations:
            return np.zeros(len(turns))
        return self.coef * self.heads(situations).mean(axis=1)

    def disagreement(self, situations: Sequence[Situation]) -> NDArray[np.float64]:
        """Standard deviation of the heads, (N,)."""
        spread: NDArray[np.float64] = self.heads(situations).std(axis=1)
        return spread

    @torch.no_grad()
    def heads(self, situations: Sequence[Situation], micro_batch_size: int = 16) -> NDArray[np.float64]:
        """What each head thinks of situations, (N, n_heads) in [-1, 1]."""
        rows = []
        with self._reader.lm.active(PREFERENCE):
            for start in range(0, len(situations), micro_batch_size):
                rows.append(self._read(situations[start : start + micro_batch_size]).double().cpu())
        return torch.cat(rows).numpy()

    def _read(self, situations: Sequence[Situation]) -> torch.Tensor:
        """(N, n_heads) with gradients; the adapter is active."""
        hidden = self._reader.states([_as_episode(s) for s in situations])
        last = np.cumsum([len(s.turns) for s in situations]) - 1
        return torch.tanh(self._heads(hidden[torch.as_tensor(last, device=hidden.device)]))

    # ------------------------------------------------------------------ learning
    def refit(self) -> dict[str, float]:
        """Ask the judge about pairs of what was scored, and fit to all answers so far.

        Returns:
            ``n_labels``, and ``accuracy``: the share of labels that r agrees with after the fit (NaN without labels).
        """
        pairs = self._draw()
        answers = list(self.judge(pairs)) if pairs else []
        if len(answers) != len(pairs):
            raise ValueError(f"the judge gave {len(answers)} answers to {len(pairs)} pairs of situations")
        self.labels += [(a, b, int(y)) for (a, b), y in zip(pairs, answers, strict=True) if y in (0, 1)]
        return self.fit()

    def fit(self) -> dict[str, float]:
        """Fit to the labels that there are; see :meth:`refit`."""
        accuracy = float("nan")
        for _ in range(self.max_epochs if self.labels else 0):
            right = 0
            order = [self.labels[int(i)] for i in self._rng.permutation(len(self.labels))]
            for start in range(0, len(order), self.batch_size):
                right += self._step(order[start : start + self.batch_size])
            accuracy = right / len(order)
            if accuracy > self.target_accuracy:
                break
        self.n_refits += bool(self.labels)
        return {"n_labels": float(len(self.labels)), "accuracy": accuracy}

    def _step(self, batch: Sequence[tuple[Situation, Situation, int]]) -> int:
        """One update; returns how many labels r agreed with before it."""
        first, second, answers = (list(column) for column in zip(*batch, strict=True))
        with self._reader.lm.active(PREFERENCE, train=True):
            r = self._read([*first, *second])  # (2 B, n_heads)
            ahead = r[len(batch) :] - r[: len(batch)]  # log-odds of the second, by each head
            y = torch.tensor(answers, dtype=ahead.dtype, device=ahead.device)
            wanted = y[:, None].expand_as(ahead)
            loss = functional.binary_cross_entropy_with_logits(ahead, wanted, reduction="none").sum(1).mean()
            loss.backward()
        self._updater.step(loss=loss.item())
        return int(((ahead.mean(1) > 0) == (y > 0.5)).sum())

    def _draw(self) -> list[tuple[Situation, Situation]]:
        """Pairs of different situations of one task, uniformly among what was seen."""
        by_task: dict[str, list[Situation]] = {}
        for situation in self._seen:
            by_task.setdefault(situation.task, []).append(situation)
        pairs = []
        for _ in range(self.n_pairs if self._seen else 0):
            one = self._seen[int(self._rng.integers(len(self._seen)))]
            other = by_task[one.task][int(self._rng.integers(len(by_task[one.task])))]
            if one.turns != other.turns:
                pairs.append((one, other))
        return pairs


class RefitPreferences(BaseCallback):
    """Refits a :class:`PreferenceReward` after the rollouts of each iteration."""

    def __init__(self, reward: PreferenceReward, verbose: int = 0) -> None:
        """Take the reward; it must live in this process."""
        super().__init__(verbose)
        self.reward = reward

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        for key, value in self.reward.refit().items():
            self.logger.record(f"preferences/{key}", value)


def _as_episode(situation: Situation) -> Episode:
    turns: Any = list(situation.turns)
    return Episode(game_id="", split="", task_type="", task=situation.task, success=False, turns=turns)
