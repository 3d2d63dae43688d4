"""Generated games are near the real ones, and the benchmark that measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agentprm_gym  # noqa: F401
from agentprm_gym.games.listing import GameList, find_games
from benchmarks.generator import compare, distance, features, main, sample


def test_distances_are_what_they_are_called() -> None:
    def games(feature: str, *values: Any) -> list[dict[str, list[Any]]]:
        return [{"task type": ["a" if i % 2 else "b"], feature: [value]} for i, value in enumerate(values)]

    assert distance("objects", games("objects", 1, 2), games("objects", 2, 3)) == pytest.approx(1.0)
    assert distance("objects", games("objects", 0, 0), games("objects", 0, 10)) == pytest.approx(5.0)
    assert distance("room", games("room", "x", "y"), games("room", "y", "z")) == pytest.approx(0.5)
    # Only the second game counts, which is of type a.
    weighed = distance("objects", games("objects", 0, 8), games("objects", 5), {"a": 1.0})
    assert weighed == pytest.approx(3.0)


# At an equal mix of task types; numbers in objects, receptacles or commands. Twice the distance of the sample below, about.
_NEAR = {
    "room": 0.1,
    "receptacle types": 0.07,
    "object types": 0.08,
    "what lies where": 0.2,
    "receptacles": 2.5,
    "places to stand": 3.0,
    "objects": 2.5,
    "objects out of reach": 0.6,
    "walkthrough": 0.25,
    "shortest plan": 0.2,
    "search expert": 1.0,
    "in a drawer": 0.08,
    "in a stoveburner": 0.13,
    "in a handtowelholder": 0.3,
    "in a towelholder": 0.2,
}


@pytest.mark.slow
def test_generated_games_are_near_the_real_ones(real_games: GameList) -> None:
    real, generated = (sample("train", source, 240) for source in ("alfworld", "generated"))
    measured = {row.feature: row.same_mix for row in compare(real, generated)}
    far = {feature: measured[feature] for feature, limit in _NEAR.items() if measured[feature] > limit}
    assert not far
    # The limits can be missed.
    turned = find_games(
        "train", "generated", generator_kwargs={"n_objects": 10, "n_receptacles": [5, 9], "n_games": 60}
    )
    other = {row.feature: row.same_mix for row in compare(real, [features(game) for game in turned])}
    assert sum(other[feature] > limit for feature, limit in _NEAR.items()) >= 8


def test_the_report_says_so_where_there_are_no_real_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert main(["--quick", "--out", str(tmp_path / "out.json")]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_report_is_written(real_games: GameList, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--splits", "train", "--games", "12", "--out", str(tmp_path / "out.json")]) == 0
    assert "search expert" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"name", "commit", "date", "machine", "versions", "seeds", "figures", "rows"} <= set(result)
    assert result["figures"]["train_alfworld_games"] == 12
    assert all(isinstance(value, (int, float)) for value in result["figures"].values())
