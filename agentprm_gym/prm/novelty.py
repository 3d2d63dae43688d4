"""Rewards for novelty on hidden states of a frozen base, decoupled from the outcome (URLB, Laskin et al., arXiv 2110.15191).

``z`` is the base's hidden state at the end of a turn's command, normalised by running mean and deviation and clipped to +-5;
``z'`` is the one where the next prompt ends.

    RNDReward           r = mean_j (f_j(z) - g_j(z))^2 / std            f a random network, g fitted to it; std running
    NearestReward       r = log(1 + mean_{j <= k} max(|z - z_j| - clip, 0))      over the k nearest of the last states
    DisagreementReward  r = mean_j Var_i [ g_ij(z) ]                    i over an ensemble of networks fitted to z'

They pay ``coef * r``, at most ``max_reward`` a turn, and learn from what they have scored, so the same state is worth less and
less (RND, disagreement) or nothing (nearest). Make one by its name, for example ``gym.make("ALFWorldPRM-v0",
reward="agentprm_gym.prm.novelty:RNDReward")``. With several processes each has one of its own. The networks are not saved.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.transcripts import encode_turns
from agentprm_gym.prm.rewards import LearnedReward
from agentprm_gym.rewards.base import ScoredTurn

_Floats = NDArray[np.float64]
_CLIP, _BATCH = 5.0, 16


@lru_cache(maxsize=2)
def _base(model: str) -> LanguageModel:
    return LanguageModel.load(model)


def rnd_errors(target: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """``mean_j (f_j - g_j)^2`` of N states; both (N, D), the result (N,)."""
    return (target - predicted).square().mean(-1)


def nearest_bonus(z: torch.Tensor, memory: torch.Tensor, k: int, clip: float = 0.0) -> torch.Tensor:
    """``log(1 + mean_{j <= k} max(|z - z_j| - clip, 0))``.

    Args:
        z: (N, D) states.
        memory: (M, D) earlier states, M of 1 or more; all count where there are fewer than k.
        k: how many of the nearest, 1 or more.
        clip: distances up to this count as none.

    Returns:
        (N,).

    Example:
        >>> nearest_bonus(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [9.0]]), 2).exp()
        tensor([3.])
    """
    near = torch.cdist(z, memory).sort(-1).values[:, : min(k, len(memory))]
    return torch.log1p((near - clip).clamp(min=0.0).mean(-1))


def disagreement(predictions: torch.Tensor) -> torch.Tensor:
    """``mean_j Var_i[g_ij]``, the variance over an ensemble of I networks without Bessel's correction; (I, N, D) to (N,)."""
    return predictions.var(0, unbiased=False).mean(-1)


def _network(n_in: int, n_out: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(n_in, 128), nn.ReLU(), nn.Linear(128, n_out))


class _Running:
    """Mean and deviation of all rows so far."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)

    def add(self, rows: _Floats) -> None:
        for row in rows:
            self.n += 1
            delta = row - self.mean
            self.mean = self.mean + delta / self.n
            self.squares = self.squares + delta * (row - self.mean)

    @property
    def deviation(self) -> _Floats:
        return np.asarray(np.sqrt(self.squares / max(1, self.n)) + 1e-8)


class HiddenNovelty(LearnedReward):
    """What the rewards for novelty share: hidden states, a weight, and a cap."""

    def __init__(self, *, model: str = "tiny", coef: float = 0.05, max_reward: float = 0.1, seed: int = 0) -> None:
        """Make a reward.

        Args:
            model: the base: a bundled alias, a folder or a hub id; it is not trained.
            coef: weight of the bonus.
            max_reward: the most that a turn is paid, 0 or more.
            seed: of the networks, 0 or more.

        Raises:
            ValueError: a value is out of range, or the base is unknown.
        """
        super().__init__(type(self).__name__, coef)
        self.max_reward = check_float("max_reward", max_reward, 0.0)
        self.seed = check_int("seed", seed, 0)
        self.lm = _base(model)
        self._seen = _Running()

    def score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        """Score a batch of turns, then learn from it; see :class:`LearnedReward`."""
        return np.minimum(super().score(turns), self.max_reward)

    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        z, after = self.features(turns)
        self._seen.add(z)
        n = self._normal(z)
        bonus = self._bonus(n).double().numpy()
        self._learn(n, self._normal(after))
        return bonus

    def _normal(self, z: _Floats) -> torch.Tensor:
        return torch.from_numpy(np.clip((z - self._seen.mean) / self._seen.deviation, -_CLIP, _CLIP)).float()

    @torch.no_grad()
    def features(self, turns: Sequence[ScoredTurn]) -> tuple[_Floats, _Floats]:
        """Hidden states at the end of each turn's command and where the next prompt ends; (N, H) each."""
        found: list[tuple[torch.Tensor, ...]] = []
        lm = self.lm
        for k in range(0, len(turns), _BATCH):
            rows = []
            for one in turns[k : k + _BATCH]:
                following = Turn(feedback=one.feedback, admissible_commands=one.admissible_commands, command="")
                shown = [*(t.bare() for t in one.turns), following]
                passages = encode_turns(lm.prompt, one.task, shown, limit=lm.context_length)
                last = passages[-1]
                before = last.response_end[-2] if len(last.response_end) > 1 else 0
                rows.append((last.ids[: last.prompt_end[-1] + 1], before))
            wanted = [(before, len(ids) - 1) for ids, before in rows]
            with lm.active(None):
                hidden, starts = lm.tree_hidden([TokenTree(ids) for ids, _ in rows], wanted)  # (M, H)
            hidden = hidden.float().cpu()
            found += [tuple(hidden[start + i] for i in two) for start, two in zip(starts, wanted, strict=True)]
        z, after = (torch.stack([pair[i] for pair in found]).double().numpy() for i in (0, 1))
        return z, after

    @abstractmethod
    def _bonus(self, z: torch.Tensor) -> torch.Tensor:
        """The bonus of N states, (N, H) to (N,), before the weight."""

    @abstractmethod
    def _learn(self, z: torch.Tensor, after: torch.Tensor) -> None:
        """Learn from N states and those behind them, (N, H) each."""


