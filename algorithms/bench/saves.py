"""Rankers out of saves of this package: policies, process reward models in each form, implicit rewards.

Each scores a batch of states in one forward pass: a state is one row, its commands hang off its transcript as a token tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.ranker import RankerError
from agentprm_gym.bench.states import BenchState
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.saving import load_base, read_save
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.load import SharedSave, open_save
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.shell.folders import is_save, saved_model
from algorithms.common.shell.machine import check_device, use_fast_threads

#: Places of the attention mask that are fed at once, about: rows times the square of their length. On a CPU few rows are
#: fastest: on 150 states of 300 to 900 tokens and the bundled model, 2 million took half the time of 24 million.
_MASK, _MASK_ON_GPU = 1_000_000, 48_000_000
#: Characters of a token, about; too few rather than too many.
_CHARS = 3


class BatchedRanker:
    """What rankers with a model share: a state alone is a batch of one.

    Attributes:
        name: the ranker's name.
        scale: see :class:`~agentprm_gym.bench.ranker.Ranker`.
    """

    name: str
    scale = "order"

    def score(self, task: str, history: Sequence[Turn], commands: Sequence[str]) -> Sequence[float]:
        """Score the commands of a state; see :class:`~agentprm_gym.bench.ranker.Ranker`.

        Raises:
            RankerError: the commands are not those of the last turn.
        """
        if list(commands) != list(history[-1].admissible_commands):
            raise RankerError(
                f"ranker {self.name!r}: expected the commands that the last turn admits, got {list(commands)[:3]}"
            )
        state = BenchState(
            state_id="", game_id="", split="", task_type="", player="", task=task, history=tuple(history)
        )
        (row,) = self.score_states([state])
        scores: list[float] = row.tolist()
        return scores

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        raise NotImplementedError


class PolicyRanker(BatchedRanker):
    """A policy's log-probability of each command: the line that every process reward model has to beat."""

    scale = "log_prob"

    def __init__(self, responder: Responder, adapter: str | None, name: str = "policy") -> None:
        """Make a ranker.

        Args:
            responder: the policy's way to act.
            adapter: its adapter; ``None``: the bare base model.
            name: for tables and messages.

        Raises:
            ValueError: the policy writes freely, so its probability of each command is not known.
        """
        if responder.writes_freely:
            raise ValueError(
                f"{name} writes freely, so its probability of each command is not known: expected a policy that chooses among "
                "the commands"
            )
        self.responder, self.adapter, self.name = responder, adapter, name

    @classmethod
    def load(cls, path: str, *, base: str | None = None, device: str = "auto") -> PolicyRanker:
        """Load a saved policy, or a base model as it is.

        Args:
            path: a zip that an algorithm's ``save`` wrote, the folder of a run, or a base model (alias, folder or hub id).
            base: where the base model of a zip is now; ``None``: where it was.
            device: torch device.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the save holds no policy, its base is another one now, or it writes freely.
        """
        found = saved_model(path)
        name = f"policy:{path}"
        if not is_save(found):
            lm = LanguageModel.load(found, device=check_device(device))
            use_fast_threads(lm)
            return cls(Responder(lm), None, name)
        save = open_on(found, base, device)
        return cls(*save.policy(found), name)

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        return _log_probs(self.responder, self.adapter, states)


class PRMRanker(BatchedRanker):
    """A process reward model of either form: the logit of each command.

    Logits have the order of Q and are never rounded to 1. The Q of an InversePRM says how much like an expert's a command is
    and not how likely the game is won, so its scores are an order only.
    """

    def __init__(self, model: ProcessRewardModel, name: str = "prm", *, scale: str = "logit") -> None:
        """Make a ranker.

        Args:
            model: the process reward model.
            name: for tables and messages.
            scale: ``"logit"``, or ``"order"`` where Q is not a probability of winning.
        """
        self.model, self.name, self.scale = model, name, scale

    @classmethod
    def load(cls, path: str, *, base: str | None = None, device: str = "auto") -> PRMRanker:
        """Load a saved process reward model.

        Args:
            path: a zip that ``AgentPRM.save`` or ``InversePRM.save`` wrote, or the folder of a run.
            base: where its base model is now; ``None``: where it was.
            device: torch device.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the save holds no process reward model, or its base is another one now.
        """
        save = open_on(saved_model(path), base, device)
        scale = "order" if save.saved.manifest.get("class") == "InversePRM" else "logit"
        return cls(save.prm, f"prm:{path}", scale=scale)

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        out: list[Floats] = []
        for part in in_parts(states, self.model.lm.device):
            episodes = [_as_episode(state) for state in part]
            with torch.no_grad():
                rows = self.model.score_all(episodes, [[len(e.turns) - 1] for e in episodes])
            out += [row.double().cpu().numpy() for (row,) in rows]
        return out


