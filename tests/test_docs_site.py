"""``make docs``: the site is built without a warning, has every page, and loads nothing from a network; wrong links end it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="needs mkdocs-material: pip install agentprm-gym[docs]")
pytest.importorskip("material", reason="needs mkdocs-material: pip install agentprm-gym[docs]")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copied(folder: Path) -> Path:
    for name in ("docs", "benchmarks", "examples", "agentprm_gym", "algorithms"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    for name in ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_site_has_every_page_and_needs_no_network(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.stem for path in (tmp_path / "site" / "docs").glob("*.html")}
    assert pages == {path.stem for kind in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(kind)}
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "CHANGELOG.html").is_file()
    for path in (tmp_path / "site").rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="(https?:[^"]*)"', html)
        loaded += re.findall(r'<link\b[^>]*\brel="stylesheet"[^>]*\bhref="(https?:[^"]*)"', html)
        assert not loaded, path


def test_environments_algorithms_and_the_notebook_have_pages(tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert build(ROOT, site).returncode == 0
    for path in ("environments/alfworld-v0", "environments/textworldprm-v0", "algorithms/agentprm", "algorithms/gigpo"):
        html = (site / "reference" / f"{path}.html").read_text(encoding="utf-8")
        assert "<table>" in html and ":class:" not in html and "``" not in html, path
    agentprm = (site / "reference" / "algorithms" / "agentprm.html").read_text(encoding="utf-8")
    # A pipe within a type does not end the cell.
    assert re.search(
        r"<td><code>n_iterations</code></td>\s*<td><code>int \| None</code></td>\s*<td><code>None</code></td>", agentprm
    )
    assert 'href="../../docs/algorithms.html"' in agentprm
    assert (site / "benchmarks" / "results" / "baselines.html").is_file()  # tables that programs write, too
    # A block that tests do not run is shown as code, and the headings behind it are headings.
    trainers = (site / "docs" / "integrations.html").read_text(encoding="utf-8")
    assert 'id="verl-agent"' in trainers and "python no-run" not in trainers
    first = (site / "docs" / "first_steps.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img\b[^>]*\bsrc="(first_steps_\d+\.png)"', first)
    assert pictures and all((site / "docs" / name).stat().st_size > 1000 for name in pictures)
    assert 'href="first_steps.html"' in (site / "docs" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("addition", "said"),
    [("[a](nowhere.md)", "nowhere.md"), ("[a](games.md#no-such-heading)", "no-such-heading")],
)
def test_a_wrong_link_ends_it(tmp_path: Path, addition: str, said: str) -> None:
    here = copied(tmp_path / "here")
    with (here / "docs" / "limits.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{addition}\n")
    done = build(here, tmp_path / "site")
    assert done.returncode != 0 and said in done.stderr
    assert "Aborted with 1 warnings" in done.stderr  # nothing else is wrong


def test_a_page_that_is_not_in_the_navigation_ends_it(tmp_path: Path) -> None:
    here = copied(tmp_path / "here")
    (here / "docs" / "forgotten.md").write_text("# Forgotten\n")
    done = build(here, tmp_path / "site")
    assert done.returncode != 0 and "forgotten.md" in done.stderr
