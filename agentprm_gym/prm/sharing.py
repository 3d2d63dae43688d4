"""A process reward model alone, as the folder of a repository: a save with its adapter and head, and a classifier."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agentprm_gym
from agentprm_gym.hub import Pushed, fetch
from agentprm_gym.llm.prompts import TEMPLATES
from agentprm_gym.llm.saving import SavedModel
from agentprm_gym.llm.sharing import write_repository

if TYPE_CHECKING:
    from agentprm_gym.llm.model import LanguageModel
    from agentprm_gym.prm.model import ProcessRewardModel


class SharedPRM(Pushed):
    """What :class:`~agentprm_gym.prm.model.ProcessRewardModel` does with the hub, in Hugging Face's names."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        results: Iterable[str | os.PathLike[str]] = (),
        base: str | None = None,
        license: str | None = None,
        measured_sha256: str | None = None,
        algorithm: str = "AgentPRM",
    ) -> Path:
        """Write the folder of a repository: ``model.zip`` with this model alone, a card, and for ``"scalar"`` a classifier.

        Args:
            folder: where to; made where it is missing.
            repo_id: ``"USER/NAME"``, for the card.
            results: ``result.json`` files of ``agentprm bench`` and ``agentprm eval``, or their folders.
            base: id under which others find the base model, where it is a folder here.
            license: identifier of the weights' licence, as the hub knows it.
            measured_sha256: SHA-256 of the save that evaluations are about, which is checked; ``None``: the card tells it.
            algorithm: name of the class that trained it.

        Returns:
            The folder.

        Raises:
            FileNotFoundError: a result is missing.
            ValueError: the base model's name is a path of this machine and ``base`` is missing, an evaluation is about another
                save, or transformers has no classifier of this architecture.
        """
        prm: Any = self
        saved = _alone(prm, algorithm)
        has_classifier = prm.form == "scalar"
        out = write_repository(
            folder,
            saved,
            kind="prm",
            repo_id=repo_id,
            results=results,
            base=base,
            license=license,
            measured_sha256=measured_sha256 or "",
            template=saved.manifest["data"]["policy_kwargs"]["template"],
            form=prm.form,
            has_classifier=has_classifier,
        )
        if has_classifier:
            prm.export(out)
        return out

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        lm: LanguageModel | None = None,
        *,
        revision: str | None = None,
        base: str | None = None,
    ) -> ProcessRewardModel:
        """Load a process reward model from the hub, or from a folder that :meth:`save_pretrained` wrote.

        Args:
            name: ``"USER/NAME"``, or a folder.
            lm: a language model with the same base to share.
            revision: branch, tag or commit.
            base: where the base model is now; ``None``: where the save says.

        Raises:
            FileNotFoundError: the repository or its save is missing.
            ValueError: as :func:`~agentprm_gym.prm.load.load_prm`.
            OSError: the hub refused, or could not be reached.
        """
        from agentprm_gym.prm.load import load_prm

        return load_prm(fetch(name, revision=revision), lm, base=base)


def _alone(prm: ProcessRewardModel, algorithm: str) -> SavedModel:
    """A process reward model as a save that holds nothing else, which ``load_prm`` reads."""
    lm, heads = prm.lm, prm.heads_state()
    (name,) = heads
    written_with = lm.prompt.template if lm.prompt.template in TEMPLATES else lm.prompt.source
    policy_kwargs = {
        "template": written_with,
        "reason": lm.prompt.reasons,
        "max_context": lm.max_context,
        "dtype": str(lm.base.dtype).removeprefix("torch."),
    }
    manifest = {
        "class": algorithm,
        "agentprm_gym": agentprm_gym.__version__,
        "base": lm.identity,
        "data": {"policy_kwargs": policy_kwargs, "prm": {"form": prm.form, "read_reasons": prm.read_reasons}},
        "counters": {},
        "spaces": {},
    }
    return SavedModel(manifest, {name: lm.adapter_state(prm.adapter)}, {name: lm.adapter_config(prm.adapter)}, heads)
