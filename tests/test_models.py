"""Models and adapters at the borders: other people's models and adapters, and other people's tools.

More than 400 lines, since all parts share the small models of several architectures that take most of the time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm import AdapterMismatchError, LanguageModel, UnsupportedModelError
from agentprm_gym.llm.decoder import DeviceMemoryError, Extension, TranscriptDecoder
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.prm import ProcessRewardModel, load_prm
from algorithms.common.acting.actors import PolicyActor, Request
from tests.algorithm_helpers import make_model, make_toy
from tests.llm_helpers import (
    ARCHITECTURES,
    COMMANDS,
    IDS,
    TASK,
    TURNS,
    adapted,
    byte_level_tokenizer,
    judge,
    logits,
    make_episodes,
    randomise,
    save_architecture,
    save_random_model,
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("lm"), request.param, template=None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("llama"), template=None)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("qwen"), "qwen2", template=None)


def peft_model(folder: str, config: Any) -> Any:
    """What a user of PEFT or TRL trains, with weights that are not zero."""
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
class TestAdapterFolders:
    def test_peft_loads_what_is_exported(self, folder: str, tmp_path: Path) -> None:
        lm = adapted(folder)
        lm.export_adapter("policy", tmp_path / "out")
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == folder
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "out")).eval()
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([IDS])).logits[0]
        torch.testing.assert_close(logits(lm, "policy"), expected, atol=1e-5, rtol=1e-5)
        assert (logits(lm, None) - expected).abs().max() > 1e-3

    @pytest.mark.parametrize(
        "lora",
        [
            {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            {"r": 4, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
            {"r": 4, "target_modules": r".*\.(q_proj|down_proj)", "layers_to_transform": [1]},
            {
                "r": 4,
                "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {"v_proj": 9},
            },
            {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
            {"r": 4, "target_modules": ["q_proj"], "lora_dropout": 0.1},
        ],
        ids=["list", "rslora", "regex", "patterns", "embeddings", "dropout"],
    )
    def test_adapters_of_peft_are_read_and_survive_a_copy(
        self, qwen: str, tmp_path: Path, lora: dict[str, Any]
    ) -> None:
        if isinstance(lora["target_modules"], str) and lora["target_modules"] != "all-linear":
            # PEFT itself allows layers_to_transform with lists only; TRL users write the regular expression.
            lora = {k: v for k, v in lora.items() if k != "layers_to_transform"}
        theirs = peft_model(qwen, LoraConfig(task_type="CAUSAL_LM", **lora)).eval()
        theirs.save_pretrained(tmp_path / "in", save_embedding_layers=False)
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([IDS])).logits[0]
        lm = LanguageModel.load(qwen)
        lm.import_adapter("policy", tmp_path / "in")
        torch.testing.assert_close(logits(lm, "policy"), expected, atol=1e-5, rtol=1e-5)
        lm.copy_adapter("policy", "reference")
        torch.testing.assert_close(logits(lm, "reference"), expected, atol=1e-5, rtol=1e-5)
        lm.export_adapter("reference", tmp_path / "again")
        other = LanguageModel.load(qwen)
        other.import_adapter("policy", tmp_path / "again")
        assert torch.equal(logits(other, "policy"), logits(lm, "reference"))
        lm.export_merged("policy", tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        with torch.no_grad():
            torch.testing.assert_close(merged(input_ids=torch.tensor([IDS])).logits[0], expected, atol=1e-5, rtol=1e-4)

    def test_pickles_are_refused_unread(self, qwen: str, tmp_path: Path) -> None:
        peft_model(qwen, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
        with pytest.raises(ValueError, match="pickle"):
            LanguageModel.load(qwen).import_adapter("policy", tmp_path)

    def test_missing_files_are_named(self, qwen: str, tmp_path: Path) -> None:
        lm = LanguageModel.load(qwen)
        with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
            lm.import_adapter("policy", tmp_path / "nowhere")
        save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
            lm.import_adapter("policy", tmp_path)

    def test_other_shapes_are_refused_and_leave_nothing_behind(self, qwen: str, llama: str, tmp_path: Path) -> None:
        adapted(llama, r=4).export_adapter("policy", tmp_path / "llama")
        adapted(qwen, r=4).export_adapter("policy", tmp_path / "qwen")
        wide = save_random_model(tmp_path / "deep", "qwen2", template=None)
        config = json.loads((Path(wide) / "config.json").read_text()) | {"intermediate_size": 96}
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(wide)
        lm = LanguageModel.load(wide)
        before = logits(lm, None)
        with pytest.raises(AdapterMismatchError, match="shape"):
            lm.import_adapter("policy", tmp_path / "qwen")
        assert lm.adapters == []
        assert torch.equal(logits(lm, None), before)
        lm = adapted(qwen, r=8)
        with pytest.raises(AdapterMismatchError, match="r=4"):
            lm.import_adapter("policy", tmp_path / "qwen")
        lm.import_adapter("mine", tmp_path / "qwen")
        assert lm.adapters == ["policy", "mine"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"peft_type": "IA3"}, "IA3"),
            ({"use_dora": True}, "use_dora"),
            ({"bias": "all"}, "bias"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights"),
            ({"some_later_method": {"x": 1}}, "some_later_method"),
            ({"r": 1_000_000_000}, "rank"),
            ({"r": "../../etc"}, "rank"),
            ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
            ({"lora_alpha": "x"}, "lora_alpha"),
        ],
    )
    def test_other_kinds_and_nonsense_are_refused(
        self, qwen: str, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        lm = adapted(qwen, r=4)
        lm.export_adapter("policy", tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ValueError, match=said):
            lm.import_adapter("other", tmp_path)
        assert lm.adapters == ["policy"]

    def test_names_and_patterns_in_the_configuration_are_not_followed(self, qwen: str, tmp_path: Path) -> None:
        """The base is not loaded from where the file says, and no pattern is run: this one would take hours."""
        lm = adapted(qwen, r=4)
        lm.export_adapter("policy", tmp_path)
        file = tmp_path / "adapter_config.json"
        hostile = {"base_model_name_or_path": "/no/such/base", "target_modules": r"(([a-z_.\d]+)+)+!", "revision": "x"}
        file.write_text(json.dumps(json.loads(file.read_text()) | hostile))
        lm.import_adapter("other", tmp_path)
        assert torch.equal(logits(lm, "other"), logits(lm, "policy"))

    def test_adapters_with_new_embeddings_are_refused(self, qwen: str, tmp_path: Path) -> None:
        """As saved after tokens were added: the base here has other embeddings."""
        peft_model(qwen, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path, save_embedding_layers=True)
        with pytest.raises(ValueError, match="not a LoRA weight"):
            LanguageModel.load(qwen).import_adapter("policy", tmp_path)

    def test_other_peft_methods_made_by_peft_are_refused(self, qwen: str, tmp_path: Path) -> None:
        config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        peft_model(qwen, config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="IA3"):
            LanguageModel.load(qwen).import_adapter("policy", tmp_path)

    def test_settings_that_would_not_survive_are_refused_when_an_adapter_is_made(self, qwen: str) -> None:
        lm = LanguageModel.load(qwen)
        with pytest.raises(ValueError, match="use_dora=True"):
            lm.add_adapter("policy", {"use_dora": True})
        with pytest.raises(ValueError, match="pissa"):
            lm.add_adapter("policy", {"init_lora_weights": "pissa"})
        with pytest.raises(ValueError, match="ensure_weight_tying"):
            lm.add_adapter("policy", {"ensure_weight_tying": True})

    def test_the_last_adapter_can_be_removed(self, qwen: str) -> None:
        lm = adapted(qwen)
        expected = logits(lm, None)
        lm.remove_adapter("policy")
        assert lm.adapters == []
        assert torch.equal(logits(lm, None), expected)
        lm.add_adapter("policy")


def prm_logits(prm: ProcessRewardModel, task: str, turns: Sequence[Turn], commands: Sequence[str]) -> torch.Tensor:
    with torch.no_grad(), prm.lm.active(prm.adapter):
        return prm.logits([(task, turns, [(len(turns) - 1, commands)])])[0][0]


class TestClassifier:
    @pytest.mark.parametrize("template", ["compact", "full"])
    def test_its_logit_is_ours(self, folder: str, template: str, tmp_path: Path) -> None:
        prm = judge(folder, template=template)
        base = {k: v.clone() for k, v in prm.lm.base.state_dict().items()}
        prm.export(tmp_path)
        for key, value in prm.lm.base.state_dict().items():
            assert torch.equal(value, base[key]), key
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert (classifier.config.num_labels, classifier.config.problem_type) == (1, "regression")
        (episode,) = make_episodes(1, seed=2)
        commands = list(dict.fromkeys([episode.turns[-1].command, *COMMANDS[:4]]))
        ours = prm_logits(prm, episode.task, episode.turns, commands)
        assert len(set(ours.tolist())) == len(commands)
        rows = [prm.input_ids(episode.task, episode.turns, c) for c in commands]
        with torch.no_grad():
            for row, expected in zip(rows, ours, strict=True):
                got = classifier(input_ids=torch.tensor([row])).logits
                assert got.shape == (1, 1)
                assert float(got) == pytest.approx(float(expected), abs=1e-4)
            # A batch as other tools make it: padded by the exported tokenizer.
            tokenizer = AutoTokenizer.from_pretrained(tmp_path)
            batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
            torch.testing.assert_close(classifier(**batch).logits[:, 0], ours, atol=1e-4, rtol=0)

    def test_a_tokenizer_that_pads_with_the_end_of_turn_token_gets_another_one(self, qwen: str, tmp_path: Path) -> None:
        """A classifier skips padding at a row's end: it must not skip the token at which the logit is read."""
        source = Path(shutil.copytree(qwen, tmp_path / "in"))
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(source)
        prm = judge(str(source), template="full")
        prm.export(tmp_path / "out")
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        assert classifier.config.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
        (episode,) = make_episodes(1)
        ids = prm.input_ids(episode.task, episode.turns, "look")
        assert ids[-1] == prm.lm.prompt.end_of_turn != classifier.config.pad_token_id
        with torch.no_grad():
            got = float(classifier(input_ids=torch.tensor([ids])).logits)
        assert got == pytest.approx(float(prm_logits(prm, episode.task, episode.turns, ["look"])), abs=1e-4)
        assert prm.lm.tokenizer.pad_token == prm.lm.tokenizer.eos_token

    def test_the_text_reads_back_as_the_same_tokens_or_is_refused(self, qwen: str) -> None:
        prm = judge(qwen, template="full")
        (episode,) = make_episodes(1)
        text = prm.input_text(episode.task, episode.turns, "look")
        ids = prm.lm.tokenizer.encode(text, add_special_tokens=False)
        assert ids == prm.input_ids(episode.task, episode.turns, "look")
        assert text.endswith("ACTION: look<|im_end|>")
        prm.lm.prompt.lead = [t for part in ("t", "a", "k", "e") for t in prm.lm.tokenizer.encode(part)]
        assert len(prm.lm.tokenizer.encode("take")) < 4
        with pytest.raises(ValueError, match="input_ids"):
            prm.input_text(episode.task, episode.turns, "look")

    def test_shortened_transcripts_are_judged_as_they_are_read(self, qwen: str, tmp_path: Path) -> None:
        prm = judge(qwen, template="compact", max_context=300)
        turns = [t for e in make_episodes(12, seed=1) for t in e.turns]
        prm.export(tmp_path)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        ids = prm.input_ids(TASK, turns)
        assert len(ids) <= 300
        with torch.no_grad():
            got = float(classifier(input_ids=torch.tensor([ids])).logits)
        assert got == pytest.approx(float(prm_logits(prm, TASK, turns, [turns[-1].command])), abs=1e-4)

    def test_an_architecture_without_classifier_says_so(self, tmp_path: Path) -> None:
        prm = judge(save_architecture(tmp_path / "in", "granite"))
        with pytest.raises(ValueError, match="GraniteForCausalLM"):
            prm.export(tmp_path / "out")

    def test_a_merged_policy_is_a_model_of_its_own(self, folder: str, tmp_path: Path) -> None:
        lm = LanguageModel.load(folder, template="react")
        lm.add_adapter("policy")
        randomise(lm, "policy")
        expected = logits(lm, "policy")
        base = logits(lm, None)
        lm.export_merged("policy", tmp_path)
        again = LanguageModel.load(str(tmp_path))
        torch.testing.assert_close(logits(again, None), expected, atol=1e-5, rtol=1e-4)
        assert again.prompt.template == "react"
        assert AutoConfig.from_pretrained(tmp_path).use_cache is True
        assert torch.equal(logits(lm, None), base)
        with lm.merged("policy"), pytest.raises(RuntimeError, match="merged"):
            lm.export_merged("policy", tmp_path / "twice")


