"""``make audit``: licences from the metadata of what is installed, and plain words where pip-audit cannot look anything up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.audit import PACKAGE, UNKNOWN, Licence, installed, main, requirements, table, weaknesses

PINS = Path(__file__).parents[1] / "constraints.txt"


@pytest.fixture(scope="module")
def rows() -> list[Licence]:
    return installed()


def test_every_package_that_is_brought_has_a_licence(rows: list[Licence]) -> None:
    by_name = {row.name: row for row in rows}
    asked = {r.name.lower() for r in requirements(PACKAGE)}
    assert asked == {row.name for row in rows if row.direct} and "torch" in asked
    assert "pytest" not in by_name and "ray" not in by_name  # those of extras
    assert "markupsafe" in by_name and not by_name["markupsafe"].direct  # what jinja2 brings
    # With torch's build for CUDA comes an empty package that names none; what it gathers does.
    assert {row.name for row in rows if row.licence == UNKNOWN} <= {"cuda-toolkit"}
    assert by_name["numpy"].licence.startswith("BSD")


def test_licences_that_ask_for_more_are_named_at_the_top(rows: list[Licence]) -> None:
    (told,) = [line for line in table(rows).splitlines() if line.startswith("Licences that ask more")]
    assert "jericho (GNU General Public License v2" in told and "fast-downward-textworld (GPL-3.0)" in told
    assert "numpy" not in told
    assert not Licence("a", "1", "Apache-2.0 OR MIT", "expression", True).is_reciprocal


CLEAN = {"name": "a", "version": "1", "vulns": []}
WEAK = {
    "name": "b",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3"], "aliases": [], "description": ""}],
}
SKIPPED = {"name": "c", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "told"),
    [
        ([CLEAN], 0, "looked up 1 of 1 packages, and knows 0 weaknesses"),
        ([CLEAN, WEAK], 1, "b 2: CVE-1, mended in 3"),
        (
            [SKIPPED],
            0,
            "looked up 0 of 1 packages, and knows 0 weaknesses\nnot looked up, so nothing is known about them: c",
        ),
        (None, 0, "nothing is known about weaknesses. It said: ERROR: no connection"),
    ],
    ids=["nothing known", "something known", "skipped", "no service"],
)
def test_what_pip_audit_says_is_told_apart(packages: object, status: int, told: str) -> None:
    """A program in its place prints what pip-audit prints; without a network the real one says nothing else."""
    says = json.dumps({"dependencies": packages, "fixes": []}) if packages else ""
    ends = "sys.exit('ERROR: no connection')" if packages is None else f"sys.exit({status})"
    code, said = weaknesses([sys.executable, "-c", f"import sys; print({says!r}); {ends}"], PINS)
    assert code == status and told in said


def test_without_pip_audit_the_licences_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "licences.md"
    monkeypatch.setattr(sys, "argv", ["audit", "--out", str(out), "--pip-audit", str(tmp_path / "missing")])
    assert main() == 0
    assert "| **torch** |" in out.read_text()
    assert "pip-audit did not run" in capsys.readouterr().out
