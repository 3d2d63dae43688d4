"""Environments in worker processes: a worker that ends says which it was, in place of a broken pipe or of silence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

#: How long a worker whose pipe broke is waited for, in seconds: its end is known a moment later.
_PATIENCE = 5.0
#: Where Stable-Baselines3's ``SubprocVecEnv`` and Gymnasium's ``AsyncVectorEnv`` keep the pipes to their workers.
_PIPES = ("remotes", "parent_pipes")


class WorkerError(RuntimeError):
    """A worker process of a vector environment ended, so that the episode in it is lost.

    Attributes:
        index: which environment it was.
    """

    def __init__(self, index: int, n: int, process: BaseProcess) -> None:
        """Say which worker it was, how it ended, and what to do."""
        self.index = index
        super().__init__(
            f"the worker of environment {index} of {n} (process {process.pid}) ended {how_it_ended(process.exitcode)}, and its "
            "episode is lost. A worker that is killed often means that the memory is full: make the vector environment again, "
            "with fewer environments or in one process (DummyVecEnv, SyncVectorEnv); a run with a checkpoint goes on with "
            "resume()"
        )


def how_it_ended(code: int | None) -> str:
    """Say how a process ended.

    Args:
        code: its exit code; below 0, the signal that ended it.

    Example:
        >>> how_it_ended(-9)
        'by SIGKILL'
    """
    if code is None or code >= 0:
        return f"with exit status {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


class _Pipe:
    """A pipe to a worker that looks after the worker, too.

    The pipe alone does not tell: workers that were forked hold each other's ends open, so a read would wait for ever.
    """

    def __init__(self, pipe: Connection, process: BaseProcess, index: int, n: int) -> None:
        self.pipe, self.process, self.place = pipe, process, (index, n)

    def send(self, what: Any) -> None:
        """Ask the worker something."""
        if not self.process.is_alive():
            raise WorkerError(*self.place, self.process)
        try:
            self.pipe.send(what)
        except ConnectionError as error:
            self._ended(error)

    def recv(self) -> Any:
        """Wait until the worker has answered, or has ended."""
        if self.pipe not in wait([self.pipe, self.process.sentinel]):
            self.process.join(_PATIENCE)
            raise WorkerError(*self.place, self.process)
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._ended(error)

    def _ended(self, error: Exception) -> None:
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            raise error
        raise WorkerError(*self.place, self.process) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


@contextmanager
def watched(venv: Any) -> Iterator[None]:
    """Name the worker that ends in the body; environments without workers have nothing to be watched.

    Those of Stable-Baselines3's ``SubprocVecEnv`` and Gymnasium's ``AsyncVectorEnv`` are known, also behind wrappers.

    Args:
        venv: a vector environment of either library.

    Raises:
        WorkerError: a worker ended before or meanwhile.
    """
    inner = getattr(venv, "unwrapped", venv)
    processes = tuple(getattr(inner, "processes", ()))
    name = next((name for name in _PIPES if hasattr(inner, name)), None)
    pipes = getattr(inner, name) if name is not None and processes else ()
    if name is None or len(pipes) != len(processes) or any(not isinstance(pipe, Connection) for pipe in pipes):
        yield  # no workers, or they are watched already
        return
    n = len(pipes)
    looked_after = [_Pipe(pipe, process, i, n) for i, (pipe, process) in enumerate(zip(pipes, processes, strict=True))]
    setattr(inner, name, looked_after)
    try:
        for i, process in enumerate(processes):
            if not process.is_alive():
                raise WorkerError(i, n, process)
        yield
    finally:
        setattr(inner, name, pipes)


def are_alive(venv: Any) -> bool:
    """Whether no worker of a vector environment has ended."""
    return all(process.is_alive() for process in getattr(getattr(venv, "unwrapped", venv), "processes", ()))
