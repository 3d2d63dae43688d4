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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
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


def _quantization(kind: str | None, device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` for a quantized base."""
    if kind is None:
        return {}
    if kind != "4bit":
        raise ValueError(f"quantization must be None or '4bit', got {kind!r}")
    if find_spec("bitsandbytes") is None:
        raise ImportError('quantization="4bit" needs bitsandbytes: pip install "agentprm-gym[quantized]"')
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": {"": str(device)}}


class LanguageModel:
    """A causal language model with its tokenizer, prompt format and adapters.

    Attributes:
        name: what the user called it (alias, path or hub id).
        tokenizer: its tokenizer.
        prompt: how transcripts are written for it.
        device: where it lives.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        template: str | None = None,
        reasons: bool = False,
        max_context: int | None = None,
    ) -> None:
        """Wrap a loaded model. Most callers use :meth:`load`.

        Args:
            base: the causal language model; it is frozen here.
            tokenizer: its tokenizer; a missing pad token is set to the end-of-sequence token.
            name: how the user named the model.
            template: prompt template (see :mod:`agentprm_gym.llm.prompts`); by default the one the model's configuration
                names, else ``"full"``.
            reasons: write responses with their reasons.
            max_context: use no more than so many tokens of context; by default all that the model has.

        Raises:
            ValueError: for a context of less than one token.
        """
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context must be 1 or more tokens, got {max_context}")
        base.requires_grad_(False)
        base.eval()
        base.config.use_cache = False
        chosen = template or getattr(base.config, "agentprm_template", None) or "full"
        self.name = name
        self.max_context = max_context
        self.tokenizer = tokenizer
        self.base = base
        self.prompt = PromptFormat(tokenizer, chosen, reasons)
        if tokenizer.pad_token_id is None:
            # Only ever a filler behind a row's end, which no mask lets anything see.
            tokenizer.pad_token_id = tokenizer.eos_token_id
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
        reasons: bool = False,
        max_context: int | None = None,
        quantization: str | None = None,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load a bundled model, a folder, or a hub id.

        Args:
            name: ``"tiny"``, a path, or a Hugging Face id.
            device: torch device.
            dtype: weights' type; ``"auto"`` takes the checkpoint's.
            attn_implementation: ``"sdpa"`` or ``"eager"`` (token trees need a mask of their own, which flash kernels
                refuse).
            template: prompt template: ``"compact"``, ``"full"``, ``"react"`` or a ``.jinja`` file.
            reasons: write responses with their reasons.
            max_context: use no more than so many tokens of context.
            quantization: ``"4bit"`` loads the frozen base in 4 bits (NF4); needs ``pip install "agentprm-gym[quantized]"``
                and a GPU.
            trust_remote_code: run code from the model's repository; off unless you trust it.

        Raises:
            ValueError: for an unknown name, attention implementation or quantization.
            ImportError: if what quantization needs is not installed.
        """
        if attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
        extra = _quantization(quantization, device)
        path = resolve_model(name)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # transformers' bars help with downloads; for a folder they would only flash up between ours.
        quiet = Path(path).is_dir() and hf_logging.is_progress_bar_enabled()
        if quiet:
            hf_logging.disable_progress_bar()
        try:
            base: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                **extra,
            )
        finally:
            if quiet:
                hf_logging.enable_progress_bar()
        base = base if extra else base.to(device)
        return cls(base, tokenizer, name=name, template=template, reasons=reasons, max_context=max_context)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def sliding_window(self) -> int | None:
        """Window of the layers that attend locally; ``None`` where no layer does."""
        config = self.base.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        return int(window) if window and (kinds is None or "sliding_attention" in kinds) else None

    @property
    def context_length(self) -> int | None:
        """Tokens the model can take, as its configuration says; ``None`` where it says nothing."""
        config = self.base.config.get_text_config()
        length = self.max_context or getattr(config, "max_position_embeddings", None)
        return None if length is None else int(length)

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
        mask: Any = self._attention_mask(packed.mask)
        if self.sliding_window is not None:
            window = self._attention_mask(packed.window_mask(self.sliding_window))
            # Models that mix full and windowed layers take a mask of each kind.
            mixed = hasattr(self.base.config.get_text_config(), "layer_types")
            mask = {"full_attention": mask, "sliding_attention": window} if mixed else window
        out = self.base.get_decoder()(
            input_ids=packed.ids,
            attention_mask=mask,
            position_ids=packed.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def _attention_mask(self, mask: torch.Tensor) -> torch.Tensor:
        if self.base.config._attn_implementation != "eager":
            return mask
        return torch.where(mask, 0.0, torch.finfo(self.base.dtype).min).to(self.base.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits in float32 for hidden states (..., hidden_size) -> (..., vocabulary)."""
        return self._capped(self.base.get_output_embeddings()(hidden).float())

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        cap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def token_logits(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits in float32 of one token a row: (N, hidden_size), (N,) -> (N,).

        With a plain output layer only these rows of it are multiplied: the vocabulary may hold 150,000.
        """
        head = self.base.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return self.logits(hidden).gather(-1, tokens[:, None]).squeeze(-1)
        logits = torch.einsum("nh,nh->n", hidden.to(head.weight.dtype), head.weight[tokens]).float()
        if head.bias is not None:
            logits = logits + head.bias[tokens].float()
        return self._capped(logits)

    def token_log_probs(self, hidden: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of tokens in the whole vocabulary.

        Args:
            hidden: (M, hidden_size).
            rows: (N,) which row of ``hidden`` predicts each token.
            tokens: (N,).

        Returns:
            (N,) float32.
        """
        if hidden.requires_grad:
            logits = self.logits(hidden)  # (M, V)
            return logits[rows, tokens] - logits.logsumexp(-1)[rows]
        # A slice at a time: (M, V) of a large vocabulary would not fit.
        totals = torch.cat([self.logits(part).logsumexp(-1) for part in hidden.split(256)])  # (M,)
        return self.token_logits(hidden[rows], tokens) - totals[rows]
