"""A real language model on the whole path: its chat template and tokens, three ways to act, SFT with reasons, PRMs, GRPO."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm import LanguageModel
from agentprm_gym.llm.aliases import ALIASES
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.scoring import Responder, score_turns
from agentprm_gym.llm.transcripts import encode_turns
from algorithms import GRPO, SFT, AgentPRM, InversePRM
from tests.algorithm_helpers import echo_demonstrations, make_model, make_toy
from tests.cli_helpers import Cli
from tests.llm_helpers import WAYS, act, randomise

NAME = "smollm2-135m"
REAL = ALIASES[NAME]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gguf") is None or REAL.path is None,
        reason=f"needs the real model: {REAL.install} ({REAL.megabytes} MB)",
    ),
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    model = LanguageModel.load(NAME, template="full", reasons=True)
    model.add_adapter("policy")
    randomise(model, "policy", scale=0.01)
    return model


def with_prompt(lm: LanguageModel, template: str, reasons: bool) -> LanguageModel:
    """The same model with another prompt: it takes a while to load."""
    lm.prompt = PromptFormat(lm.tokenizer, template, reasons)
    return lm


@pytest.fixture(scope="module")
def demos() -> list[Episode]:
    return demonstrations(find_games("train", "generated"), 4)


def cut(episode: Episode, n: int) -> Episode:
    """An episode's first turns."""
    return Episode(
        game_id=episode.game_id,
        split=episode.split,
        task_type=episode.task_type,
        task=episode.task,
        success=True,
        turns=episode.turns[:n],
    )


@pytest.mark.parametrize("template", ["full", "react"])
@pytest.mark.parametrize("reasons", [True, False])
def test_transcripts_are_what_the_models_own_chat_template_writes(
    lm: LanguageModel, demos: list[Episode], template: str, reasons: bool
) -> None:
    """Its default system prompt, its marks, and the tokens that its tokenizer makes of the whole conversation at once."""
    prompt = with_prompt(lm, template, reasons).prompt
    for episode in demos:
        (passage,) = encode_turns(prompt, episode.task, episode.turns)
        messages = []
        for t, turn in enumerate(episode.turns):
            said = prompt.prompt_text(episode.task, turn.feedback, turn.admissible_commands, t == 0)
            reason = " ".join(turn.reason.split()) if reasons else ""
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": prompt.response_text(reason, turn.command)})
        text = lm.tokenizer.apply_chat_template(messages, tokenize=False)
        assert "You are a helpful AI assistant named SmolLM" in text
        whole = lm.tokenizer(text, add_special_tokens=False).input_ids
        # What the template writes behind the last answer belongs to the next turn.
        assert whole[: len(passage.ids)] == passage.ids
        assert lm.tokenizer.decode(whole[len(passage.ids) :]).strip() == ""


def test_commands_are_told_apart_down_to_their_last_digit(lm: LanguageModel) -> None:
    with_prompt(lm, "full", True)
    commands = [f"go to cabinet {i}" for i in (1, 2, 11, 12, 21, 112)] + ["look", "inventory", "take cd 1 from desk 1"]
    assert all(len(lm.prompt.command_ids(command)) > 2 for command in commands[:6])
    trie = Responder(lm).trie(commands)
    taken = [tuple(trie.child_token[c] for c in path) for path in trie.command_choices]
    assert len(set(taken)) == len(commands)
    assert lm.tokenizer.decode(lm.prompt.lead + lm.prompt.command_ids("look")) == "ACTION: look<|im_end|>"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}{'-reason' if way[1] else ''}")
def test_acting_and_training_agree(lm: LanguageModel, demos: list[Episode], way: tuple[str, bool]) -> None:
    mode, reasons = way
    model = with_prompt(lm, "full", reasons)
    (played,) = act(model, mode, [cut(demos[0], 3)])
    with torch.no_grad(), model.active("policy"):
        (scores,) = score_turns(Responder(model, mode, max_new_tokens=12), [played])
    for turn, score in zip(played.turns, scores, strict=True):
        assert turn.log_prob == pytest.approx(float(score.log_prob), abs=2e-3)


