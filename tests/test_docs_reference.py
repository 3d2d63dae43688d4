"""Pages of the site that are written from docstrings: every environment and algorithm has one, with every argument."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest

import agentprm_gym  # noqa: F401  # registers the environments
import algorithms
from algorithms.registry import BUILT_IN

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
        importlib.import_module("site_notebook")
        return importlib.import_module("site_reference")


@pytest.fixture(scope="module")
def pages(reference: ModuleType) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = reference.pages(ROOT)
    return found


def arguments_on(page: str) -> dict[str, str]:
    """Names and defaults in the first table of arguments of a page, and of those behind it whose names are new."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`.*?`)? \| (?:`(.*?)`)? \| (.+) \|$", page, re.MULTILINE)
    return {name: default for name, default, meaning in reversed(rows) if meaning.strip()}


def test_every_environment_has_a_page(pages: dict[str, dict[str, str]]) -> None:
    ours = {env_id for env_id, spec in gym.registry.items() if str(spec.entry_point).startswith("agentprm_gym.")}
    assert len(ours) >= 5
    assert ours <= pages["Environments"].keys()


@pytest.mark.parametrize(
    "env_id", ["ALFWorld-v0", "ALFWorldPRM-v0", "TextIdentity-v0", "TextWorld-v0", "TextWorldPRM-v0"]
)
def test_arguments_of_environments(pages: dict[str, dict[str, str]], env_id: str) -> None:
    spec = gym.registry[env_id]
    module, _, name = str(spec.entry_point).partition(":")
    wanted: set[str] = set()
    for one in getattr(importlib.import_module(module), name).__mro__:
        if "__init__" in vars(one) and one.__module__.startswith("agentprm_gym"):
            parameters = inspect.signature(one.__init__).parameters
            kinds = {parameter.kind for parameter in parameters.values()}
            variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            wanted |= {n for n, p in parameters.items() if n != "self" and p.kind not in variable}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    assert wanted <= arguments_on(pages["Environments"][env_id]).keys()


@pytest.mark.parametrize("name", [where.partition(":")[2] for where in BUILT_IN.values()])
def test_arguments_of_algorithms(pages: dict[str, dict[str, str]], name: str) -> None:
    found = arguments_on(pages["Algorithms"][name])
    for argument, parameter in inspect.signature(getattr(algorithms, name).__init__).parameters.items():
        if argument != "self" and not argument.startswith("_"):
            assert found[argument] == repr(parameter.default), argument


def test_options_in_groups_are_listed(pages: dict[str, dict[str, str]]) -> None:
    from dataclasses import fields

    from algorithms.agent_prm.fit import FitStage
    from algorithms.agent_prm.improve import AgentImproveStage
    from algorithms.agent_prm.rollout import RolloutStage

    page = pages["Algorithms"]["AgentPRM"]
    for stage in (RolloutStage, FitStage, AgentImproveStage):
        assert {field.name for field in fields(stage)} <= arguments_on(page).keys()
    assert "## Options of `rollout=`" in page


def test_docstrings_become_markdown(reference: ModuleType) -> None:
    made = reference.markdown("See :class:`~algorithms.sft.SFT` and :mod:`algorithms.ppo`, ``x | y``::\n\n    code")
    assert made == "See `SFT` and `algorithms.ppo`, `x | y`:\n\n    code"
    assert not any(
        role in page
        for kind in reference.pages(ROOT).values()
        for page in kind.values()
        for role in (":class:`", ":func:`")
    )


def test_a_table_that_names_a_missing_class_is_an_error(reference: ModuleType) -> None:
    with pytest.raises(ValueError, match="no class 'Missing'"):
        reference.class_page(reference.Code(ROOT), "algorithms.sft:Missing", "Missing", [])


def test_a_notebook_becomes_a_page(reference: ModuleType) -> None:
    notebook = sys.modules["site_notebook"]
    text, pictures = notebook.notebook_page(ROOT / "docs" / "first_steps.ipynb")
    assert text.startswith("# ") and "```python" in text and pictures
    assert all(f"]({name})" in text and data.startswith(b"\x89PNG") for name, data in pictures.items())
