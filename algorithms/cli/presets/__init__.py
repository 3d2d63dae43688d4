"""Presets: configurations of ``agentprm train`` that come with the package, by name.

Each is a YAML file in this folder, of the form that ``--config`` reads. The first line is a comment that says what it is for.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from agentprm_gym.checks import check_choice

#: The word that asks for the list of presets in place of a preset.
LIST = "list"


def names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of a preset.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such preset; the message lists those that there are.
    """
    check_choice("--preset", name, names())
    return _folder() / f"{name}.yaml"


def purpose(name: str) -> str:
    """What a preset is for: the comment in the first line of its file.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: there is no such preset.
    """
    return path_of(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def _folder() -> Path:
    return Path(str(resources.files("algorithms.cli.presets")))
