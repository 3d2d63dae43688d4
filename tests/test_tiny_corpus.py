"""The corpus of the bundled base: what it says is true, and every word has a token."""

from __future__ import annotations

import json
import re
from itertools import islice

import numpy as np
import pytest

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.experts.search import read_task
from agentprm_gym.games import find_games
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.tiny.corpus import PLAYERS, Player, Told, corpus, tell
from agentprm_gym.llm.tiny.pretrain import TYPES_FILE, encoded_stream
from agentprm_gym.llm.tiny.tokenizer import build_tokenizer
from benchmarks.base_probes import probes


def told(kind: str, player: Player | None = None, n: int = 12) -> list[Told]:
    games = find_games("train", "generated")
    players = PLAYERS if player is None else ((player, 1.0),)
    return [tell(games[i], np.random.default_rng(i), 25, {kind: 1.0}, players) for i in range(n)]


def said(turn: Turn, what: str) -> str | None:
    found = re.search(rf"{what}: ([^.]*)\.?(?: Please|$)", turn.feedback)
    return None if found is None else found[1]


def test_the_same_seed_tells_the_same_and_another_one_does_not() -> None:
    first, again, other = ([list(t.turns) for t in islice(corpus(seed), 3)] for seed in (4, 4, 5))
    assert first == again != other


@pytest.mark.parametrize("kind", ["asked", "task", "own"])
def test_commands_are_possible_and_the_task_line_is_what_the_kind_says(kind: str) -> None:
    lines, asked = set[int](), 0
    for story in told(kind):
        assert all(turn.command in turn.admissible_commands for turn in story.turns)
        lines.add(len(set(story.tasks)))
        asked += sum("Please: " in turn.feedback for turn in story.turns)
    assert (max(lines) > 1) == (kind == "task")
    assert (asked > 0) == (kind == "asked")


def test_a_good_player_does_what_it_was_asked_for() -> None:
    takes, wanted = 0, 0
    for story in told("asked", Player(noise=0.0), n=20):
        errand = None
        for turn in story.turns:
            errand = said(turn, "Please") or errand
            if errand and turn.command.startswith("take "):
                takes += 1
                wanted += turn.command.split()[1] == read_task(errand + ".").object_type
    assert takes > 20
    assert wanted == takes


def test_remarks_are_about_what_the_transcript_shows() -> None:
    remarks = dict.fromkeys(("again", "none", "wrong", "found", "done"), 0)
    for story in told("task", n=40):
        seen = set[str]()
        for before, turn, line in zip(story.turns, story.turns[1:], story.tasks, strict=False):
            remark = said(turn, "Say")
            goal, words = read_task(line), before.command.split()
            place = " ".join(words[-2:])
            if remark:
                remarks[remark] += 1
            if remark in ("again", "none"):
                assert (place in seen) == (remark == "again")
                assert f"a {goal.object_type} " not in turn.feedback
            elif remark == "found":
                assert f" {goal.object_type} " in turn.feedback
            elif remark == "wrong" and words[0] == "take":
                assert words[1] != goal.object_type
            elif remark == "done":
                assert words[0] in ("move", "put", "use")
            if "you see" in turn.feedback:
                seen.add(place)
    assert min(remarks.values()) > 0


def test_every_word_of_the_corpus_is_a_token() -> None:
    tokenizer = build_tokenizer(json.loads(TYPES_FILE.read_text()))
    stream = encoded_stream(1, PromptFormat(tokenizer, "compact"))
    used = {i for ids, _ in islice(stream, 60) for i in ids}
    assert not [token for token in tokenizer.convert_ids_to_tokens(sorted(used)) if token.startswith("<0x")]


def test_probes_count_by_hand() -> None:
    steps = [
        ("Your task is to: put a mug in shelf.", "go to desk 1"),
        ("On the desk 1, you see a pen 1.", "take pen 1 from desk 1"),
        ("You pick up the pen 1 from the desk 1.", "move pen 1 to desk 1"),
        ("You move the pen 1 to the desk 1.", "go to bed 1"),
        ("On the bed 1, you see a mug 1.", "go to desk 1"),  # seen, and no mug there
        ("On the desk 1, you see a pen 1.", "go to bed 1"),  # seen, but there is a mug
        ("On the bed 1, you see a mug 1.", "take mug 1 from bed 1"),
        ("You pick up the mug 1 from the bed 1.", "go to desk 1"),  # with something in the hand
        ("On the desk 1, you see a pen 1.", "look"),
        ("You are facing the desk 1.", "look"),
    ]
    turns = [Turn(feedback=feedback, admissible_commands=(command,), command=command) for feedback, command in steps]
    episode = Episode(game_id="x", split="train", task_type="", task="put a mug in shelf.", success=False, turns=turns)
    assert probes([episode]) == {"other_type": 1 / 2, "returns": 1 / 4, "repeats": 1 / 10, "takes": 2.0}
