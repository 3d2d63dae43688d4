"""Minari: the real package writes expert episodes, loads them, and they come back as they were."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the package's own imports
    minari = pytest.importorskip("minari", reason="needs minari (pip install agentprm-gym[minari])")
pytest.importorskip("pyarrow", reason="needs pyarrow (pip install agentprm-gym[minari])")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
GAMES = {"games": "generated"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_expert_episodes_there_and_back(place: Path) -> None:
    from agentprm_gym.integrations import episodes_of_minari, save_minari

    demos = demonstrations(find_games("train", "generated"), 3)
    save_minari(demos, "alfworld/expert-v0", author="me", **GAMES)
    dataset: Any = minari.load_dataset("alfworld/expert-v0")
    assert dataset.total_episodes == 3 and dataset.total_steps == sum(len(demo.turns) for demo in demos)
    for demo, read in zip(demos, dataset.iterate_episodes(), strict=True):
        assert list(read.actions) == [turn.response or turn.command for turn in demo.turns]
        assert list(read.observations["feedback"])[:-1] == [turn.feedback for turn in demo.turns]
        assert list(read.observations["task"]) == [demo.task] * (len(demo.turns) + 1)
        assert read.observations["admissible_commands"][0].split("\n") == list(demo.turns[0].admissible_commands)
        assert list(read.rewards) == [turn.reward for turn in demo.turns] and read.rewards[-1] == 1
        assert read.terminations[-1] and not read.terminations[:-1].any() and not read.truncations.any()
        assert read.observations["feedback"][-1] in dataset.observation_space["feedback"]
        assert all(action in dataset.action_space for action in read.actions)
    assert dataset.env_spec.id == "ALFWorld-v0"
    again = list(episodes_of_minari(dataset, **GAMES))
    assert [(e.game_id, e.success, e.policy) for e in again] == [(d.game_id, True, d.policy) for d in demos]
    assert [[t.command for t in e.turns] for e in again] == [[t.command for t in d.turns] for d in demos]
    assert [[t.reason for t in e.turns] for e in again] == [[t.reason for t in d.turns] for d in demos]


def test_what_cannot_be_written(place: Path) -> None:
    from dataclasses import replace

    from agentprm_gym.integrations import save_minari

    with pytest.raises(ValueError, match="no episodes"):
        save_minari([], "alfworld/none-v0", **GAMES)
    (demo,) = demonstrations(find_games("train", "generated"), 1)
    other = replace(demo, turns=[replace(demo.turns[0], feedback="A lie."), *demo.turns[1:]])
    with pytest.raises(ValueError, match=r"says .* at turn 0, and the episode 'A lie\.'"):
        save_minari([other], "alfworld/lie-v0", **GAMES)
