"""Runs as words of the command line: folders, with names where they were given some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: What ``agentprm eval`` calls its result; the file stands for its folder.
RESULT = "result.json"


def named_folders(runs: Sequence[str]) -> dict[str, str]:
    """Names and folders of runs.

    Args:
        runs: ``FOLDER``, ``NAME=FOLDER``, or the ``result.json`` in it. Without a name a run has the shortest end of its path
            that tells it from the others.

    Raises:
        ValueError: two have the same name.
    """
    given: list[tuple[str, Path]] = []
    for text in runs:
        name, equals, folder = text.partition("=")
        # A folder may have "=" in its name.
        own, path = (name, Path(folder)) if equals and not Path(text).exists() else ("", Path(text))
        given.append((own, path.parent if path.name == RESULT and path.is_file() else path))
    plain = [path for own, path in given if not own]
    out: dict[str, str] = {}
    for own, path in given:
        name = own or _short_name(path, plain)
        if name in out:
            raise ValueError(f"two runs are called {name!r}; name them: {name}-a={out[name]} {name}-b={path}")
        out[name] = str(path)
    return out


def _short_name(path: Path, others: list[Path]) -> str:
    parts = path.resolve().parts
    rest = [other.resolve().parts for other in others if other.resolve() != path.resolve()]
    for n in range(1, len(parts)):
        if not any(other[-n:] == parts[-n:] for other in rest):
            return "/".join(parts[-n:])
    return str(path)
