"""Language models: a base with its adapters, its tokenizer, its way of writing transcripts, and one forward pass.

Policy, reference and process reward model are adapters (and heads) over one frozen base that is in memory once
(:mod:`agentprm_gym.llm.adapter_set`). Standalone models are written by :mod:`agentprm_gym.llm.export`, and
:mod:`agentprm_gym.llm.architecture` refuses what token trees and caches do not suit.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agentprm_gym.llm import export, lean, lean_gradients, tree_attention
from agentprm_gym.llm.adapter_set import AdapterSet
from agentprm_gym.llm.adapter_settings import DEFAULT_LORA, lora_settings
from agentprm_gym.llm.adapter_store import on_cpu
from agentprm_gym.llm.architecture import check_architecture, pin_rope, windows
from agentprm_gym.llm.cache import RaggedCache
from agentprm_gym.llm.checkpointing import checkpointing
from agentprm_gym.llm.errors import AdapterMismatchError, ModelNotFoundError, UnsupportedModelError
from agentprm_gym.llm.loading import BUNDLED, is_folder, load_pretrained, resolve_model
from agentprm_gym.llm.packing import PackedTrees, TokenTree, pack
from agentprm_gym.llm.prompts import PromptFormat

__all__ = [
    "BUNDLED",
    "DEFAULT_LORA",
    "AdapterMismatchError",
    "LanguageModel",
    "ModelNotFoundError",
    "UnsupportedModelError",
    "lora_settings",
    "on_cpu",
    "resolve_model",
]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Numbers of half precision in float32, others as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


class LanguageModel(AdapterSet):
    """A causal language model with its tokenizer, prompt format and adapters.

    Attributes:
        name: how the user called it (alias, path or hub id).
        base: the model of Hugging Face; its own weights are frozen.
        tokenizer: its tokenizer.
        prompt: how transcripts are written for it.
        max_context: how many tokens of context to use at most; ``None``: all that the model has.
        gradient_checkpointing: whether training keeps the inputs of layers only.
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
            base: the causal language model; it is frozen here, and rotary positions that depend on the length of a text
                are fixed for the whole context (:func:`agentprm_gym.llm.architecture.pin_rope`).
            tokenizer: its tokenizer; a missing pad token is set to the end-of-sequence token.
            name: how the user named the model.
            template: prompt template (see :mod:`agentprm_gym.llm.prompts`); by default the one the model's configuration
                names, else ``"full"``.
            reasons: write responses with their reasons.
            max_context: how many tokens of context to use at most, 1 or more; by default all that the model has.

        Raises:
            ValueError: for a context of less than one token or of more than the model has, or a tokenizer or template
                that :class:`~agentprm_gym.llm.prompts.PromptFormat` refuses.
        """
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context must be 1 or more tokens, got {max_context}")
        super().__init__(base, name)
        base.config.use_cache = False
        chosen = template or getattr(base.config, "agentprm_template", None) or "full"
        self.max_context = max_context
        # Whether the base takes tree attention, which is found out at its first use, and up to which depth.
        self._takes_trees: bool | None = None
        self._window: int | None = None
        self.gradient_checkpointing = False
        self.tokenizer = tokenizer
        self.prompt = PromptFormat(tokenizer, chosen, reasons)
        if tokenizer.pad_token_id is None:
            # Only ever a filler behind a row's end, which no mask lets anything see.
            tokenizer.pad_token_id = tokenizer.eos_token_id
        limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        # Pinned positions are made for the context that is asked for, others end at the model's own.
        if not pin_rope(base, self.context_length) and max_context is not None and limit and max_context > limit:
            raise ValueError(
                f"max_context={max_context} is more than the {limit} positions of {name!r}: expected at most {limit}"
            )
        # transformers 5.24 calls it by another name and takes the older one away in 5.40.
        takes = inspect.signature(base.get_decoder().forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"

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
        gradient_checkpointing: bool = False,
    ) -> LanguageModel:
        """Load a bundled model, a folder, or a hub id.

        Args:
            name: ``"tiny"``, a path, or a Hugging Face id.
            device: torch device.
            dtype: type of the weights; ``"auto"`` takes the checkpoint's.
            attn_implementation: ``"sdpa"`` or ``"eager"``. Token trees need a mask of their own, which flash kernels
                refuse.
            template: prompt template: ``"compact"``, ``"full"``, ``"react"`` or a ``.jinja`` file.
            reasons: write responses with their reasons.
            max_context: how many tokens of context to use at most, 1 or more.
            quantization: ``"4bit"`` loads the frozen base in 4 bits (NF4); needs ``pip install "agentprm-gym[quantized]"``
                and a GPU.
            trust_remote_code: run code from the model's repository; off unless you trust it.
            gradient_checkpointing: keep the inputs of layers only while training, and compute what is in them again for the
                gradients: a third more time, and a fraction of the memory.

        Raises:
            ModelNotFoundError: (a ``ValueError``) if the name is unknown, or the model cannot be read or fetched.
            UnsupportedModelError: (a ``ValueError``) if the architecture does not take token trees.
            ValueError: for an unknown attention implementation, quantization or template, or a context that the model
                does not have.
            ImportError: if what quantization needs is not installed.
        """
        base, tokenizer = load_pretrained(
            name,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
        )
        model = cls(base, tokenizer, name=name, template=template, reasons=reasons, max_context=max_context)
        check_architecture(model)
        model.gradient_checkpointing = gradient_checkpointing
        return model

    @property
    def identity(self) -> dict[str, Any]:
        """What a save notes of the base: its name, its fingerprint, and whether the name is that of a folder."""
        return {"name": self.name, "fingerprint": self.fingerprint, "folder": is_folder(self.name)}

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
        """Window of the layers that attend locally, in tokens; ``None`` where all layers see everything."""
        config = self.base.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        return int(window) if window and (kinds is None or "sliding_attention" in kinds) else None

    @property
    def context_length(self) -> int | None:
        """Tokens that the model can take: ``max_context``, else what its configuration says; ``None`` where it is silent."""
        config = self.base.config.get_text_config()
        length = self.max_context or getattr(config, "max_position_embeddings", None)
        return None if length is None else int(length)

    # ------------------------------------------------------------------ standalone models
    def merged_state(self, name: str) -> dict[str, torch.Tensor]:
        """The base's tensors on the CPU with an adapter folded in, named as without PEFT; the base stays as it is.

        Raises:
            ValueError: for an unknown adapter, or a quantized base: nothing can be added to its weights.
            RuntimeError: inside :meth:`merged`.
        """
        self.adapter_tensors(name)  # there is one of this name
        if self._merged is not None:
            raise RuntimeError(f"adapter {self._merged!r} is merged into the base; leave merged() first")
        return export.merged_state(self, name)

    def export_merged(self, name: str, folder: str | os.PathLike[str]) -> Path:
        """Write a standalone model: the base with an adapter folded in, and the tokenizer.

        ``AutoModelForCausalLM.from_pretrained(folder)`` and :meth:`load` read it. Where the base ties its embeddings to its
        output layer and the adapter makes them differ, the exported model holds both.

        Args:
            name: the adapter.
            folder: made where it is missing.

        Returns:
            The folder.

        Raises:
            ValueError: for an unknown adapter, or a quantized base.
            RuntimeError: inside :meth:`merged`.
        """
        state = self.merged_state(name)
        return export.export_model(self, state, self.prompt, self.tokenizer, folder)

    def export_config(self) -> Any:
        """A copy of the base's configuration for a model that is made from it; it names the prompt template."""
        return export.export_config(self, self.prompt)

    #: See :func:`agentprm_gym.llm.export.write_model`.
    write_model = staticmethod(export.write_model)

    # ------------------------------------------------------------------ forward
    def hidden(self, packed: PackedTrees, cache: RaggedCache | None = None) -> torch.Tensor:
        """Last hidden states under the active adapter.

        Args:
            packed: the batch of B rows with L tokens; with a cache its mask is (B, 1, L, S) over S keys.
            cache: keys and values of what came before.

        Returns:
            (B, L, hidden_size).
        """
        mask: Any = self._attention_mask(packed.mask)
        if self.sliding_window is not None:
            window = self._attention_mask(packed.window_mask(self.sliding_window))
            # Models that mix full and windowed layers take a mask of each kind.
            mixed = getattr(self.base.config.get_text_config(), "layer_types", None) is not None
            mask = {"full_attention": mask, "sliding_attention": window} if mixed else window
        decoder = self.base.get_decoder()
        with checkpointing(decoder) if self.gradient_checkpointing and torch.is_grad_enabled() else nullcontext():
            out = decoder(
                input_ids=packed.ids,
                attention_mask=mask,
                position_ids=packed.positions,
                use_cache=cache is not None,
                **{self._cache_argument: cache},
            )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def tree_hidden(
        self, trees: Sequence[TokenTree], wanted: Sequence[Iterable[int]] | None = None
    ) -> tuple[torch.Tensor, list[int]]:
        """Last hidden states of token trees under the active adapter, by the cheapest way that suits the model.

        Args:
            trees: one or more.
            wanted: for each tree the indices of the tokens whose hidden states are read; what is returned for the others
                means nothing. ``None``: all.

        Returns:
            (M, hidden_size), and the row where each tree's first token stands; its other tokens follow.
        """
        if self._attends_to_trees():
            flat = tree_attention.flatten(trees, self.device)
            if self._window is None or flat.depth <= self._window:
                return self._flat_hidden(flat, wanted), flat.starts
        hidden = self.hidden(pack(trees, int(self.tokenizer.pad_token_id), self.device))  # (B, L, H)
        width = hidden.shape[1]
        return hidden.flatten(0, 1), [row * width for row in range(len(trees))]

    def _flat_hidden(
        self, flat: tree_attention.FlatTrees, wanted: Sequence[Iterable[int]] | None = None
    ) -> torch.Tensor:
        """Last hidden states of trees that lie one behind the other, (N, hidden_size)."""
        decoder = self.base.get_decoder()
        weights = lean.Weights.of(decoder)
        if weights is not None and not weights.trained:
            if wanted is None:
                return lean_gradients.hidden_states(decoder, weights, flat)
            pairs = zip(flat.starts, wanted, strict=True)
            rows = torch.tensor(sorted({start + i for start, here in pairs for i in here}))  # (K,)
            some = lean_gradients.hidden_states(decoder, weights, flat, rows)
            return some.new_zeros(flat.ids.shape[1], some.shape[1]).index_copy(0, rows, some)
        # The library passes a mask of this form on as it is. Who attends to whom, the trees say.
        mask: Any = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        if getattr(self.base.config.get_text_config(), "layer_types", None) is not None and self.sliding_window:
            mask = {"full_attention": mask, "sliding_attention": mask}
        with tree_attention.attending(decoder.config, flat):
            out = decoder(input_ids=flat.ids, attention_mask=mask, position_ids=flat.positions, use_cache=False)
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def lean_weights(self, depth: int) -> lean.Weights | None:
        """What a small model's pass can be computed with directly; ``None`` where the library has to compute it.

        Args:
            depth: tokens of the longest text.
        """
        if not self._attends_to_trees() or (self._window is not None and depth > self._window):
            return None
        return lean.Weights.of(self.base.get_decoder())

    def extended(self, weights: lean.Weights, *args: Any) -> torch.Tensor:
        """:func:`agentprm_gym.llm.lean.extended` with this model's decoder."""
        return lean.extended(self.base.get_decoder(), weights, *args)

    def _attends_to_trees(self) -> bool:
        """Whether the model gives the same numbers with tree attention as with dense attention; tried once."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return False  # what is computed again would not find the trees
        if not self.fast or self.device.type != "cpu" or self.base.config._attn_implementation != "sdpa":
            return False
        if self._takes_trees is None:
            self._takes_trees = self._same_on_trees()
            self._window = min((size for _, size in windows(self)), default=None)
        return self._takes_trees

    def _same_on_trees(self) -> bool:
        # Dropout would make two equal ways differ, and take random numbers that a resumed run does not take.
        training = [module for module in self.base.modules() if module.training]
        self.base.eval()
        try:
            with torch.no_grad():
                return self._compares_equal_on_trees()
        finally:
            for module in training:
                module.training = True

    def _compares_equal_on_trees(self) -> bool:
        size = int(self.base.config.get_text_config().vocab_size)
        a, b, c, d, e, f = (i % size for i in range(5, 11))
        trees = [TokenTree([a, b, c], [d, e, f, a], [1, 3, 0, 2]), TokenTree([f, b], [a, c], [1, 1])]
        dense = self.hidden(pack(trees, 0, self.device))
        try:
            flat = self._flat_hidden(tree_attention.flatten(trees, self.device))
        except Exception:  # whatever an unknown architecture does with what it is given; the dense way is there for it
            return False
        expected = torch.cat([dense[row, : len(tree)] for row, tree in enumerate(trees)])
        allowed = 1e-4 if self.base.dtype == torch.float32 else 0.1
        return flat.shape == expected.shape and bool((flat - expected).abs().max() <= allowed * expected.abs().max())

    def _attention_mask(self, mask: torch.Tensor) -> torch.Tensor:
        if self.base.config._attn_implementation != "eager":
            return mask
        return torch.where(mask, 0.0, torch.finfo(self.base.dtype).min).to(self.base.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits for hidden states (..., hidden_size) -> (..., vocabulary), in float32 or in the model's float64."""
        return self._scaled(at_least_float32(self.base.get_output_embeddings()(hidden)))

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits after what some architectures do to them behind the output layer."""
        config = self.base.config.get_text_config()
        kind = str(config.model_type)
        if kind.startswith("granite"):
            return logits / config.logits_scaling
        if kind.startswith("cohere"):
            return logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def token_logits(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, as of :meth:`logits`, of one token a row: (N, hidden_size), (N,) -> (N,).

        With a plain output layer only these rows of it are multiplied: the vocabulary may hold 150,000.
        """
        head = self.base.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return self.logits(hidden).gather(-1, tokens[:, None]).squeeze(-1)
        logits = at_least_float32(torch.einsum("nh,nh->n", hidden.to(head.weight.dtype), head.weight[tokens]))
        if head.bias is not None:
            logits = logits + head.bias[tokens].to(logits.dtype)
        return self._scaled(logits)

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
