"""One base and any number of adapters on it: adding them, taking them away, and their tensors.

An adapter is what one role (policy, reference, process reward model) trains: LoRA beside the frozen base, or weights of its
own in place of the base's (:mod:`agentprm_gym.llm.full_weights`). Callers name it and need not know which of the two it is.

PEFT keeps the weights of linear layers and of embeddings in containers of different kinds, so
:meth:`AdapterStore.adapter_tensors` walks PEFT's own list of them, and optimizers, saves and merging all read that walk.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from agentprm_gym.llm.adapter_settings import DEFAULT_LORA, FULL_CONFIG, OTHER_KIND, kind_of, lora_settings
from agentprm_gym.llm.architecture import fingerprint_of
from agentprm_gym.llm.errors import AdapterMismatchError
from agentprm_gym.llm.full_weights import FullWeights
from agentprm_gym.llm.lora_linear import adapter_tensors
from agentprm_gym.llm.peft_folder import check_settings


def on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of tensors on the CPU, without their gradients."""
    return {k: v.detach().to("cpu", copy=True) for k, v in state.items()}


class AdapterStore:
    """A frozen base model and its adapters, by name.

    The base stays in evaluation mode, also while an adapter is trained. A model's own dropout would make the update see
    other log-probabilities than the rollouts and the reference did.

    Attributes:
        base: the model; PEFT's layers stand in it once there is an adapter.
        name: how the user named the base.
        fast: whether passes take the ways that are faster for small models; the numbers are the same up to rounding.
    """

    def __init__(self, base: PreTrainedModel, name: str) -> None:
        """Freeze a base.

        Args:
            base: a causal language model.
            name: how the user named it, for messages and saves.
        """
        base.requires_grad_(False)
        base.eval()
        self.base = base
        self.name = name
        self.fast = True
        self._peft: PeftModel | None = None
        self._full = FullWeights(base)
        self._merged: str | None = None
        # What walks over the modules found. They take longer than a pass of a small model, and adapters change seldom.
        self._layers: list[Any] | None = None
        self._tensors: dict[str, dict[str, nn.Parameter]] = {}
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """A short hash of the base's configuration and of all its weights (:func:`fingerprint_of`)."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.base)
        return self._fingerprint

    # ------------------------------------------------------------------ adding and removing
    @property
    def adapters(self) -> list[str]:
        """Names of the adapters, those of LoRA first."""
        return [*self._lora_names, *self._full.names]

    @property
    def _lora_names(self) -> list[str]:
        return [] if self._peft is None else list(self._peft.peft_config)

    def add_adapter(self, name: str, lora: Mapping[str, Any] | None = DEFAULT_LORA) -> None:
        """Add a fresh adapter. It changes nothing until it is trained.

        In a model that reads more than text, the adapter is kept to the decoder of text and its output layer. An
        ``exclude_modules`` of your own replaces this rule.

        Args:
            name: the adapter's name.
            lora: keyword arguments of ``peft.LoraConfig``, JSON-able, on top of :data:`DEFAULT_LORA`; ``None``: full
                fine-tuning, all weights are the adapter's own and begin as the base's.

        Raises:
            ValueError: if the name is taken, or the settings are those of another kind of adapter than plain LoRA; with
                ``None``: the base is quantized, or in less than float32.
            RuntimeError: with ``None``, inside :meth:`merged`.
        """
        if lora is None:
            self._add_full(name)
            return
        lora = dict(lora)
        check_settings(lora, f"adapter {name!r}")
        if lora.get("ensure_weight_tying"):
            raise ValueError(
                f"adapter {name!r} uses ensure_weight_tying, which is not supported here: expected nothing, since adapters of "
                "the embeddings and of the output layer are trained and merged one by one"
            )
        elsewhere = self._beside_text()
        if elsewhere is not None:
            lora.setdefault("exclude_modules", elsewhere)
        self._add(name, lora)

    def _check_new(self, name: str) -> None:
        if name in self.adapters:
            raise ValueError(f"adapter {name!r} exists already; adapters: {self.adapters}")

    def _add_full(self, name: str) -> None:
        self._check_new(name)
        if self._merged is not None:
            raise RuntimeError(f"adapter {self._merged!r} is merged into the base; leave merged() to add {name!r}")
        # Known from here on, while the base has its own weights.
        self._fingerprint = self.fingerprint
        lora = [p for a in self._lora_names for p in self.adapter_parameters(a)]
        self._full.add(name, lora)

    def _add(self, name: str, lora: Mapping[str, Any]) -> None:
        self._check_new(name)
        config = LoraConfig(**{**DEFAULT_LORA, **lora})
        with warnings.catch_warnings():
            # Nothing that a user could act on: PEFT asks transformers by an old name, finds out by itself how GPT-2 stores
            # its weights, and warns of tied weights, which are merged and exported one by one here.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            warnings.filterwarnings("ignore", "You have passed exclude_modules=", UserWarning)
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`", UserWarning)
            if self._peft is None:
                # Known from here on, while the base has no layers of PEFT in it and nothing is merged.
                self._fingerprint = self.fingerprint
                peft = get_peft_model(self.base, config, adapter_name=name)
                assert isinstance(peft, PeftModel)
                self._peft = peft
            else:
                self._peft.add_adapter(name, config)
        self._freeze()

    def _beside_text(self) -> str | None:
        """A pattern of the modules outside the decoder of text and its output layer; ``None`` where there are none."""
        names = {id(module): name for name, module in self.base.named_modules()}
        decoder, head = self.base.get_decoder(), self.base.get_output_embeddings()
        kept = [names[id(m)].removesuffix(".base_layer") for m in (decoder, head) if m is not None and id(m) in names]
        inside = tuple(f"{name}." for name in kept)
        linear = [n for n, m in self.base.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))]
        if "" in kept or all(name.startswith(inside) or name in kept for name in linear):
            return None
        return rf"(?!({'|'.join(name.replace('.', chr(92) + '.') for name in kept)})(\.|$)).*"

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored."""
        if name in self._full:
            self._full.remove(name)
            return
        if self._peft is None or name not in self._lora_names:
            return
        if len(self._lora_names) == 1:
            # PEFT keeps a wrapper around at least one. With the last adapter the wrapper goes, and the base is bare again.
            self._peft.unload()
            self._peft = None
            self._freeze()
        else:
            if self._peft.active_adapter == name:
                self._peft.set_adapter(next(a for a in self._lora_names if a != name))
            self._peft.delete_adapter(name)
            self._freeze()

    def copy_adapter(self, source: str, target: str) -> None:
        """Copy an adapter's weights into another of the same kind and shape, which is made where it is missing."""
        if target not in self.adapters:
            settings = lora_settings(self.adapter_config(source))
            if settings is None:
                self._add_full(target)
            else:
                self._add(target, settings)
        self.load_adapter_state(target, self.adapter_state(source))

    def _need(self, name: str) -> PeftModel:
        if self._peft is None or name not in self._lora_names:
            raise ValueError(f"no adapter {name!r}; adapters: {self.adapters}")
        return self._peft

    def _freeze(self) -> None:
        self._layers, self._tensors = None, {}
        if self._peft is not None:
            self._peft.requires_grad_(False)
            self._peft.eval()

    def _lora_layers(self, peft: PeftModel) -> list[Any]:
        """The layers with adapters."""
        if self._layers is None:
            self._layers = [m for m in peft.modules() if isinstance(m, LoraLayer)]
        return self._layers

    # ------------------------------------------------------------------ tensors
    def adapter_config(self, name: str) -> dict[str, Any]:
        """An adapter's configuration, JSON-able: PEFT's, or :data:`FULL_CONFIG` where it has all weights.

        :func:`lora_settings` makes the argument of :meth:`add_adapter` of it.
        """
        if name in self._full:
            return dict(FULL_CONFIG)
        config = self._need(name).peft_config[name].to_dict()
        return {k: (sorted(v) if isinstance(v, set) else v) for k, v in config.items()}

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters: in PEFT's naming those of linear layers, of embeddings and of the output layer.

        With full weights those of the base, by its own names; a weight that several modules share is there once.
        """
        if name in self._full:
            return dict(self._full.parameters(name))
        peft = self._need(name)
        if name not in self._tensors:
            self._tensors[name] = adapter_tensors(peft, name)
        return dict(self._tensors[name])

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """An adapter's parameters, whether or not they require gradients now."""
        return list(self.adapter_tensors(name).values())

    def adapter_state(self, name: str) -> dict[str, torch.Tensor]:
        """A copy of an adapter's tensors, in PEFT's naming, on the CPU."""
        return on_cpu(self.adapter_tensors(name))

    @torch.no_grad()
    def load_adapter_state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Set an adapter's tensors.

        Args:
            name: the adapter.
            state: what :meth:`adapter_state` returned.

        Raises:
            AdapterMismatchError: if a tensor is missing, left over, or of another shape.
        """
        have = self.adapter_tensors(name)
        if set(have) != set(state):
            odd = sorted(set(have) ^ set(state))[:3]
            kinds = sorted({kind_of(have), kind_of(state)})
            advice = f"; one is {kinds[0]}, the other {kinds[1]}: {OTHER_KIND}" if len(kinds) > 1 else ""
            raise AdapterMismatchError(
                f"adapter {name!r} does not fit {self.name!r}: tensors differ, e.g. {odd}{advice}"
            )
        for key, value in state.items():
            if value.shape != have[key].shape:
                raise AdapterMismatchError(
                    f"adapter {name!r} does not fit {self.name!r}: {key} has shape {tuple(value.shape)}, "
                    f"expected {tuple(have[key].shape)}; was it trained with another rank or base model?"
                )
        for key, value in state.items():
            have[key].copy_(value)
