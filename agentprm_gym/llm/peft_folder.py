"""Adapter folders in PEFT's own format, read without trust in their contents.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, as ``peft`` and ``trl`` write them. Reading opens
these two files only. It opens nothing that the configuration names: not a base model, not code, not a pickle. Patterns of the
configuration are not run as regular expressions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agentprm_gym.checks import check_float
from agentprm_gym.llm.finite import check_finite

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: PEFT's settings that say which shape an adapter has and how it is scaled. Another adapter of its kind is made from them.
SETTINGS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
)
# Settings that say nothing about what a trained adapter computes.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
# Other ways to start (PiSSA, OLoRA, CorDA, LoftQ) change the base's weights, which all adapters share.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")


@dataclass(slots=True)
class AdapterFolder:
    """What an adapter folder holds.

    Attributes:
        settings: keyword arguments of ``peft.LoraConfig``.
        tensors: its tensors in PEFT's naming.
    """

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def check_settings(config: Mapping[str, Any], what: str) -> None:
    """Refuse LoRA settings that merging, saving and sharing one base do not support here.

    Args:
        config: keyword arguments of ``peft.LoraConfig``.
        what: the adapter that they belong to, for the message.

    Raises:
        ValueError: naming the settings.
    """
    for key in ("lora_alpha", "lora_dropout"):
        if key in config:
            check_float(f"{key} of {what}", config[key], 0.0)
    usual = LoraConfig().to_dict()
    odd = {
        key: value
        for key, value in config.items()
        if key not in SETTINGS and key not in _NEUTRAL and value and value != usual.get(key)
    }
    if config.get("init_lora_weights", True) not in _STARTS:
        odd["init_lora_weights"] = config["init_lora_weights"]
    if odd:
        raise ValueError(
            f"{what} uses {', '.join(f'{k}={v!r}' for k, v in sorted(odd.items()))}, which is not supported here: expected "
            f"plain LoRA with these settings only: {', '.join(SETTINGS)}"
        )


def write_adapter(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write an adapter folder.

    Args:
        folder: made where it is missing.
        config: the adapter's PEFT configuration, JSON-able.
        tensors: its tensors in PEFT's naming.

    Returns:
        The folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / WEIGHTS, metadata={"format": "pt"})
    return path


def read_adapter(folder: str | os.PathLike[str]) -> AdapterFolder:
    """Read an adapter folder.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        FileNotFoundError: if the folder or one of its two files is missing.
        ValueError: for a pickle, another kind of adapter than plain LoRA, or files that contradict each other.
    """
    path = Path(folder)
    if not (path / WEIGHTS).is_file():
        pickles = sorted(p.name for p in path.glob("adapter_model*.bin"))
        if pickles:
            raise ValueError(
                f"{path}: {pickles[0]} is a pickle, which can run code when it is read; save the adapter again with "
                f"PEFT's save_pretrained(folder, safe_serialization=True), which writes {WEIGHTS}"
            )
        raise FileNotFoundError(f"{path} does not hold {WEIGHTS}: expected a folder written by PEFT's save_pretrained")
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path} does not hold {CONFIG}: expected a folder written by PEFT's save_pretrained")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(path / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as an adapter: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path} holds a PEFT adapter of type {kind!r}; only 'LORA' is supported")
    check_settings(config, f"the adapter in {path}")
    check_finite(path, {WEIGHTS: tensors})
    return AdapterFolder(settings_of(config, tensors, path), tensors)


def settings_of(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """An adapter's settings, compared with its tensors; patterns are replaced by the names of the modules.

    Args:
        config: its PEFT configuration.
        tensors: its weights.
        path: where they came from, for messages.

    Raises:
        ValueError: they contradict each other.
    """
    settings = {key: config[key] for key in SETTINGS if config.get(key) is not None}
    modules, ranks = set(), set()
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{path}: {WEIGHTS} holds {key!r}, which is not a LoRA weight; only plain LoRA is supported (PEFT leaves "
                "embeddings out with save_pretrained(folder, save_embedding_layers=False))"
            )
        modules.add(match[1])
        if match[2] == "A":
            ranks.add(tensor.shape[0])
    stated = [settings.get("r"), *_pattern(settings, "rank_pattern", path).values()]
    _pattern(settings, "alpha_pattern", path)
    # A rank is what memory is reserved by: it must be one that the tensors have.
    if not ranks or not all(type(r) is int for r in stated) or not ranks <= set(stated) or max(stated) > max(ranks):
        raise ValueError(f"{path}: {CONFIG} states rank {stated}, the tensors have {sorted(ranks)}")
    alpha = settings.setdefault("lora_alpha", LoraConfig().lora_alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ValueError(f"{path}: {CONFIG} has lora_alpha={alpha!r}, expected a number")
    names = settings.get("target_modules")
    narrowed = [settings.pop(k, None) for k in ("exclude_modules", "layers_to_transform", "layers_pattern")]
    if (
        not isinstance(names, list)
        or not all(isinstance(n, str) for n in names)
        or any(n is not None for n in narrowed)
    ):
        # A pattern would be run as a regular expression, and a hostile one takes forever. The tensors name the modules, too.
        settings["target_modules"] = sorted(modules)
    return settings


def _pattern(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    pattern = settings.get(key, {})
    # PEFT runs these keys as regular expressions; names of modules (PEFT itself puts ".*\\." in front) are all it takes.
    if not isinstance(pattern, dict) or not all(re.fullmatch(r"(\^|\.\*\\\.)?[\w.]+", name) for name in pattern):
        raise ValueError(f"{path}: {CONFIG} has {key}={pattern!r}, expected a mapping from names of modules")
    return pattern
