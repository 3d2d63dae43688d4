"""Means of the policy's and of the PRM's weights over the iterations (Polyak averaging).

An iteration plays a few hundred episodes, and what it teaches carries their noise. The mean of the last iterations' weights
carries less of it:

    mean_i = sum_k d^(i-k) w_k / sum_k d^(i-k), k = 1..i

with the decay d in [0, 0.99]: an exponential moving average with the correction for its beginning (Kingma and Ba, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from agentprm_gym.prm.model import PRM
from algorithms.common.acting.policy import POLICY

if TYPE_CHECKING:
    from algorithms.common.prm.algorithm import PRMAlgorithm

Weights = Mapping[str, torch.Tensor]


class WeightMean:
    """The mean of some tensors over iterations.

    Attributes:
        decay: d, what an iteration counts of the one after it, in [0, 0.99]; 0: the mean is the last iteration's.
        n: iterations so far.
        mean: their mean; ``None`` before the first.
    """

    def __init__(self, decay: float) -> None:
        """Begin without an iteration."""
        self.decay, self.n = decay, 0
        self._last: int | None = None  # the iteration that was entered last
        self.mean: dict[str, torch.Tensor] | None = None
        self._before: dict[str, torch.Tensor] | None = None

    def enter(self, weights: Weights, iteration: int) -> dict[str, torch.Tensor]:
        """Take in an iteration's weights.

        Args:
            weights: tensors by name, always the same names and shapes.
            iteration: its number. Where it was entered last, too, the weights take the place of those: a diverged
                improvement is made again.

        Returns:
            The mean with them, in the tensors' own precision.
        """
        if iteration != self._last:
            self.n, self._before, self._last = self.n + 1, self.mean, iteration
        share = (1 - self.decay) / (1 - self.decay**self.n)  # 1 for the first iteration
        wide = {name: value.float() for name, value in weights.items()}
        before = self._before or wide
        self.mean = {name: before[name] + share * (value - before[name]) for name, value in wide.items()}
        return {name: value.to(weights[name].dtype) for name, value in self.mean.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"n": self.n, "mean": self.mean, "before": self._before, "last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        self.n, self.mean, self._before, self._last = (state[key] for key in ("n", "mean", "before", "last"))


class Averages:
    """Puts the mean PRM and, between iterations, the mean policy in place.

    The mean PRM is what the policy is improved against. The mean policy is what is validated, saved and kept; it is not what
    plays and learns: that is pi_i itself, which a small step would hold back.

    Attributes:
        decay: see :class:`WeightMean`; 0: nothing is averaged.
    """

    def __init__(self, algorithm: PRMAlgorithm[Any], decay: float) -> None:
        """Begin without an iteration.

        Args:
            algorithm: whose weights are averaged.
            decay: see :class:`WeightMean`.
        """
        self._algorithm, self.decay = algorithm, decay
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._policy, self._prm = WeightMean(self.decay), WeightMean(self.decay)
        self._learning: dict[str, torch.Tensor] | None = None  # pi_i itself

    def go_on(self) -> None:
        """Put pi_i itself in place, at the beginning of the next iteration."""
        if self._learning is not None:
            self._algorithm.lm.load_adapter_state(POLICY, self._learning)

    def enter_prm(self) -> None:
        """Put the mean PRM in the place of the PRM that was fitted."""
        algorithm = self._algorithm
        # Fresh adapters (init="base") begin at random matrices: their mean would be the mean of unrelated factors.
        if self.decay == 0 or algorithm.fit.init == "base":
            return
        heads = {f"head.{name}": value for name, value in algorithm.prm.head_state().items()}
        mean = self._prm.enter({**algorithm.lm.adapter_state(PRM), **heads}, algorithm.iteration)
        algorithm.prm.load_heads_state({PRM: {name.removeprefix("head."): mean.pop(name) for name in heads}})
        algorithm.lm.load_adapter_state(PRM, mean)

    def enter_policy(self) -> None:
        """Put the mean policy in the place of pi_i."""
        if self.decay == 0:
            return
        lm = self._algorithm.lm
        self._learning = lm.adapter_state(POLICY)
        lm.load_adapter_state(POLICY, self._policy.enter(self._learning, self._algorithm.iteration))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"policy": self._policy.state(), "prm": self._prm.state(), "learning": self._learning}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        self._policy.restore(state["policy"])
        self._prm.restore(state["prm"])
        self._learning = state["learning"]
