"""The benchmark of malicious files sees harm where it is done, and its cases are those of today's files."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hostile
from benchmarks._hostile_cases import CASES


def refuse(folder: Path) -> None:
    raise ValueError(f"{folder}: no")


def crash(folder: Path) -> None:
    raise RuntimeError("oops")


def execute(folder: Path) -> None:
    os.system("true")


def execute_otherwise(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def touch(folder: Path) -> None:
    (folder / "x").touch()


def write_beside(folder: Path) -> None:
    (folder.parent / "beside").write_text("a")


def write_by_number(folder: Path) -> None:
    os.close(os.open(folder.parent / "beside", os.O_CREAT | os.O_WRONLY))


def make_a_folder(folder: Path) -> None:
    (folder.parent / "beside").mkdir()


def fill(folder: Path) -> None:
    assert len(bytearray(b"x") * 600_000_000) > 0


def write_inside(folder: Path) -> None:
    (folder / "a").write_text("b")


def die(folder: Path) -> None:
    os.abort()


HARM: dict[str, tuple[Any, str, dict[str, bool]]] = {
    "refused": (refuse, "refused", {}),
    "harmless": (write_inside, "harmless", {}),
    "crashed": (crash, "crashed", {}),
    "died": (die, "crashed", {}),
    "executed": (execute, "harmless", {"executed": True}),
    "executed otherwise": (execute_otherwise, "harmless", {"executed": True}),
    "touched": (touch, "harmless", {"executed": True}),
    "written beside": (write_beside, "harmless", {"written_outside": True}),
    "written by number": (write_by_number, "harmless", {"written_outside": True}),
    "made a folder": (make_a_folder, "harmless", {"written_outside": True}),
    "filled": (fill, "harmless", {"over_memory": True}),
}


@pytest.mark.parametrize(("case", "outcome", "harm"), HARM.values(), ids=HARM)
def test_harm_is_seen(case: Any, outcome: str, harm: dict[str, bool]) -> None:
    row = hostile.run_case(case)
    assert row["outcome"] == outcome, row
    counted = hostile.counts([row])
    for key in ("executed", "written_outside", "over_memory", "over_time"):
        assert counted[key] == harm.get(key, False), row


def test_what_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "MAX_SECONDS", 1)
    assert hostile.run_case(lambda folder: time.sleep(30))["outcome"] == "over_time"


@pytest.fixture(scope="module")
def warm() -> None:
    """Import what the cases need, as the benchmark does: Python and the planner write files when they are loaded."""
    hostile._warm_up()


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("room", "name"),
    [
        *(("games", name) for name in ("code in a rule", "a rule in the task line")),
        *(("saves", name) for name in ("counters that are methods", "cut off")),
        *(("configurations", name) for name in CASES["configurations"]),
        *(("episode files", name) for name in ("deep nesting", "a pickle")),
        *(("servers", name) for name in ("the key in a redirect", "halves of characters")),
    ],
)
def test_a_case_does_no_harm(room: str, name: str) -> None:
    row = hostile.run_case(CASES[room][name])
    counted = hostile.counts([row])
    assert row["outcome"] in ("refused", "harmless"), row
    assert not any(counted[key] for key in ("crashed", "executed", "written_outside", "over_time")), row
