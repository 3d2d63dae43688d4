"""Files that appear whole or not at all, also where the process is killed, the power fails or the disk is full."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: str | os.PathLike[str], data: bytes | str, *, sync: bool = True) -> None:
    """Replace a file in one step: it holds its old content or all of the new one, whatever happens.

    The content is on the disk before the file gets its name, and the name is on the disk before this returns. After an error
    nothing is left behind; what a kill leaves behind is called ``<name>.part`` and is overwritten by the next call.

    Args:
        path: the file; missing folders are made.
        data: bytes, or a text, which is written in UTF-8.
        sync: whether to wait for the disk, which takes milliseconds; without, a power failure may leave an empty file.

    Raises:
        OSError: the file cannot be written, or the disk is full; an old file is as it was.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    try:
        with partial.open("wb") as stream:
            stream.write(data.encode("utf-8") if isinstance(data, str) else data)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(file.parent)


def read_json_object(path: str | os.PathLike[str], *, max_bytes: int = 100_000_000) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file.
        max_bytes: larger files are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, not JSON in UTF-8, or something else than an object.
    """
    file = Path(path)
    size = file.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{file} has {size:,} bytes, expected a JSON object of at most {max_bytes:,}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON in UTF-8: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Put a folder's list of names on the disk, where the system can.

    Without it a file that was renamed may have its old name after a power failure, or none.

    Args:
        folder: an existing folder.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)