class TestPRM:
    def test_whole_episodes_and_single_turns_agree_on_long_transcripts(self, folder: str) -> None:
        prm = judge(folder, template="compact", max_context=200)
        turns = [t for e in make_episodes(8, seed=1) for t in e.turns]
        assert len(prm.encode(TASK, turns)) > 2
        candidates = [(t, turn.admissible_commands[:3]) for t, turn in enumerate(turns)]
        (whole,) = prm.score([(TASK, turns, candidates)])
        for (t, commands), expected in zip(candidates, whole, strict=True):
            ((alone,),) = prm.score([(TASK, turns[: t + 1], [(t, commands)])])
            torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            prm.score_turns(TASK, turns)[-1], prm.score_turns(TASK, turns[-1:])[-1], atol=1, rtol=0
        )

    def test_policy_reference_and_prm_share_one_base(self, llama: str) -> None:
        lm = LanguageModel.load(llama)
        before = {p.data_ptr() for p in lm.base.parameters()}
        lm.add_adapter("policy")
        lm.copy_adapter("policy", "reference")
        prm = ProcessRewardModel(lm)
        adapters = {p.data_ptr() for a in ("policy", "reference", "prm") for p in lm.adapter_parameters(a)}
        assert {p.data_ptr() for p in lm.base.parameters()} == before | adapters
        assert prm.lm.base is lm.base
        assert len(adapters) == 3 * len(lm.adapter_parameters("policy"))