def test_scores_by_sum_are_sharp_and_those_by_token_nearly_even(lm: LanguageModel, demos: list[Episode]) -> None:
    """Before it is trained: docs/acting.md says so. 1 is all commands alike."""
    model, spread = with_prompt(lm, "full", False), {}
    for normalization in ("sum", "token"):
        with torch.no_grad():
            rows = score_turns(Responder(model, "score", normalization), [cut(demo, 2) for demo in demos])
        logs = [score.commands for scores in rows for score in scores]
        spread[normalization] = [float(-(log.exp() * log).sum() / np.log(len(log))) for log in logs]
    assert np.mean(spread["sum"]) < 0.5
    assert min(spread["token"]) > 0.75


def test_sft_with_reasons_learns() -> None:
    shown = echo_demonstrations()[:2]
    for episode in shown:
        for turn in episode.turns:
            turn.reason = "I say the word that I see."
    kwargs = {"template": "react", "reason": True, "lora": {"r": 8}}
    model = SFT(NAME, make_toy(1), 1e-3, shown, batch_size=2, micro_batch_size=1, policy_kwargs=kwargs, seed=0)

    def loss() -> float:
        with torch.no_grad(), model.lm.active("policy"):
            return float(model.loss_sum(model._read_demonstrations()))

    before = loss()
    with pytest.warns(UserWarning, match="begin with about 1e-4"):  # few updates, all of them warming up
        model.learn(4 * sum(len(episode.turns) for episode in shown))
    assert loss() < 0.95 * before


#: What makes the runs short.
TINY: dict[type, dict[str, Any]] = {
    GRPO: {"n_games": 1, "group_size": 2},
    AgentPRM: {"rollout": {"n_games": 3, "n_repeats": 1, "n_branch_states": 2}, "n_validation_games": 0},
    InversePRM: {"rollout": {"n_games": 2, "n_repeats": 1}},
}


@pytest.mark.parametrize(
    ("algorithm", "options", "policy"),
    [
        (GRPO, {}, {"action_mode": "constrained"}),
        (GRPO, {}, {"action_mode": "constrained", "reason": True}),
        (GRPO, {}, {"action_mode": "score", "score_normalization": "token"}),
        (GRPO, {}, {"action_mode": "generate"}),
        (AgentPRM, {"prm": {"form": "scalar", "learning_rate": 1e-4}}, {}),
        (AgentPRM, {"prm": {"form": "log_prob", "learning_rate": 1e-4}}, {"reason": True}),
        (InversePRM, {"prm": {"form": "scalar", "learning_rate": 1e-4}}, {}),
        (InversePRM, {"prm": {"form": "log_prob", "learning_rate": 1e-4}}, {}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "-".join(map(str, x.values())) or "defaults",
)
def test_algorithms_run(algorithm: type, options: dict[str, Any], policy: dict[str, Any], tmp_path: Path) -> None:
    kwargs = {"template": "full", "max_new_tokens": 8, "lora": {"r": 4}, **policy}
    settings = {"learning_rate": 1e-4, **TINY[algorithm], **options}
    model = make_model(algorithm, NAME, make_toy(2), policy_kwargs=kwargs, **settings)
    model.learn(1)
    model.save(tmp_path / "model.zip")
    again = algorithm.load(tmp_path / "model.zip")
    assert again.lm.fingerprint == model.lm.fingerprint
    assert all(bool(torch.isfinite(p).all()) for p in model.lm.adapter_parameters("policy"))


def test_it_plays_react_offline(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ("--max-games", 2, "--max-steps", 2, "--prompt", "react", "--action-mode", "generate", "--out", "out")
    done = cli("eval", "--policy", NAME, "--games", "generated", *words)
    assert done.status == 0, done.err
    with gzip.open(tmp_path / "out" / "episodes.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 and all(turn["response"] for row in rows for turn in row["turns"])
