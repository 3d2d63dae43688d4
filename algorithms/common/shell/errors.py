"""What ends a run that was begun rightly. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from agentprm_gym.episodes import Episode, write_episodes

#: The episodes of the update in which training diverged, in the run's folder.
KEPT = "diverged.jsonl.gz"


class DivergedError(RuntimeError):
    """A loss, a gradient or a weight is no finite number: nothing that is learnt from here on means anything.

    Attributes:
        episodes: what the update was about.
    """

    def __init__(self, what: str, episodes: Iterable[Episode] = ()) -> None:
        """Say what is not finite, and keep what was learnt from."""
        super().__init__(what)
        self.episodes: Sequence[Episode] = list(episodes)

    def keep(self, folder: Path) -> Path | None:
        """Write the episodes into a run's folder; returns the file, ``None`` where there is nothing to write or no way to."""
        path = folder / KEPT
        if not self.episodes:
            return None
        try:
            write_episodes(path, [_without_nan(episode) for episode in self.episodes])
        except (OSError, ValueError):
            return None
        return path


def _without_nan(episode: Episode) -> Episode:
    """An episode without log-probabilities that JSON cannot hold."""
    turns = [
        turn if turn.log_prob is None or math.isfinite(turn.log_prob) else replace(turn, log_prob=None)
        for turn in episode.turns
    ]
    return replace(episode, turns=turns)
