"""Language models: one frozen base in memory, any number of LoRA adapters on it.

Policy, reference and process reward model are adapters (and heads) over the same base. PEFT's switching has silent
traps (a switched-away adapter stops being trainable, leaving a context makes a frozen one trainable), so
:meth:`LanguageModel.active` is the only place that switches, and optimizers are built from
:meth:`LanguageModel.adapter_parameters`, by name.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from agentprm_gym.llm.cache import RaggedCache
from agentprm_gym.llm.packing import PackedTrees
from agentprm_gym.llm.prompts import PromptFormat

#: Names that stand for a model shipped with the package.
BUNDLED = ("tiny",)
#: LoRA settings used where the caller gives none.
DEFAULT_LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
#: Keep an exact copy of the base weights while an adapter is merged only below this many parameters.
_MERGE_LIMIT = 50_000_000


class AdapterMismatchError(ValueError):
    """An adapter was made for another base model."""


def lora_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an adapter's PEFT configuration makes another adapter of the same shape."""
    return {k: config[k] for k in ("r", "lora_alpha", "lora_dropout", "target_modules")}


def resolve_model(name: str) -> str:
    """Turn a model name into something Hugging Face loads: the bundled model's folder, a path, or a hub id.

    Raises:
        ValueError: if the name is neither a bundled alias, a folder, nor of the form ``owner/name``.
    """
    if name in BUNDLED:
        return str(resources.files("agentprm_gym.llm") / "tiny" / "weights")
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(
        f"unknown model {name!r}: expected one of the bundled aliases {list(BUNDLED)}, a folder with a saved "
        "Hugging Face causal language model, or a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'"
    )


