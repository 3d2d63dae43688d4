"""The adapters of one base: switching between them, merging them, and PEFT's folders; ``adapter_store.py`` holds them.

PEFT's switching has silent traps: an adapter that is switched away stops being trainable, and leaving a context makes a
frozen one trainable. So :meth:`AdapterSet.active` is the only place that switches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel

from agentprm_gym.llm.adapter_settings import is_full, lora_settings
from agentprm_gym.llm.adapter_store import AdapterStore
from agentprm_gym.llm.errors import AdapterMismatchError
from agentprm_gym.llm.folding import folded
from agentprm_gym.llm.full_weights import is_quantized
from agentprm_gym.llm.loading import is_short, resolve_model
from agentprm_gym.llm.lora_linear import fast_layers, shared_weights
from agentprm_gym.llm.peft_folder import read_adapter, write_adapter

#: A base of this many parameters or more is not merged: the copy would cost more than it saves.
_MERGE_LIMIT = 50_000_000
#: The settings that say how large an adapter's tensors are and how they are scaled.
_SCALE = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


class AdapterSet(AdapterStore):
    """A frozen base model and its adapters, of which one is active at a time."""

    # ------------------------------------------------------------------ files
    def export_adapter(self, name: str, folder: str | os.PathLike[str]) -> Path:
        """Write an adapter as PEFT does: ``PeftModel.from_pretrained(base, folder)`` reads it.

        Args:
            name: the adapter.
            folder: made where it is missing.

        Returns:
            The folder.

        Raises:
            ValueError: for an unknown adapter, or full weights, which PEFT has no format for.
        """
        config = self.adapter_config(name)
        if is_full(config):
            raise ValueError(
                f"{name!r} is fully fine-tuned, so there is no adapter to write: export the whole model (--as merged for a "
                "policy, --as classifier for a process reward model; in Python export_merged() and ProcessRewardModel.export())"
            )
        base = resolve_model(self.name) if is_short(self.name) else self.name
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
            if have is None:
                raise AdapterMismatchError(
                    f"{name!r} is fully fine-tuned and takes no LoRA adapter: import the one in {folder} under another name"
                )
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
        full = name is not None and name in self._full
        peft = self._peft if name is None or full else self._need(name)
        # An enclosing active(train=True, dropout=True) gets its gradients and dropout back: both are restored exactly.
        flags = [(p, p.requires_grad) for a in self.adapters for p in self.adapter_parameters(a)]
        with self._full.holding(name):
            try:
                with nullcontext() if peft is None else self._switched(peft, None if full else name, dropout):
                    for parameter, _ in flags:
                        parameter.requires_grad_(False)
                    for parameter in self.adapter_parameters(name) if train and name is not None else ():
                        parameter.requires_grad_(True)
                    yield
            finally:
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)

    @contextmanager
    def _switched(self, peft: PeftModel, name: str | None, dropout: bool) -> Iterator[None]:
        """Let PEFT's layers compute with one adapter or with none inside; gradients are for the caller to set."""
        previous, layers = peft.active_adapter, self._lora_layers(peft)
        drops = [(a, m, m.training) for layer in layers for a, m in layer.lora_dropout.items()]
        # By the layers: PEFT's own context looks through the whole model first. An enclosing block may have them off.
        on, was_on = name is not None, not layers[0].disable_adapters
        try:
            for adapter, module, _ in drops:
                module.train(dropout and adapter == name)
            for layer in layers if on != was_on else ():
                layer.enable_adapters(on)
            if name is not None and name != previous:
                peft.set_adapter(name, inference_mode=True)
            with fast_layers(layers, name if self.fast else None):
                yield
        finally:
            if name is not None and name != previous:
                peft.set_adapter(previous, inference_mode=True)
            for layer in layers if on != was_on else ():
                layer.enable_adapters(was_on)
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

        Full weights take the place of the base's. For a base of 50 million parameters or more, where the copy would not pay,
        and for a quantized one, this only switches the adapter on.

        Args:
            name: the adapter.
        """
        if self._merged is not None:
            with self.active(name):
                yield
        elif name in self._full:
            with self.active(name):
                self._merged = name
                try:
                    yield
                finally:
                    self._merged = None
        elif self.base.num_parameters() >= _MERGE_LIMIT or is_quantized(self.base):
            with self.active(name):
                yield
        else:
            with self._full.holding(None), self._folded(self._need(name), name):
                yield

    @contextmanager
    def _folded(self, peft: Any, name: str) -> Iterator[None]:
        previous, layers = peft.active_adapter, self._lora_layers(peft)
        was_on = not layers[0].disable_adapters
        peft.set_adapter(name, inference_mode=True)
        try:
            with folded(layers, name, shared_weights(self.base)):
                for layer in layers:
                    layer.enable_adapters(False)
                self._merged = name
                try:
                    yield
                finally:
                    self._merged = None
        finally:
            for layer in layers:
                layer.enable_adapters(was_on)
            peft.set_adapter(previous, inference_mode=True)
            self._freeze()
