"""Worker processes of this machine that play tasks with a policy; ``replicas.py`` says what workers are.

Threads do not help a small model: its matrices are too small to share, and threads that wait for each other burn the cores.
Processes need nothing of each other while they play.

Processes are spawned, not forked: torch does not survive a fork in all states. So a script that uses them needs
``if __name__ == "__main__":``, as with any module that spawns.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.envs.workers import how_it_ended
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.replicas import Order, Recipe, Replica, Workers
from algorithms.common.acting.rollouts import Rollout, RolloutTask

#: Seconds that a process gets to end by itself.
_PATIENCE = 5.0


@dataclass(eq=False, slots=True)
class _Hand:
    """A worker process, the pipe to it, and the numbers of the tasks that it was given."""

    process: BaseProcess
    link: Connection
    numbers: list[int] = field(default_factory=list)

    def give(self, order: Order, tasks: Sequence[RolloutTask], numbers: list[int]) -> None:
        """Let it play some of the tasks."""
        self.numbers = numbers
        with suppress(ConnectionError):  # it has ended, which is noticed when it is waited for
            self.link.send((order, [tasks[i] for i in numbers]))

    def end(self) -> None:
        """End the process."""
        with suppress(OSError):  # it has ended
            self.link.send(None)
        self.link.close()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_PATIENCE)


class RolloutWorkers(Workers):
    """Processes that play tasks with a policy.

    Attributes:
        counts: see :class:`Workers`.
        n_replaced: how many processes ended and were replaced.

    Example:
        >>> make = partial(make_eval_env, n_envs=32)  # doctest: +SKIP
        >>> with RolloutWorkers(model.policy, make, n_workers=2) as workers:  # doctest: +SKIP
        ...     rollouts = workers.collect([RolloutTask({"game": g}, (0, g)) for g in range(100)])
    """

    def __init__(self, policy: LLMPolicy, make_venv: Callable[[], VecEnv], n_workers: int = 2) -> None:
        """Start the processes.

        Args:
            policy: on a CPU. Its adapter is read again at each collection, its other settings are read now.
            make_venv: makes a process's environments; a function of a module, or a ``functools.partial`` of one.
            n_workers: how many processes, 1 or more. More than there are cores gain nothing.

        Raises:
            ValueError: the number is below 1, or another process cannot make such a policy.
        """
        super().__init__(policy, make_venv, n_workers, "cpu", 1)
        self._hands = [self._start() for _ in range(self.n_workers)]

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [int(hand.process.pid or 0) for hand in self._hands]

    def _start(self) -> _Hand:
        spawn = get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_work, args=(there, self._recipe), daemon=True)
        process.start()
        there.close()
        return _Hand(process, here)

    def _play(
        self, order: Order, tasks: Sequence[RolloutTask], done: Sequence[Rollout | None]
    ) -> Iterator[tuple[int, Rollout]]:
        """Give the tasks out in turns: neighbours, such as the episodes of one game, take about equally long."""
        while len(self._hands) < self.n_workers:  # they were ended
            self._hands.append(self._start())
        busy = []
        for i, hand in enumerate(self._hands):
            if numbers := list(range(i, len(tasks), self.n_workers)):
                hand.give(order, tasks, numbers)
                busy.append(hand)
        while busy:
            for ready in wait([hand.link for hand in busy]):
                hand = next(hand for hand in busy if hand.link is ready)
                try:
                    kind, content = hand.link.recv()
                except (EOFError, OSError):
                    busy.remove(hand)
                    left = [i for i in hand.numbers if done[i] is None]
                    new = self._replaced(hand)
                    if left:
                        new.give(order, tasks, left)
                        busy.append(new)
                    continue
                if kind == "error":
                    raise RuntimeError(f"a worker process failed while it played:\n{content}")
                if kind == "done":
                    busy.remove(hand)
                    continue
                index, rollout, self._latest[hand] = content
                yield hand.numbers[index], rollout

    def _replaced(self, hand: _Hand) -> _Hand:
        """Start a process in the place of one that ended."""
        hand.process.join(_PATIENCE)
        self._has_ended(f"worker process {hand.process.pid} ended {how_it_ended(hand.process.exitcode)}")
        hand.end()
        new = self._start()
        self._hands[self._hands.index(hand)] = new
        return new

    def close(self) -> None:
        """End the processes; another collection starts new ones."""
        for hand in self._hands:
            hand.end()
        self._hands = []


def _work(link: Connection, recipe: Recipe) -> None:
    """What a process does: play what it is sent until it is sent nothing."""
    try:
        replica = Replica(recipe)
        while (given := link.recv()) is not None:
            for episode in replica.play(*given):
                link.send(("episode", episode))
            link.send(("done", None))
    except (EOFError, ConnectionError):
        pass  # the other side has ended
    except BaseException:
        link.send(("error", traceback.format_exc()))
