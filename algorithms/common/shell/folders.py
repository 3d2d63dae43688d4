"""Folders of runs: the model in them, whether they can be written, and a lock so that one command at a time writes there.

Nothing here loads torch, so that a wrong path is refused at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from agentprm_gym.hub import fetch, is_hub
from agentprm_gym.llm.aliases import is_gguf

#: What ``agentprm train`` calls its result, and what it keeps when Ctrl-C ends it.
MODEL, INTERRUPTED = "model.zip", "interrupted.zip"
#: What ``agentprm train --eval-every`` keeps beside them: the policy that won most held-out games, and all evaluations.
BEST, EVALUATIONS = "best.zip", "evaluations.json"
#: What ``agentprm eval`` writes: the episodes of a whole evaluation, and those so far.
EPISODES, UNFINISHED = "episodes.jsonl.gz", "unfinished.jsonl.gz"
#: What ``agentprm sweep`` keeps of its trials.
STUDY = "study.log"
_LOCK = ".lock"


def saved_model(name: str) -> str:
    """The zip that a run's folder or a repository of the hub stands for; other names come back as they are.

    Args:
        name: a zip, the folder of a run, ``"hub:USER/NAME"``, or anything else that names a model.

    Raises:
        FileNotFoundError: the repository or its zip is missing.
        ValueError: the folder holds several models, or a run that did not end; the message says what to name instead.
        OSError: the hub refused, or could not be reached.
    """
    if is_hub(name):
        return str(fetch(name))
    folder = Path(name)
    if (folder / MODEL).is_file():
        return str(folder / MODEL)
    if not folder.is_dir() or (folder / "config.json").is_file():  # the latter is a model of transformers
        return name
    seeds = sorted(path for path in folder.glob("seed_*") if path.is_dir())
    if seeds:
        raise ValueError(f"{name} holds a run of several seeds: name one of them, for example {seeds[0]}")
    if (folder / "resume" / "state.zip").is_file():
        kept = [folder / INTERRUPTED, *sorted((folder / "iterations").glob("*.zip"), reverse=True)]
        so_far = next((f"; {path} is the model so far" for path in kept if path.is_file()), "")
        raise ValueError(
            f"{name} holds a run that did not end: 'agentprm train --resume {name}' goes on with it{so_far}"
        )
    zips = sorted(folder.glob("*.zip"))
    if zips:
        raise ValueError(f"{name} is a folder without {MODEL}: name one of {', '.join(map(str, zips))}")
    return name


def is_save(name: str) -> bool:
    """Whether a name is that of a zip rather than of a base model; the file may be missing."""
    if is_gguf(name):
        return False
    return name.endswith(".zip") or Path(name).is_file() or Path(name + ".zip").is_file()


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse an output folder that cannot be written, before any work is done. Nothing is created.

    Args:
        folder: the folder; it may be missing.
        option: where it was named, for the message.

    Raises:
        OSError: a file is in the way, or the folder must not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{option}: expected a folder, got {folder}, which is a file; choose another name")
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(f"{option}: {folder} cannot be made, since {above} is a file; choose another name")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{option}: {above} must not be written by this user; choose another folder")


def check_file(path: Path, option: str = "--out", *, overwrite: bool = True) -> None:
    """Refuse an output file that cannot be written, before any work is done. Nothing is created.

    Args:
        path: the file; it may be missing.
        option: where it was named, for the message.
        overwrite: whether an existing file may be replaced.

    Raises:
        OSError: a folder is in the way, the file exists and must stay, or its folder must not be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{option}: expected a file, got {path}, which is a folder; add a file's name")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{option}: {path} exists already; choose another name, or add --overwrite")
    check_folder(path.parent, option)


def holds(folder: Path) -> str | None:
    """What a command left in a folder: ``"run"``, ``"seeds"``, ``"evaluation"``, ``"demo"``, ``"sweep"``, or ``None``."""
    if any(path.is_dir() for path in folder.glob("seed_*")):
        return "seeds"
    if (folder / STUDY).is_file():
        return "sweep"
    if (folder / "sft.zip").is_file():
        return "demo"
    if any((folder / name).exists() for name in (MODEL, INTERRUPTED, "resume")):
        return "run"
    return "evaluation" if any((folder / name).is_file() for name in (EPISODES, UNFINISHED)) else None


def check_holds(folder: Path, wanted: str, option: str = "--out") -> None:
    """Refuse an output folder that holds something else than a command writes.

    Args:
        folder: the folder; it may be missing.
        wanted: what the command writes, see :func:`holds`.
        option: where it was named, for the message.

    Raises:
        FileExistsError: the folder holds something else.
    """
    found = holds(folder)
    if found not in (None, wanted):
        what = {"seeds": "a run of several seeds", "evaluation": "an evaluation"}.get(str(found), f"a {found}")
        raise FileExistsError(
            f"{option}: {folder} holds {what}, whose description would be lost; choose another {option}"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder while the body runs; the folder is made where it is missing.

    The lock is the operating system's, so that it ends with the process, however that ends. A network file system may not
    have it; then nothing is locked.

    Raises:
        BlockingIOError: another process writes into the folder.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder / _LOCK):
            yield
    finally:
        with suppress(OSError):  # something was written
            for path in made:
                path.rmdir()


def _is_named(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that has a name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock file while the body runs."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(
                f"{path.parent} is written by {holder} at this moment: wait until it ends, or choose another --out"
            ) from None
        except OSError:
            yield
            return
        if not _is_named(file, path):
            # The last holder removed it between our opening and our locking: another process may hold a newer one.
            raise BlockingIOError(
                f"{path.parent} was written by another process until this moment: start again, or choose another --out"
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
