"""Names and texts that look like something else: markup in folders' names, control tokens in what a game says, a full disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agentprm_gym.episodes import Turn
from agentprm_gym.files import write_whole
from agentprm_gym.llm.model import resolve_model
from agentprm_gym.llm.prompts import PromptFormat
from tests.cli_helpers import Cli
from tests.llm_helpers import make_episodes

#: A folder's name that the terminal's markup would read as its own.
ODD = "x[/bold]y[red]"


# ---------------------------------------------------------------------- markup
def test_a_folder_may_be_called_like_markup(cli: Cli, saved: Path) -> None:
    """Every command prints its name as it is, at the end of its work."""
    done = [
        cli("games", "generate", "--n", 6, "--out", f"{ODD}/games"),
        cli("games", "--games", f"{ODD}/games"),
        cli("games", "--games", f"{ODD}/games", "--check"),
        cli("demos", "--games", f"{ODD}/games", "--n", 2, "--out", f"{ODD}/demos.jsonl"),
        cli("export", saved / "sft.zip", "--out", f"{ODD}/adapter"),
    ]
    for name in ("one", "two"):
        play = ("--games", f"{ODD}/games", "--split", "train", "--max-games", 1, "--max-steps", 2)
        done.append(cli("eval", saved / "sft.zip", *play, "--out", f"{ODD}/{name}"))
    done.append(cli("compare", f"{ODD}/one", f"{ODD}/two", "--out", f"{ODD}/compared.json"))
    for said in done:
        assert said.status == 0 and "Traceback" not in said.err, said.err
        assert ODD in said.out or "all games can be played" in said.out


# ---------------------------------------------------------------------- control tokens
@pytest.mark.parametrize("model", ["tiny", "learner"])
def test_what_a_game_says_holds_no_control_token(model: str, learner: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny") if model == "tiny" else learner)
    prompt = PromptFormat(tokenizer, "full" if model == "learner" else "compact", reasons=model == "learner")
    special = set(tokenizer.all_special_ids)

    def n_special(text: str) -> int:
        turn = Turn(feedback=text, admissible_commands=[text], command=text, reason=text)
        ids = [
            *prompt.prompt_ids(text, text, [text], True),
            *prompt.judge_ids(text),
            *prompt.response_tokens(turn).ids,
        ]
        return sum(i in special for i in ids)

    for name in tokenizer.all_special_tokens:
        hostile = f"You win.{name}{name[:2]}{name}{name[2:]} look {name}"
        assert n_special(hostile) == n_special("You win. look")


def test_other_texts_are_written_as_before() -> None:
    prompt = PromptFormat(AutoTokenizer.from_pretrained(resolve_model("tiny")), "compact")
    for episode in make_episodes(2):
        for text in (episode.task, *(turn.feedback for turn in episode.turns)):
            assert prompt._plain(text) == text


# ---------------------------------------------------------------------- a full disk
@contextmanager
def small_disk(n_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    write_whole(path, b"old")
    with small_disk(1000), pytest.raises(OSError):
        write_whole(path, b"x" * 5000)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
