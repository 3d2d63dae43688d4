"""Saved models as process rewards.

:class:`PRMReward` pays by a process reward model, :class:`ReferenceReward` by one of a reference policy, and
:class:`ImplicitReward` by the log-ratio of two policies. All are made by name, for example
``make_reward("prm:agent.zip", form="value")``; the names stand in :mod:`agentprm_gym.registration`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentprm_gym.checks import check_choice, check_int
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.load import open_save
from agentprm_gym.prm.model import ProcessRewardModel
from agentprm_gym.prm.running import RunningScores, shared_scores
from agentprm_gym.rewards.base import ScoredTurn, check_coef, check_gamma
from agentprm_gym.rewards.provers import best_of_k

FORMS = ("potential", "value", "difference", "advantage")

_Floats = NDArray[np.float64]
_Path = str | os.PathLike[str]


class LearnedReward(ABC):
    """What the learned rewards share: a name and a weight.

    Attributes:
        name: for messages and logs.
        coef: weight of the scores.
    """

    privileged = False

    def __init__(self, name: str, coef: float) -> None:
        """Check the weight.

        Args:
            name: for messages and logs.
            coef: what the scores are multiplied with; any finite number.

        Raises:
            ValueError: ``coef`` is not finite.
        """
        check_coef(coef)
        self.name = name
        self.coef = coef

    def score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        """Score a batch of turns, in one forward pass of each model.

        Args:
            turns: the batch, from any number of episodes.

        Returns:
            Shape ``(len(turns),)``.
        """
        return self.coef * self._score(turns) if turns else np.zeros(0)

    @abstractmethod
    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        """Score one turn or more, before the weight."""


class PRMReward(LearnedReward):
    """Rewards turns by what a process reward model thinks of them.

    The model gives ``Q(s, a)``, the chance that the game is won after the turn (discounted, if it was fitted so).

    ``form="potential"`` takes the last turn's ``Q`` as the potential of the transcript: a turn gets
    ``coef * (gamma * Q_t - Q_{t-1})``, the first one ``coef * gamma * Q_0``, and the last turn of a game that ends
    ``-coef * Q_{t-1}``. As with all potentials, no policy gains against another over an episode that ends. Only the credit
    moves.

    ``form="value"`` gives ``coef * Q_t`` itself. It adds up over an episode, so a policy is paid for staying where the model is
    confident. Use it only where this is wanted.

    ``form="difference"`` gives ``coef * (Q_t - Q_{t-1})``, the first turn ``coef * Q_0``, and nothing else on the last turn.
    Undiscounted, an episode adds up to ``coef`` times the model's opinion of its last turn.

    ``form="advantage"`` gives ``coef * (Q(s, a) - b)``. Where the turn holds ``candidates``, which a policy weighed, ``b`` is
    their mean. It is weighted by the policy's probabilities where all candidates have a ``log_prob``, and equal responses then
    count once; else all candidates count alike. Environments do not know what a policy weighed. There ``b`` is the mean over
    all admissible commands. It costs a score for each of these, in the same forward pass.

    ``best_of=K`` takes in the last form the prover that keeps the best of K continuations: ``Q`` becomes ``1 - (1 - Q)^K``, and
    ``b`` the mean of that (PAV, see :mod:`agentprm_gym.rewards.provers`; centred, so that it charges nothing for long games).
    """

    def __init__(
        self,
        model: ProcessRewardModel,
        name: str = "prm",
        *,
        form: str = "potential",
        gamma: float = 1.0,
        coef: float = 1.0,
        best_of: int = 1,
    ) -> None:
        """Make a reward.

        Args:
            model: the process reward model.
            name: for messages and logs.
            form: ``"potential"``, ``"value"``, ``"difference"`` or ``"advantage"``.
            gamma: discount of the potential a turn, in [0, 1]; take the learning algorithm's. Other forms do not use it.
            coef: weight; any finite number.
            best_of: K of the prover, 1 or more; 1 is the policy itself. Only for ``"advantage"``.

        Raises:
            ValueError: the form is unknown, ``gamma`` is not in [0, 1], ``coef`` is not finite, or ``best_of`` has no effect.
        """
        check_choice("form", form, FORMS)
        check_gamma(gamma)
        self.best_of = check_int("best_of", best_of, 1)
        if best_of > 1 and form != "advantage":
            raise ValueError(f'best_of={best_of} has no effect with form={form!r}: a prover needs form="advantage"')
        super().__init__(name, coef)
        self.model = model
        self.form = form
        self.gamma = gamma
        self._running = shared_scores(model)

    @classmethod
    def load(cls, path: _Path, *, base: str | None = None, **kwargs: Any) -> PRMReward:
        """Load a saved process reward model; environments of one process share it.

        Args:
            path: a zip that ``AgentPRM.save`` wrote.
            base: where its base model is now, a folder or a hub id; ``None``: where it was.
            **kwargs: ``form``, ``gamma``, ``coef`` and ``best_of``, as for the class.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the save holds no process reward model, the base model of its name has changed
                (``AdapterMismatchError``), or an argument does not fit.
        """
        return cls(open_save(path, base).prm, f"prm:{path}", **kwargs)

    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        if self.form == "advantage":
            return _advantages(self._running, turns, [_own_candidates(turn.turns[-1]) for turn in turns], self.best_of)
        after = _of_done(self._running, [(turn.task, turn.turns) for turn in turns])
        if self.form == "value":
            return after
        earlier = [(turn.task, turn.turns[:-1]) for turn in turns if len(turn.turns) > 1]
        known = iter(_of_done(self._running, earlier))  # mostly scored a turn ago, so mostly kept
        before = np.array([next(known) if len(turn.turns) > 1 else 0.0 for turn in turns])
        if self.form == "potential":
            after = self.gamma * np.where([turn.terminated for turn in turns], 0.0, after)
        scores: _Floats = after - before
        return scores


class ReferenceReward(LearnedReward):
    """Rewards turns by how much better they are than what a reference policy ``mu`` would do: ``coef * A^mu(s, a)``.

    Shaping with a reference policy (paper section 4.2): where rollouts are few, the opinion of a policy that is known
    steadies what is learnt. ``A^mu(s, a) = Q^mu(s, a) - sum_a' mu(a'|s) Q^mu(s, a')``, the sum over the admissible commands.
    ``Q^mu`` is a process reward model that was fitted to *mu's own* rollouts; a save does not tell whether it was. ``mu`` is
    the policy of another save, on the same base. An AgentPRM's save holds a process reward model and the policy that was
    *improved against* it, so its own policy is not taken for ``mu``: name the one that its rollouts began with. Without
    ``policy``, ``mu(a'|s)`` is taken as uniform in this sum, and the reward is that of ``prm:<path>`` with
    ``form="advantage"`` in an environment.

    The paper's released code computes ``gamma * V^mu(s') - V^mu(s)`` with a value model and trains a process reward model on
    the sum of that and the return. In a game without chance it is the same quantity: ``Q^mu(s, a) = gamma * V^mu(s')`` unless
    the turn ends the game. Exact advantages are potential-based; a model's are so as far as it is consistent.
    """

    def __init__(
        self,
        model: ProcessRewardModel,
        name: str = "reference",
        *,
        mu: tuple[Responder, str] | None = None,
        coef: float = 1.0,
        best_of: int = 1,
    ) -> None:
        """Make a reward.

        Args:
            model: the process reward model of the reference policy.
            name: for messages and logs.
            mu: the reference policy: its way to act, and its adapter in the model's base; ``None``: uniform.
            coef: weight; any finite number.
            best_of: K where the prover keeps the best of K continuations of the reference (PAV), 1 or more; see
                :mod:`agentprm_gym.rewards.provers`.

        Raises:
            ValueError: ``coef`` is not finite, or ``best_of`` is below 1.
        """
        self.best_of = check_int("best_of", best_of, 1)
        super().__init__(name, coef)
        self.model = model
        self.mu = mu
        self._running = shared_scores(model)

    @classmethod
    def load(
        cls, path: _Path, policy: _Path | None = None, coef: float = 1.0, base: str | None = None, best_of: int = 1
    ) -> ReferenceReward:
        """Load a saved process reward model and a saved policy; they share one base in memory.

        Args:
            path: a zip with the process reward model, which ``AgentPRM.save`` wrote.
            policy: a zip with the reference policy, which any algorithm's ``save`` wrote; ``None``: uniform.
            coef: weight; any finite number.
            base: where their base model is now, a folder or a hub id; ``None``: where it was.
            best_of: as for the class.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a model is not in its save, the bases differ (``AdapterMismatchError``), or the policy's probability of
                each command is not known, since it writes freely.
        """
        save = open_save(path, base)
        mu = None if policy is None else save.policy(policy)
        return cls(save.prm, f"reference:{path}", mu=mu, coef=coef, best_of=best_of)

    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        commands = [_admissible(turn.turns[-1]) for turn in turns]
        if self.mu is None:
            return _advantages(self._running, turns, [(c, np.ones(len(c))) for c in commands], self.best_of)
        responder, adapter = self.mu
        weights = [np.exp(told) for told in _command_log_probs(responder, adapter, turns)]
        return _advantages(self._running, turns, list(zip(commands, weights, strict=True)), self.best_of)


class ImplicitReward(LearnedReward):
    """Rewards turns by how much likelier a trained policy finds the command than a reference does; no model is trained for it.

    ``coef * (log pi(a|s) - log pi_ref(a|s))``, over the admissible commands: the implicit process reward (Rafailov et al.,
    arXiv 2404.12358; Yuan et al., arXiv 2412.01981). Of a policy that was trained on demonstrations it says how expert-like a
    command is, so it is the baseline for InversePRM. A command that was not admissible scores like the least likely one that
    was.
    """

    def __init__(
        self,
        policy: tuple[Responder, str],
        name: str = "implicit",
        *,
        reference: str | None = None,
        coef: float = 1.0,
    ) -> None:
        """Make a reward.

        Args:
            policy: its way to act, and its adapter; the reference is on the same base.
            name: for messages and logs.
            reference: the adapter of the reference; ``None``: the bare base model.
            coef: weight; any finite number.

        Raises:
            ValueError: ``coef`` is not finite.
        """
        super().__init__(name, coef)
        self.policy = policy
        self.reference = reference

    @classmethod
    def load(
        cls, path: _Path, reference: _Path | None = None, coef: float = 1.0, base: str | None = None
    ) -> ImplicitReward:
        """Load saved policies; they share one base in memory.

        Args:
            path: a zip with the trained policy, which any algorithm's ``save`` wrote.
            reference: a zip with the reference policy; ``None``: the bare base model.
            coef: weight; any finite number.
            base: where their base model is now, a folder or a hub id; ``None``: where it was.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a policy is not in its save, the bases differ (``AdapterMismatchError``), or a policy's probability of
                each command is not known, since it writes freely.
        """
        save = open_save(path, base)
        other = None if reference is None else save.policy(reference)[1]
        return cls(save.policy(path), f"implicit:{path}", reference=other, coef=coef)

    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        responder, adapter = self.policy
        told = [_command_log_probs(responder, name, turns) for name in (adapter, self.reference)]
        out = np.zeros(len(turns))
        for i, (turn, now, before) in enumerate(zip(turns, *told, strict=True)):
            ratios = now - before  # (n_commands,)
            done = turn.turns[-1]
            known = done.command in done.admissible_commands
            out[i] = ratios[list(done.admissible_commands).index(done.command)] if known else ratios[int(now.argmin())]
        return out


def _command_log_probs(responder: Responder, adapter: str | None, turns: Sequence[ScoredTurn]) -> list[_Floats]:
    """Log-probabilities of the admissible commands of each turn, (n_commands,), in one forward pass."""
    last = [[len(turn.turns) - 1] for turn in turns]
    with torch.no_grad(), responder.lm.active(adapter):
        told = episode_log_probs(responder, [_as_episode(turn) for turn in turns], last)
    return [row.double().cpu().numpy() for (row,) in told]


def _of_done(running: RunningScores, transcripts: Sequence[tuple[str, Sequence[Turn]]]) -> _Floats:
    """Q of the last turn of each transcript."""
    scores = running.score([(task, turns, ()) for task, turns in transcripts])
    return np.array([score[turns[-1].command] for (_, turns), score in zip(transcripts, scores, strict=True)])


def _advantages(
    running: RunningScores,
    turns: Sequence[ScoredTurn],
    against: Sequence[tuple[Sequence[str], _Floats]],
    best_of: int = 1,
) -> _Floats:
    """Q of what was done minus the weighted mean of Q over other commands; all in one forward pass.

    Args:
        running: the scores of the model.
        turns: the batch.
        against: for each turn the commands to compare with, and their weights, in any unit; without commands the turn is
            compared with itself.
        best_of: K of the prover; 1: the policy itself.
    """
    items = [(turn.task, turn.turns, commands) for turn, (commands, _) in zip(turns, against, strict=True)]
    out = np.zeros(len(turns))
    for i, (turn, values, (commands, weights)) in enumerate(zip(turns, running.score(items), against, strict=True)):
        if len(commands):
            done, others = values[turn.turns[-1].command], [values[c] for c in commands]
            if best_of > 1:
                done, others = float(best_of_k(done, best_of)), best_of_k(others, best_of).tolist()
            out[i] = done - np.average(others, weights=weights)
    return out


def _own_candidates(turn: Turn) -> tuple[Sequence[str], _Floats]:
    """What a policy weighed at a turn and by how much, else all admissible commands alike."""
    candidates = turn.candidates or []
    if not candidates:
        commands = _admissible(turn)
        return commands, np.ones(len(commands))
    log_probs = [candidate.get("log_prob") for candidate in candidates]
    if any(p is None for p in log_probs):
        return [c["command"] for c in candidates], np.ones(len(candidates))
    # The same response drawn twice is one candidate with one probability.
    distinct = {(c["command"], c.get("response")): float(c["log_prob"]) for c in candidates}
    log_weights = np.array(list(distinct.values()))
    return [command for command, _ in distinct], np.exp(log_weights - log_weights.max())


def _admissible(turn: Turn) -> list[str]:
    return [command for command in turn.admissible_commands if command]


def _as_episode(turn: ScoredTurn) -> Episode:
    return Episode(game_id="", split="", task_type="", task=turn.task, success=False, turns=list(turn.turns))