class TestArchitectures:
    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            ("granite", {"logits_scaling": 8.0}),
            ("cohere", {"logit_scale": 0.25}),
            ("cohere2", {"logit_scale": 0.25, "sliding_window": 8}),
            ("mistral", {"sliding_window": 8}),
            ("phi3", {"sliding_window": 8}),
            ("gpt2", {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4}),
        ],
    )
    def test_other_architectures_give_the_librarys_numbers(
        self, tmp_path: Path, kind: str, settings: dict[str, Any]
    ) -> None:
        """Scaled logits, windows in every layer or in some, learned positions; over the window's end, cached and not."""
        lm = adapted(save_architecture(tmp_path, kind, **settings))
        ids = [3 + i * 7 % 90 for i in range(30)]
        with torch.no_grad(), lm.active("policy"):
            theirs = lm.base(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(logits(lm, "policy", ids), theirs, atol=1e-4, rtol=1e-4)
            decoder = TranscriptDecoder(lm, 1)
            for n in (12, 13, 30):
                (hidden,) = decoder.extend([Extension(0, ids[:n])])
            torch.testing.assert_close(lm.logits(hidden)[-1], theirs[-1], atol=1e-4, rtol=1e-4)
            rows, tokens = torch.tensor([0, 0]), torch.tensor([4, 5])
            expected = torch.log_softmax(theirs[-1], -1)[tokens]
            torch.testing.assert_close(lm.token_log_probs(hidden[-1:], rows, tokens), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("kind", "settings", "said"),
        [
            ("hyperclovax", {"logits_scaling": 0.25}, r"HyperCLOVAXForCausalLM .*scales its logits"),
            ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "MptForCausalLM"),
            # transformers 5.0 does not name the kind of its layers, and the first pass fails.
            ("mamba", {}, r"MambaForCausalLM.*(linear_attention|cannot be evaluated on token trees)"),
        ],
    )
    def test_what_token_trees_cannot_reproduce_is_refused(
        self, tmp_path: Path, kind: str, settings: dict[str, Any], said: str
    ) -> None:
        """Scaled logits of an unknown kind, positions that come from the mask, and recurrence."""
        if kind not in CONFIG_MAPPING:
            pytest.skip(f"this version of transformers does not know {kind}")
        path = save_architecture(tmp_path, kind, **settings)
        with pytest.raises(UnsupportedModelError, match=said):
            LanguageModel.load(path, attn_implementation="eager")

    def test_half_precision_passes(self, folder: str) -> None:
        assert LanguageModel.load(folder, dtype="bfloat16").base.dtype == torch.bfloat16


