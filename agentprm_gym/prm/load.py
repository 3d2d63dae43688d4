"""Process reward models and policies out of saves; rewards of one process that read the same save share its base in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from agentprm_gym.hub import fetch, is_hub
from agentprm_gym.llm.model import LanguageModel, lora_settings
from agentprm_gym.llm.saving import SavedModel, check_base, load_base, read_save
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.prm.heads import check_heads, form_of
from agentprm_gym.prm.model import PRM, ProcessRewardModel


def load_prm(
    path: str | os.PathLike[str] | BinaryIO, lm: LanguageModel | None = None, *, base: str | None = None
) -> ProcessRewardModel:
    """Load the process reward model out of a save that holds one.

    Args:
        path: a zip that ``AgentPRM.save`` or ``InversePRM.save`` wrote, or a repository of the hub that holds one,
            ``"hub:USER/NAME"``.
        lm: a language model with the same base to share; ``None``: the base is loaded as it was when saved.
        base: where the base model is now, a folder, a hub id or a bundled alias; ``None``: where it was.

    Returns:
        The model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the save holds no process reward model, or one of version 0.1 with a value head, or it was made on another
            base (``AdapterMismatchError``), or its base is not where it was (``ModelNotFoundError``).

    Example:
        >>> load_prm("agent.zip").score_turns(episode.task, episode.turns)  # doctest: +SKIP
        tensor([0.41, 0.47, 0.62])
    """
    saved = read_save(path)
    check_heads(saved.heads, str(path))
    if PRM not in saved.adapters or PRM not in saved.heads:
        raise ValueError(
            f"{path} holds no process reward model (adapters: {sorted(saved.adapters)}); AgentPRM's saves do"
        )
    lm = lm or load_base(saved, str(path), base)
    check_base(saved, lm.name, lm.fingerprint, str(path))
    prm = ProcessRewardModel(
        lm,
        PRM,
        lora_settings(saved.adapter_configs[PRM]),
        form=form_of(saved.heads[PRM]),
        read_reasons=bool(_options(saved).get("read_reasons", True)),
    )
    lm.load_adapter_state(PRM, saved.adapters[PRM])
    prm.load_heads_state(saved.heads)
    return prm


def _options(saved: SavedModel) -> Mapping[str, Any]:
    """The process reward model's options in a save; version 0.1 had them among the others."""
    data: Mapping[str, Any] = saved.manifest["data"]
    return data["prm"] if isinstance(data.get("prm"), Mapping) else data


@dataclass(slots=True)
class SharedSave:
    """A save and its base model in memory, with what was put on this base.

    Attributes:
        path: the file.
        saved: what it holds.
        lm: the base model.
    """

    path: str
    saved: SavedModel
    lm: LanguageModel
    _prm: ProcessRewardModel | None = field(default=None, repr=False)

    @property
    def prm(self) -> ProcessRewardModel:
        """The process reward model of the save; loaded once.

        Raises:
            ValueError: as :func:`load_prm` does.
        """
        if self._prm is None:
            self._prm = load_prm(self.path, self.lm)
        return self._prm

    def policy(self, path: str | os.PathLike[str]) -> tuple[Responder, str]:
        """Put the policy of a save, this one or another, on the base.

        Args:
            path: a zip that any algorithm's ``save`` wrote.

        Returns:
            The policy's way to act, and the name of its adapter.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the save holds no policy, it was made on another base (``AdapterMismatchError``), it reads transcripts
                in another way, or its policy does not choose among the commands.
        """
        saved = read_save(path)
        check_base(saved, self.lm.name, self.lm.fingerprint, str(path))
        if "policy" not in saved.adapters:
            raise ValueError(
                f"{path} holds no policy (adapters: {sorted(saved.adapters)}): expected a zip that an algorithm's save() wrote"
            )
        ours, its = _reading(self.saved), _reading(saved)
        if ours != its:
            raise ValueError(f"{path} reads transcripts otherwise than {self.path}: expected {ours}, got {its}")
        mode = saved.policy_kwargs.get("action_mode", "constrained")
        if its["reason"] or mode == "generate":
            raise ValueError(
                f"{path} writes freely (reason={its['reason']}, action_mode={mode!r}), so its probability of each command is "
                "not known; expected a policy that chooses among the commands, or leave out policy"
            )
        settings, tensors = lora_settings(saved.adapter_configs["policy"]), saved.adapters["policy"]
        # Named by its content: other rewards of this process share the base, and a file may be overwritten.
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].float().cpu().contiguous().numpy().tobytes())
        adapter = f"reference_{digest.hexdigest()[:16]}"
        if adapter not in self.lm.adapters:
            self.lm.add_adapter(adapter, settings)
            self.lm.load_adapter_state(adapter, tensors)
        normalization = saved.policy_kwargs.get("score_normalization", "sum")
        return Responder(self.lm, mode, normalization), adapter


def open_save(path: str | os.PathLike[str], base: str | None = None) -> SharedSave:
    """Open a save; the same file is opened once, so that all rewards made of it share one base model.

    Args:
        path: a zip that an algorithm's ``save`` wrote, or a repository of the hub, ``"hub:USER/NAME"``.
        base: where the base model is now; ``None``: where it was.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a save (``SaveFormatError``), its base is another one now (``AdapterMismatchError``),
            or is not where it was (``ModelNotFoundError``).
    """
    # The hub's cache links to files without a suffix.
    file = fetch(path) if is_hub(path) else Path(path).resolve()
    # Keyed by the time of the last change, so that a newer save at the same path is noticed.
    return _open(str(file), file.stat().st_mtime_ns, base)


@lru_cache(maxsize=4)
def _open(path: str, modified: int, base: str | None) -> SharedSave:
    saved = read_save(path)
    return SharedSave(path, saved, load_base(saved, path, base))


def _reading(saved: SavedModel) -> dict[str, Any]:
    """What decides which tokens a transcript becomes."""
    kept = saved.policy_kwargs
    return {
        "template": kept.get("template"),
        "reason": bool(kept.get("reason")),
        "max_context": kept.get("max_context"),
    }
