"""Kinds of models whose numbers went wrong without a word: acting, training, merging, exporting and the library agree.

GPT-2 has dropout of its own. A model with tied embeddings has adapters on every module. Phi-3 changes its rotary positions in
long texts, and Gemma 3 has windows; transcripts here are longer than either.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from stable_baselines3.common.logger import configure
from transformers import AutoModelForCausalLM

from agentprm_gym.episodes import Episode
from agentprm_gym.llm import AdapterMismatchError, LanguageModel, UnsupportedModelError
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.saving import SavedModel, check_base
from agentprm_gym.llm.scoring import Responder, episode_log_probs, score_turns
from algorithms import GRPO
from tests.algorithm_helpers import make_model, make_toy
from tests.llm_helpers import (
    ROPE_SWITCH,
    SPECIAL,
    WAYS,
    act,
    brute_force,
    brute_force_score,
    make_episodes,
    prefixes,
    randomise,
    save_architecture,
    save_special,
)


@pytest.fixture(scope="module", params=sorted(SPECIAL))
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_special(tmp_path_factory.mktemp(kind), kind)


def load(folder: str, kind: str, **kwargs: Any) -> LanguageModel:
    lm = LanguageModel.load(folder, **{"template": "full", **kwargs})
    lm.add_adapter("policy", {"target_modules": SPECIAL[kind]})
    randomise(lm, "policy")
    return lm


def long_episode() -> Episode:
    """An episode whose transcript begins within the limit of Phi-3's rotary positions and ends beyond it."""
    first, *others = make_episodes(6, seed=2)
    return replace(first, turns=[t for e in (first, *others) for t in e.turns][:9])


def logits(lm: LanguageModel, adapter: str | None, ids: list[int]) -> torch.Tensor:
    with torch.no_grad(), lm.active(adapter):
        return lm.logits(lm.hidden(pack([TokenTree(ids)], 0)))[0]


# ---------------------------------------------------------------------- one distribution
@pytest.mark.ci
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}{'+reason' * way[1]}")
def test_acting_equals_training(folder: str, kind: str, way: tuple[str, bool]) -> None:
    """Cached and merged while acting; in one pass, with gradients, while training."""
    mode, reasons = way
    lm = load(folder, kind, reasons=reasons, template="full" if reasons else "compact")
    episode = long_episode()
    for episodes in ([episode], [episode, *make_episodes(2)]):
        with lm.merged("policy"):
            played = act(lm, mode, episodes)
        responder = Responder(lm, mode, max_new_tokens=12)
        (passage,) = responder.encode(played[0].task, played[0].turns)
        assert ROPE_SWITCH < passage.prompt_end[-1]
        assert reasons or passage.prompt_end[0] < ROPE_SWITCH
        with lm.active("policy", train=True):
            scored = score_turns(responder, played)
        for done, scores in zip(played, scored, strict=True):
            for turn, score in zip(done.turns, scores, strict=True):
                assert score.log_prob.requires_grad or not len(score.choices)
                assert turn.log_prob == pytest.approx(
                    float(score.log_prob.detach()), abs=1e-4 * max(1, len(score.free))
                )


def test_the_distributions_are_those_of_the_definition(folder: str, kind: str) -> None:
    """Token by token, and command by command, with the library's own forward pass on the whole text."""
    lm = load(folder, kind, template="compact")
    episode = long_episode()
    with torch.no_grad(), lm.active("policy"):
        (constrained,) = episode_log_probs(Responder(lm), [episode])
        (scored,) = episode_log_probs(Responder(lm, "score"), [episode])
        for t in (0, len(episode.turns) - 1):
            prefix, commands = prefixes(lm, episode)[t], episode.turns[t].admissible_commands
            torch.testing.assert_close(constrained[t], brute_force(lm, prefix, commands), atol=1e-4, rtol=0)
            torch.testing.assert_close(scored[t], brute_force_score(lm, prefix, commands, "sum"), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_peft_on_the_librarys_model_gives_the_same_numbers(folder: str, kind: str, tmp_path: Path) -> None:
    """Nothing of ours runs on the other side: neither the base, which may have been changed here, nor the adapters."""
    lm = load(folder, kind)
    lm.export_adapter("policy", tmp_path)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path)).eval()
    ids = [3 + i * 7 % 90 for i in range(ROPE_SWITCH + 20)]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits(lm, "policy", ids), expected, atol=1e-4, rtol=0)
    assert (logits(lm, None, ids) - expected).abs().max() > 1e-2