class LanguageModel:
    """A causal language model with its tokenizer, prompt format and adapters.

    Attributes:
        name: what the user called it (alias, path or hub id).
        tokenizer: its tokenizer.
        prompt: how transcripts are written for it.
        device: where it lives.
    """

    def __init__(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str | None = None
    ) -> None:
        """Wrap a loaded model. Most callers use :meth:`load`.

        Args:
            base: the causal language model; it is frozen here.
            tokenizer: its tokenizer; a missing pad token is set to the end-of-sequence token.
            name: how the user named the model.
            template: prompt template; by default the one the model's configuration names, else ``"full"``.
        """
        base.requires_grad_(False)
        base.eval()
        base.config.use_cache = False
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.name = name
        self.tokenizer = tokenizer
        self.base = base
        self.prompt = PromptFormat(tokenizer, template or getattr(base.config, "agentprm_template", None) or "full")
        self._peft: PeftModel | None = None
        self._merged: str | None = None
        self._fingerprint: str | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        attn_implementation: str = "sdpa",
        template: str | None = None,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load a bundled model, a folder, or a hub id.

        Args:
            name: ``"tiny"``, a path, or a Hugging Face id.
            device: torch device.
            dtype: weights' type; ``"auto"`` takes the checkpoint's.
            attn_implementation: ``"sdpa"`` or ``"eager"`` (token trees need a mask of their own, which flash kernels
                refuse).
            template: prompt template, ``"compact"`` or ``"full"``.
            trust_remote_code: run code from the model's repository; off unless you trust it.

        Raises:
            ValueError: for an unknown name or attention implementation.
        """
        if attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
        path = resolve_model(name)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # transformers' bars help with downloads; for a folder they would only flash up between ours.
        quiet = Path(path).is_dir() and hf_logging.is_progress_bar_enabled()
        if quiet:
            hf_logging.disable_progress_bar()
        try:
            base: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
            )
        finally:
            if quiet:
                hf_logging.enable_progress_bar()
        return cls(base.to(device), tokenizer, name=name, template=template)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def fingerprint(self) -> str:
        """A short hash of the base's configuration and weights; adapters are refused where it differs."""
        if self._fingerprint is None:
            config = self.base.config.to_dict()
            shape = {k: config.get(k) for k in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
            digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
            embeddings: Any = self.base.get_input_embeddings()
            weight: torch.Tensor = embeddings.weight
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 4096)]
            digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    # ------------------------------------------------------------------ adapters
    @property
    def adapters(self) -> list[str]:
        """Names of the adapters."""
        return [] if self._peft is None else list(self._peft.peft_config)

    def add_adapter(self, name: str, lora: Mapping[str, Any] | None = None) -> None:
        """Add a fresh LoRA adapter (its output is zero until trained).

        Args:
            name: the adapter's name.
            lora: keyword arguments of ``peft.LoraConfig``, JSON-able; :data:`DEFAULT_LORA` where ``None``.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self.adapters:
            raise ValueError(f"adapter {name!r} exists already; adapters: {self.adapters}")
        config = LoraConfig(**{**DEFAULT_LORA, **(lora or {})})
        if self._peft is None:
            with warnings.catch_warnings():
                # PEFT still asks transformers by the old name; nothing that a user could do about.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                peft = get_peft_model(self.base, config, adapter_name=name)
            assert isinstance(peft, PeftModel)
            self._peft = peft
        else:
            self._peft.add_adapter(name, config)
        self._freeze()

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored."""
        if self._peft is not None and name in self.adapters and len(self.adapters) > 1:
            if self._peft.active_adapter == name:
                self._peft.set_adapter(next(a for a in self.adapters if a != name))
            self._peft.delete_adapter(name)
            self._freeze()

    def copy_adapter(self, source: str, target: str) -> None:
        """Copy an adapter's weights into another of the same shape, which is made where it is missing."""
        if target not in self.adapters:
            config = self._need(source).peft_config[source].to_dict()
            self.add_adapter(target, lora_settings(config))
        self.load_adapter_state(target, self.adapter_state(source))

    def adapter_config(self, name: str) -> dict[str, Any]:
        """The LoRA settings of an adapter, as JSON-able keyword arguments."""
        config = self._need(name).peft_config[name].to_dict()
        return {k: (sorted(v) if isinstance(v, set) else v) for k, v in config.items()}

    def adapter_state(self, name: str) -> dict[str, torch.Tensor]:
        """A copy of an adapter's tensors, in PEFT's naming, on the CPU."""
        state = get_peft_model_state_dict(self._need(name), adapter_name=name)
        return {k: v.detach().to("cpu", copy=True) for k, v in state.items()}

    def load_adapter_state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Set an adapter's tensors.

        Raises:
            AdapterMismatchError: if a tensor is missing, left over, or of another shape.
        """
        have = self.adapter_state(name)
        if set(have) != set(state):
            odd = sorted(set(have) ^ set(state))[:3]
            raise AdapterMismatchError(f"adapter {name!r} does not fit {self.name!r}: tensors differ, e.g. {odd}")
        for key, value in state.items():
            if value.shape != have[key].shape:
                raise AdapterMismatchError(
                    f"adapter {name!r} does not fit {self.name!r}: {key} has shape {tuple(value.shape)}, "
                    f"expected {tuple(have[key].shape)}; was it trained with another rank or base model?"
                )
        set_peft_model_state_dict(self._need(name), dict(state), adapter_name=name)

    def adapter_parameters(self, name: str) -> list[torch.nn.Parameter]:
        """An adapter's parameters, by name and not by what happens to require gradients now."""
        mark = f".{name}."
        return [p for key, p in self._need(name).named_parameters() if mark in key]

    def _need(self, name: str) -> PeftModel:
        if self._peft is None or name not in self.adapters:
            raise ValueError(f"no adapter {name!r}; adapters: {self.adapters}")
        return self._peft

    def _freeze(self) -> None:
        assert self._peft is not None
        self._peft.requires_grad_(False)

    @contextmanager
    def active(self, name: str | None, *, train: bool = False) -> Iterator[None]:
        """Run the body with one adapter (``None``: the bare base), then put everything back.

        With ``train=True`` the adapter's parameters require gradients inside, and the backward pass belongs inside too.
        """
        if self._merged is not None and name != self._merged:
            raise RuntimeError(f"adapter {self._merged!r} is merged into the base; leave merged() to run {name!r}")
        if self._merged is not None:
            if train:
                raise RuntimeError(f"adapter {name!r} is merged and cannot be trained; leave merged() first")
            yield
            return
        if self._peft is None and name is None:
            yield
            return
        peft = self._peft if name is None else self._need(name)
        assert peft is not None
        # An enclosing active(train=True) gets its gradients back: flags and mode are restored exactly.
        previous, was_training = peft.active_adapter, peft.training
        flags = [(p, p.requires_grad) for p in peft.parameters()]
        try:
            peft.train(train)
            if name is None:
                with peft.disable_adapter():
                    yield
            else:
                peft.set_adapter(name, inference_mode=True)
                if train:
                    for parameter in self.adapter_parameters(name):
                        parameter.requires_grad_(True)
                yield
        finally:
            peft.train(was_training)
            peft.set_adapter(previous, inference_mode=True)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    @contextmanager
    def merged(self, name: str) -> Iterator[None]:
        """Fold an adapter into a small base for fast inference; the base's exact weights come back on leaving.

        Does nothing but switch for bases of 50 million parameters or more, where the copy would not pay.
        """
        if self.base.num_parameters() >= _MERGE_LIMIT or self._merged is not None:
            with self.active(name):
                yield
            return
        peft: Any = self._need(name)
        layers: list[Any] = [m for m in peft.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
        saved = [m.base_layer.weight.detach().clone() for m in layers]
        previous = peft.active_adapter
        try:
            peft.set_adapter(name, inference_mode=True)
            with torch.no_grad():
                for layer in layers:
                    if name in layer.lora_A:
                        layer.base_layer.weight += layer.get_delta_weight(name)
            peft.base_model.disable_adapter_layers()
            self._merged = name
            yield
        finally:
            self._merged = None
            with torch.no_grad():
                for layer, weight in zip(layers, saved, strict=True):
                    layer.base_layer.weight.copy_(weight)
            peft.base_model.enable_adapter_layers()
            peft.set_adapter(previous, inference_mode=True)
            self._freeze()

    # ------------------------------------------------------------------ forward
    def hidden(self, packed: PackedTrees, cache: RaggedCache | None = None) -> torch.Tensor:
        """Last hidden states under the active adapter.

        Args:
            packed: the batch; with a cache its mask is (B, 1, L, S).
            cache: keys and values of what came before.

        Returns:
            (B, L, hidden_size).
        """
        mask = packed.mask
        if self.base.config._attn_implementation == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(self.base.dtype).min).to(self.base.dtype)
        out = self.base.get_decoder()(
            input_ids=packed.ids,
            attention_mask=mask,
            position_ids=packed.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits in float32 for hidden states (..., hidden_size) -> (..., vocabulary)."""
        logits = self.base.get_output_embeddings()(hidden).float()
        cap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap
