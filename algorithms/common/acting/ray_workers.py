"""Workers on a Ray cluster that play tasks with a policy; ``replicas.py`` says what workers are.

Ray (``pip install agentprm-gym[ray]``) starts the actors, finds room for them, carries messages and notices when one is gone.
What is added here is a list of tasks: an actor takes the next task whenever one of its environments is free, so that a slow
machine plays fewer episodes. The adapter is put into Ray's object store once a collection, and each machine fetches it once.

A cluster of Ray runs whatever code reaches its ports: keep it in a network that you trust. A cluster that is started here has
no dashboard and sends no usage reports.
"""

from __future__ import annotations

import math
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_float
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.replicas import Order, Recipe, Replica, Workers
from algorithms.common.acting.rollouts import Rollout, RolloutTask

#: What is said where Ray is missing.
NOT_INSTALLED = "workers on Ray need the package ray: pip install 'agentprm-gym[ray]'"


class TaskList:
    """The tasks of a collection, taken one by one by workers; it lives in an actor of its own.

    Example:
        >>> tasks = TaskList()
        >>> tasks.fill(1, ["a", "b"])
        >>> tasks.take(1, "me"), tasks.take(1, "you"), tasks.take(1, "me")
        ((0, 'a'), (1, 'b'), None)
        >>> tasks.put_back("you", done=set())
        1
        >>> tasks.take(1, "me")
        (1, 'b')
    """

    def __init__(self) -> None:
        """Begin without tasks."""
        self._collection = 0
        self._tasks: list[Any] = []
        self._waiting: deque[int] = deque()
        self._taken: dict[str, list[int]] = {}

    def fill(self, collection: int, tasks: Sequence[Any]) -> None:
        """Begin a collection.

        Args:
            collection: its number; a worker that is late with another one gets nothing.
            tasks: what is to be played.
        """
        self._collection, self._tasks = collection, list(tasks)
        self._waiting, self._taken = deque(range(len(tasks))), {}

    def take(self, collection: int, who: str) -> tuple[int, Any] | None:
        """Give a worker the next task.

        Args:
            collection: the one that the worker plays for.
            who: the worker's name.

        Returns:
            The task's number and the task; ``None``: no task waits.
        """
        if collection != self._collection or not self._waiting:
            return None
        number = self._waiting.popleft()
        self._taken.setdefault(who, []).append(number)
        return number, self._tasks[number]

    def put_back(self, who: str, done: set[int]) -> int:
        """Let the tasks of a worker that ended wait again, before the others.

        Args:
            who: the worker's name.
            done: numbers of the tasks that are finished.

        Returns:
            How many tasks that are.
        """
        lost = [number for number in self._taken.pop(who, []) if number not in done]
        self._waiting.extendleft(reversed(lost))
        return len(lost)


class Player:
    """What an actor does: it takes tasks and plays them."""

    def __init__(self, recipe: Recipe, name: str, tasks: Any) -> None:
        """Begin; the model is loaded at the first order, so that what goes wrong then is told as an error of that.

        Args:
            recipe: of the policy and the environments.
            name: of this worker.
            tasks: handle of the actor with the :class:`TaskList`.
        """
        self.recipe, self.name, self.tasks = recipe, name, tasks
        self.replica: Replica | None = None

    def pid(self) -> int:
        """The id of this process."""
        return os.getpid()

    def play(self, order: Order, collection: int) -> Iterator[Any]:
        """Take tasks and play them until none is left.

        Args:
            order: how to play.
            collection: the number of the collection.

        Yields:
            ``(number of the task, rollout, counts)`` for each episode; the text of the error where one ended the playing.
        """
        import ray

        numbers: list[int] = []

        def taken() -> Iterator[RolloutTask]:
            while (given := ray.get(self.tasks.take.remote(collection, self.name))) is not None:
                numbers.append(given[0])
                yield given[1]

        try:
            if self.replica is None:
                self.replica = Replica(self.recipe)
            for index, rollout, counts in self.replica.play(order, taken()):
                yield numbers[index], rollout, counts
        except Exception:  # as text: not every error can be sent
            yield traceback.format_exc()