def test_merged_equals_active(folder: str, kind: str) -> None:
    lm = load(folder, kind)
    ids = [3 + i * 7 % 90 for i in range(ROPE_SWITCH + 20)]
    base, policy = logits(lm, None, ids), logits(lm, "policy", ids)
    with lm.merged("policy"):
        torch.testing.assert_close(logits(lm, "policy", ids), policy, atol=1e-5, rtol=0)
    assert torch.equal(logits(lm, None, ids), base)
    assert torch.equal(logits(lm, "policy", ids), policy)


def test_an_exported_model_is_the_merged_one_and_not_its_base(folder: str, kind: str, tmp_path: Path) -> None:
    lm = load(folder, kind)
    lm.export_merged("policy", tmp_path)
    ids = [3 + i * 7 % 90 for i in range(ROPE_SWITCH + 20)]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=torch.tensor([ids])).logits[0], logits(lm, "policy", ids), atol=1e-4, rtol=0
        )
    again = LanguageModel.load(str(tmp_path))
    torch.testing.assert_close(logits(again, None, ids), logits(lm, "policy", ids), atol=1e-4, rtol=0)
    saved = SavedModel({"base": lm.identity})
    check_base(saved, lm.name, lm.fingerprint, "x.zip")
    with pytest.raises(AdapterMismatchError, match=r"x\.zip was trained on the base model"):
        check_base(saved, again.name, again.fingerprint, "x.zip")
    # A save of version 0.1 knows the embeddings only, which an adapter need not change.
    old = SavedModel({"base": {"name": lm.name, "fingerprint": lm.fingerprint.partition("-")[0]}})
    check_base(old, lm.name, lm.fingerprint, "x.zip")
    with pytest.raises(AdapterMismatchError, match=r"x\.zip was trained on the base model"):
        check_base(old, again.name, again.fingerprint, "x.zip")


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.25)])
def test_half_precision_differs_by_rounding_only(dtype: str, allowed: float) -> None:
    """For each choice of a response; docs/architecture.md has the figures that were measured."""
    lm = LanguageModel.load("tiny", dtype=dtype)
    lm.add_adapter("policy")
    randomise(lm, "policy", 0.02)
    worst = 0.0
    for mode in ("constrained", "score", "generate"):
        with lm.merged("policy"):
            played = act(lm, mode, make_episodes(5))
        with torch.no_grad(), lm.active("policy"):
            scored = score_turns(Responder(lm, mode, max_new_tokens=12), played)
        for episode, scores in zip(played, scored, strict=True):
            for turn, score in zip(episode.turns, scores, strict=True):
                gap = abs(float(turn.log_prob or 0) - float(score.log_prob))
                worst = max(worst, gap / max(1, len(score.choices)))
    assert 0 < worst < allowed


# ---------------------------------------------------------------------- every part of an adapter
def test_optimizers_and_saves_see_the_same_tensors(folder: str, kind: str) -> None:
    lm = load(folder, kind)
    lm.add_adapter("pol", {"r": 2, "target_modules": SPECIAL[kind]})  # its name is a part of the other's
    parameters, state = lm.adapter_parameters("policy"), lm.adapter_state("policy")
    assert [tuple(p.shape) for p in parameters] == [tuple(t.shape) for t in state.values()]
    with lm.active("policy", train=True):
        logits_ = lm.logits(lm.hidden(pack([TokenTree([5, 9, 12, 7])], 0)))
        logits_.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    assert all(p.grad is None for p in lm.adapter_parameters("pol"))
    assert {p.grad is None for key, p in lm.base.named_parameters() if "lora_" not in key} == {True}


