"""README and docs say what is there: code runs, commands parse, options are those of the code, links lead somewhere.

Blocks of a page run one after the other as they are written, with smaller budgets (``SMALL``), in a folder that holds what
they read: ``sft.zip``, ``agentprm.zip``, ``demos.jsonl.gz``. A block that needs a server is marked ``python no-run``; it must
compile, and what it imports must exist.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

import algorithms
from agentprm_gym.envs.alfworld import ALFWorldEnv
from agentprm_gym.integrations import _HOMES
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.improve import AgentImproveStage
from algorithms.agent_prm.rollout import RolloutStage
from algorithms.cli.main import build_parser
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.prm.objectives import OBJECTIVES
from algorithms.inverse_prm.fit import InverseFitStage
from algorithms.inverse_prm.inverse_prm import InverseImproveStage, InverseRolloutStage
from tests.llm_helpers import save_random_model

ROOT = Path(__file__).parent.parent
INTEGRATIONS = ROOT / "agentprm_gym" / "integrations"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
#: Pages for users; the others are about the code itself, or about what was.
USER_PAGES = [page for page in PAGES if page.name not in ("architecture.md",)]

#: What makes a page's examples small: each text on the left must be on the page.
SMALL = {
    "README.md": {
        ", 150)": ", 6)",
        "10_000": "100",
        "n_iterations=1": "n_iterations=1, rollout={'n_games': 4, 'n_repeats': 2, 'n_branch_states': 4}, "
        "improve={'n_updates': 2}, n_validation_games=2, n_envs=8",
        'split="valid_seen")': "split='valid_seen', n_envs=8)",
        "env), env)": "env), env, games=range(4))",
    },
    "acting.md": {
        "range(8)": "range(2)",
        "range(200)": "range(2)",
        "n_epochs=2": "n_epochs=1",
        "learn(1_000)": "learn(1)",
    },
    "algorithms.md": {
        "n_games=60": "n_games=2, group_size=2, n_envs=4",
        "100_000": "1",
        'prm={"form": "log_prob"},': 'rollout={"n_games": 2, "n_branch_states": 2}, n_validation_games=2, n_envs=8, '
        'prm={"form": "log_prob"},',
        '"score_scale": "logit"': '"score_scale": "logit", "n_updates": 2',
        'demonstrations="demos.jsonl.gz", n_iterations=1': 'demonstrations="demos.jsonl.gz", n_iterations=1, n_envs=8, '
        'rollout={"n_games": 2, "n_repeats": 1}, improve={"n_updates": 2}',
    },
    "export.md": {
        "n_iterations=1": "n_iterations=1, rollout={'n_games': 4, 'n_repeats': 2, 'n_branch_states': 4}, "
        "improve={'n_updates': 2}, n_validation_games=2, n_envs=8",
    },
    "games.md": {", 20)": ", 6)"},
    "tutorial.md": {
        'generated"), 10)': 'generated"), 3)',
        "learn(1_000)": "learn(20)",
        "n_envs=64": "n_envs=4",
        "n_games=16, group_size=8": "n_games=2, group_size=2",
        "learn(30_000)": "learn(1)",
        "range(400)": "range(2)",
    },
    "your_own.md": {
        "n_games=32, n_envs=32, seed=0).learn(500)": "n_games=2, group_size=2, n_envs=4, seed=0).learn(1)",
        "n_games=8, n_envs=8, seed=0).learn(50)": "n_games=2, group_size=2, n_envs=4, seed=0).learn(1)",
        'demonstrations="demos.jsonl.gz"': "demonstrations=[min(episodes, key=lambda e: len(e.turns))]",
        "learn(1000)": "learn(1)",
    },
}


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str = "python") -> list[str]:
    """Code blocks of a page whose first line names the language in these words."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def names(pages: list[Path]) -> Callable[[Any], Any]:
    """Parametrise over pages."""
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


# Code ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages' code reads; the README's own example makes the models."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ALFWORLD_DATA", str(folder))  # generated games, whatever this machine has
        save_random_model(folder / "models" / "tiny")
        save_random_model(folder / "models" / "qwen", "qwen2", template=None)
        run_page(ROOT / "README.md", {'"tiny"': '"models/tiny"'})
        run_page(ROOT / "docs" / "games.md")
        yield folder


def run_page(
    page: Path, more: dict[str, str] | None = None, known: dict[str, object] | None = None
) -> dict[str, object]:
    """Run a page's code; returns its names."""
    small = {**SMALL.get(page.name, {}), **(more or {})}
    code = [block for block in blocks(page) if not block.startswith(">>>")]
    for old in small:
        assert any(old in block for block in code), f"{page.name} changed: {old!r} is gone"
    space = dict(known or {})
    for block in code:
        for old, new in small.items():
            block = block.replace(old, new)
        exec(compile(block, page.name, "exec"), space)
    return space


def test_readme(workshop: Path) -> None:
    assert {"sft.zip", "agentprm.zip", "demos.jsonl.gz"} <= {path.name for path in workshop.iterdir()}


@pytest.mark.ci
@names([page for page in DOCS if page.name != "games.md" and any(not b.startswith(">>>") for b in blocks(page))])
def test_code_runs(
    page: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workshop, tmp_path / "here")  # pages do not see what others write
    monkeypatch.chdir(tmp_path / "here")
    episodes = list(resolve_name("agentprm_gym:read_episodes")("demos.jsonl.gz"))
    space = run_page(page, known={"episodes": episodes})
    if page.name == "acting.md":
        assert space["done"] is True
        assert "Your task is to" in capsys.readouterr().out


