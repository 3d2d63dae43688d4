"""Episodes that other people's agents played on release 2.1.1 give the same observations and wins here, to the letter."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.engines import make_engine
from agentprm_gym.engines.base import Engine
from agentprm_gym.games import DataNotFoundError, Game, find_games

LOGS = Path(__file__).parents[2] / "shared" / "data" / "public_logs.jsonl.xz"
ARRIVAL = re.compile(r"^You arrive at loc \d+\. ")


@pytest.fixture(scope="module")
def episodes() -> list[tuple[Game, dict[str, Any]]]:
    """The logged episodes with their games, in the wording of release 2.1.1."""
    if not LOGS.is_file():
        pytest.skip(f"needs the public logs at {LOGS}")
    with lzma.open(LOGS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    try:
        lists = {split: find_games(split, "alfworld", grammar="2.1.1") for split in {row["split"] for row in rows}}
    except DataNotFoundError as error:
        pytest.skip(f"needs the real ALFWorld games: {error}")
    return [(lists[row["split"]][lists[row["split"]].index(row["game_id"])], row) for row in rows]


def as_logged(feedback: str, arrival: str) -> str:
    """What the logging agent made of the sentence about the arrival."""
    instead = {"left out": "", "kept": None}.get(arrival, f"{arrival} ")
    return feedback if instead is None else ARRIVAL.sub(instead, feedback)


def replay(engine: Engine, game: Game, row: dict[str, Any]) -> int:
    """Replay an episode and compare everything that was logged; returns how many commands it has."""
    won = engine.reset(game).won
    for i, (command, observation) in enumerate(row["turns"]):
        frame = engine.step(command)
        won |= frame.won
        if observation is not None:
            said = as_logged(frame.feedback, row["arrival"])
            assert said == observation, f"{row['game_id']}, turn {i}: {command!r}"
    if row["success"] is not None:
        assert won == bool(row["success"]), row["game_id"]
    return len(row["turns"])


def test_every_logged_observation_and_win_is_the_same(episodes: list[tuple[Game, dict[str, Any]]]) -> None:
    engine = make_engine("native")
    assert len(episodes) == 220
    assert sum(replay(engine, game, row) for game, row in episodes) == 4275


@pytest.mark.ci
def test_a_sample_is_the_same_on_the_stock_engine(episodes: list[tuple[Game, dict[str, Any]]]) -> None:
    engine = make_engine("textworld")
    assert sum(replay(engine, game, row) for game, row in episodes[::30]) > 50
    engine.close()


def test_in_the_newer_wording_the_logs_differ(episodes: list[tuple[Game, dict[str, Any]]]) -> None:
    game, row = next((game, row) for game, row in episodes if any("in/on" in turn[0] for turn in row["turns"]))
    with pytest.raises(AssertionError):
        replay(make_engine("native"), game.in_grammar("2.1.2"), row)
