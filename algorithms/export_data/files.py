"""Files of data sets, and where episodes are found."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentprm_gym import Episode, read_episodes
from agentprm_gym.files import write_whole

#: What a run keeps of an update that failed: these episodes are in what it played, too.
_DIVERGED = "diverged.jsonl.gz"
#: What an iteration of a run played, and a later version of it, which takes its place.
_GATHERED = re.compile(r"gathered_(\d+)(?:_(\d+))?")


def check_name(path: Path) -> None:
    """Refuse a name that does not say which kind of file it is, and parquet where it cannot be written.

    Raises:
        ValueError: the name ends in something else.
        ImportError: pyarrow is missing.
    """
    if path.suffix == ".parquet":
        _parquet()
    elif not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"expected a file that ends in .jsonl, .jsonl.gz or .parquet, got {str(path)!r}")


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows; the file appears whole or not at all.

    Args:
        path: a file that ends in ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.
        rows: the rows.

    Returns:
        How many.

    Raises:
        ImportError: pyarrow is missing, for parquet.
        ValueError: the name ends in something else.
    """
    file = Path(path)
    check_name(file)
    all_rows = list(rows)
    if file.suffix == ".parquet":
        import pyarrow

        stream = io.BytesIO()
        _parquet().write_table(pyarrow.Table.from_pylist(all_rows), stream)
        write_whole(file, stream.getvalue())
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in all_rows).encode()
        write_whole(file, gzip.compress(lines, mtime=0) if file.suffix == ".gz" else lines)
    return len(all_rows)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read what :func:`write_rows` wrote.

    Args:
        path: the file.

    Raises:
        ImportError: pyarrow is missing, for parquet.
        ValueError: the file cannot be read.
    """
    file = Path(path)
    check_name(file)
    if file.suffix == ".parquet":
        rows: list[dict[str, Any]] = _parquet().read_table(file).to_pylist()
        return rows
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file} is no JSON Lines file: {error}") from None


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "parquet files need pyarrow: pip install 'agentprm-gym[data]', or choose a name that ends in .jsonl.gz"
        ) from error
    return parquet


def found_episodes(sources: Sequence[str | os.PathLike[str]]) -> tuple[list[Episode], list[int]]:
    """Read the episodes of files, of evaluations and of runs.

    Args:
        sources: files that ``write_episodes`` wrote, or folders: all ``*.jsonl.gz`` and ``*.jsonl`` anywhere in them,
            without the episodes on which a run diverged, and without older versions of what an iteration played.

    Returns:
        The episodes, and for each how many of its turns another episode played: those of a branch before it was branched.

    Raises:
        FileNotFoundError: a source does not exist, or holds no episodes.
        ValueError: a file holds something else.
    """
    episodes: list[Episode] = []
    histories: list[int] = []
    for source in map(Path, sources):
        files = _files(source) if source.is_dir() else [source]
        if not files:
            raise FileNotFoundError(f"no episodes in {source}: expected .jsonl.gz or .jsonl files that agentprm wrote")
        for file in files:
            read = list(read_episodes(file))
            about = file.with_name("rollouts.json")
            rows = json.loads(about.read_text(encoding="utf-8"))["rollouts"] if about.is_file() else []
            known = [int(row["n_history"]) for row in rows]
            histories += known if len(known) == len(read) else [0] * len(read)
            episodes += read
    return episodes, histories


def _files(folder: Path) -> list[Path]:
    """The files of episodes in a folder, each episode once."""
    files = sorted([*folder.rglob("*.jsonl.gz"), *folder.rglob("*.jsonl")])
    newest: dict[tuple[Path, str], int] = {}
    for file in files:
        if found := _GATHERED.fullmatch(file.parent.name):
            key = file.parent.parent, found[1]
            newest[key] = max(newest.get(key, 1), int(found[2] or 1))
    return [file for file in files if file.name != _DIVERGED and _is_newest(file, newest)]


def _is_newest(file: Path, newest: Mapping[tuple[Path, str], int]) -> bool:
    found = _GATHERED.fullmatch(file.parent.name)
    return found is None or int(found[2] or 1) == newest[file.parent.parent, found[1]]
