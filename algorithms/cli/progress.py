"""Progress of what takes long: bars on a terminal, a line every half minute elsewhere, and a line for all that is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

#: Seconds between two lines where the output is not a terminal.
INTERVAL = 30.0


@contextmanager
def progress(console: Console, *, interval: float = INTERVAL) -> Iterator[Progress]:
    """A progress display. It shows what runs now; what is done leaves a line (see :func:`stage`).

    Args:
        console: where to. On a terminal bars are shown; elsewhere lines with stage, share and time left.
        interval: seconds between two such lines.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        if console.is_terminal:
            yield bars
            return
        over = threading.Event()
        thread = threading.Thread(target=_tell, args=(bars, over, interval), daemon=True)
        thread.start()
        try:
            yield bars
        finally:
            over.set()
            thread.join()


def _tell(bars: Progress, over: threading.Event, interval: float) -> None:
    """Print a line for all that runs, again and again until it is over."""
    begun: dict[Any, float] = {}
    while not over.wait(interval / 10):
        now = time.monotonic()
        for task in bars.tasks:
            last = begun.setdefault(task.id, now)
            if now - last >= interval:
                begun[task.id] = now
                bars.console.print(_line(task), highlight=False, soft_wrap=True)


def _line(task: Any) -> str:
    """Stage, share and time left: ``iteration 1: roll out  40 %, 2:10 so far, about 3:15 left``."""
    elapsed = task.elapsed or 0.0
    share = task.completed / task.total if task.total else 0.0
    left = f", about {clock(elapsed * (1 - share) / share)} left" if 0 < share < 1 else ""
    return f"  ... {task.description} {100 * min(share, 1):.0f} %, {clock(elapsed)} so far{left}"


def clock(seconds: float) -> str:
    """Minutes and seconds, ``1:05``; with hours from one hour on, ``2:01:05``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def report_done(bars: Progress, label: str, seconds: float, note: str = "") -> None:
    """Leave a line about what is done, on terminals and in log files."""
    bars.console.print(f"  {label} [dim]{clock(seconds)}[/]{'  ' + note if note else ''}", highlight=False)


class Stage:
    """What runs, as a function of how much of it is done.

    Attributes:
        note: what stands behind the label.
    """

    def __init__(self, bars: Progress, task: Any, label: str) -> None:
        """Show a task of a display.

        Args:
            bars: the display.
            task: its task.
            label: what is being done.
        """
        self._bars, self._task, self._label, self.note = bars, task, label, ""

    def __call__(self, done: float) -> None:
        """Show how much is done."""
        self._bars.update(self._task, completed=done)

    def tell(self, note: str) -> None:
        """Show a note behind the label."""
        self.note = note
        self._bars.update(self._task, description=f"{self._label}: {note}")


@contextmanager
def stage(bars: Progress, label: str, total: float) -> Iterator[Stage]:
    """Show a bar while the body runs, and leave a line with its time when it is done.

    Args:
        bars: the display.
        label: what is being done.
        total: how much there is to do.

    Yields:
        What takes how much is done; it may be given a note, which stands behind the label and in the last line.
    """
    label = escape(label)  # it may name an environment or a folder
    task, start = bars.add_task(label, total=total), time.monotonic()
    shown = Stage(bars, task, label)
    try:
        yield shown
    finally:
        bars.remove_task(task)
    report_done(bars, label, time.monotonic() - start, shown.note)


def counted(done: Callable[[float], None]) -> Callable[[object], None]:
    """Turn a bar's function into one that is called with each thing that is done, and counts."""
    n = 0

    def on_thing(_: object) -> None:
        nonlocal n
        n += 1
        done(n)

    return on_thing


def on_timesteps(done: Stage) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """Turn a stage into an SB3 callback that shows ``num_timesteps``, and how the last episodes went."""
    iteration = -1

    def callback(names: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal iteration
        model = names["self"]
        done(model.num_timesteps)
        if model.iteration != iteration:
            iteration, won = model.iteration, model.ep_success_buffer
            if won:
                done.tell(
                    f"iteration {iteration}, {100 * sum(won) / len(won):.1f} % of the last {len(won)} episodes won"
                )
        return True

    return callback


class StageBars:
    """Stages of AgentPRM and InversePRM: a bar for the one that runs, and a line for each iteration that is done.

    ``update`` is what ``AgentPRM.on_stage`` calls. A stage is over when another begins or its share falls back; an
    iteration is over after its validation. The first validation, of the starting point, stands before iteration 1.
    """

    def __init__(self, bars: Progress, model: Any) -> None:
        """Show the stages of a model.

        Args:
            bars: the display.
            model: an AgentPRM or InversePRM.
        """
        self.bars, self.model = bars, model
        self._label, self._stage, self._share = "", "", 1.0
        self._task: Any = None
        self._start = 0.0
        self._done: list[str] = []

    def __enter__(self) -> StageBars:
        """Begin."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Take the last bar down, and print the line of the last iteration."""
        self._end_stage("" if error is None else " (stopped)")
        self._end_iteration()

    def update(self, stage: str, share: float) -> None:
        """Show that a share of a stage is done."""
        label = f"iteration {self.model.iteration + 1}"
        # A run that goes on may begin with the validation behind an iteration.
        if stage == "validate" and self.model.iteration == 0 and not self.model.stages_done:
            label = "before"
        if (label, stage) != (self._label, self._stage) or share < self._share:
            self._end_stage()
            if label != self._label:
                self._end_iteration()
            self._label, self._stage = label, stage
            self._start = time.monotonic()
            shown = "validate the starting point" if label == "before" else f"{label}: {stage}"
            self._task = self.bars.add_task(shown, total=1.0)
        self._share = share
        self.bars.update(self._task, completed=share)

    def _end_stage(self, note: str = "") -> None:
        if self._task is not None:
            self.bars.remove_task(self._task)
            self._task = None
            self._done.append(f"{self._stage} {clock(time.monotonic() - self._start)}{note}")

    def _end_iteration(self) -> None:
        if self._done:
            best = getattr(self.model, "best_success", -1.0)
            success = f"; the kept policy wins {100 * best:.1f} % of held-out train games" if best >= 0 else ""
            label = "starting point" if self._label == "before" else self._label
            self.bars.console.print(f"  {label}: [dim]{', '.join(self._done)}[/]{success}", highlight=False)
        self._done = []
