"""Saves of other people: bombs, patterns that hang, manifests of the wrong shape, and settings that reach into this machine."""

from __future__ import annotations

import io
import json
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors

from agentprm_gym.llm.saving import SavedModel, SaveFormatError, read_save, write_save

A, B = (
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
)
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
MANIFEST: dict[str, Any] = {
    "class": "GRPO",
    "agentprm_gym": "0.2.0",
    "base": {"name": "tiny", "fingerprint": "0-0", "folder": False},
    "data": {"policy_kwargs": {"model": "tiny"}, "gamma": 0.9},
    "counters": {"num_timesteps": 7, "iteration": 1},
    "spaces": {"observation": {"task": [0, 9]}, "action": [0, 9]},
}
Change = Callable[[dict[str, Any]], Any]


def tensors() -> dict[str, torch.Tensor]:
    return {A: torch.ones(2, 8), B: torch.zeros(8, 2)}


def write(path: Path, config: Any = CONFIG, manifest: dict[str, Any] = MANIFEST) -> Path:
    write_save(
        path, SavedModel(dict(manifest), {"policy": tensors()}, {"policy": config}, {"value": {"w": torch.ones(2)}})
    )
    return path


def rewritten(path: Path, **members: bytes | None) -> Path:
    """Replace members of a save, named by the end of their names; ``None`` leaves them out."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            key = next((k for k in members if k in name.replace(".", "_")), None)
            data = data if key is None else members[key]
            if data is not None:
                new.writestr(name, data)
    return path


def test_a_sound_save_is_read(tmp_path: Path) -> None:
    saved = read_save(write(tmp_path / "a.zip"))
    assert saved.manifest["counters"] == {"num_timesteps": 7, "iteration": 1}
    assert saved.adapter_configs["policy"]["target_modules"] == ["q_proj"]
    assert torch.equal(saved.adapters["policy"][A], tensors()[A])


def with_manifest(**changes: Any) -> dict[str, Any]:
    return {**MANIFEST, **changes}


MANIFESTS: dict[str, Any] = {
    "a list": [],
    "a number": 7,
    "no base": {"format": 1, "adapters": [], "heads": [], "class": "GRPO", "data": {"policy_kwargs": {}}},
    "a base that is a text": with_manifest(base="tiny"),
    "a name that is a list": with_manifest(base={"name": ["tiny"], "fingerprint": ""}),
    "an escape in a name": with_manifest(base={"name": "tiny\x1b[2J", "fingerprint": ""}),
    "a class that is none": with_manifest(**{"class": None}),
    "no settings": with_manifest(data={}),
    "settings as a list": with_manifest(data=[1]),
    "settings of the policy as a text": with_manifest(data={"policy_kwargs": "os"}),
    "adapters as a text": with_manifest(adapters="policy"),
    "an adapter elsewhere": with_manifest(adapters=["../../etc/passwd"]),
    "heads as numbers": with_manifest(heads=[1]),
    "a counter that is a text": with_manifest(counters={"iteration": "many"}),
    "a counter below 0": with_manifest(counters={"iteration": -1}),
    "an endless counter": with_manifest(counters={"iteration": 10**40}),
    "counters as a list": with_manifest(counters=[1]),
    "a space that is none": with_manifest(spaces={"action": "any"}),
    "a template that is a file": with_manifest(data={"policy_kwargs": {"template": "/home/me/secret.jinja"}}),
    "a template beside the save": with_manifest(data={"policy_kwargs": {"template": "secret.jinja"}}),
    "a template that is a list": with_manifest(data={"policy_kwargs": {"template": ["{%"]}}),
}


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_of_the_wrong_shape_is_a_save_format_error(tmp_path: Path, manifest: Any) -> None:
    path = write(tmp_path / "a.zip")
    if isinstance(manifest, dict):
        manifest = {"format": 1, "adapters": ["policy"], "heads": ["value"], **manifest}
    rewritten(path, agentprm_json=json.dumps(manifest).encode())
    with pytest.raises(SaveFormatError, match=r"a\.zip is not a save of agentprm-gym") as caught:
        read_save(path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_save_sets_counters_only_and_says_no_place(tmp_path: Path) -> None:
    counters = {"num_timesteps": 7, "tensorboard_log": 1, "checkpoint_dir": 2, "save": 3, "__class__": 4, "policy": 5}
    data = {**MANIFEST["data"], "tensorboard_log": "/home/me/.ssh", "checkpoint_dir": "/tmp/x"}
    saved = read_save(write(tmp_path / "a.zip", manifest=with_manifest(counters=counters, data=data)))
    assert saved.manifest["counters"] == {"num_timesteps": 7}
    assert "tensorboard_log" not in saved.manifest["data"] and "checkpoint_dir" not in saved.manifest["data"]


CONFIGS: dict[str, tuple[Any, str]] = {
    "a rank of a billion": ({**CONFIG, "r": 10**9}, "states rank"),
    "a rank that is a text": ({**CONFIG, "r": "2"}, "states rank"),
    "a rank pattern of a billion": ({**CONFIG, "rank_pattern": {"q_proj": 10**9}}, "states rank"),
    "a pattern of ranks that hangs": ({**CONFIG, "rank_pattern": {"(([a-z_.0-9])+.)+X": 2}}, "names of modules"),
    "a pattern of scales that hangs": ({**CONFIG, "alpha_pattern": {"((.)+)+X": 2}}, "names of modules"),
    "an endless scale": ({**CONFIG, "lora_alpha": float("inf")}, "finite number"),
    "names with patterns": ({**CONFIG, "target_modules": ["(([a-z_.0-9])+.)+X"]}, "names of modules"),
    "another kind of adapter": ({**CONFIG, "peft_type": "IA3"}, "expected 'LORA'"),
    "code of others": ({**CONFIG, "use_dora": True}, "not supported"),
    "a list": ([1], "to be an object"),
    "nothing": (None, "to be an object"),
}


@pytest.mark.parametrize(("config", "said"), CONFIGS.values(), ids=CONFIGS)
def test_an_adapters_settings_are_checked_by_its_tensors(tmp_path: Path, config: Any, said: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SaveFormatError, match=said) as caught:
        read_save(write(tmp_path / "a.zip", config))
    assert "a.zip" in str(caught.value) and time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": "(([a-z_.0-9])+.)+X"},
        {"target_modules": "all-linear"},
        {"exclude_modules": "(([a-z_.0-9])+.)+X"},
        {"layers_pattern": "((.)+)+X", "layers_to_transform": [0]},
    ],
)
def test_patterns_of_modules_become_their_names(tmp_path: Path, more: dict[str, Any]) -> None:
    config = read_save(write(tmp_path / "a.zip", {**CONFIG, **more})).adapter_configs["policy"]
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert not {"exclude_modules", "layers_pattern", "layers_to_transform"} & set(config)


def header(data: Any, length: int | None = None) -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSORS: dict[str, bytes] = {
    "nothing": b"",
    "a header that is too long": header({}, 2**62),
    "a header that is no JSON": header(b"{" * 100),
    "a header that is a list": header([1, 2]),
    "offsets beyond the end": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "shapes of a billion": header({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 0]}}),
    "an unknown type": header({"a": {"dtype": "PICKLE", "shape": [], "data_offsets": [0, 0]}}),
    "deep nesting": header(b'{"a":' * 50_000),
    "another weight": save_safetensors({"weight": torch.ones(1)}),
    "no weights": save_safetensors({}),
    "a flat weight": save_safetensors({A: torch.tensor(1.0)}),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
}


@pytest.mark.parametrize("data", TENSORS.values(), ids=TENSORS)
def test_broken_tensors_are_a_save_format_error(tmp_path: Path, data: bytes) -> None:
    path = rewritten(write(tmp_path / "a.zip"), adapter_model_safetensors=data)
    with pytest.raises(SaveFormatError, match=r"a\.zip is not a save"):
        read_save(path)


def flagged(path: Path) -> bytes:
    """Say that all members are encrypted."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] |= 1
    return bytes(data)


