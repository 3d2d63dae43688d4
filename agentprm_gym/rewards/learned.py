"""A saved process reward model as a process reward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.episodes import Turn
from agentprm_gym.rewards.base import ScoredTurn
from agentprm_gym.rewards.prm import ProcessRewardModel, load_prm

FORMS = ("potential", "value")


class PRMReward:
    """Rewards turns by what a process reward model thinks of them.

    The model gives ``Q(s, a)``, the chance that the game is won after the turn.

    ``form="potential"`` takes the last turn's ``Q`` as the potential of the transcript: a turn gets
    ``coef * (gamma * Q_t - Q_{t-1})``, the first one ``coef * gamma * Q_0``, and the last turn of a
    game that ends ``-coef * Q_{t-1}``. As with all potentials, no policy gains against another over
    an episode that ends; only the credit moves.

    ``form="value"`` gives ``coef * Q_t`` itself. It adds up over an episode, so dawdling where the
    model is confident pays: mean it.

    Args:
        model: The process reward model.
        name: For messages and logs.
        form: ``"potential"`` or ``"value"``.
        gamma: Discount of the potential; the learning algorithm's.
        coef: Weight.

    Raises:
        ValueError: The form is unknown or ``gamma`` is not in [0, 1].
    """

    privileged = False

    def __init__(
        self,
        model: ProcessRewardModel,
        name: str = "prm",
        *,
        form: str = "potential",
        gamma: float = 1.0,
        coef: float = 1.0,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
        self.name = name
        self.model = model
        self.form = form
        self.gamma = gamma
        self.coef = coef

    @classmethod
    def load(cls, path: str | os.PathLike[str], **kwargs: Any) -> PRMReward:
        """Load a saved PRM; environments of one process share the model.

        Args:
            path: A zip that ``AgentPRM.save`` wrote.
            **kwargs: ``form``, ``gamma``, ``coef``.

        Raises:
            FileNotFoundError: There is no file.
            ValueError: The file holds no process reward model, or an argument does not fit.
        """
        file = Path(path).resolve()
        return cls(_shared_model(str(file), file.stat().st_mtime_ns), f"prm:{path}", **kwargs)

    def score(self, turns: Sequence[ScoredTurn]) -> NDArray[np.float64]:
        """Score a batch of turns in one forward pass.

        Args:
            turns: The batch, from any number of episodes.

        Returns:
            Shape ``(len(turns),)``.
        """
        if not turns:
            return np.zeros(0)
        items: list[tuple[str, Sequence[Turn], list[tuple[int, list[str]]]]] = []
        for turn in turns:
            last = len(turn.turns) - 1
            wanted = [t for t in (last - 1, last) if t >= 0]
            items.append((turn.task, turn.turns, [(t, [turn.turns[t].command]) for t in wanted]))
        values = [[float(q[0]) for q in item] for item in self.model.score(items)]
        if self.form == "value":
            return self.coef * np.array([item[-1] for item in values])
        before = np.array([item[0] if len(item) == 2 else 0.0 for item in values])
        after = np.array([0.0 if t.terminated else item[-1] for t, item in zip(turns, values, strict=True)])
        scores: NDArray[np.float64] = self.coef * (self.gamma * after - before)
        return scores


@lru_cache(maxsize=2)
def _shared_model(path: str, modified: int) -> ProcessRewardModel:
    # Keyed by the time of the last change, so that a newer save at the same path is noticed.
    return load_prm(path)