class TestSightedModels:
    def test_adapters_stay_in_the_part_that_reads_text(self, tmp_path: Path) -> None:
        tokenizer = byte_level_tokenizer()
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
        text_config = shape | {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8}
        config = AutoConfig.for_model(
            "gemma3",
            text_config=text_config | {"max_position_embeddings": 512},
            vision_config=shape | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "in")
        tokenizer.save_pretrained(tmp_path / "in")
        lm = LanguageModel.load(str(tmp_path / "in"))
        lm.add_adapter("policy")
        lm.add_adapter("named", {"target_modules": ["q_proj", "lm_head"]})
        for name in lm.adapters:
            keys = list(lm.adapter_state(name))
            assert keys
            assert not [key for key in keys if "vision" in key or "projector" in key]
        assert any("lm_head" in key for key in lm.adapter_state("named"))
        randomise(lm, "policy")
        lm.copy_adapter("policy", "reference")
        lm.export_adapter("policy", tmp_path / "lora")
        lm.import_adapter("again", tmp_path / "lora")
        for name in ("reference", "again"):
            assert torch.equal(logits(lm, name), logits(lm, "policy"))
        lm.export_merged("policy", tmp_path / "out")
        merged = LanguageModel.load(str(tmp_path / "out"))
        torch.testing.assert_close(logits(merged, None), logits(lm, "policy"), atol=1e-5, rtol=1e-4)


