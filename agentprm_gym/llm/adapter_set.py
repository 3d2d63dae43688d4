"""One frozen base with any number of LoRA adapters: adding, switching, training, saving and merging them.

PEFT's switching has silent traps: an adapter that is switched away stops being trainable, and leaving a context makes a
frozen one trainable. So :meth:`AdapterSet.active` is the only place that switches. PEFT keeps the weights of linear layers
and of embeddings in containers of different kinds, so :meth:`AdapterSet.adapter_tensors` walks PEFT's own list of them, and
optimizers, saves and merging all read that walk.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from agentprm_gym.llm.architecture import fingerprint_of
from agentprm_gym.llm.errors import AdapterMismatchError
from agentprm_gym.llm.loading import BUNDLED, resolve_model
from agentprm_gym.llm.lora_linear import adapter_tensors, fast_layers, shared_weights
from agentprm_gym.llm.peft_folder import SETTINGS, check_settings, read_adapter, write_adapter

#: LoRA settings used where the caller gives none.
DEFAULT_LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
#: A base of this many parameters or more is not merged: the copy would cost more than it saves.
_MERGE_LIMIT = 50_000_000
#: The settings that say how large an adapter's tensors are and how they are scaled.
_SCALE = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of tensors on the CPU, without their gradients."""
    return {k: v.detach().to("cpu", copy=True) for k, v in state.items()}


def lora_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an adapter's PEFT configuration that makes another adapter of the same shape, JSON-able."""
    chosen = {k: config[k] for k in SETTINGS if config.get(k) not in (None, False, {})}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in chosen.items()}


def is_quantized(base: Any) -> bool:
    """Whether the base's weights are packed, so that nothing can be added to them."""
    return bool(getattr(base, "is_quantized", False))


def layer_delta(layer: LoraLayer, adapter: str) -> torch.Tensor | None:
    """What an adapter adds to the weight of a layer, in that weight's shape; ``None`` where the layer has no such adapter."""
    if adapter not in layer.lora_A and adapter not in layer.lora_embedding_A:
        return None
    kind: Any = layer  # LoraLayer leaves the method to its subclasses
    delta: torch.Tensor = kind.get_delta_weight(adapter)
    return delta


