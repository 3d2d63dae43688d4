"""docs/first_steps.ipynb: it runs in a kernel from its beginning, and what is saved in it is what its code shows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "first_steps.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> list[str]:
    """What a cell shows: ``"stream"``, or the richest form of a picture."""
    return [
        "image/png" if "image/png" in output.get("data", {}) else str(output["output_type"])
        for output in cell["outputs"]
    ]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_its_outputs_are_saved_in_it() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    shown = [kind for cell in CODE for kind in kinds(cell)]
    assert shown.count("image/png") == 3 and "error" not in shown
    assert "won" in printed(CODE[1])
    assert PATH.stat().st_size < 500_000


@pytest.fixture(scope="module")
def again() -> Iterator[list[dict[str, Any]]]:
    """The code cells, run now."""
    pytest.importorskip("nbclient", reason="needs nbclient: pip install agentprm-gym[dev]")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install agentprm-gym[dev]")
    with pytest.MonkeyPatch.context() as patch:
        # The kernel must find this package, wherever the tests were started.
        patch.setenv("PYTHONPATH", str(ROOT))
        notebook = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))["run"](PATH)
    yield [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs_and_shows_what_is_saved(again: list[dict[str, Any]]) -> None:
    assert [kinds(cell) for cell in again] == [kinds(cell) for cell in CODE]
    # Games and the expert are the same everywhere; what was trained may round otherwise.
    for i in (0, 1):
        assert printed(again[i]) == printed(CODE[i])