def packed_otherwise(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset : at + offset + 2] = b"\x63\x00"
    return bytes(data)


def garbled(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[200:260] = b"\xff" * 60
    return bytes(data)


ZIPS: dict[str, Callable[[Path], bytes]] = {
    "encrypted": flagged,
    "an unknown packing": packed_otherwise,
    "garbled": garbled,
    "cut off": lambda path: path.read_bytes()[:-40],
    "no zip": lambda path: b"hello" * 100,
    "empty": lambda path: b"",
    "a gzip": lambda path: b"\x1f\x8b" + b"\x00" * 100,
}


@pytest.mark.parametrize("make", ZIPS.values(), ids=ZIPS)
def test_broken_zips_are_a_save_format_error(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    path = write(tmp_path / "a.zip")
    path.write_bytes(make(path))
    with pytest.raises(SaveFormatError, match=r"a\.zip is not a save"):
        read_save(path)
    with pytest.raises(SaveFormatError):
        read_save(io.BytesIO(path.read_bytes()))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    bomb = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("heads/huge.safetensors", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(b"\x00" * 1_000_000)
    path.write_bytes(bomb.getvalue())
    assert len(bomb.getvalue()) < 3_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(SaveFormatError, match="would be unpacked to 300,"):
        read_save(path)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_a_member_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)  # the size of the first member in the directory
    path.write_bytes(bytes(data))
    with pytest.raises(SaveFormatError):
        read_save(path)
