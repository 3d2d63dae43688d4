"""Texts of games, models and servers reach the terminal and TensorBoard as they are, and are never obeyed there."""

from __future__ import annotations

import importlib
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

import agentprm_gym  # noqa: F401
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.plain_text import cell, plain, whole
from algorithms.cli.output import PlainConsole
from algorithms.common.shell.logs import episode_markdown
from tests.odd_game import odd_data

entry = importlib.import_module("algorithms.cli.main")

ODD = {
    "an escape": "\x1b[2J\x1b[31m",
    "a title": "\x1b]0;owned\x07",
    "the clipboard": "\x1b]52;c;b3duZWQ=\x1b\\",
    "a link": "\x1b]8;;http://evil\x1b\\",
    "8-bit control": "\x9b2J\x9d52;c;x\x9c",
    "back and over": "rm\b\b\rls",
    "NUL and bell": "\x00\x07",
    "right to left": "\u202egnp.exe\u202c",
    "isolates": "\u2066x\u2069",
    "marks": "\u200e\u200f\u061c",
    "tags": "\U000e0041\U000e0042",
    "separators": "\u2028\u2029",
    "halves": "\ud800\udfff",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_plain_leaves_nothing_that_is_obeyed(odd: str) -> None:
    said = plain(f"a{odd}b\tc\nd caf\u00e9 \U0001f600 \u65e5\u672c")
    assert said.startswith("a\ufffd" if odd != ODD["back and over"] else "arm\ufffd")
    assert said.endswith("b\tc\nd caf\u00e9 \U0001f600 \u65e5\u672c")
    assert all(unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in said if sign not in "\t\n")
    said.encode()
    whole(odd).encode()


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_console_shows_and_does_not_obey(odd: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=False, width=200)
    table = Table(title=odd)
    table.add_column(odd)
    table.add_row(f"cell{odd}")
    for thing in (odd, table, Panel(odd, title=odd, subtitle=odd)):
        console.print(thing, markup=False, highlight=False)
    with Progress(console=console) as bars:
        bars.add_task(odd.replace("[", "("), total=1)
    console.print_json(json.dumps({"a": "b"}))
    assert not [sign for sign in out.getvalue() if sign != "\n" and plain(sign) != sign]
    out.getvalue().encode()


def test_a_consoles_own_colours_stay() -> None:
    out = io.StringIO()
    PlainConsole(file=out, force_terminal=True, color_system="standard", _environ={}).print(
        "[red]a\x1b[2J[/]", highlight=False
    )
    assert out.getvalue() == "\x1b[31ma\ufffd[2J\x1b[0m\n"


def test_rendering_an_environment_obeys_nothing(tmp_path: Path, capsys: Any) -> None:
    data = odd_data()
    data["grammar"] = data["grammar"].replace("You pick up", "\\u001bc\\u0007 \\u202e You pick up")
    path = tmp_path / "train" / "pick_and_place_simple-odd-room-0" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    for mode in ("ansi", "human"):
        env: Any = gym.make("ALFWorld-v0", games=str(tmp_path), split="train", engine="textworld", render_mode=mode)
        env.reset(options={"game": 0})
        env.step("go to sidetable 1")
        observation = env.step("take pan 1 from sidetable 1")[0]
        assert "\x1bc\x07" in observation["feedback"]  # what a model reads stays as the game said it
        env.step("\x1b]0;owned\x07")
        shown = env.render() if mode == "ansi" else capsys.readouterr().out
        env.close()
        assert plain(shown) == shown and "\ufffd" in shown


def test_errors_of_the_command_line_obey_nothing(capsys: Any) -> None:
    assert entry.main(["play", "--game", "\x1b[2Jno\u202e such game"]) == 2
    told = capsys.readouterr().err
    assert "such game" in told and not re.search("\x1b\\[2J|\u202e", told)


def test_a_full_memory_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: Any) -> int:
        raise MemoryError

    parser, verbs = entry.build_parser()
    verbs["games"].set_defaults(run=fail)
    monkeypatch.setattr(entry, "build_parser", lambda: (parser, verbs))
    assert entry.main(["games"]) == 2
    assert "the memory is full" in capsys.readouterr().err


MARKDOWN = {
    "an image": "![x](http://evil/a.png)",
    "an image by reference": "![x][1]\n\n[1]: http://evil/a.png",
    "a link": "[x](javascript:alert(1))",
    "HTML": "<img src=http://evil/a.png onerror=alert(1)>",
    "an address": "<http://evil>",
    "a cell": "a | b\n| --- | --- |",
    "code": "`a` ```\nb\n```",
}


@pytest.mark.parametrize("text", MARKDOWN.values(), ids=MARKDOWN)
def test_what_tensorboard_shows_loads_nothing(text: str) -> None:
    markdown = pytest.importorskip("markdown")
    turn = Turn(feedback=text, command=text, reason=text, admissible_commands=[])
    episode = Episode(game_id=text, split="", task_type="", task=text, success=True, policy=text, turns=[turn])
    for source in (cell(text), episode_markdown(episode)):
        html = markdown.markdown(source, extensions=["tables", "fenced_code"])
        assert not re.search(r"<(img|a|script|code|pre)\b", html)
    assert len(re.findall("<td", html)) == 2
