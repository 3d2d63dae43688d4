"""What a save of somebody else may hold: bounded sizes, a manifest of the right shape, plain names and numbers."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from agentprm_gym.llm.adapter_settings import FULL_CONFIG, is_full
from agentprm_gym.llm.peft_folder import check_settings, settings_of
from agentprm_gym.plain_text import plain

#: Counters of an algorithm that a save may set, and nothing else: any other name would set an attribute of the algorithm.
COUNTERS = (
    *("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "_num_timesteps_at_start"),
    *("iteration", "total_tokens"),
)
#: Settings that say where files are written on the machine that loads a save; a save does not say them.
PLACES = ("tensorboard_log", "checkpoint_dir")
#: Bytes of a save, unpacked: so many, or so many times its size. Weights hardly get smaller by packing; half of a new adapter
#: is zeros, and a checkpoint's optimizer may be.
FREE_BYTES, MAX_RATIO = 256_000_000, 16
#: Bytes of a text in a save; a checkpoint's description of its optimizer is the longest.
MAX_TEXT = 64_000_000
_MAX_MEMBERS = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,199}")
_MODULE = re.compile(r"[\w.]{1,300}")


class Archive:
    """A zip that is read member by member, within bounds."""

    def __init__(self, archive: zipfile.ZipFile, packed: int) -> None:
        """Look at the directory of a zip; nothing is unpacked.

        Args:
            archive: the zip.
            packed: its size in bytes.

        Raises:
            ValueError: unpacked it would be too large, it has too many members, or one of them is encrypted.
        """
        self._archive = archive
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise ValueError(f"it has {len(members):,} members, expected at most {_MAX_MEMBERS:,}")
        whole, most = sum(info.file_size for info in members), max(FREE_BYTES, MAX_RATIO * packed)
        if whole > most:
            raise ValueError(f"{packed:,} bytes would be unpacked to {whole:,}, expected at most {most:,}")
        encrypted = next((info.filename for info in members if info.flag_bits & 1), None)
        if encrypted is not None:
            raise ValueError(f"its member {encrypted[:80]!r} is encrypted")

    def read(self, name: str) -> bytes:
        """Unpack a member.

        Raises:
            KeyError: it does not exist.
        """
        size = self._archive.getinfo(name).file_size
        with self._archive.open(name) as member:
            data = member.read(size + 1)
        if len(data) != size:
            raise ValueError(f"its member {name!r} is larger than it says")
        return data

    def json(self, name: str) -> Any:
        """Read a member that is JSON."""
        if self._archive.getinfo(name).file_size > MAX_TEXT:
            raise ValueError(f"its member {name!r} is larger than {MAX_TEXT:,} bytes")
        return json.loads(self.read(name))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read a member that is safetensors."""
        return load_safetensors(self.read(name))


def checked_manifest(manifest: Any, what: str) -> dict[str, Any]:
    """Check the shape of a manifest, and leave out what a save does not decide.

    Args:
        manifest: what the zip holds as JSON.
        what: the save, for messages.

    Returns:
        The manifest with the known counters only and without places of this machine.

    Raises:
        ValueError: a part is missing or of another type than it should be.
    """
    _expect(manifest, dict, "the manifest")
    for key in ("adapters", "heads"):
        names = manifest.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
            raise ValueError(f"expected a list of plain names under {key!r}, got {_shown(names)}")
    if not isinstance(manifest.get("class"), str):
        raise ValueError(f"expected the name of an algorithm under 'class', got {_shown(manifest.get('class'))}")
    if not isinstance(manifest.get("agentprm_gym", ""), str):
        raise ValueError(f"expected a version under 'agentprm_gym', got {_shown(manifest['agentprm_gym'])}")
    base = _expect(manifest.get("base"), dict, "'base'")
    for key in ("name", "fingerprint"):
        if not isinstance(base.get(key), str) or plain(base[key]) != base[key]:
            raise ValueError(f"expected a plain text under 'base', {key!r}, got {_shown(base.get(key))}")
    checked = {
        **manifest,
        "agentprm_gym": plain(manifest.get("agentprm_gym", "")),
        "data": _checked_data(manifest.get("data")),
    }
    counters = _expect(manifest.get("counters", {}), dict, "'counters'")
    checked["counters"] = {name: _count(name, counters[name]) for name in COUNTERS if name in counters}
    for name, space in _expect(manifest.get("spaces", {}), dict, "'spaces'").items():
        for bounds in space.values() if isinstance(space, Mapping) else (space,):
            if not (isinstance(bounds, list) and len(bounds) == 2 and all(type(b) is int and b >= 0 for b in bounds)):
                raise ValueError(f"expected [least, most] characters for the space {name!r}, got {_shown(bounds)}")
    return checked


def _checked_data(given: Any) -> dict[str, Any]:
    """The constructor's arguments, without places of this machine."""
    data = _expect(given, dict, "'data'")
    template = _expect(data.get("policy_kwargs"), dict, "'data', 'policy_kwargs'").get("template")
    if template is not None and not (isinstance(template, str) and ("{%" in template or _NAME.fullmatch(template))):
        raise ValueError(f"expected a prompt template's name or text, got {_shown(template)}")
    if isinstance(template, str) and "{%" not in template and template.endswith((".jinja", ".j2")):
        raise ValueError(f"expected a prompt template's text, got the name of a file {_shown(template)}")
    return {key: value for key, value in data.items() if key not in PLACES}


def checked_adapter(config: Any, tensors: Mapping[str, torch.Tensor], what: str) -> dict[str, Any]:
    """Check an adapter's settings by its tensors, which say the rank and name the modules.

    Args:
        config: its PEFT configuration.
        tensors: its weights.
        what: the adapter, for messages.

    Returns:
        The configuration, in which patterns are replaced by the names of the modules: PEFT runs patterns as regular
        expressions, and a hostile one takes forever. Full weights have no settings; their names and shapes are compared with
        the base's when they are loaded.

    Raises:
        ValueError: it is neither plain LoRA nor full weights, or contradicts its tensors.
    """
    _expect(config, dict, f"the configuration of {what}")
    if is_full(config):
        return dict(FULL_CONFIG)
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{what} is a PEFT adapter of type {_shown(config.get('peft_type'))}, expected 'LORA'")
    check_settings(config, what)
    settings = settings_of(config, tensors, Path(what))
    alpha = [settings["lora_alpha"], *(settings.get("alpha_pattern") or {}).values(), settings.get("lora_dropout", 0.0)]
    if not all(isinstance(a, (int, float)) and math.isfinite(a) for a in alpha):
        raise ValueError(f"{what} has scales that are not finite numbers")
    names = settings["target_modules"]
    if not all(_MODULE.fullmatch(name) for name in names):
        raise ValueError(f"{what}: expected names of modules under 'target_modules', got {_shown(names)}")
    narrowed = ("exclude_modules", "layers_to_transform", "layers_pattern")
    return {**{k: v for k, v in config.items() if k not in narrowed}, **settings}


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"expected a count under 'counters', {name!r}, got {_shown(value)}")
    return value


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {what} to be an object, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value for a message: short, and without what a terminal would obey."""
    text = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} {str(value)[:60]!r}"
    return text if len(text) <= 120 else text[:120] + " ..."