class ImplicitRanker(BatchedRanker):
    """The implicit process reward: how much likelier a trained policy finds a command than a reference does.

    ``log pi(a|s) - log pi_ref(a|s)`` (:class:`~agentprm_gym.prm.rewards.ImplicitReward`), for all commands at once.
    """

    def __init__(self, responder: Responder, adapter: str, reference: str | None, name: str = "implicit") -> None:
        """Make a ranker.

        Args:
            responder: the policy's way to act.
            adapter: its adapter.
            reference: the adapter of the reference, on the same base; ``None``: the bare base model.
            name: for tables and messages.
        """
        self.responder, self.adapter, self.reference, self.name = responder, adapter, reference, name

    @classmethod
    def load(
        cls, path: str, reference: str | None = None, *, base: str | None = None, device: str = "auto"
    ) -> ImplicitRanker:
        """Load saved policies; they share one base in memory.

        Args:
            path: a zip with the trained policy, or the folder of a run.
            reference: the same with the reference policy; ``None``: the bare base model.
            base: where their base model is now; ``None``: where it was.
            device: torch device.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a policy is not in its save, the bases differ, or a policy writes freely.
        """
        save = open_on(saved_model(path), base, device)
        other = None if reference is None else save.policy(saved_model(reference))[1]
        responder, adapter = save.policy(saved_model(path))
        return cls(responder, adapter, other, f"implicit:{path}" + ("" if reference is None else f"@{reference}"))

    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        now, before = (_log_probs(self.responder, name, states) for name in (self.adapter, self.reference))
        return [a - b for a, b in zip(now, before, strict=True)]


# ---------------------------------------------------------------------- what they share
def open_on(path: str, base: str | None, device: str) -> SharedSave:
    """Open a save with its base model on a device; on the CPU rankers of the same save share one base.

    Args:
        path: the zip.
        base: where its base model is now; ``None``: where it was.
        device: torch device; ``"auto"`` takes a GPU where one is found.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a save, its base is another one now, or the device is not there.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no saved model at {path}: expected the zip that an algorithm's save(path) wrote")
    where = check_device(device)
    if where.type == "cpu":
        save = open_save(path, base)
    else:
        saved = read_save(path)
        save = SharedSave(path, saved, load_base(saved, path, base, device=where))
    use_fast_threads(save.lm)
    return save


def in_parts(states: Sequence[BenchState], device: torch.device) -> list[Sequence[BenchState]]:
    """Cut a batch so that the attention masks of a part fit into memory; states of about the same length belong together.

    Args:
        states: the states.
        device: where the model is.
    """
    most = _MASK if device.type == "cpu" else _MASK_ON_GPU
    parts: list[list[BenchState]] = []
    longest = 0
    for state in states:
        n_tokens = _n_tokens(state)
        longest = max(longest, n_tokens)
        if not parts or longest**2 * (len(parts[-1]) + 1) > most:
            parts.append([])
            longest = n_tokens
        parts[-1].append(state)
    return list(parts)


def _n_tokens(state: BenchState) -> int:
    """Tokens of a state's row, about: the transcript and the commands."""
    told = sum(len(turn.feedback) + len(turn.command) for turn in state.history)
    return (told + sum(map(len, state.commands))) // _CHARS + 1


def _log_probs(responder: Responder, adapter: str | None, states: Sequence[BenchState]) -> list[Floats]:
    """(A,) log-probabilities of the commands of each state."""
    out: list[Floats] = []
    for part in in_parts(states, responder.lm.device):
        episodes = [_as_episode(state) for state in part]
        with torch.no_grad(), responder.lm.active(adapter):
            rows = episode_log_probs(responder, episodes, [[len(e.turns) - 1] for e in episodes])
        out += [row.double().cpu().numpy() for (row,) in rows]
    return out


def _as_episode(state: BenchState) -> Episode:
    return Episode(
        game_id=state.game_id,
        split=state.split,
        task_type=state.task_type,
        task=state.task,
        success=False,
        turns=list(state.history),
    )
