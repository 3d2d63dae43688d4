"""What studies share that are made of ``agentprm`` commands: each part has a folder of its own, and what is done is kept."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.files import read_json_object
from algorithms.cli.output import write_json
from algorithms.common.measure.comparison import read_curves
from algorithms.common.shell.checkpoints import state_path
from algorithms.common.shell.folders import UNFINISHED

Floats = NDArray[np.float64]
Task = TypeVar("Task")
_CHECKOUT = Path(__file__).parents[1]


def take_over(result: Path, about: Mapping[str, Any], path_of: Callable[[Mapping[str, Any]], Path | None]) -> int:
    """Let what an earlier result file says of other seeds count as done, so that a study grows seed by seed.

    Args:
        result: the file; there may be none.
        about: what it must say of itself: settings, sizes. Where it says something else, nothing is taken.
        path_of: where a row belongs as a finished part; ``None``: nowhere.

    Returns:
        How many parts were written. Those that are there already stay.
    """
    if not result.is_file():
        return 0
    before = read_json_object(result)
    if any(before.get(key) != json.loads(json.dumps(value)) for key, value in about.items()):
        return 0
    paths = [(path_of(row), row) for row in before["rows"]]
    new = [(path, row) for path, row in paths if path is not None and not path.exists()]
    for path, row in new:
        write_json(path, row)
    return len(new)


class Parts:
    """Folders and commands of a study. What is finished is taken as it is; what was cut off is resumed."""

    def __init__(self, folder: Path, shared: Sequence[object] = ("--threads", 1), n_workers: int | None = None) -> None:
        """Take the folder.

        Args:
            folder: where the parts' folders are.
            shared: words behind each command; a part that was made with others is not told apart.
            n_workers: so many processes do the commands, one after the other, where there are many short ones: they load
                torch once. ``None``: a process for each command.
        """
        self.folder, self.shared = folder, tuple(shared)
        self._pool = None
        if n_workers is not None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(n_workers, context, initializer=_be_agentprm)

    def run(self, out: Path, done: str, *args: object, module: str | None = None) -> None:
        """Run ``agentprm ... --out OUT`` in another process, on one core, unless that is done.

        What is asked for is left in ``OUT/asked.json``, with a hash of each model that goes in: what is done with other
        settings, or of a model that has been trained anew since, must not stand beside the rest.

        Args:
            out: the part's folder.
            done: the file in it that is there when the part is done.
            args: the command line; a ``Path`` is a file that goes in.
            module: one that is run in the place of ``agentprm``, in a process of its own and without the shared words.

        Raises:
            RuntimeError: with what it said, if it failed; or if it was done with other settings.
        """
        asked = {
            # Some name a file within a text; the folder may be moved, and so may the checkout.
            "args": [str(x).replace(f"{self.folder}/", "").replace(f"{_CHECKOUT}/", "") for x in args],
            "inputs": {str(x.relative_to(self.folder)): digest(x) for x in args if isinstance(x, Path)},
        }
        record = out / "asked.json"
        if (out / done).exists():
            found = json.loads(record.read_text()) if record.exists() else asked
            if found != asked:
                before, now = (" ".join(x["args"]) for x in (found, asked))
                what = (
                    f"was made by\n  {before}\nand now would be by\n  {now}" if before != now else "is of older models"
                )
                raise RuntimeError(f"{out} {what}\nDelete it to make it again, or choose another --runs.")
            return
        words_of: list[object] = [*args, *(() if module else self.shared), "--out", out]
        for verb, begun in (("train", state_path(out)), ("eval", out / UNFINISHED)):
            if begun.exists():
                if json.loads(record.read_text()) != asked:
                    raise RuntimeError(
                        f"{out} holds an unfinished run with other settings; delete it, or choose another --runs"
                    )
                words_of = [verb, "--resume", out]
        write_json(record, asked)
        command = [sys.executable, "-m", module or "algorithms.cli.main", *map(str, words_of)]
        if self._pool is None or module:
            ended = subprocess.run(command, capture_output=True, text=True)
            status, said = ended.returncode, f"{ended.stdout}{ended.stderr}"
        else:
            status, said = self._pool.submit(_agentprm, command[3:]).result()
        if status:
            raise RuntimeError(f"{' '.join(command[2:])} ended with {status}:\n{said}")


def _be_agentprm() -> None:
    """Prepare a worker: what it writes down is the command, not the study that asked for it, and it ends with the study."""
    sys.modules["__main__"].__spec__ = None
    sys.argv = ["agentprm"]
    end_with_study()


def end_with_study() -> None:
    """Let this worker end when the study does, however that ends; a worker by itself would finish its queue first."""
    study = multiprocessing.parent_process()
    assert study is not None

    def end_with_it() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def _agentprm(words: list[str]) -> tuple[int, str]:
    """Do one command in a worker; returns its status and what it said."""
    from algorithms.cli.main import main

    sys.argv[1:] = words
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 2
    return status, said.getvalue()


def side_by_side(work: Callable[[Task], None], tasks: Sequence[Task], jobs: int) -> None:
    """Do tasks that do not need each other, ``jobs`` at a time; the first error ends it when what runs is over."""
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, tasks):
            pass


def digest(path: Path) -> str:
    """Twelve digits that stand for what a file holds; none for a file that is not there yet."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


def curve(run: Path, tag: str) -> Floats:
    """The values of a tag of one run, (K,)."""
    (points,) = read_curves({run.name: run / "tb"}, [tag])[0].seeds.values()
    return points[1]


def spent(run: Path) -> tuple[int, float]:
    """What a finished run took: environment steps, and minutes since ``learn`` began.

    AgentPRM does not count the turns of the games by which it chooses its best iteration. They are outcomes that it sees, so
    they are added here: as many episodes as it played, each as long as the policy's training episodes at that time.
    """
    from agentprm_gym.llm.saving import read_save

    manifest = read_save(run / "model.zip").manifest
    steps = int(manifest["counters"]["num_timesteps"])
    n_validation = manifest["data"].get("n_validation_games") or 0
    if n_validation:
        lengths = curve(run, "rollout/ep_len_mean")  # (K,), before each iteration
        steps += round(n_validation * float(lengths.sum() + lengths[-1]))
    return steps, float(curve(run, "time/time_elapsed")[-1]) / 60


def read_row(evaluation: Path) -> dict[str, Any]:
    """What ``agentprm eval`` found, over all task types.

    Raises:
        FileNotFoundError: if it has not been run.
    """
    path = evaluation / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: this part of the study has not been run")
    row: dict[str, Any] = json.loads(path.read_text())["rows"][-1]
    return {key: row[key] for key in ("n", "success", "low", "high", "mean_steps")}
