"""A simulation of workers that play a collection: events in continuous time, one queue at the list of tasks, one at the driver.

It knows nothing of models. A worker has slots, and all of its running episodes take a turn together, which costs a fixed time
and a time for each of them, as one batch of a language model does. The driver sends the adapter to one destination after the
other, hands out tasks one by one, and receives finished episodes one by one. After the last one the learner scores and learns;
nothing overlaps, as in this package's algorithms.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a collection take.

    Attributes:
        step: a turn of all running episodes of a worker, whatever their number.
        step_row: added for each running episode.
        slots: episodes that a worker plays side by side, 1 or more.
        send: the driver sends the adapter to a destination.
        sharing: workers that share a destination: 1 where each process is sent it, a machine's actors where it is sent once.
        begin: a worker takes the adapter up, before its first turn.
        take: the list of tasks hands out a task.
        receive: the driver takes in a finished episode.
    """

    step: float
    step_row: float
    slots: int
    send: float = 0.0
    sharing: int = 1
    begin: float = 0.0
    take: float = 0.0
    receive: float = 0.0


@dataclass(frozen=True)
class Iteration:
    """Seconds of an iteration's parts, one after the other.

    Attributes:
        broadcast: until the last worker has the adapter.
        rollouts: from then on, until the driver has the last episode.
        scoring: of the process reward model.
        learning: of the learner.
    """

    broadcast: float
    rollouts: float
    scoring: float = 0.0
    learning: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return self.broadcast + self.rollouts + self.scoring + self.learning

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max((field.name for field in fields(self)), key=lambda name: float(getattr(self, name)))


def collect(costs: Costs, turns: Sequence[int], n_workers: int, *, dealt: bool = False) -> tuple[float, float]:
    """Simulate a collection.

    Args:
        costs: what its parts take.
        turns: how many turns each task takes, 1 or more, in the order in which they are handed out.
        n_workers: how many workers, 1 or more.
        dealt: tasks are dealt out in turns at the beginning, as to worker processes; else a worker takes the next one whenever
            a slot is free, as Ray's actors do.

    Returns:
        Seconds until the last worker has the adapter, and until the driver has the last episode.

    Raises:
        ValueError: there is no task.
    """
    if not turns:
        raise ValueError("expected one task or more to simulate, got none")
    n_workers = min(n_workers, len(turns))
    shared = deque(turns)
    own = [deque(turns[i::n_workers]) for i in range(n_workers)] if dealt else []
    starts = [costs.send * (i // costs.sharing + 1) + costs.begin for i in range(n_workers)]
    left: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64) for _ in range(n_workers)]
    events = [(start, i) for i, start in enumerate(starts)]
    heapq.heapify(events)
    list_free = driver_free = 0.0
    while events:
        now, i = heapq.heappop(events)
        finished = int((left[i] == 0).sum())
        running = left[i][left[i] > 0]
        for _ in range(finished):
            driver_free = max(driver_free, now) + costs.receive
        queue = own[i] if dealt else shared
        new = [queue.popleft() for _ in range(min(costs.slots - len(running), len(queue)))]
        if new:
            list_free = max(list_free, now) + costs.take * len(new)
            now = list_free if costs.take else now
        left[i] = np.concatenate([running, np.asarray(new, dtype=np.int64)])
        if len(left[i]):
            heapq.heappush(events, (now + costs.step + costs.step_row * len(left[i]), i))
            left[i] = left[i] - 1
        else:
            driver_free = max(driver_free, now)
    return max(starts), driver_free


def iterate(
    costs: Costs,
    turns: Sequence[int],
    n_workers: int,
    *,
    scoring: float = 0.0,
    learning: float = 0.0,
    n_learners: int = 1,
    dealt: bool = False,
) -> Iteration:
    """Simulate an iteration: a collection, then scoring and learning, which learners share without loss.

    Args:
        costs: of the collection.
        turns: of each task.
        n_workers: who play.
        scoring: seconds of one learner.
        learning: seconds of one learner.
        n_learners: how many share both.
        dealt: as for :func:`collect`.
    """
    broadcast, end = collect(costs, turns, n_workers, dealt=dealt)
    return Iteration(broadcast, end - broadcast, scoring / n_learners, learning / n_learners)