class AdapterSet:
    """A frozen base model and its LoRA adapters, by name.

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
        """Names of the adapters."""
        return [] if self._peft is None else list(self._peft.peft_config)

    def add_adapter(self, name: str, lora: Mapping[str, Any] | None = None) -> None:
        """Add a fresh LoRA adapter. Its output is zero until it is trained.

        In a model that reads more than text, the adapter is kept to the decoder of text and its output layer. An
        ``exclude_modules`` of your own replaces this rule.

        Args:
            name: the adapter's name.
            lora: keyword arguments of ``peft.LoraConfig``, JSON-able; :data:`DEFAULT_LORA` where ``None``.

        Raises:
            ValueError: if the name is taken, or the settings are those of another kind of adapter than plain LoRA.
        """
        lora = dict(lora or {})
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

    def _add(self, name: str, lora: Mapping[str, Any]) -> None:
        if name in self.adapters:
            raise ValueError(f"adapter {name!r} exists already; adapters: {self.adapters}")
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
        if self._peft is None or name not in self.adapters:
            return
        if len(self.adapters) == 1:
            # PEFT keeps a wrapper around at least one. With the last adapter the wrapper goes, and the base is bare again.
            self._peft.unload()
            self._peft = None
            self._freeze()
        else:
            if self._peft.active_adapter == name:
                self._peft.set_adapter(next(a for a in self.adapters if a != name))
            self._peft.delete_adapter(name)
            self._freeze()

    def copy_adapter(self, source: str, target: str) -> None:
        """Copy an adapter's weights into another of the same shape, which is made where it is missing."""
        if target not in self.adapters:
            self._add(target, lora_settings(self.adapter_config(source)))
        self.load_adapter_state(target, self.adapter_state(source))

    def _need(self, name: str) -> PeftModel:
        if self._peft is None or name not in self.adapters:
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
        """The LoRA settings of an adapter, as JSON-able keyword arguments."""
        config = self._need(name).peft_config[name].to_dict()
        return {k: (sorted(v) if isinstance(v, set) else v) for k, v in config.items()}

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters in PEFT's naming: those of linear layers, of embeddings and of the output layer."""
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
            raise AdapterMismatchError(f"adapter {name!r} does not fit {self.name!r}: tensors differ, e.g. {odd}")
        for key, value in state.items():
            if value.shape != have[key].shape:
                raise AdapterMismatchError(
                    f"adapter {name!r} does not fit {self.name!r}: {key} has shape {tuple(value.shape)}, "
                    f"expected {tuple(have[key].shape)}; was it trained with another rank or base model?"
                )
        for key, value in state.items():
            have[key].copy_(value)

    def export_adapter(self, name: str, folder: str | os.PathLike[str]) -> Path:
        """Write an adapter as PEFT does: ``PeftModel.from_pretrained(base, folder)`` reads it.

        Args:
            name: the adapter.
            folder: made where it is missing.

        Returns:
            The folder.
        """
        config = self.adapter_config(name)
        base = resolve_model(self.name) if self.name in BUNDLED else self.name
        config |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
        return write_adapter(folder, config, self.adapter_state(name))

    def import_adapter(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Read an adapter that PEFT wrote (``peft``, ``trl`` or :meth:`export_adapter`).

        PEFT notes the base only by name, which proves nothing. An adapter of another base with the same shapes is taken
        without complaint.

        Args:
            name: what to call it. An adapter of this name must have the same shape and scale; a missing one is made.
            folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            AdapterMismatchError: if it does not fit this base, or the adapter that has the name.
            FileNotFoundError: if there is no such folder, or it lacks one of the two files.
            ValueError: for a pickle, or another kind of adapter than plain LoRA.
        """
        found = read_adapter(folder)
        made = name not in self.adapters
        if made:
            try:
                self._add(name, found.settings)
            except ValueError as error:  # PEFT finds none of the modules
                raise AdapterMismatchError(f"the adapter in {folder} does not fit {self.name!r}: {error}") from error
        else:
            have = lora_settings(self.adapter_config(name))
            odd = [k for k in _SCALE if (have.get(k) or None) != (found.settings.get(k) or None)]
            if odd:
                raise AdapterMismatchError(
                    f"the adapter in {folder} has {odd[0]}={found.settings.get(odd[0])!r}, adapter {name!r} has "
                    f"{have.get(odd[0])!r}: make {name!r} with the same LoRA settings, or import under another name"
                )
        try:
            self.load_adapter_state(name, found.tensors)
        except AdapterMismatchError:
            if made:
                self.remove_adapter(name)
            raise

    # ------------------------------------------------------------------ switching
    @contextmanager
    def active(self, name: str | None, *, train: bool = False, dropout: bool = False) -> Iterator[None]:
        """Run the body with one adapter, then put everything back.

        Args:
            name: the adapter; ``None`` for the bare base.
            train: let the adapter's parameters require gradients inside. The backward pass belongs inside, too. Nothing
                else differs: dropout of the base stays off, so that the numbers are those of acting.
            dropout: whether the adapter's own dropout (``lora_dropout``) is on, as for imitation and regression. What is
                compared with log-probabilities of another pass (ratios, preferences, divergences) is computed without.

        Raises:
            ValueError: for an unknown name.
            RuntimeError: if another adapter is merged, or a merged one is to be trained.
        """
        if self._merged is not None:
            self._check_merged(name, train)
            yield
            return
        peft = self._peft if name is None else self._need(name)
        if peft is None:
            yield
            return
        # An enclosing active(train=True, dropout=True) gets its gradients and dropout back: both are restored exactly.
        previous = peft.active_adapter
        flags = [(p, p.requires_grad) for a in self.adapters for p in self.adapter_parameters(a)]
        layers = self._lora_layers(peft)
        drops = [(a, m, m.training) for layer in layers for a, m in layer.lora_dropout.items()]
        try:
            for adapter, module, _ in drops:
                module.train(dropout and adapter == name)
            if name is None:
                with peft.disable_adapter(), fast_layers(layers, None):
                    yield
            else:
                if name != previous:
                    peft.set_adapter(name, inference_mode=True)
                for parameter, _ in flags:
                    parameter.requires_grad_(False)
                for parameter in self.adapter_parameters(name) if train else ():
                    parameter.requires_grad_(True)
                with fast_layers(layers, name if self.fast else None):
                    yield
        finally:
            if name is not None and name != previous:
                peft.set_adapter(previous, inference_mode=True)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for _, module, training in drops:
                module.train(training)

    def _check_merged(self, name: str | None, train: bool) -> None:
        if name != self._merged:
            raise RuntimeError(f"adapter {self._merged!r} is merged into the base; leave merged() to run {name!r}")
        if train:
            raise RuntimeError(f"adapter {name!r} is merged and cannot be trained; leave merged() first")

    @contextmanager
    def merged(self, name: str) -> Iterator[None]:
        """Fold an adapter into a small base for fast inference. On leaving, the base has its own weights again.

        For a base of 50 million parameters or more, where the copy would not pay, and for a quantized one, this only
        switches the adapter on.

        Args:
            name: the adapter.
        """
        if self.base.num_parameters() >= _MERGE_LIMIT or is_quantized(self.base) or self._merged is not None:
            with self.active(name):
                yield
            return
        peft: Any = self._need(name)
        previous = peft.active_adapter
        shared = shared_weights(self.base)
        undo: list[
            tuple[Any, nn.Parameter, torch.Tensor | None]
        ] = []  # layers, their weights, and copies of the numbers
        try:
            peft.set_adapter(name, inference_mode=True)
            with torch.no_grad():
                for layer in self._lora_layers(peft):
                    delta = layer_delta(layer, name)
                    if delta is not None:
                        holder: Any = layer.get_base_layer()
                        weight = holder.weight
                        if weight.data_ptr() in shared:
                            # Other layers go on with the weight as it is.
                            undo.append((holder, weight, None))
                            holder.weight = nn.Parameter(weight.clone().add_(delta), requires_grad=False)
                        else:
                            # In place: matrix products round by where in memory a weight begins.
                            undo.append((holder, weight, weight.detach().clone()))
                            weight.add_(delta)
            peft.base_model.disable_adapter_layers()
            self._merged = name
            yield
        finally:
            self._merged = None
            with torch.no_grad():
                for holder, weight, numbers in undo:
                    holder.weight = weight if numbers is None else weight.copy_(numbers)
            peft.base_model.enable_adapter_layers()
            peft.set_adapter(previous, inference_mode=True)
            self._freeze()
