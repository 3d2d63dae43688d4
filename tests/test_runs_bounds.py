"""The lower bounds of pyproject.toml are what `make test-lowest` runs the tests with."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def pinned(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_lower_bound_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest, together = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        (bound,) = (Version(part.version) for part in wanted.specifier if part.operator == ">=")
        assert lowest[name] == bound, f"{line}: make test-lowest has {lowest[name]}"
        assert wanted.specifier.contains(together[name])
