"""Searches of several episodes side by side: where all wait for the same model, it is asked once for all of them.

A search is written as if it were alone. Each runs in a thread of its own, one at a time and in a fixed order, up to the
question that :func:`ask` puts to a model. When every search that still runs waits for an answer, the questions to one model are
put together. So results do not depend on how fast threads are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")
_here = threading.local()


class _Cancelled(BaseException):
    """Ends a search whose result nobody waits for."""


class _Search(threading.Thread):
    """One search; it runs while the thread that made it waits in :meth:`go_on`, and at no other time."""

    def __init__(self, task: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._begin, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._cancelled = False
        self.question: tuple[Callable[..., list[Any]], tuple[Sequence[Any], ...]] | None = None
        self.answer: list[Any] = []
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """See :class:`threading.Thread`."""
        _here.search = self
        try:
            self._wait()
            self.result = self._task()
        except _Cancelled:
            pass
        except BaseException as error:  # it belongs to the thread that waits
            self.error = error
        self.question = None
        self._waits.release()

    def _wait(self) -> None:
        self._begin.acquire()
        if self._cancelled:
            raise _Cancelled

    def ask(self, function: Callable[..., list[Any]], arguments: tuple[Sequence[Any], ...]) -> list[Any]:
        """Wait for the answer to a question; called by the search itself."""
        self.question = function, arguments
        self._waits.release()
        self._wait()
        return self.answer

    def go_on(self) -> None:
        """Let it run up to its next question, or to its end."""
        self._begin.release()
        self._waits.acquire()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """End it at its next question."""
        self._cancelled = True
        self._begin.release()
        self.join()


def ask(function: Callable[..., list[Any]], *arguments: Sequence[Any]) -> list[Any]:
    """Call a function, for all searches that run side by side at once.

    Args:
        function: takes sequences of equal length, and returns a list of that length whose items depend on the items of the same
            place alone.
        arguments: of the function.

    Returns:
        What the function returns for these arguments.
    """
    search: _Search | None = getattr(_here, "search", None)
    return function(*arguments) if search is None else search.ask(function, arguments)


def side_by_side(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run searches side by side.

    Args:
        tasks: the searches; models that they share are asked by :func:`ask`.

    Returns:
        Their results, in order.

    Raises:
        BaseException: what a search or a model raised; the other searches are ended.
    """
    searches = [_Search(task) for task in tasks]
    for search in searches:
        search.start()
    try:
        going = searches
        while going:
            for search in going:
                search.go_on()
            going = [search for search in going if search.question is not None]
            _answer(going)
    finally:
        for search in searches:
            search.cancel()
    return [search.result for search in searches]


def _answer(searches: Sequence[_Search]) -> None:
    """Answer the questions of all searches, each function called once."""
    by_function: dict[Callable[..., list[Any]], list[_Search]] = {}
    for search in searches:
        assert search.question is not None
        by_function.setdefault(search.question[0], []).append(search)
    for function, asking in by_function.items():
        asked = [search.question[1] for search in asking if search.question is not None]
        merged = [[item for part in column for item in part] for column in zip(*asked, strict=True)]
        answers, start = function(*merged), 0
        for search, arguments in zip(asking, asked, strict=True):
            search.answer = answers[start : start + len(arguments[0])]
            start += len(arguments[0])
