"""Episodes as data sets of other trainers, and back: by hand, through the command line, and as `datasets` loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym import Episode, Turn, read_episodes, write_episodes
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import GameList, find_games
from agentprm_gym.llm.text_prompts import TextPrompt
from agentprm_gym.states import state_keys
from algorithms.export_data import (
    chat_rows,
    episodes_of_chats,
    episodes_of_rows,
    found_episodes,
    optimal_values,
    preference_rows,
    q_table,
    read_rows,
    stepwise_rows,
    value_rows,
    write_rows,
)
from tests.cli_helpers import Cli

DOORS = ("left", "middle", "right")


def episode(*commands: str, won: bool, reasons: bool = False) -> Episode:
    turns = [
        Turn(
            feedback=f"room {t}",
            admissible_commands=DOORS,
            command=command,
            reason="because" if reasons else "",
            reward=float(won and t == len(commands) - 1),
        )
        for t, command in enumerate(commands)
    ]
    return Episode(
        game_id="doors", split="train", task_type="walk", task="get out.", success=won, truncated=not won, turns=turns
    )


#: Q-hat of the first room at gamma .5: left (.5 + 0) / 2, right 1; middle was not tried.
PLAYED = [
    episode("left", "left", won=True, reasons=True),
    episode("left", "right", won=False),
    episode("right", won=True),
]


@pytest.fixture(scope="module")
def demos(generated_games: GameList) -> list[Episode]:
    return demonstrations(generated_games, 3)


def test_stepwise_rows_by_hand():
    first, second, third = stepwise_rows(PLAYED, q_table(PLAYED, gamma=0.5))
    assert (first["values"], first["labels"]) == ([0.25, 1.0], [True, True])
    assert (second["values"], second["labels"]) == ([0.25, 0.0], [True, False])
    assert (third["values"], third["labels"]) == ([1.0], [True])
    prompt = TextPrompt("full")
    assert first["prompt"] == prompt.prompt("get out.", "room 0", DOORS, True)
    assert first["completions"][0] == "REASON: because\nACTION: left"
    assert (
        first["completions"][1] == prompt.prompt("get out.", "room 1", DOORS, False) + "\nREASON: because\nACTION: left"
    )
    strict = list(stepwise_rows(PLAYED, q_table(PLAYED, gamma=0.5), threshold=0.25))
    assert [row["labels"] for row in strict] == [[False, True], [False, False], [True]]


def test_preference_rows_by_hand():
    table = q_table(PLAYED, gamma=0.5)
    first, second = preference_rows(PLAYED, table)
    assert (first["chosen_value"], first["rejected_value"]) == (1.0, 0.25)
    assert [first[k][0]["content"] for k in ("chosen", "rejected")] == ["ACTION: right", "ACTION: left"]
    assert [one["role"] for one in first["prompt"]] == ["user"]
    assert [one["role"] for one in second["prompt"]] == ["user", "assistant", "user"]
    assert [second[k][0]["content"] for k in ("chosen", "rejected")] == ["ACTION: left", "ACTION: right"]
    assert [row["rejected_value"] for row in preference_rows(PLAYED, table, min_gap=0.8)] == [0.0]
    assert list(preference_rows(PLAYED, table, min_visits=2)) == []
    with pytest.raises(ValueError, match="min_gap"):
        list(preference_rows(PLAYED, table, min_gap=0))


def test_value_rows_by_hand():
    rows = list(value_rows(PLAYED, q_table(PLAYED, gamma=0.5)))
    assert [(row["turn"], row["q_hat"], row["visits"]) for row in rows] == [
        (0, [0.25, None, 1.0], [2, 0, 1]),
        (1, [1.0, None, 0.0], [1, 0, 1]),
    ]
    assert rows[0]["commands"] == list(DOORS)
    assert rows[0]["q_star"] == [None, None, None]
    keys = state_keys("get out.", PLAYED[0].turns)
    assert [row["state"] for row in rows] == [key.hex() for key in keys]
    assert [one["role"] for one in rows[1]["messages"]] == ["user", "assistant", "user"]
    known = list(value_rows(PLAYED, q_table(PLAYED), optimal={keys[1]: {"left": 1.0, "right": 0.0}}))
    assert known[1]["q_star"] == [1.0, None, 0.0]


def test_a_branch_counts_from_where_it_was_branched():
    """The first turn of the second episode was played by the first one."""
    table = q_table(PLAYED[:2], gamma=0.5, first_turns=[0, 1])
    assert next(value_rows(PLAYED[:2], table))["visits"] == [1, 0, 0]


def test_optimal_values_are_the_planners(generated_games: GameList):
    (demo,) = demonstrations(generated_games, 1, expert="planner")
    known = optimal_values([demo], gamma=0.9, games="generated")
    keys = state_keys(demo.task, demo.turns)
    n = len(keys)
    for t, (key, turn) in enumerate(zip(keys, demo.turns, strict=True)):
        best = max(known[key].values())
        assert best == pytest.approx(0.9 ** (n - 1 - t))
        assert known[key][turn.command] == best  # the planner plays best commands
        assert set(known[key]) == set(turn.admissible_commands)
    assert any(min(known[key].values()) < max(known[key].values()) for key in keys)
    assert optimal_values(PLAYED, games="generated") == {}  # no such game


def test_conversations_come_back_whole(demos: list[Episode]):
    rows = list(chat_rows(demos))
    assert [one["role"] for one in rows[0]["messages"][:3]] == ["user", "assistant", "user"]
    back = list(episodes_of_chats(json.loads(json.dumps(rows)), games="generated"))
    for demo, again in zip(demos, back, strict=True):
        assert (again.game_id, again.success, again.policy) == (demo.game_id, True, demo.policy)
        said = [(t.feedback, t.admissible_commands, t.reason, t.command, t.reward) for t in demo.turns]
        assert [(t.feedback, t.admissible_commands, t.reason, t.command, t.reward) for t in again.turns] == said


def test_conversations_of_other_games_are_refused(demos: list[Episode]):
    (row, *_) = chat_rows(demos)
    with pytest.raises(ValueError, match="row 0 lacks"):
        list(episodes_of_chats([{**row, "game_id": None}], games="generated"))
    other = next(i for i in find_games("train", "generated").game_ids if i != row["game_id"])
    with pytest.raises(ValueError, match=r"row 0: game .* says"):
        list(episodes_of_chats([{**row, "game_id": other}], games="generated"))
    longer = {**row, "messages": [*row["messages"], *row["messages"][-2:]]}
    with pytest.raises(ValueError, match="row 0"):
        list(episodes_of_chats([longer], games="generated"))


def test_lost_episodes_are_chosen():
    assert [row["success"] for row in chat_rows(PLAYED)] == [True, True]
    assert [row["success"] for row in chat_rows(PLAYED, only_won=False)] == [True, False, True]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_files_hold_the_rows(name: str, tmp_path: Path, demos: list[Episode]):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    rows = list(value_rows(demos, q_table(demos)))
    assert write_rows(tmp_path / name, rows) == len(rows)
    assert read_rows(tmp_path / name) == rows
    write_rows(tmp_path / name, [one.to_dict() for one in [*demos, *PLAYED]])
    assert list(episodes_of_rows(read_rows(tmp_path / name))) == [*demos, *PLAYED]


def test_names_and_rows_that_are_something_else(tmp_path: Path):
    with pytest.raises(ValueError, match=r"\.jsonl\.gz or \.parquet"):
        write_rows(tmp_path / "a.csv", [])
    with pytest.raises(ValueError, match="row 0 is no episode"):
        list(episodes_of_rows([{"text": "hm"}]))
    with pytest.raises(FileNotFoundError, match="no episodes"):
        found_episodes([tmp_path])


def test_a_runs_folder_says_what_was_history(tmp_path: Path):
    folder = tmp_path / "resume" / "gathered_1"
    write_episodes(folder / "episodes.jsonl.gz", PLAYED[:2])
    rows = [{"part": "trunk", "n_history": n, "rewards": []} for n in (0, 1)]
    (folder / "rollouts.json").write_text(json.dumps({"parts": ["trunk"], "rollouts": rows}))
    write_episodes(tmp_path / "demos.jsonl.gz", PLAYED[2:])
    episodes, histories = found_episodes([tmp_path])
    assert (episodes, histories) == ([PLAYED[2], *PLAYED[:2]], [0, 0, 1])


def test_a_runs_folder_is_read_without_what_is_there_twice(tmp_path: Path) -> None:
    for name, played in (("gathered_1", PLAYED[:1]), ("gathered_1_2", PLAYED[:2]), ("gathered_10", PLAYED[2:])):
        write_episodes(tmp_path / "resume" / name / "episodes.jsonl.gz", played)
    write_episodes(tmp_path / "diverged.jsonl.gz", PLAYED)
    assert found_episodes([tmp_path])[0] == [*PLAYED[2:], *PLAYED[:2]]


def test_the_command_line(cli: Cli):
    assert cli("demos", "--games", "generated", "--n", 2, "--out", "demos.jsonl.gz").status == 0
    for to in ("stepwise", "preferences", "values", "chat", "episodes"):
        done = cli(
            "export-data", "demos.jsonl.gz", "--to", to, "--out", f"{to}.jsonl", "--games", "generated", "--q-star"
        )
        assert done.status == 0, done.err
        assert f"rows ({to}) of 2 episodes" in done.out
    (demo, _) = read_episodes("demos.jsonl.gz")
    rows = read_rows("values.jsonl")
    assert all(value is not None for row in rows for value in row["q_star"])
    for kind in ("chat", "episodes"):
        done = cli("export-data", f"{kind}.jsonl", "--back", "--games", "generated", "--out", f"{kind}.back.jsonl.gz")
        assert done.status == 0, done.err
        again = next(read_episodes(f"{kind}.back.jsonl.gz"))
        assert [t.command for t in again.turns] == [t.command for t in demo.turns]
    again = cli("export-data", "demos.jsonl.gz", "--out", "chat.jsonl")
    assert (again.status, "exists already" in again.err) == (2, True)
    wrong = cli("export-data", "demos.jsonl.gz", "--out", "chat.csv")
    assert (wrong.status, ".parquet" in wrong.err) == (2, True)


# With the real package ------------------------------------------------------------------------------------------------------


def rounded(row: dict[str, Any]) -> Any:
    """A row with its numbers as the readers of JSON agree on them, to 9 digits."""
    return json.loads(json.dumps(row), parse_float=lambda text: round(float(text), 9))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("to", ["stepwise", "preferences", "values", "chat", "episodes"])
def test_datasets_loads_each(to: str, kind: str, tmp_path: Path, demos: list[Episode]) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    played = [*demos, *PLAYED]
    table = q_table(played)
    rows = {
        "stepwise": lambda: stepwise_rows(played, table),
        "preferences": lambda: preference_rows(played, table),
        "values": lambda: value_rows(played, table, optimal=optimal_values(played, games="generated")),
        "chat": lambda: chat_rows(played),
        "episodes": lambda: (one.to_dict() for one in played),
    }[to]
    wanted = list(rows())
    write_rows(tmp_path / f"a.{kind}", wanted)
    reader = {"jsonl": "json", "parquet": "parquet"}[kind]
    loaded = datasets.load_dataset(
        reader, data_files=str(tmp_path / f"a.{kind}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(wanted)
    if to == "episodes":
        assert list(episodes_of_rows(loaded)) == played
    else:
        assert [rounded(row) for row in loaded] == [rounded(row) for row in wanted]
    if to == "stepwise":
        assert loaded.features["labels"].feature == datasets.Value("bool")
    if to == "chat":
        again = list(episodes_of_chats(list(loaded)[: len(demos)], games="generated"))
        assert [one.success for one in again] == [True] * len(demos)
