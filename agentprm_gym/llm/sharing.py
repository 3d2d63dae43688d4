"""A save as the folder of a repository on the hub: the zip, a card with what was measured, and what the caller adds.

A save names its base model, and others must find that name: the id of a model on the hub, or a name of this package. A folder
of this machine is refused, unless the caller says under which id others find the same model.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentprm_gym.files import write_whole
from agentprm_gym.hub.cards import CARD, NO_NAME, ModelFacts, model_card
from agentprm_gym.hub.remote import MODEL, parse
from agentprm_gym.hub.results import read_results
from agentprm_gym.llm.aliases import ALIASES
from agentprm_gym.llm.loading import BUNDLED
from agentprm_gym.llm.saving import SavedModel, write_save


def write_repository(
    folder: str | os.PathLike[str],
    saved: SavedModel,
    *,
    kind: str,
    repo_id: str | None = None,
    results: Iterable[str | os.PathLike[str]] = (),
    base: str | None = None,
    license: str | None = None,
    measured_sha256: str | None = None,
    template: str = "",
    form: str | None = None,
    has_classifier: bool = False,
) -> Path:
    """Write ``model.zip`` and ``README.md`` into a folder.

    Args:
        folder: where to; made where it is missing.
        saved: the save.
        kind: ``"policy"`` or ``"prm"``.
        repo_id: ``"USER/NAME"``, for the card; ``None``: the card says ``USER/NAME``.
        results: ``result.json`` of ``agentprm eval`` and ``agentprm bench``, or their folders.
        base: name under which others find the base model, in place of the save's.
        license: identifier of the weights' licence, as the hub knows it.
        measured_sha256: the file that evaluations must be about; ``None``: this save's own bytes; ``""``: any.
        template: name of the prompt template, for the card.
        form: of the process reward model.
        has_classifier: whether the caller writes a classifier into the folder, too.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: a result is missing.
        ValueError: the base model's name is a path of this machine, an evaluation is about another model, or ``repo_id`` is not
            the name of a repository.
    """
    repo_id = parse(repo_id or NO_NAME).repo_id
    public = with_public_base(saved, base)
    wanted = sha256_of(saved) if measured_sha256 is None else measured_sha256
    evaluations, rankings = read_results(results, wanted or None)
    identity = public.manifest["base"]
    facts = ModelFacts(
        repo_id=repo_id,
        kind=kind,
        algorithm=public.manifest["class"],
        base=identity["name"],
        fingerprint=identity["fingerprint"],
        base_on_hub=identity["name"] not in (*BUNDLED, *ALIASES),
        template=template if "{%" not in template else "its own, in the zip",
        adapters=sorted(public.adapters),
        sha256=sha256_of(public),
        version=str(public.manifest.get("agentprm_gym", "unknown")),
        form=form,
        has_classifier=has_classifier,
        counters=_counters(public),
        license=license,
    )
    out = Path(folder)
    write_whole(out / MODEL, _bytes(public))
    write_whole(out / CARD, model_card(facts, evaluations, rankings))
    return out


def with_public_base(saved: SavedModel, base: str | None = None) -> SavedModel:
    """A save whose base model others can find.

    Args:
        saved: a save; it stays as it is.
        base: the name of its base model on the hub or in this package; ``None``: the save's own.

    Raises:
        ValueError: the name is a path, or no name of a model.
    """
    name = base or saved.manifest["base"]["name"]
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~", "\\")) and not os.path.exists(name)
    if name not in (*BUNDLED, *ALIASES) and not is_id:
        raise ValueError(
            f"the base model {name!r} is a path of this machine, where nobody else finds it: pass base= (on the command line "
            "--base) with the id that the same model has on the hub, or upload the base model first"
        )
    data: dict[str, Any] = dict(saved.manifest["data"])
    kwargs = dict(data.get("policy_kwargs", {}))
    if "model" in kwargs:
        kwargs["model"] = name
    manifest = {
        **saved.manifest,
        "base": {**saved.manifest["base"], "name": name, "folder": False},
        "data": {**data, "policy_kwargs": kwargs},
    }
    return replace(saved, manifest=manifest)


def sha256_of(saved: SavedModel) -> str:
    """SHA-256 of the bytes that a save is written as."""
    return hashlib.sha256(_bytes(saved)).hexdigest()


def _bytes(saved: SavedModel) -> bytes:
    buffer = io.BytesIO()
    write_save(buffer, saved)
    return buffer.getvalue()


def _counters(saved: SavedModel) -> dict[str, int]:
    counters = saved.manifest.get("counters", {})
    names = {"num_timesteps": "turns played", "total_tokens": "tokens", "iteration": "iterations"}
    return {said: int(counters.get(name, 0)) for name, said in names.items()}