class RNDReward(HiddenNovelty):
    """Random network distillation (Burda et al., arXiv 1810.12894): the error of a network that learns a random one."""

    def __init__(self, *, learning_rate: float = 1e-3, n_outputs: int = 64, **kwargs: object) -> None:
        """Make a reward.

        Args:
            learning_rate: of the network that learns, above 0; one step a batch.
            n_outputs: outputs of both networks, 1 or more.
            **kwargs: of :class:`HiddenNovelty`.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__(**kwargs)  # type: ignore[arg-type]
        size, n = self.lm.hidden_size, check_int("n_outputs", n_outputs, 1)
        self._target, self._predictor = _network(size, n, 2 * self.seed), _network(size, n, 2 * self.seed + 1)
        rate = check_float("learning_rate", learning_rate, above=0.0)
        self._optimizer = torch.optim.Adam(self._predictor.parameters(), lr=rate)
        self._errors = _Running()

    def _bonus(self, z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            errors = rnd_errors(self._target(z), self._predictor(z))
        self._errors.add(errors.double().numpy()[:, None])
        # Of a single error there is no deviation.
        return errors if self._errors.n < 2 else errors / float(self._errors.deviation[0])

    def _learn(self, z: torch.Tensor, after: torch.Tensor) -> None:
        with torch.no_grad():
            target = self._target(z)
        with torch.enable_grad():
            loss = rnd_errors(target, self._predictor(z)).mean()
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()


class NearestReward(HiddenNovelty):
    """Distance to the nearest of the last states (APT, Liu and Abbeel, arXiv 2103.04551; the queue is ProtoRL's)."""

    def __init__(self, *, k: int = 12, clip: float = 0.0, n_kept: int = 2048, **kwargs: object) -> None:
        """Make a reward.

        Args:
            k: how many of the nearest, 1 or more.
            clip: distances up to this count as none, 0 or more.
            n_kept: how many of the last states are remembered, 1 or more.
            **kwargs: of :class:`HiddenNovelty`.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.k, self.clip, self.n_kept = (
            check_int("k", k, 1),
            check_float("clip", clip, 0.0),
            check_int("n_kept", n_kept, 1),
        )
        self._memory: deque[torch.Tensor] = deque(maxlen=self.n_kept)

    def _score(self, turns: Sequence[ScoredTurn]) -> _Floats:
        # Distances are between states as they are: a memory that is normalised anew would have to be kept twice.
        z = torch.from_numpy(self.features(turns)[0]).float()
        bonus = (
            nearest_bonus(z, torch.stack(tuple(self._memory)), self.k, self.clip)
            if self._memory
            else torch.zeros(len(z))
        )
        self._memory.extend(z)
        return np.asarray(bonus.double().numpy())

    def _bonus(self, z: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("NearestReward scores by its memory")

    def _learn(self, z: torch.Tensor, after: torch.Tensor) -> None:
        raise NotImplementedError("NearestReward scores by its memory")


class DisagreementReward(HiddenNovelty):
    """Disagreement of an ensemble about what follows (Pathak et al., arXiv 1906.04161)."""

    def __init__(self, *, n_members: int = 5, learning_rate: float = 1e-3, **kwargs: object) -> None:
        """Make a reward.

        Args:
            n_members: networks of the ensemble, 2 or more.
            learning_rate: of each, above 0; one step a batch.
            **kwargs: of :class:`HiddenNovelty`.

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__(**kwargs)  # type: ignore[arg-type]
        size = self.lm.hidden_size
        n, rate = check_int("n_members", n_members, 2), check_float("learning_rate", learning_rate, above=0.0)
        self._members = [_network(size, size, 1000 * (self.seed + 1) + i) for i in range(n)]
        self._optimizer = torch.optim.Adam([p for member in self._members for p in member.parameters()], lr=rate)

    def _bonus(self, z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return disagreement(torch.stack([member(z) for member in self._members]))

    def _learn(self, z: torch.Tensor, after: torch.Tensor) -> None:
        with torch.enable_grad():
            loss = torch.stack([(member(z) - after).square().mean() for member in self._members]).sum()
            self._optimizer.zero_grad()
            loss.backward()
        self._optimizer.step()
