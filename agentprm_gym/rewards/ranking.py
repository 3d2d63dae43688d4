"""One number for a whole episode out of the scores of its turns, and episodes ranked by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from agentprm_gym.checks import check_choice
from agentprm_gym.episodes import Episode, Turn

#: How the scores of turns become an episode's; see :func:`episode_score`.
EPISODE_SCORES = ("last", "mean", "min", "product", "sum", "max")


class ScoresTurns(Protocol):
    """What can rank episodes, for example a ``ProcessRewardModel``."""

    def score_turns(self, task: str, turns: Sequence[Turn]) -> Any:
        """Return a score for each turn, an array or tensor of shape ``(len(turns),)``.

        Args:
            task: the task in words.
            turns: the turns of an episode.
        """


def episode_score(scores: ArrayLike, how: str = "last") -> float:
    """Return one score for an episode.

    Args:
        scores: scores of its turns, shape ``(T,)`` with T of 1 or more, finite.
        how: ``"last"``: the score of the last turn, when everything was seen; ``"mean"``; ``"min"``: the score of the weakest
            turn; ``"product"``: for scores that are probabilities of independent steps; ``"sum"``: for rewards; ``"max"``: the
            score of the best turn.

    Raises:
        ValueError: ``how`` is unknown, or the scores do not have this shape or are not finite.

    Example:
        >>> [episode_score([0.5, 0.25, 0.5], how) for how in EPISODE_SCORES]
        [0.5, 0.4166666666666667, 0.25, 0.0625, 1.25, 0.5]
    """
    check_choice("how", how, EPISODE_SCORES)
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected finite scores of shape (T,) with one turn or more, got {array!r}")
    if how == "last":
        return float(array[-1])
    whole: dict[str, Any] = {
        "mean": array.mean(),
        "min": array.min(),
        "product": array.prod(),
        "sum": array.sum(),
        "max": array.max(),
    }
    return float(whole[how])


def rank_episodes(prm: ScoresTurns, episodes: Sequence[Episode], how: str = "last") -> list[tuple[int, float]]:
    """Rank episodes by the scores of their turns.

    Args:
        prm: the process reward model, for example ``load_prm(path)``; each episode is one forward pass.
        episodes: the episodes, each with one turn or more.
        how: as for :func:`episode_score`.

    Returns:
        Pairs ``(index, score)``, the best first; equal scores stay in their order.

    Raises:
        ValueError: as :func:`episode_score` does.
    """
    scores = [episode_score(prm.score_turns(e.task, e.turns), how) for e in episodes]
    return sorted(enumerate(scores), key=lambda item: -item[1])
