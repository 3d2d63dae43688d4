"""The stages of a running iteration: which are done, and a checkpoint after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from algorithms.common.shell.checkpoints import finish_gathered, gathered_path, new_version

if TYPE_CHECKING:
    from algorithms.common.prm.algorithm import PRMAlgorithm

Gathered = TypeVar("Gathered")

#: Names of stages in checkpoints of version 0.1.
_OLD_NAMES = {"gather": "roll out"}


class Stages(Generic[Gathered]):
    """Runs the stages of an iteration once each, also in a run that was killed and resumed.

    ``begin`` says whether a stage is still to be done, ``end`` writes the checkpoint behind it:

        if stages.begin("fit"):
            ...
            stages.end()

    Attributes:
        done: names of the stages of this iteration that are over.
        gathered: what was played in this iteration.
    """

    def __init__(
        self,
        algorithm: PRMAlgorithm[Any],
        write: Callable[[Path, Gathered], None],
        read: Callable[[Path], Gathered],
        *,
        keeps_past: bool = False,
    ) -> None:
        """Begin with an iteration in which nothing is done.

        Args:
            algorithm: whose checkpoints are written.
            write: writes what was played into a folder.
            read: reads it back.
            keeps_past: whether later iterations look at what earlier ones played, so that checkpoints must hold it.
        """
        self._algorithm, self._write, self._read, self._keeps_past = algorithm, write, read, keeps_past
        self.done: list[str] = []
        self._gathered: Gathered | None = None
        self._running = ""
        # Iterations, from 1, whose experience the checkpoint holds, and which version of it.
        self._kept: dict[int, int] = {}

    @property
    def gathered(self) -> Gathered:
        """What was played in this iteration."""
        assert self._gathered is not None, "nothing was played in this iteration"
        return self._gathered

    def begin(self, name: str) -> bool:
        """Whether a stage is still to be done."""
        self._running = name
        return name not in self.done

    def end(self, gathered: Gathered | None = None) -> None:
        """Write a checkpoint behind the stage that was begun last.

        Args:
            gathered: what was played in this iteration, where the stage changed that.
        """
        self.done.append(self._running)
        if gathered is not None:
            self.change(gathered)
        self._write_checkpoint()

    def change(self, gathered: Gathered) -> None:
        """Take something else for what was played in this iteration; the next checkpoint holds it.

        Args:
            gathered: what was played.
        """
        self._gathered = gathered
        folder, iteration = self._algorithm.checkpoint_dir, self._algorithm.iteration + 1
        if folder is None:
            return
        # Never into a folder that exists: until the next checkpoint is written, the last one may be what a resumed run reads.
        version = new_version(folder, iteration)
        path = gathered_path(folder, iteration, version)
        self._write(path, gathered)
        finish_gathered(path)
        before = {i: v for i, v in self._kept.items() if i < iteration} if self._keeps_past else {}
        self._kept = {**before, iteration: version}

    def _write_checkpoint(self) -> None:
        folder = self._algorithm.checkpoint_dir
        if folder is not None:
            self._algorithm.check_learnt()
        kept = {} if folder is None else self._kept
        self._algorithm.write_checkpoint([self._path(iteration) for iteration in kept])

    def begin_iteration(self) -> None:
        """Forget what is done: the next iteration begins."""
        self.done, self._gathered = [], None
        if not self._keeps_past:
            self._kept = {}

    def end_iteration(self) -> None:
        """Write a checkpoint between two iterations."""
        self.begin_iteration()
        self._write_checkpoint()

    # ------------------------------------------------------------------ resuming
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds about the stages."""
        return {"stages_done": self.done, "kept": self._kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; reads what was played in its iteration."""
        self.done = [_OLD_NAMES.get(name, name) for name in state["stages_done"]]
        kept = state["kept"]  # up to version 0.2 a list of iterations, whose experience was written once
        self._kept = dict(kept) if isinstance(kept, dict) else dict.fromkeys(kept, 1)
        if "roll out" in self.done:
            self._gathered = self._read(self._path(self._algorithm.iteration + 1))

    def past(self) -> Iterator[tuple[int, Gathered]]:
        """What was played so far and the PRM was fitted to: iterations, from 0, and their experience."""
        waiting = "roll out" in self.done and "fit" not in self.done
        for iteration in list(self._kept)[:-1] if waiting else self._kept:
            yield iteration - 1, self._read(self._path(iteration))

    def _path(self, iteration: int) -> Path:
        folder = self._algorithm.checkpoint_dir
        assert folder is not None
        return gathered_path(folder, iteration, self._kept[iteration])
