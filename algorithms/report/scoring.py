"""Scores for episodes that were played without a search: what a process reward model thinks of every command of every turn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.load import open_save
from algorithms.common.shell.folders import saved_model
from algorithms.common.shell.machine import use_fast_threads

#: Turns a forward pass. Each is a row of its own: the commands of several in one row would be masked from one another.
_BATCH = 8


class Scorer:
    """Fills in candidates with the process reward model, and the policy, of a save."""

    def __init__(self, path: str, base: str | None = None) -> None:
        """Load a save.

        Args:
            path: a zip with a process reward model, or the folder of a run.
            base: where its base model is now; ``None``: where it was.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it holds no process reward model, or its base is another one now.
        """
        file = saved_model(path)
        if not Path(file).is_file():
            raise FileNotFoundError(f"no saved model at {path}: expected a zip that an algorithm's save(path) wrote")
        self._save = open_save(file, base)
        self._prm = self._save.prm
        self._file, self._sha256 = file, hashlib.sha256(Path(file).read_bytes()).hexdigest()
        use_fast_threads(self._save.lm)

    def policy_of(self, about: Mapping[str, Any]) -> tuple[Responder, str] | None:
        """The policy, if it is the one that an evaluation is about and chooses among the commands; else ``None``.

        Args:
            about: the evaluation's result file.
        """
        if about.get("model_sha256") != self._sha256:
            return None
        try:
            return self._save.policy(self._file)
        except ValueError:  # it writes freely
            return None

    @torch.no_grad()
    def scored(self, episode: Episode, policy: tuple[Responder, str] | None = None) -> Episode:
        """The same episode with all admissible commands as candidates at each turn, where no search left scores.

        Args:
            episode: the episode.
            policy: from :meth:`policy_of`; it adds log-probabilities at temperature 1.
        """
        wanted = [
            t
            for t, turn in enumerate(episode.turns)
            if turn.admissible_commands and all(one.get("score") is None for one in turn.candidates or ())
        ]
        turns = list(episode.turns)
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            batch, which = [episode] * len(part), [[t] for t in part]
            scores = [torch.sigmoid(row.double()).tolist() for (row,) in self._prm.score_all(batch, which)]
            chances: list[list[float | None]] = [[None] * len(row) for row in scores]
            if policy is not None:
                responder, adapter = policy
                with responder.lm.active(adapter):
                    chances = [row.double().tolist() for (row,) in episode_log_probs(responder, batch, which)]
            for t, score, chance in zip(part, scores, chances, strict=True):
                commands = turns[t].admissible_commands
                rows = [
                    {"command": c, "response": c, "score": s, "log_prob": p}
                    for c, s, p in zip(commands, score, chance, strict=True)
                ]
                turns[t] = replace(turns[t], candidates=rows)
        return replace(episode, turns=turns)
