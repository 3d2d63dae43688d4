"""Saves: one zip of JSON, safetensors and PEFT adapter folders. No pickle, on writing or on reading."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save as save_safetensors

from agentprm_gym.files import write_whole
from agentprm_gym.hub import fetch, is_hub
from agentprm_gym.llm.adapter_settings import FULL_CONFIG, is_full
from agentprm_gym.llm.architecture import same_base
from agentprm_gym.llm.errors import AdapterMismatchError, ModelNotFoundError
from agentprm_gym.llm.finite import check_finite
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.save_checks import Archive, checked_adapter, checked_manifest
from agentprm_gym.plain_text import plain

FORMAT = 1
MANIFEST = "agentprm.json"
# Encrypted members and packings that are not known are a RuntimeError and a NotImplementedError.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, SafetensorError, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, ArithmeticError, AttributeError, OSError),
)


class SaveFormatError(ValueError):
    """A file is not a save of this project, or of a newer format."""


@dataclass(slots=True)
class SavedModel:
    """What a zip holds.

    Attributes:
        manifest: JSON-able description: class, base model, data.
        adapters: tensors by adapter name: LoRA's, or all weights of one that is fully tuned.
        adapter_configs: PEFT settings by adapter name, or :data:`~agentprm_gym.llm.adapter_settings.FULL_CONFIG`.
        heads: tensors of heads by name.
    """

    manifest: dict[str, Any]
    adapters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    adapter_configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """The policy's settings. A save does not decide whether code of a model's repository may run."""
        kwargs: dict[str, Any] = self.manifest["data"]["policy_kwargs"]
        left_out = {"trust_remote_code"}
        # Up to version 0.2 a ``None`` in place of LoRA settings stood for the default ones.
        if kwargs.get("lora", {}) is None and not is_full(self.adapter_configs.get("policy", FULL_CONFIG)):
            left_out.add("lora")
        return {k: v for k, v in kwargs.items() if k not in left_out}


def zip_path(path: str | os.PathLike[str]) -> Path:
    """SB3's rule: ``.zip`` is added where a path has no suffix."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def write_save(target: str | os.PathLike[str] | BinaryIO, saved: SavedModel) -> None:
    """Write a zip; a file appears whole or not at all, and the same content gives the same bytes.

    Args:
        target: a path (``.zip`` is added where it has no suffix) or an open binary file.
        saved: what to write.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        manifest = {
            "format": FORMAT,
            **saved.manifest,
            "heads": sorted(saved.heads),
            "adapters": sorted(saved.adapters),
        }

        def add(member: str, data: str | bytes) -> None:
            # Without the time, so that the same model gives the same bytes.
            info = zipfile.ZipInfo(member)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            archive.writestr(info, data)

        add(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        for name, tensors in saved.adapters.items():
            add(f"adapters/{name}/adapter_config.json", json.dumps(saved.adapter_configs[name], indent=1))
            add(f"adapters/{name}/adapter_model.safetensors", save_safetensors(dict(tensors)))
        for name, tensors in saved.heads.items():
            add(f"heads/{name}.safetensors", save_safetensors(dict(tensors)))
    if isinstance(target, (str, os.PathLike)):
        write_whole(zip_path(target), buffer.getvalue())
    else:
        target.write(buffer.getvalue())


def read_save(source: str | os.PathLike[str] | BinaryIO) -> SavedModel:
    """Read a zip.

    Only members that the manifest names are read, and nothing is unpacked to disk.

    Args:
        source: a path (``.zip`` is added where it has no suffix), an open binary file, or a repository of the hub that holds a
            save, ``"hub:USER/NAME"``.

    Raises:
        FileNotFoundError: if the file does not exist.
        SaveFormatError: (a ``ValueError``) if it is not a save of this project.
        OSError: the hub refused, or could not be reached.
    """
    if isinstance(source, str) and is_hub(source):
        source = fetch(source)
    if isinstance(source, (str, os.PathLike)):
        path = zip_path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no saved model at {path}")
        name = str(path)
        packed = path.stat().st_size
        with path.open("rb") as file:
            return _read(file, name, packed)
    packed = source.seek(0, os.SEEK_END)
    source.seek(0)
    return _read(source, repr(source), packed)


def _read(data: BinaryIO, name: str, packed: int) -> SavedModel:
    """Read an open zip of so many bytes."""
    try:
        with zipfile.ZipFile(data) as opened:
            archive = Archive(opened, packed)
            manifest = archive.json(MANIFEST)
            if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
                given = str(manifest.get("format"))[:40]
                raise SaveFormatError(
                    f"{name}: save format {given!r}, this version reads {FORMAT}; update agentprm-gym"
                )
            saved = SavedModel(checked_manifest(manifest, name))
            for adapter in saved.manifest["adapters"]:
                config = archive.json(f"adapters/{adapter}/adapter_config.json")
                tensors = archive.tensors(f"adapters/{adapter}/adapter_model.safetensors")
                saved.adapter_configs[adapter] = checked_adapter(config, tensors, f"the adapter {adapter!r}")
                saved.adapters[adapter] = tensors
            for head in saved.manifest["heads"]:
                saved.heads[head] = archive.tensors(f"heads/{head}.safetensors")
    except SaveFormatError:
        raise
    # Whatever a file holds that is not a save: libraries raise many kinds of errors for it.
    except (*_BROKEN, MemoryError) as error:
        why = "it does not fit into memory" if isinstance(error, MemoryError) else plain(str(error))[:500]
        raise SaveFormatError(
            f"{name} is not a save of agentprm-gym ({type(error).__name__}: {why}); "
            "expected a zip with agentprm.json, written by an algorithm's save()"
        ) from error
    check_finite(name, saved.adapters, saved.heads)
    return saved


def base_name(saved: SavedModel, what: str, base: str | None = None) -> str:
    """The name under which the base of a save is to be loaded.

    Args:
        saved: the save.
        what: its path, for messages.
        base: where its base model is now; by default where it was.

    Raises:
        ModelNotFoundError: (a ``ValueError``) if the save was made on a folder that is not there. A path is never taken for
            the id of a model on the hub.
    """
    if base is not None:
        return base
    note = saved.manifest["base"]
    name: str = note["name"]
    # Saves of version 0.1 do not say whether the name was that of a folder.
    path = note.get("folder", Path(name).is_absolute() or name.startswith((".", "~")))
    if path and not Path(name).is_dir():
        raise moved(what, name)
    return name


def load_base(saved: SavedModel, what: str, base: str | None = None, **kwargs: Any) -> LanguageModel:
    """Load the base model of a save as it was read there: same template, reasons, context and type of weights.

    Args:
        saved: the save.
        what: its path, for messages.
        base: where its base model is now: a folder, a hub id or a bundled alias; by default where it was.
        kwargs: of :meth:`LanguageModel.load`, in place of the save's.

    Returns:
        The language model, without adapters.

    Raises:
        ModelNotFoundError: (a ``ValueError``) if the base is not there.
        AdapterMismatchError: (a ``ValueError``) if it is another base than the save's.
    """
    name, kept = base_name(saved, what, base), saved.policy_kwargs
    settings = {
        "dtype": kept.get("dtype", "auto"),
        "template": kept.get("template"),
        "reasons": bool(kept.get("reason", False)),
        "max_context": kept.get("max_context"),
    }
    try:
        lm = LanguageModel.load(name, **{**settings, **kwargs})
    except ModelNotFoundError as error:
        if base is not None:
            raise
        raise moved(what, name) from error
    check_base(saved, lm.name, lm.fingerprint, what)
    return lm


def moved(what: str, name: str) -> ModelNotFoundError:
    """The error that says where a save's base model should have been.

    Args:
        what: the save's path.
        name: the name of its base model.
    """
    return ModelNotFoundError(
        f"{what} was made on the base model {name!r}, which is not here: pass base= (on the command line --base) with the "
        "folder or the hub id where it is now"
    )


def check_base(saved: SavedModel, name: str, fingerprint: str, what: str) -> None:
    """Refuse adapters of another base model.

    Saves of version 0.1 tell bases apart by their embeddings only. They load on what matches, with a warning where the base
    has another name now.

    Args:
        saved: the save.
        name: how the base that is loaded is called.
        fingerprint: its fingerprint.
        what: the save's path, for messages.

    Raises:
        AdapterMismatchError: (a ``ValueError``) if the save was made on another base.
    """
    base: Mapping[str, Any] = saved.manifest["base"]
    if not same_base(base["fingerprint"], fingerprint):
        raise AdapterMismatchError(
            f"{what} was trained on the base model {base['name']!r} ({base['fingerprint']}), "
            f"but this is {name!r} ({fingerprint}); load that base model, or train a new adapter on this one"
        )
    if "-" not in base["fingerprint"] and name != base["name"]:
        warnings.warn(
            f"{what} is a save of version 0.1, which tells bases apart by their embeddings only: it was made on "
            f"{base['name']!r}, and whether {name!r} has the same weights in its other layers is not known",
            UserWarning,
            stacklevel=2,
        )