def limit_memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Stand in for a device that has memory for so many rows at once."""
    decoder = lm.base.get_decoder()
    forward, extended = decoder.forward, lm.extended

    def limited(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    def limited_lean(weights: Any, ids: Any, positions: Any, rows: Any, *args: Any) -> Any:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return extended(weights, ids, positions, rows, *args)

    # A small model's passes go by the library's code or around it.
    monkeypatch.setattr(decoder, "forward", limited)
    monkeypatch.setattr(lm, "extended", limited_lean)


def play(
    lm: LanguageModel, mode: str, episodes: Sequence[Episode], n_candidates: int = 1
) -> tuple[list[list[str]], list[float], Any]:
    actor = PolicyActor(Responder(lm, mode, max_new_tokens=6), "policy", len(episodes), n_candidates=n_candidates)
    for row, e in enumerate(episodes):
        actor.start(row, e.task, [])
    said: list[list[str]] = [[] for _ in episodes]
    log_probs = []
    for t in range(max(len(e.turns) for e in episodes)):
        asked = [
            Request(b, e.task, e.turns[t].feedback, e.turns[t].admissible_commands, np.random.default_rng([b, t]))
            for b, e in enumerate(episodes)
            if t < len(e.turns)
        ]
        for request, answer in zip(asked, actor.answer(asked), strict=True):
            said[request.row].append(answer.response or answer.command)
            log_probs.append(answer.log_prob)
            actor.executed(request.row, answer.turn(request))
    return said, log_probs, actor.rows.decoder


class TestOutOfMemory:
    @pytest.mark.ci
    @pytest.mark.parametrize("mode", ["constrained", "score", "generate"])
    @pytest.mark.parametrize("most", [3, 1])
    def test_rows_are_taken_fewer_at_a_time_and_say_the_same(
        self, qwen: str, monkeypatch: pytest.MonkeyPatch, mode: str, most: int
    ) -> None:
        lm = LanguageModel.load(qwen, template="full")
        lm.add_adapter("policy")
        randomise(lm, "policy")
        episodes = make_episodes(8)
        expected, log_probs, _ = play(lm, mode, episodes)
        limit_memory(lm, monkeypatch, most)
        with pytest.warns(RuntimeWarning, match="n_envs") as warned:
            got, got_log_probs, decoder = play(lm, mode, episodes)
        assert got == expected
        np.testing.assert_allclose(got_log_probs, log_probs, atol=1e-3)
        assert len([w for w in warned if "n_envs" in str(w.message)]) == 1
        assert decoder.n_out_of_memory == (2 if most == 3 else 3)
        assert len(decoder.cache.lengths) <= max(most, 1)

    @pytest.mark.parametrize("most", [8, 3])
    def test_copies_of_transcripts_are_given_up_where_they_do_not_fit(
        self, qwen: str, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        lm = LanguageModel.load(qwen, template="full")
        lm.add_adapter("policy")
        randomise(lm, "policy")
        episodes = make_episodes(4)
        expected, log_probs, free = play(lm, "generate", episodes, n_candidates=4)
        assert len(free.cache.lengths) == 16 and not free.n_evicted
        limit_memory(lm, monkeypatch, most)
        with pytest.warns(RuntimeWarning, match="n_envs"):
            got, got_log_probs, decoder = play(lm, "generate", episodes, n_candidates=4)
        assert got == expected
        np.testing.assert_allclose(got_log_probs, log_probs, atol=1e-3)
        assert len(decoder.cache.lengths) <= most

    def test_a_row_that_does_not_fit_alone_says_what_to_lower(self, qwen: str, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = adapted(qwen)
        limit_memory(lm, monkeypatch, 0)
        with (
            pytest.warns(RuntimeWarning, match="read again"),
            pytest.raises(DeviceMemoryError, match=r"n_envs.*cache_tokens.*max_context"),
        ):
            play(lm, "constrained", make_episodes(4))


def test_a_prm_out_of_a_save_reads_as_it_did_when_it_was_saved(learner: str, tmp_path: Path) -> None:
    from algorithms import AgentPRM

    model = make_model(AgentPRM, learner, make_toy(2), policy_kwargs={"template": "react", "max_context": 900})
    torch.manual_seed(0)
    torch.nn.init.normal_(model.prm.head.weight)
    model.save(tmp_path / "model")
    prm = load_prm(tmp_path / "model.zip")
    assert prm.lm.context_length == 900
    assert prm.input_ids(TASK, TURNS) == model.prm.input_ids(TASK, TURNS)
    torch.testing.assert_close(prm.score_turns(TASK, TURNS), model.prm.score_turns(TASK, TURNS))


def test_a_save_is_exported_from_the_command_line(
    learner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from algorithms import AgentPRM
    from algorithms.cli import main

    model = make_model(AgentPRM, learner, make_toy(2), prm={"form": "scalar"})
    randomise(model.lm, "policy")
    randomise(model.lm, "prm", seed=1)
    torch.nn.init.normal_(model.prm.head.weight)
    model.save(tmp_path / "model")

    def export(name: str, *args: str) -> int:
        return main(["export", str(tmp_path / "model.zip"), "--out", str(tmp_path / name), *args])

    assert export("policy") == 0
    lm = LanguageModel.load(learner)
    lm.import_adapter("mine", tmp_path / "policy")
    torch.testing.assert_close(logits(lm, "mine"), logits(model.lm, "policy"))
    assert export("merged", "--as", "merged") == 0
    merged = LanguageModel.load(str(tmp_path / "merged"))
    torch.testing.assert_close(logits(merged, None), logits(model.lm, "policy"), atol=1e-4, rtol=1e-4)
    assert export("prm", "--adapter", "prm") == 0
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "prm").eval()
    with torch.no_grad():
        got = classifier(input_ids=torch.tensor([model.prm.input_ids(TASK, TURNS)])).logits[0]
    torch.testing.assert_close(torch.sigmoid(got), model.prm.score_turns(TASK, TURNS)[-1:], atol=1e-4, rtol=0)
    assert export("lora", "--adapter", "prm", "--as", "peft") == 0
    assert torch.equal(load_file(tmp_path / "lora" / "score.safetensors")["score.weight"], model.prm.head.weight)
    capsys.readouterr()
    for args, said in [(("policy",), "not an empty folder"), (("x", "--as", "classifier"), "peft or merged")]:
        assert export(*args) == 2
        assert said in capsys.readouterr().err
