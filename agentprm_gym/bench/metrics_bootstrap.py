"""Intervals over games: games are drawn again with replacement, and every metric is computed from sums over games.

States of one game are alike, so resampling states would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentprm_gym.bench.metrics_table import Bools, Floats, Ints

#: Ends of the interval: 95 %.
QUANTILES = (0.025, 0.975)
#: Bins that scores are put into for the resampled AUCs; the AUC itself is exact.
N_BINS = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: on the panel itself; NaN where nothing could be measured.
        low: lower end, the 2.5 % quantile over resampled games.
        high: upper end, the 97.5 % quantile.
    """

    value: float
    low: float
    high: float


class Statistic(Protocol):
    """A number that depends on how often each game counts."""

    def values(self, weights: Floats) -> Floats:
        """Compute it.

        Args:
            weights: (B, G) how often each of the G games counts, in each of B samples.

        Returns:
            (B,); NaN where a sample says nothing.
        """


@dataclass(frozen=True, slots=True)
class Sums:
    """A function of sums over games.

    Attributes:
        sums: (G, K) what each game adds.
        finish: takes sums (..., K) over a sample and gives the numbers (...,).
    """

    sums: Floats
    finish: Callable[[Floats], Floats]

    def values(self, weights: Floats) -> Floats:
        """Compute it; see :class:`Statistic`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.finish(weights @ self.sums)


def ratio(sums: Floats) -> Floats:
    """(..., 2) to (...,): the first sum by the second, NaN where that is 0."""
    out: Floats = sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1])
    return out


def per_game(columns: Floats, games: Ints, n_games: int) -> Floats:
    """Add up rows that belong to the same game.

    Args:
        columns: (S, K).
        games: (S,) the game of each row.
        n_games: G.

    Returns:
        (G, K).
    """
    out = np.zeros((n_games, columns.shape[1]))
    np.add.at(out, games, columns)
    return out


def mean_statistic(numbers: Floats, games: Ints, n_games: int) -> Sums:
    """The mean of one number a state, over the states where it is not NaN.

    Args:
        numbers: (S,).
        games: (S,) the game of each.
        n_games: G.
    """
    known = np.isfinite(numbers)
    columns = np.stack([np.where(known, numbers, 0.0), known.astype(np.float64)], axis=1)
    return Sums(per_game(columns, games, n_games), ratio)


@dataclass(frozen=True, slots=True)
class PooledAUC:
    """The AUROC over everything at once: the probability that a positive scores more than a negative, ties half.

    Attributes:
        below: (G, M) weight of each game's negatives at each of M score levels, ascending.
        above: (G, M) the same of the positives.
        shift: what is added to AUCs that are computed with binned scores, so that the whole panel has its exact one.
    """

    below: Floats
    above: Floats
    shift: float

    @classmethod
    def of(cls, scores: Floats, positive: Bools, weights: Floats, games: Ints, n_games: int) -> PooledAUC:
        """Sort N scores.

        Args:
            scores: (N,).
            positive: (N,) which are positives.
            weights: (N,) above 0.
            games: (N,) the game of each.
            n_games: G.
        """
        _, level = np.unique(scores, return_inverse=True)  # (N,) 0, 1, ... of equal scores
        n_levels = int(level.max()) + 1 if len(level) else 1

        def auc_of(levels: Ints, n: int) -> tuple[Floats, Floats, float]:
            above, below = np.zeros((n_games, n)), np.zeros((n_games, n))
            np.add.at(above, (games[positive], levels[positive]), weights[positive])
            np.add.at(below, (games[~positive], levels[~positive]), weights[~positive])
            return above, below, float(_auc(above.sum(axis=0)[None], below.sum(axis=0)[None])[0])

        if n_levels <= N_BINS:
            above, below, _ = auc_of(level, n_levels)
            return cls(below, above, 0.0)
        counts = np.bincount(level, weights, n_levels)
        # Bins of about the same weight; equal scores stay together.
        bins = np.minimum((np.cumsum(counts) - counts) / counts.sum() * N_BINS, N_BINS - 1).astype(np.int64)[level]
        above, below, rough = auc_of(bins, N_BINS)
        ups = np.bincount(level[positive], weights[positive], n_levels).astype(np.float64)
        downs = np.bincount(level[~positive], weights[~positive], n_levels).astype(np.float64)
        exact = float(_auc(ups[None], downs[None])[0])
        return cls(below, above, exact - rough)

    def values(self, weights: Floats) -> Floats:
        """Compute it; see :class:`Statistic`."""
        return _auc(weights @ self.above, weights @ self.below) + self.shift


def _auc(above: Floats, below: Floats) -> Floats:
    """(B, M) weights of positives and negatives at ascending levels to (B,) AUCs; NaN without one of the two."""
    lower = np.cumsum(below, axis=1) - below / 2
    total = above.sum(axis=1) * below.sum(axis=1)
    won = (above * lower).sum(axis=1)
    out: Floats = np.divide(won, total, out=np.full(len(above), np.nan), where=total > 0)
    return out


def resample(n_games: int, n_samples: int, seed: int) -> Floats:
    """How often each game is drawn.

    Args:
        n_games: G, 1 or more.
        n_samples: B, 0 or more.
        seed: draws; the same for all rankers, so that they are compared on the same games.

    Returns:
        (B, G), each row adds up to G.
    """
    rng = np.random.default_rng([seed, n_games])
    drawn: Floats = rng.multinomial(n_games, np.full(n_games, 1 / n_games), size=n_samples).astype(np.float64)
    return drawn


def estimate(value: float, samples: Floats) -> Estimate:
    """A number with the interval of its resampled values; NaN ends where none of these is a number."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(known, QUANTILES)
    return Estimate(value, float(low), float(high))
