"""Episode files of other people: lines without end, deep rows, numbers that are none, halves of characters, broken gzips."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym import episodes as module
from agentprm_gym.episodes import read_episodes, write_episodes

TURN: dict[str, Any] = {"feedback": "a room", "admissible_commands": ["look"], "command": "look"}
ROW: dict[str, Any] = {"game_id": "g", "split": "train", "task_type": "", "task": "t", "success": True, "turns": [TURN]}


def row(**turn: Any) -> bytes:
    return json.dumps({**ROW, "turns": [{**TURN, **turn}]}).encode()


REFUSED = {
    "deep nesting": b'{"turns": ' + b"[" * 100_000,
    "deep nesting in a candidate": row(candidates=None).replace(b"null", b"[" * 50_000 + b"]" * 50_000),
    "a reward that is no number": row(reward=float("nan")),
    "an endless reward": row(reward=float("inf")),
    "a reward of 400 digits": row(reward=1.0).replace(b"1.0", b"1" + b"0" * 400),
    "a number of 10,000 digits": row(reward=1.0).replace(b"1.0", b"9" * 10_000),
    "an endless log-probability": row(log_prob=float("-inf")),
    "candidates that are none": row(candidates=[1, "a"]),
    "a turn that is a list": json.dumps({**ROW, "turns": [[]]}).encode(),
    "turns that are a text": json.dumps({**ROW, "turns": "look"}).encode(),
    "no UTF-8": b'{"task": "\xff\xfe"}',
    "a list": b"[]",
    "NUL": b"\x00" * 100,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_no_episode_is_a_value_error_with_the_file(tmp_path: Path, data: bytes, packed: bool) -> None:
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match=r"a\.jsonl") as caught:
        list(read_episodes(path))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("cut", [3, 30, -20, -4])
def test_a_broken_gzip_is_a_value_error(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(row() + b"\n" + row())
    for data in (whole[:cut], whole[:cut] + b"\xff" * 8 + whole[cut:], b"not gzip at all"):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
            list(read_episodes(tmp_path / "a.jsonl.gz"))


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1_000_000)
    for name, data in (("a.jsonl", b" " * 200_000_000), ("a.jsonl.gz", gzip.compress(b" " * 200_000_000, 1))):
        (tmp_path / name).write_bytes(data)
        del data
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="at most 1,000,000 characters"):
            list(read_episodes(tmp_path / name))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_halves_of_characters_are_read_and_can_be_written_again(tmp_path: Path) -> None:
    data = row(
        feedback="\ud83d half",
        response="\ude00",
        candidates=[{"command": "\ud800"}],
        admissible_commands=["look\udfff"],
    )
    (tmp_path / "a.jsonl").write_bytes(data + b"\n" + row(feedback="\U0001f600 \\ud"))
    first, second = list(read_episodes(tmp_path / "a.jsonl"))
    assert first.turns[0].feedback == "\ufffd half" and second.turns[0].feedback == "\U0001f600 \\ud"
    write_episodes(tmp_path / "b.jsonl", [first, second])
    assert list(read_episodes(tmp_path / "b.jsonl")) == [first, second]
