"""Imports only go down, as `docs/architecture.md` draws the floors; imports inside functions count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The floors, the lowest first. A module belongs to the longest prefix that fits; those of one floor are apart.
FLOORS: tuple[tuple[str, ...], ...] = (
    # The ground floor in five layers.
    ("agentprm_gym.plain_text",),
    ("agentprm_gym.episode_rows",),
    (
        *("agentprm_gym.episodes", "agentprm_gym.spaces", "agentprm_gym.checks", "agentprm_gym.answers"),
        *("agentprm_gym.observations", "agentprm_gym.chat_limits", "agentprm_gym.files"),
    ),
    ("agentprm_gym.states", "agentprm_gym.readers", "agentprm_gym.chat_http"),
    ("agentprm_gym.chat_client", "agentprm_gym.hub"),
    ("agentprm_gym.games",),
    ("agentprm_gym.games.generation",),
    ("agentprm_gym.games.listing",),
    ("agentprm_gym.engines",),
    ("agentprm_gym.experts",),
    ("agentprm_gym.bench",),
    ("agentprm_gym.envs",),
    ("agentprm_gym.llm",),
    ("agentprm_gym.rewards",),
    ("agentprm_gym.registration",),
    ("agentprm_gym.prm",),
    ("agentprm_gym.wrappers",),
    ("agentprm_gym.testing", "agentprm_gym.integrations"),
    ("algorithms.testing",),
    ("algorithms.common.acting",),
    ("algorithms.common.shell",),
    ("algorithms.common.learning",),
    ("algorithms.common.measure",),
    ("algorithms.common.prm",),
    (
        *("algorithms.sft", "algorithms.ppo", "algorithms.grpo", "algorithms.rloo", "algorithms.reinforce"),
        *("algorithms.gigpo", "algorithms.online_dpo", "algorithms.rft", "algorithms.agent_prm"),
        "algorithms.inverse_prm",
    ),
    ("algorithms.registry",),
    ("algorithms.bench", "algorithms.export_data", "algorithms.report"),
    ("algorithms.cli",),
    ("benchmarks",),
)
#: A package's own file gathers names for users: it stands right above the room that is named here.
GATHERS_UP_TO = {
    "agentprm_gym": "agentprm_gym.registration",
    "agentprm_gym.games": "agentprm_gym.games.listing",
    "algorithms": "algorithms.registry",
    "algorithms.common": "algorithms.common.prm",
}

#: Imports that still go up, or aside between algorithms, as "importer -> imported"; to be emptied.
EXCEPTIONS = frozenset(
    {
        "algorithms.gigpo.gigpo -> algorithms.grpo.grpo",
        "algorithms.online_dpo.online_dpo -> algorithms.agent_prm.targets",
    }
)


def floor_of(module: str) -> tuple[float, str] | None:
    """The floor of a module and its room there; None for other people's modules."""
    if module in GATHERS_UP_TO:
        below = floor_of(GATHERS_UP_TO[module])
        assert below is not None
        return below[0] + 0.5, module
    found = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    return max(found)[1:] if found else None


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the repository, tests aside."""
    for package in ("agentprm_gym", "algorithms", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere; ``from package import module`` counts as the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                as_path = ROOT.joinpath(*name.split("."))
                is_module = as_path.is_dir() or as_path.with_suffix(".py").is_file()
                yield name if is_module else str(node.module)


def climbs() -> Iterator[str]:
    """Every import that does not go down, as "importer -> imported"."""
    for module, path in modules():
        mine = floor_of(module)
        assert mine is not None, f"{module} is on no floor: add it to FLOORS, and to docs/architecture.md"
        for imported in imports(path):
            theirs = floor_of(imported)
            if theirs is not None and theirs != mine and theirs[0] >= mine[0]:
                yield f"{module} -> {imported}"


def test_imports_only_go_down() -> None:
    found = set(climbs())
    assert sorted(found - EXCEPTIONS) == []
    assert sorted(EXCEPTIONS - found) == [], "these imports are gone: take them off the list"


@pytest.mark.parametrize(
    ("module", "room"),
    [
        ("agentprm_gym.games.generation.knobs", "agentprm_gym.games.generation"),
        ("agentprm_gym.games.game", "agentprm_gym.games"),
        ("algorithms", "algorithms"),
        ("agentprm_gym.engines", "agentprm_gym.engines"),
        ("gymnasium", None),
    ],
)
def test_a_module_belongs_to_the_longest_prefix(module: str, room: str | None) -> None:
    found = floor_of(module)
    assert (found and found[1]) == room


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from agentprm_gym.envs import base\n    import torch\n")
    assert list(imports(file)) == ["agentprm_gym.envs.base", "torch"]


def test_every_floor_stands_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in (room for rooms in FLOORS for room in rooms):
        name = room.split(".")[-1]
        assert name in page, room
