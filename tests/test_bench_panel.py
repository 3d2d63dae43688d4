"""Panel files: the same bytes, the same states, hashes that are checked, texts that are made again from a user's games."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agentprm_gym.bench import Labels
from agentprm_gym.bench import panel as panels
from agentprm_gym.bench.panel import PanelError, content_hash, read_panel, replay, write_panel
from agentprm_gym.games import find_games
from agentprm_gym.games.generation.writing import write_games
from tests.bench_helpers import small_panel, state_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl.gz"
    write_panel(path, small_panel(), name="small", version=3)
    return path


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def rewrite(path: Path, found: list[Any]) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in found).encode() + b"\n"))


def test_a_panel_comes_back_as_it_was(file: Path) -> None:
    found = read_panel(file)
    assert (found.name, found.version, found.labels) == ("small", 3, ("oracle", "on_policy"))
    assert found.states == small_panel()


def test_the_same_states_give_the_same_bytes(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "deeper" / "again.jsonl.gz"
    digest = write_panel(other, read_panel(file).states, name="small", version=3)
    assert other.read_bytes() == file.read_bytes()
    assert digest == read_panel(other).sha256 == rows(other)[0]["sha256"]
    assert not list(other.parent.glob("*.part"))


def test_the_header_says_what_is_in_it(file: Path) -> None:
    header = rows(file)[0]
    assert list(header) == ["panel", "version", "format", "labels", "n_states", "texts", "grammar", "sha256"]
    assert header["n_states"] == len(rows(file)) - 1 == len(small_panel())
    assert header["labels"] == ["oracle", "on_policy"]


def test_a_changed_label_is_noticed(file: Path) -> None:
    found = rows(file)
    found[5]["labels"]["oracle"]["values"][0] = 0.123
    rewrite(file, found)
    with pytest.raises(PanelError, match=r"small.jsonl.gz.*hash .* changed or cut off.*get the file again"):
        read_panel(file)


def test_files_that_are_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no panel 'nowhere': expected 'generated' or 'real'"):
        read_panel("nowhere")
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("no gzip")
    with pytest.raises(PanelError, match="is not a panel"):
        read_panel(plain)
    plain.write_bytes(file.read_bytes()[:400])
    with pytest.raises(PanelError, match="is not a panel"):
        read_panel(plain)
    rewrite(plain, [{"panel": "x"}])
    with pytest.raises(PanelError, match="its first row must have panel, version"):
        read_panel(plain)
    found = rows(file)
    found[0]["format"] = 2
    rewrite(plain, found)
    with pytest.raises(PanelError, match="has format 2, and this version of agentprm-gym reads format 1"):
        read_panel(plain)


def test_a_shipped_panel_of_another_version_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "panels").mkdir()
    shutil.copy(file, tmp_path / "panels" / "generated_v1.jsonl.gz")
    monkeypatch.setattr(panels.resources, "files", lambda _: tmp_path)
    with pytest.raises(PanelError, match=r"version 3 of the panel 'small'.*about version 1"):
        read_panel("generated")
    monkeypatch.setitem(panels.SHIPPED, "generated", 2)  # type: ignore[misc]
    with pytest.raises(FileNotFoundError, match="install agentprm-gym again"):
        read_panel("generated")


def test_what_cannot_be_written_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    state = small_panel()[0]
    for bad, message in (
        ([state, state], "two states are called"),
        ([state_of([0.5, float("nan")])], "cannot be written as JSON"),
        ([dataclasses.replace(state, labels={"oracle": Labels(values=(0.5,))})], "has 1 oracle labels for"),
        ([dataclasses.replace(state, steps_to_go=(1,))], "has 1 steps_to_go for"),
    ):
        with pytest.raises(PanelError, match=message):
            write_panel(file, bad, name="small")
    assert file.read_bytes() == before


# Without texts -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Path, Path]:
    """A panel without texts of games on disk, and the folder of these."""
    root = tmp_path / "data"
    write_games(root, 3)
    states = []
    for game in find_games("train", root):
        for t in range(4):
            history = replay(game, game.walkthrough[:t])
            state = state_of(
                [0.5] * len(history[-1].admissible_commands), name=f"{game.game_id}/{t}", game=game.game_id
            )
            states.append(dataclasses.replace(state, task=game.task, history=history))
    path = tmp_path / "bare.jsonl.gz"
    write_panel(path, states, name="bare", texts=False)
    return path, root


def test_texts_are_made_again(bare: tuple[Path, Path]) -> None:
    path, root = bare
    assert b"You are in the middle" not in gzip.decompress(path.read_bytes())
    done: list[tuple[int, int]] = []
    found = read_panel(path, games=root, on_state=lambda i, n: done.append((i, n)))
    assert done[-1] == (12, 12)
    for state, row in zip(found.states, rows(path)[1:], strict=True):
        assert "Your task is to" in state.history[0].feedback
        assert state.history[-1].command == "" and list(state.played()) == row["played"]
        assert content_hash(state.task, state.history) == row["content"]


def test_a_game_with_other_texts_is_named(bare: tuple[Path, Path]) -> None:
    path, root = bare
    games = find_games("train", root)
    changed = Path(str(games[1].path))
    text = changed.read_text()
    assert games[1].task in text
    changed.write_text(text.replace(games[1].task, "put some thing somewhere."))
    with pytest.raises(
        PanelError, match=f"the game '{games[1].game_id}' of split 'train' gives other texts.*alfworld-download"
    ):
        read_panel(path, games=root)


def test_a_missing_game_is_named(bare: tuple[Path, Path]) -> None:
    path, root = bare
    games = find_games("train", root)
    name = games[0].game_id
    shutil.rmtree(Path(str(games[0].path)).parents[1])
    with pytest.raises(PanelError, match=f"needs the game '{name}' of split 'train', which is not among the 2 games"):
        read_panel(path, games=root)


def test_the_wording_is_the_panels(bare: tuple[Path, Path], tmp_path: Path) -> None:
    """A user whose files have the other wording gets the texts that were labelled."""
    _, root = bare
    game = find_games("train", root, grammar="2.1.1")[0]
    history = replay(game, game.walkthrough[:2])
    state = state_of([0.5] * len(history[-1].admissible_commands), game=game.game_id)
    state = dataclasses.replace(state, task=game.task, history=history)
    path = tmp_path / "older.jsonl.gz"
    write_panel(path, [state], name="older", texts=False, grammar="2.1.1")
    found = read_panel(path, games=root)
    assert found.grammar == "2.1.1" and found.states == (state,)


def test_without_data_the_user_is_told(
    bare: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="set ALFWORLD_DATA"):
        read_panel(bare[0])
