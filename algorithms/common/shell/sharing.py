"""Algorithms on the hub: a repository with the save and a card of what was measured, up and down."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.hub import Pushed, fetch
from agentprm_gym.llm.saving import SavedModel, read_save
from agentprm_gym.llm.sharing import write_repository
from algorithms.common.shell.saves import SavedAlgorithm

SelfShared = TypeVar("SelfShared", bound="SharedAlgorithm")


class SharedAlgorithm(Pushed, SavedAlgorithm):
    """What an algorithm does with the hub, in Hugging Face's names."""

    def save_pretrained(self, folder: str | os.PathLike[str], **kwargs: Any) -> Path:
        """Write the folder of a repository: ``model.zip``, as :meth:`save` writes it, and a card.

        Args:
            folder: where to; made where it is missing.
            kwargs: ``repo_id``, ``results``, ``base``, ``license``: see :func:`write_policy_repository`.

        Returns:
            The folder.

        Raises:
            FileNotFoundError: a result is missing.
            ValueError: as :func:`write_policy_repository`.
        """
        return write_policy_repository(self._to_save(), folder, **kwargs)

    @classmethod
    def from_pretrained(
        cls: type[SelfShared],
        name: str | os.PathLike[str],
        env: GymEnv | str | None = None,
        *,
        revision: str | None = None,
        **kwargs: Any,
    ) -> SelfShared:
        """Load an algorithm from the hub, or from a folder that :meth:`save_pretrained` wrote.

        Args:
            name: ``"USER/NAME"``, or a folder.
            env: environment (or its id) to go on training in; ``None``: the model can only predict.
            revision: branch, tag or commit.
            kwargs: of :meth:`load`.

        Raises:
            FileNotFoundError: the repository or its save is missing.
            ValueError: as :meth:`load`.
            OSError: the hub refused, or could not be reached.
        """
        return cls.load(fetch(name, revision=revision), env, **kwargs)


def write_policy_repository(
    saved: SavedModel | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    results: Iterable[str | os.PathLike[str]] = (),
    base: str | None = None,
    license: str | None = None,
    measured_sha256: str | None = None,
) -> Path:
    """Write a save as the folder of a repository.

    Args:
        saved: what :meth:`SavedAlgorithm.save` writes, or its path.
        folder: where to; made where it is missing.
        repo_id: ``"USER/NAME"``, for the card.
        results: ``result.json`` files of ``agentprm eval`` and ``agentprm bench``, or their folders. An evaluation must be
            about this very save.
        base: id under which others find the base model, where it is a folder here.
        license: identifier of the weights' licence, as the hub knows it.
        measured_sha256: SHA-256 of the file that evaluations are about; ``None``: this save's own bytes.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the save or a result is missing.
        ValueError: the base model's name is a path of this machine and ``base`` is missing, or an evaluation is about another
            model.
    """
    saved = saved if isinstance(saved, SavedModel) else read_save(saved)
    template = saved.policy_kwargs.get("template")
    data = saved.manifest["data"]
    prm = data.get("prm")
    return write_repository(
        folder,
        saved,
        kind="policy",
        repo_id=repo_id,
        results=results,
        base=base,
        license=license,
        measured_sha256=measured_sha256,
        template=template or "the base model's",
        form=prm.get("form") if isinstance(prm, dict) and "prm" in saved.heads else None,
    )