@names([page for page in PAGES if any(b.startswith(">>>") for b in blocks(page))])
def test_sessions(page: Path) -> None:
    session = "\n".join(block for block in blocks(page) if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@names(PAGES)
def test_imports_are_short_and_exist(page: Path) -> None:
    """What a user imports stands two levels deep at most."""
    for block in [b for b in blocks(page) if not b.startswith(">>>")] + blocks(page, "python no-run"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("agentprm_gym", "algorithms"):
                assert node.module is not None and node.module.count(".") <= 1, f"{page.name}: {ast.unparse(node)}"
                for alias in node.names:
                    if node.module == "agentprm_gym.integrations":
                        # The framework of its module need not be here.
                        assert alias.name in top_level_names(INTEGRATIONS / f"{_HOMES[alias.name]}.py")
                    else:
                        resolve_name(f"{node.module}:{alias.name}")


def top_level_names(module: Path) -> set[str]:
    """Names of the functions and classes of a module, which is read and not imported."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@names(USER_PAGES)
def test_names_in_the_text_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`((?:agentprm_gym|algorithms)(?:\.\w+)+)", prose):
        if not name.endswith(".py"):
            resolve_name(name)


# Commands ------------------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[str]:
    """Lines of a page that begin with ``agentprm``; what stands behind two blanks explains them."""
    text = text_of(page).replace("\\\n", " ")
    for line in re.findall(r"^(?: {4})?(agentprm [^\n]*)$", text, re.MULTILINE):
        yield re.split(r"  +#?| #", line.strip())[0]


@names([page for page in PAGES if any(commands(page))])
def test_commands_parse(page: Path) -> None:
    made = build_parser()
    parser = made[0] if isinstance(made, tuple) else made
    for command in commands(page):
        words = shlex.split(command)[1:]
        try:
            parser.parse_args(words)
        except SystemExit as end:
            assert end.code == 0, f"{page.name}: {command}"


@names(PAGES)
def test_every_block_is_in_a_language_that_is_tested(page: Path) -> None:
    """Python runs or is compiled, ``sh`` holds commands that parse, and what else there is has a test of its own."""
    assert set(re.findall(r"^```(\w[^\n]*)$", text_of(page), re.MULTILINE)) <= {
        "python",
        "python no-run",
        "sh",
        "bash",  # protocol.md: test_cli_eval.py
        "yaml",  # command_line.md: test_command_line_page.py
    }
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            assert not line or line.startswith("agentprm "), f"{page.name}: {line}"


@names(PAGES)
def test_benchmarks_that_are_named_exist_and_have_the_options(page: Path) -> None:
    for module, words in re.findall(r"python -m benchmarks\.(\w+)((?: [-\w/.|]+)*)", text_of(page)):
        path = ROOT / "benchmarks" / f"{module}.py"
        assert path.is_file(), f"{page.name}: no benchmarks/{module}.py"
        source = path.read_text(encoding="utf-8")
        # Studies may share their command line.
        shared = [path.with_name(f"{name}.py") for name in re.findall(r"from benchmarks import (_\w+)", source)]
        source += "".join(file.read_text(encoding="utf-8") for file in shared)
        for option in re.findall(r"--[a-z][-a-z0-9]*", words):
            assert f'"{option}"' in source, f"{page.name}: {module} has no {option}"


# Options -------------------------------------------------------------------------------------------------------------------


def table(page: str, heading: str) -> dict[str, Any]:
    """Names and defaults of the first table of options below a heading; empty where the section has none."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text_of(ROOT / "docs" / page), re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"docs/{page} has no section {heading!r}"
    return {
        name: ast.literal_eval(default)
        for name, default in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", found[1], re.MULTILINE)
    }


def defaults(function: Callable[..., Any], *without: str) -> dict[str, Any]:
    """Names and defaults of a function's arguments."""
    skipped = {"self", "_init_setup_model", *without}
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if name not in skipped}


ON_POLICY = ("GRPO", "GiGPO", "PPO", "REINFORCE")


@pytest.mark.parametrize("name", [*ON_POLICY, "RLOO", "SFT", "RFT", "OnlineDPO", "AgentPRM", "InversePRM"])
def test_options_of_algorithms(name: str) -> None:
    shared = table("algorithms.md", "Policy gradients") if name in (*ON_POLICY, "RLOO") else {}
    own = {} if name == "RLOO" else table("algorithms.md", name)
    said = {**table("algorithms.md", "What all take"), **shared, **own}
    assert said == defaults(getattr(algorithms, name).__init__)


def of_fields(stage: type[Any]) -> dict[str, Any]:
    """Names and defaults of a dataclass's fields."""
    assert all(field.default is not MISSING for field in fields(stage))
    return {field.name: field.default for field in fields(stage)}


@pytest.mark.parametrize(
    ("heading", "stage"),
    [
        ("Stage 1: `rollout=`", RolloutStage),
        ("Stage 2: `prm=`", FitStage),
        ("Stage 3: `improve=`", AgentImproveStage),
        ("InversePRM: `rollout=`", InverseRolloutStage),
        ("InversePRM: `prm=`", InverseFitStage),
    ],
)
def test_options_of_stages(heading: str, stage: type[Any]) -> None:
    assert table("algorithms.md", heading) == of_fields(stage)


def test_options_of_inverse_prms_improvement() -> None:
    shared = table("algorithms.md", "Stage 3: `improve=`")
    only_agent_prm = of_fields(AgentImproveStage).keys() - of_fields(InverseImproveStage).keys()
    shared = {name: value for name, value in shared.items() if name not in only_agent_prm}
    assert {**shared, **table("algorithms.md", "InversePRM: `improve=`")} == of_fields(InverseImproveStage)


def test_objectives_are_explained() -> None:
    page = text_of(ROOT / "docs" / "algorithms.md")
    assert set(re.findall(r'^\| `"(\w+)"` \|', page, re.MULTILINE)) == set(OBJECTIVES)


def test_options_of_policies() -> None:
    of_sb3 = ("observation_space", "action_space", "lr_schedule", "device", "base")
    assert table("acting.md", "Options of a policy") == defaults(LLMPolicy.__init__, *of_sb3)


def test_options_of_environments() -> None:
    assert table("games.md", "Options of `ALFWorld-v0`") == defaults(ALFWorldEnv.__init__)


# Pages ---------------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 130


def test_the_index_lists_all_pages() -> None:
    listed = re.findall(r"^\| \[[^\]]+\]\(([\w.]+)\)", text_of(ROOT / "docs" / "index.md"), re.MULTILINE)
    notebooks = sorted((ROOT / "docs").glob("*.ipynb"))
    assert sorted([*listed, "index.md"]) == sorted(page.name for page in [*DOCS, *notebooks])


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@names([*PAGES, ROOT / "CHANGELOG.md"])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: no file {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: no heading {target}"


def test_files_that_the_architecture_names_exist() -> None:
    """Paths are those of the repository, of one of its packages, or of a folder that the sentence is about."""
    names = set(re.findall(r"`([\w/]+\.py)`", text_of(ROOT / "docs" / "architecture.md")))
    tops = [ROOT, ROOT / "agentprm_gym", ROOT / "algorithms", ROOT / "tests"]
    folders = [*tops, *(folder for top in tops[1:3] for folder in top.rglob("*") if folder.is_dir())]
    missing = sorted(name for name in names if not any((folder / name).is_file() for folder in folders))
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_result_files_say_what_made_them(path: Path) -> None:
    """Every number has its commit, seeds, versions and machine beside it."""
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    missing = {"name", "commit", "date", "machine", "versions", "seeds", "figures"} - data.keys()
    assert not missing
    assert data["figures"] and all(type(value) in (int, float) for value in data["figures"].values())
    assert not re.findall(r'"/\w[^"]*"', text), "a path of the machine that it was measured on"
