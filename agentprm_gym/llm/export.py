"""Standalone models: the base with an adapter folded in, as a folder that Hugging Face reads."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from agentprm_gym.llm.adapter_set import AdapterSet
from agentprm_gym.llm.adapter_settings import is_full
from agentprm_gym.llm.architecture import MERGED_FROM
from agentprm_gym.llm.folding import layer_delta
from agentprm_gym.llm.full_weights import is_quantized
from agentprm_gym.llm.loading import no_progress_bars
from agentprm_gym.llm.prompts import TEMPLATES, PromptFormat


def merged_state(lm: AdapterSet, name: str) -> dict[str, torch.Tensor]:
    """The base's tensors on the CPU with an adapter folded in, named as without PEFT; the base stays as it is.

    With full weights these are the tensors, copied.

    Args:
        lm: the base with its adapters; none may be merged at this moment.
        name: the adapter.

    Raises:
        ValueError: if the base is quantized: its weights cannot be added to.
    """
    if is_quantized(lm.base):
        raise ValueError(
            f"{lm.name!r} is loaded with quantization, so no adapter can be merged: load it without, or export the "
            "adapter alone"
        )
    with torch.no_grad(), lm.active(name):
        return _folded_state(lm, name)


def _folded_state(lm: AdapterSet, name: str) -> dict[str, torch.Tensor]:
    # What is trained goes on to change; of a weight that is shared, all names get the one copy.
    own: dict[int, torch.Tensor] = {}
    if is_full(lm.adapter_config(name)):
        own = {p.data_ptr(): p.detach().to("cpu", copy=True) for p in lm.adapter_parameters(name)}
    layers = {k: m for k, m in lm.base.named_modules() if isinstance(m, LoraLayer)}
    out: dict[str, torch.Tensor] = {}
    for key, value in lm.base.state_dict().items():
        owner = next((k for k in _parents(key) if k in layers), None)
        rest = key if owner is None else key[len(owner) + 1 :]
        if owner is not None and not rest.startswith("base_layer."):
            continue
        rest = rest.removeprefix("base_layer.")
        delta = None if owner is None or rest != "weight" else layer_delta(layers[owner], name)
        merged = own.get(value.data_ptr(), value) if delta is None else value + delta.to(value)
        out[rest if owner is None else f"{owner}.{rest}"] = merged.detach().cpu()
    return out


def _parents(key: str) -> Iterator[str]:
    """The modules that a tensor is in, innermost first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def export_config(lm: AdapterSet, prompt: PromptFormat) -> Any:
    """A copy of the base's configuration for a model that is made from it.

    It names the prompt template, and the fingerprint of the base, so that this one is not taken for it.
    """
    config = copy.deepcopy(lm.base.config)
    config.use_cache = True
    config.agentprm_template = prompt.template if prompt.template in TEMPLATES else prompt.source
    setattr(config, MERGED_FROM, lm.fingerprint)
    return config


def export_model(
    lm: AdapterSet,
    state: Mapping[str, torch.Tensor],
    prompt: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
) -> Path:
    """Write a causal language model: the base with an adapter folded in.

    Args:
        lm: the base with its adapters.
        state: what :func:`merged_state` returned.
        prompt: how transcripts are written for it; the configuration names its template.
        tokenizer: the tokenizer.
        folder: made where it is missing.

    Returns:
        The folder.
    """
    config = export_config(lm, prompt)
    if _untied(lm, state):
        # Two matrices behind a configuration that says one: readers would keep the first and drop the other.
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    with torch.device("meta"):
        model: Any = type(lm.base)(config)
    model.generation_config = copy.deepcopy(lm.base.generation_config)
    return write_model(model, state, tokenizer, folder)


def _untied(lm: AdapterSet, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the adapter made a difference between embeddings and output layer that share one matrix in the base."""
    names = {id(module): key for key, module in lm.base.named_modules()}
    ends = [lm.base.get_input_embeddings(), lm.base.get_output_embeddings()]
    keys = [f"{names[id(module)]}.weight" for module in ends if module is not None and id(module) in names]
    bare: list[Any] = [m.get_base_layer() if isinstance(m, LoraLayer) else m for m in ends]
    if len(keys) < 2 or bare[0].weight is not bare[1].weight:
        return False
    return not torch.equal(state[keys[0]], state[keys[1]])


def write_model(
    model: Any,
    state: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
) -> Path:
    """Write a model that was made without weights (``torch.device("meta")``), its weights and a tokenizer.

    Args:
        model: the model.
        state: its weights.
        tokenizer: the tokenizer.
        folder: made where it is missing.

    Returns:
        The folder.
    """
    model.load_state_dict(dict(state), assign=True)
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
