"""Names of models and saves: what is not there is named, another base is refused, and no code of theirs is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from agentprm_gym.llm import AdapterMismatchError, LanguageModel, ModelNotFoundError
from agentprm_gym.llm.loading import resolve_model
from agentprm_gym.llm.saving import read_save, write_save
from algorithms import SFT
from algorithms.common.shell.load import load_actor, load_language_model, load_policy
from tests.algorithm_helpers import make_model, make_toy
from tests.llm_helpers import (
    adapted,
    logits,
    randomise,
    save_random_model,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("llama"), template=None)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("qwen"), "qwen2", template=None)


class TestNames:
    """A model's name is an alias, a folder, or a hub id; what is not there is named."""

    def test_folders_without_a_model_say_what_they_are(self, qwen: str, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
            LanguageModel.load(str(tmp_path))
        (tmp_path / "model.zip").touch()
        with pytest.raises(ModelNotFoundError, match=r"folder of a run: name .*model\.zip"):
            LanguageModel.load(str(tmp_path))
        adapted(qwen).export_adapter("policy", tmp_path / "lora")
        with pytest.raises(ModelNotFoundError, match="import_adapter"):
            LanguageModel.load(str(tmp_path / "lora"))
        (tmp_path / "lora" / "config.json").write_text("{", encoding="utf-8")
        with pytest.raises(ModelNotFoundError, match=r"cannot load the model '.*lora': it is in its folder"):
            LanguageModel.load(str(tmp_path / "lora"))

    def test_an_unknown_type_of_weights_is_no_fault_of_the_files(self, qwen: str) -> None:
        for wrong in ("bf16", "half precision", "nn"):
            with pytest.raises(ValueError, match=r"dtype must be 'auto'.*got"):
                LanguageModel.load(qwen, dtype=wrong)
        assert LanguageModel.load(qwen, dtype="bfloat16").base.dtype == torch.bfloat16

    def test_a_base_that_was_moved_is_named_and_never_looked_for_on_the_hub(
        self, learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = make_toy(2)
        monkeypatch.chdir(tmp_path)
        shutil.copytree(learner, "models/mine")
        model = make_model(SFT, "models/mine", env)
        randomise(model.lm, "policy")
        model.save("model")
        shutil.move("models/mine", "moved")
        expected = logits(model.lm, "policy")
        for load in (
            lambda **base: load_policy("model.zip", env, **base).lm,
            lambda **base: load_language_model("model.zip", **base),
            lambda **base: load_actor("model.zip", env, **base).lm,
            lambda **base: SFT.load("model.zip", **base).lm,
        ):
            with pytest.raises(
                ModelNotFoundError, match=r"model\.zip was made on the base model 'models/mine'.*pass base="
            ):
                load()
            torch.testing.assert_close(logits(load(base="moved"), "policy"), expected)
            with pytest.raises(AdapterMismatchError, match="trained on the base model"):
                load(base=save_random_model(tmp_path / "other", seed=1))
        with pytest.raises(ValueError, match="is not one: leave it out"):
            load_policy("moved", env, base="moved")

    def test_a_save_of_version_0_1_loads_on_the_bundled_model(self, tmp_path: Path) -> None:
        """It holds half of a fingerprint, and does not say whether a name is a folder's."""
        model = make_model(SFT, "tiny", make_toy(2))
        randomise(model.lm, "policy")
        model.save(tmp_path / "model")
        saved = read_save(tmp_path / "model")
        saved.manifest["base"] = {"name": "tiny", "fingerprint": model.lm.fingerprint.split("-")[0]}
        write_save(tmp_path / "old.zip", saved)
        again = SFT.load(tmp_path / "old.zip")
        assert torch.equal(logits(again.lm, "policy"), logits(model.lm, "policy"))
        saved.manifest["base"]["fingerprint"] = "0" * 16
        write_save(tmp_path / "other.zip", saved)
        with pytest.raises(AdapterMismatchError, match="tiny"):
            SFT.load(tmp_path / "other.zip")
        # The embeddings of a base under another name agree; the rest of it is not known.
        shutil.copytree(resolve_model("tiny"), tmp_path / "copy")
        with pytest.warns(UserWarning, match="embeddings only"):
            load_language_model(str(tmp_path / "old.zip"), base=str(tmp_path / "copy"))


def with_code(folder: str, target: Path, model_type: str | None) -> tuple[str, Path]:
    """A model folder that brings code, which leaves a marker where it is run."""
    source = Path(shutil.copytree(folder, target))
    marker = target.parent / "marker"
    (source / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer\n"
    )
    file = source / "config.json"
    config = json.loads(file.read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    config |= {"model_type": model_type} if model_type else {}
    file.write_text(json.dumps(config))
    file = source / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    file.write_text(json.dumps(tokenizer))
    return str(source), marker


class TestTrust:
    def test_code_in_a_model_folder_is_not_run(self, llama: str, tmp_path: Path) -> None:
        path, marker = with_code(llama, tmp_path / "unknown", "evil")
        with pytest.raises(ValueError, match="trust_remote_code"):
            LanguageModel.load(path)
        with pytest.raises(ValueError, match="trust_remote_code"):
            make_model(SFT, path, make_toy(2))
        assert not marker.exists()
        path, marker = with_code(llama, tmp_path / "known", None)
        LanguageModel.load(path)  # the library's own Llama
        assert not marker.exists()

    def test_a_save_cannot_give_leave_to_run_code(self, learner: str, tmp_path: Path) -> None:
        """Who loads a save does not know what base it names: it is for the caller to trust it."""
        path, marker = with_code(learner, tmp_path / "known", None)
        env = make_toy(2)
        model = make_model(SFT, path, env)
        model.policy_kwargs["trust_remote_code"] = True
        saved = model._to_save()
        assert "trust_remote_code" not in saved.manifest["data"]["policy_kwargs"]
        saved.manifest["data"]["policy_kwargs"]["trust_remote_code"] = True  # a forged one
        write_save(tmp_path / "forged.zip", saved)
        SFT.load(tmp_path / "forged.zip")
        load_policy(str(tmp_path / "forged.zip"), env)
        make_model(SFT, str(tmp_path / "forged.zip"), env)
        assert not marker.exists()

    def test_four_bits_without_the_library_say_what_to_install(
        self, llama: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agentprm_gym.llm.loading.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"agentprm-gym\[quantized\]"):
            LanguageModel.load(llama, quantization="4bit")
        with pytest.raises(ValueError, match="4bit"):
            LanguageModel.load(llama, quantization="8bit")
