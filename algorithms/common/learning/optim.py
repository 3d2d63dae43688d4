"""The optimizer of every algorithm, its schedule and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from algorithms.common.acting.ranks import ranks
from algorithms.common.shell.errors import DivergedError

#: Largest norm of the gradients of an update of a process reward model, or of a policy against it.
MAX_GRAD_NORM = 1.0


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    rates: Mapping[torch.nn.Parameter, float] = MappingProxyType({}),
) -> torch.optim.AdamW:
    """AdamW as all algorithms use it: betas 0.9 and 0.95, no weight decay.

    Args:
        parameters: what it trains.
        learning_rate: its step size, above 0.
        rates: parameters that have another step size, with what it is in multiples of that.
    """
    by_rate: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for parameter in parameters:
        by_rate.setdefault(rates.get(parameter, 1.0), []).append(parameter)
    groups = [{"params": some, "lr": learning_rate * x, "times": x} for x, some in by_rate.items() if some]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)


def warm_up_and_decay(
    optimizer: torch.optim.Optimizer, learning_rate: float, step: int, n_steps: int, n_warm_up: int = 10
) -> None:
    """Set the learning rate of a step: a linear rise over the first steps, a linear decay to 0 over all.

    Args:
        optimizer: its parameter groups get the same rate, times what :func:`make_optimizer` was given for them.
        learning_rate: the peak, above 0.
        step: which step comes next, from 0.
        n_steps: how many steps there are.
        n_warm_up: how many of them rise.
    """
    scale = min(1.0, (step + 1) / n_warm_up) * (1 - step / n_steps)
    set_rate(optimizer, learning_rate * scale)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups; some have a multiple of it, see :func:`make_optimizer`.

    Args:
        optimizer: the optimizer.
        learning_rate: the rate of its next step, above 0.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("times", 1.0)


class Updater:
    """An optimizer that clips gradients, and whose state a checkpoint holds.

    It is made at its first use, when an algorithm has all its parameters.
    """

    def __init__(
        self,
        parameters: Callable[[], list[torch.nn.Parameter]],
        learning_rate: float,
        max_grad_norm: float,
        rates: Mapping[torch.nn.Parameter, float] = MappingProxyType({}),
    ) -> None:
        """Say what is trained.

        Args:
            parameters: returns what is trained.
            learning_rate: step size, above 0.
            max_grad_norm: largest norm of a gradient; a larger one is scaled down.
            rates: see :func:`make_optimizer`.
        """
        self.rates = rates
        self.parameters, self.learning_rate, self.max_grad_norm = parameters, learning_rate, max_grad_norm
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; another one can be set before training."""
        if self._optimizer is None:
            parameters = self.parameters()
            ranks().make_equal(parameters)
            self._optimizer = make_optimizer(parameters, self.learning_rate, self.rates)
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def step(self, batch: Iterable[Any] = (), loss: float = 0.0) -> float:
        """Clip the gradients, take a step and drop the gradients; returns the norm that they had.

        Where several processes train together, their gradients are added up first, and all take the same step.

        Args:
            batch: what the gradients come from: episodes, or what has one as ``episode``; kept where they are not finite.
            loss: of this update, the same in all processes.

        Raises:
            DivergedError: the loss or the norm is not finite; then no step is taken.
        """
        ranks().sum_gradients(self.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm))
        for name, value in (("loss", loss), ("norm of the gradients", norm)):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                raise DivergedError(f"the {name} is {value}", [getattr(one, "episode", one) for one in batch])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of it; ``None`` before its first use."""
        return None if self._optimizer is None else self._optimizer.state_dict()

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Take over what :meth:`state` returned."""
        if state is not None:
            self.optimizer.load_state_dict(state)