class RayWorkers(Workers):
    """Actors of a Ray cluster that play tasks with a policy.

    Attributes:
        counts: see :class:`Workers`.
        n_replaced: how many actors ended and were replaced.

    Example:
        >>> make = partial(make_eval_env, n_envs=32)  # doctest: +SKIP
        >>> with RayWorkers(model.policy, make, n_workers=8, address="auto") as model.workers:  # doctest: +SKIP
        ...     model.learn(100_000)
    """

    def __init__(
        self,
        policy: LLMPolicy,
        make_venv: Callable[[], VecEnv],
        n_workers: int = 2,
        *,
        address: str | None = None,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ) -> None:
        """Connect to a cluster, or start one on this machine; actors start at the first collection.

        Args:
            policy: on a GPU where the actors have one, else on the CPU. Its adapter is read again at each collection, its other
                settings are read now. All machines must find the base under the same name.
            make_venv: makes an actor's environments; a function or a ``functools.partial`` of one.
            n_workers: how many actors, 1 or more.
            address: of a running cluster: ``"auto"`` (the one that this machine belongs to) or ``"host:port"``; ``None``: the
                cluster that this process is connected to, else a new one on this machine, which ends with :meth:`close`.
            num_cpus: cores for each actor, above 0.
            num_gpus: GPUs for each actor, 0 or more; parts of one let actors share it.

        Raises:
            ImportError: Ray is not installed.
            ValueError: a number is out of range, or a worker cannot make such a policy.
            ConnectionError: no cluster answers at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError(NOT_INSTALLED) from error
        self.num_cpus = check_float("num_cpus", num_cpus, above=0.0)
        self.num_gpus = check_float("num_gpus", num_gpus, 0.0)
        n_threads = max(1, int(self.num_cpus))
        super().__init__(policy, make_venv, n_workers, "cuda" if self.num_gpus else "cpu", n_threads)
        self._ray: Any = ray
        self._address, self._is_ours = address, False
        self._connect()
        self._n_begun = self._collection = 0
        self._tasks: Any = None
        self._players: dict[str, Any] = {}

    def _connect(self) -> None:
        """Connect to a cluster, or start one, where this process has none.

        Raises:
            ConnectionError: no cluster answers at the address.
        """
        if self._ray.is_initialized():
            return
        self._is_ours, address = True, self._address
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address is not None:
            try:
                self._ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(
                    f"no Ray cluster answers at {address!r}: expected the address of a running one ('auto' or 'host:port'; "
                    f"start one with `ray start --head`), or address=None for one on this machine alone ({error})"
                ) from error
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        n_cpus = math.ceil(self.n_workers * self.num_cpus)
        self._ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, **quiet)

    @property
    def pids(self) -> list[int]:
        """The ids of the actors' processes, each on its machine; it waits until they have started."""
        self._start_all()
        return [int(pid) for pid in self._ray.get([player.pid.remote() for player in self._players.values()])]

    def _start_all(self) -> None:
        self._connect()
        if self._tasks is None:
            self._tasks = self._ray.remote(num_cpus=0)(TaskList).remote()
        while len(self._players) < self.n_workers:
            self._start()

    def _start(self) -> str:
        """Start an actor; returns its name."""
        name = f"worker {self._n_begun}"
        self._n_begun += 1
        # Ray does not start them again by itself: which tasks were lost is known here.
        remote = self._ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0)
        self._players[name] = remote(Player).remote(self._recipe, name, self._tasks)
        return name

    def _play(
        self, order: Order, tasks: Sequence[RolloutTask], done: Sequence[Rollout | None]
    ) -> Iterator[tuple[int, Rollout]]:
        ray = self._ray
        self._start_all()
        self._collection += 1
        ray.get(self._tasks.fill.remote(self._collection, list(tasks)))
        sent = ray.put(order)
        running: dict[Any, str] = {}

        def begin(name: str) -> None:
            play = self._players[name].play.options(num_returns="streaming")
            running[play.remote(sent, self._collection)] = name

        for name in self._players:
            begin(name)
        n_left = len(tasks)
        while n_left:
            if not running:
                raise RuntimeError(f"{n_left} tasks were not played, and no worker on Ray plays any more")
            # An actor for which there is no room yet is not waited for once all is played.
            (ready,), _ = ray.wait(list(running), num_returns=1, fetch_local=False)
            name = running[ready]
            try:
                said = ray.get(next(ready))
            except StopIteration:  # it found no task that waits
                del running[ready]
                continue
            except ray.exceptions.RayTaskError as error:
                raise RuntimeError(f"a worker failed while it played:\n{error}") from error
            except ray.exceptions.RayError as error:  # the actor, its machine or what it said is gone
                del running[ready]
                finished = {number for number, rollout in enumerate(done) if rollout is not None}
                begin(self._replaced(name, error, finished))
                continue
            if isinstance(said, str):
                raise RuntimeError(f"a worker failed while it played:\n{said}")
            number, rollout, self._latest[name] = said
            n_left -= 1
            yield number, rollout

    def _replaced(self, name: str, error: Exception, finished: set[int]) -> str:
        """Start an actor in the place of one that ended, whose tasks wait again; returns its name."""
        self._has_ended(f"{name} on Ray ended ({str(error).splitlines()[0]})")
        self._ray.kill(self._players.pop(name))  # it may only be out of reach: it must not take tasks any more
        self._ray.get(self._tasks.put_back.remote(name, finished))
        return self._start()

    def close(self) -> None:
        """End the actors, and the cluster where it was started here; another collection starts them anew."""
        if not self._ray.is_initialized():
            self._players, self._tasks = {}, None
            return
        for actor in [*self._players.values(), *([] if self._tasks is None else [self._tasks])]:
            self._ray.kill(actor)
        self._players, self._tasks = {}, None
        if self._is_ours:
            self._ray.shutdown()
            self._is_ours = False
