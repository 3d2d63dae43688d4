"""Processes that train one model together, each on a part of every minibatch (data parallel).

Every process runs the same program with the same seed, so all of them hold the same adapters, draw the same games and cut the
same minibatches. What is shared out is the work: which tasks a process plays
(:func:`~algorithms.common.acting.rollouts.collect`), and which pieces of a minibatch it feeds to the model
(:func:`~algorithms.common.learning.batches.own_pieces`). Losses here are sums divided by the size of the whole minibatch, so
the gradients of the processes only have to be added up before a step (:class:`~algorithms.common.learning.optim.Updater`).
One process is the case in which there is nobody to ask; there is no second code path.

``accelerate`` starts the processes (``accelerate launch``, or ``torchrun``) and says which backend and device each has.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

#: So many numbers of gradients are added up in one message.
_MESSAGE = 2**24


class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0; number 0 writes files.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """Note who this is; :func:`join` makes one of several."""
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where the backend takes its messages."""
        gloo = self.size == 1 or distributed.get_backend() == "gloo"
        return torch.device("cpu") if gloo else torch.device("cuda", torch.cuda.current_device())

    def mine(self, parts: Iterable[T]) -> Iterator[T]:
        """Those of some parts that are this process's: every ``size``-th."""
        return islice(parts, self.rank, None, self.size)

    def gather(self, one: T) -> list[T]:
        """What each process has, in the order of their numbers; tensors in it must be on the CPU."""
        if self.size == 1:
            return [one]
        out: list[Any] = [None] * self.size
        distributed.all_gather_object(out, one)
        return out

    def spread(self, parts: Sequence[T], work: Any) -> list[Any]:
        """Do some work on every part, each by one process; returns what came out, in the order of the parts.

        Args:
            parts: the same in all processes.
            work: is given a part; what it returns must be on the CPU.
        """
        done = self.gather([work(part) for part in self.mine(parts)])
        return [done[i % self.size][i // self.size] for i in range(len(parts))]

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers up over the processes."""
        if self.size == 1:
            return list(numbers)
        whole = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        distributed.all_reduce(whole)
        return [float(x) for x in whole]

    def total(self, number: float) -> float:
        """Add a number up over the processes."""
        return self.totals([number])[0]

    def all(self, flag: bool) -> bool:
        """Whether it is so in every process."""
        return self.total(float(not flag)) == 0

    def agreed(self, one: T) -> T:
        """What the main process has."""
        return self.gather(one)[0]

    def agreed_seed(self, seed: int | None) -> int | None:
        """A seed that is the main process's; where several train together and it has none, one that it draws."""
        if self.size > 1 and seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        return self.agreed(seed)

    def counted(self, counts: Counter[str]) -> Counter[str]:
        """Counters of all processes together."""
        return sum(self.gather(Counter(counts)), Counter())

    @torch.no_grad()
    def make_equal(self, parameters: Iterable[torch.Tensor]) -> None:
        """Give parameters the values that they have in the main process."""
        if self.size > 1:
            for parameter in parameters:
                values = parameter.detach().to(self.device).contiguous()
                distributed.broadcast(values, 0)
                parameter.copy_(values)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of parameters over the processes. A parameter that has none anywhere keeps none."""
        if self.size == 1:
            return
        has = self.totals([float(p.grad is not None) for p in parameters])
        with_any = [p for p, n in zip(parameters, has, strict=True) if n]
        for p in with_any:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for group in _messages(with_any):
            flat = torch.cat([p.grad.reshape(-1) for p in group if p.grad is not None]).to(self.device)
            distributed.all_reduce(flat)
            start = 0
            for p in group:
                assert p.grad is not None
                p.grad.copy_(flat[start : start + p.numel()].view_as(p))
                start += p.numel()


def _messages(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters of one type and of up to so many numbers together."""
    group: list[torch.nn.Parameter] = []
    for p in parameters:
        if group and (p.dtype != group[0].dtype or sum(q.numel() for q in group) + p.numel() > _MESSAGE):
            yield group
            group = []
        group.append(p)
    if group:
        yield group


_ranks = Ranks()


def ranks() -> Ranks:
    """This process among those that train together; alone, where :func:`join` was not called."""
    return _ranks


def are_launched() -> bool:
    """Whether a launcher (``accelerate launch``, ``torchrun``) started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def join() -> Ranks:
    """Meet the other processes of this launch; from here on, algorithms share their work with them.

    Call it first, in every process: it also chooses each process's GPU. ``agentprm train`` does it by itself.

    Returns:
        This process among them; alone, where no launcher started several.

    Raises:
        ModuleNotFoundError: ``accelerate`` is not installed.

    Example:
        >>> from algorithms import join
        >>> join().size  # started without a launcher
        1
    """
    global _ranks
    if not are_launched() or _ranks.size > 1:
        return _ranks
    if find_spec("accelerate") is None:
        raise ModuleNotFoundError(
            "a launcher started several processes, and they need accelerate to meet: pip install 'agentprm-gym[distributed]'"
        )
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    _ranks = Ranks(int(state.process_index), int(state.num_processes))
    return _ranks