# ---------------------------------------------------------------------- dropout of the base
def test_the_first_update_compares_a_policy_with_itself(tmp_path: Path) -> None:
    """GPT-2 drops a tenth of everything by default; ratios are 1 before any step, and so is the reference's."""
    folder = save_special(tmp_path, "gpt2")
    settings = {"policy_kwargs": {"template": "compact"}, "learning_rate": 1e-12, "clip_range": 1e-4, "beta": 0.1}
    model = make_model(GRPO, folder, make_toy(8), **settings)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(1)
    model.logger.close()
    assert model.lm.base.config.resid_pdrop == 0.1
    recorded: dict[str, float] = {}
    for line in (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines():
        recorded |= json.loads(line)
    assert recorded["train/n_updates"] > 0
    assert recorded["train/clip_fraction"] == 0
    assert abs(recorded["train/approx_kl"]) < 1e-9
    assert abs(recorded["train/kl"]) < 1e-9


def test_dropout_of_an_adapter_is_on_where_it_is_asked_for(tmp_path: Path) -> None:
    lm = LanguageModel.load(save_special(tmp_path, "tied"))
    lm.add_adapter("policy", {"lora_dropout": 0.5, "target_modules": SPECIAL["tied"]})
    randomise(lm, "policy")
    ids = [3, 10, 17, 24]

    def again() -> torch.Tensor:
        return lm.logits(lm.hidden(pack([TokenTree(ids)], 0))).detach()

    expected = logits(lm, "policy", ids)[None]
    with lm.active("policy", train=True, dropout=True):
        assert not torch.equal(again(), again())
        assert torch.equal(logits(lm, "policy", ids)[None], expected)  # an evaluation in between
        assert not torch.equal(again(), again())
    with lm.active("policy", train=True):
        assert torch.equal(again(), expected)


# ---------------------------------------------------------------------- limits of length
def test_a_context_within_the_limit_keeps_the_short_positions(tmp_path: Path) -> None:
    folder = save_special(tmp_path, "phi3")
    ids = [3 + i * 7 % 90 for i in range(ROPE_SWITCH - 50)]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).logits[0]
    short = LanguageModel.load(folder, max_context=ROPE_SWITCH)
    torch.testing.assert_close(logits(short, None, ids), theirs, atol=1e-4, rtol=0)
    assert (logits(LanguageModel.load(folder), None, ids) - theirs).abs().max() > 1e-2


def test_dynamic_positions_are_those_of_the_whole_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    folder = save_architecture(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=64)
    lm = LanguageModel.load(folder, max_context=200)
    ids = [3 + i * 7 % 90 for i in range(200)]
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(lm, None, ids), theirs(input_ids=torch.tensor([ids])).logits[0], atol=1e-4, rtol=0
        )
    # A text has the same numbers whatever was read before it, and whatever lies beside it.
    part = logits(lm, None, ids[:90])
    torch.testing.assert_close(part, logits(lm, None, ids)[:90], atol=1e-4, rtol=0)


def test_a_context_beyond_the_models_own_is_refused(tmp_path: Path) -> None:
    folder = save_architecture(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(ValueError, match=r"max_context=600.*at most 512"):
        LanguageModel.load(folder, max_context=600)


def test_a_window_that_the_model_counts_by_itself_is_refused(tmp_path: Path) -> None:
    """GPT-Neo: four tokens pass, a row longer than its window of 256 does not."""
    shape = {"num_layers": 2, "num_heads": 4, "window_size": 256, "max_position_embeddings": 2048}
    local = save_architecture(tmp_path / "local", "gpt_neo", attention_types=[[["global", "local"], 1]], **shape)
    with pytest.raises(UnsupportedModelError, match="window_size=256"):
        LanguageModel.load(local, attn_implementation="eager")
    everywhere = save_architecture(tmp_path / "global", "gpt_neo", attention_types=[[["global"], 2]], **shape)
    LanguageModel.load(everywhere, attn_implementation="eager")
