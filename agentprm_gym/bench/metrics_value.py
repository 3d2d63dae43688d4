"""Metrics of scores as values and rewards: here not only their order counts, but also their size and the states' own values."""

from __future__ import annotations

import numpy as np

from agentprm_gym.bench.metrics_bootstrap import PooledAUC, Sums, per_game, ratio
from agentprm_gym.bench.metrics_table import Bools, Floats, Table

#: Bins of equal width for the calibration error.
N_CALIBRATION_BINS = 10


def _weights(table: Table) -> Floats:
    """(S, A) 1 / A for each of a state's A commands, so that every state counts the same; 0 in padded places."""
    weights: Floats = table.mask / table.n_commands[:, None]
    return weights


def pooled_auc(table: Table, scores: Floats) -> PooledAUC:
    """The AUROC over all pairs of a state and a command at once, for "its label is above the panel's middle".

    A command is a positive where its label is above the median of all labels. Every state has the same weight. A model that
    knows how good a state is, and nothing about the commands in it, gets a high number here and 0.5 within states: compare
    with ``auc``. Numbers like this one are often reported alone.

    Args:
        table: the labels.
        scores: (S, A).
    """
    m = table.mask
    values = table.values[m]
    middle = np.median(values)
    games = np.broadcast_to(table.games[:, None], m.shape)[m]
    return PooledAUC.of(scores[m], values > middle, _weights(table)[m], games, len(table.game_ids))


def pooled_dead_end_auc(table: Table, scores: Floats) -> PooledAUC | None:
    """The AUROC of "leads into a dead end" against low scores, over all states from which the game can still be won.

    States with and without such commands are thrown together, so here too it helps to know how good a state is;
    :func:`~agentprm_gym.bench.metrics_state.dead_end_auc` compares within states.

    Args:
        table: the labels.
        scores: (S, A).

    Returns:
        The statistic; ``None`` where the panel does not tell dead ends.
    """
    if table.dead is None:
        return None
    alive: Bools = np.asarray((table.mask & ~table.dead).any(axis=1))
    m = table.mask & alive[:, None]
    games = np.broadcast_to(table.games[:, None], m.shape)[m]
    return PooledAUC.of(scores[m], ~table.dead[m], _weights(table)[m], games, len(table.game_ids))


def calibration(table: Table, probabilities: Floats) -> tuple[Sums, Sums] | None:
    """Expected calibration error and Brier score of probabilities of winning, against the ``on_policy`` labels.

    With y the label of a command, se its standard error, p the probability, and each state with the same weight:

    * ECE: p in 10 bins of equal width; the weighted mean over the bins of ``|mean(p) - mean(y)|``. 0 is perfect.
    * Brier: the mean of ``(p - y)^2 - se^2``. Since y is an estimate of the true value q without bias, ``E (y - q)^2 = se^2``,
      so this is the mean of ``(p - q)^2`` without bias: 0 is perfect, whatever the number of rollouts. (The usual Brier score
      against single outcomes is larger by the mean of ``q (1 - q)``, which is the same for all rankers.)

    Args:
        table: the labels.
        probabilities: (S, A) in [0, 1].

    Returns:
        The two statistics; ``None`` where the panel has no ``on_policy`` labels.
    """
    if table.policy_values is None or table.policy_stderr is None:
        return None
    w, p, y = _weights(table), probabilities, table.policy_values
    which = np.minimum((p * N_CALIBRATION_BINS).astype(np.int64), N_CALIBRATION_BINS - 1)
    bins = (which[:, :, None] == np.arange(N_CALIBRATION_BINS)) * w[:, :, None]  # (S, A, bins)
    gaps = (bins * (p - y)[:, :, None]).sum(axis=1)  # (S, bins)
    columns = np.concatenate([gaps, w.sum(axis=1)[:, None]], axis=1)
    n = len(table.game_ids)
    ece = Sums(per_game(columns, table.games, n), lambda s: np.abs(s[..., :-1]).sum(axis=-1) / _not_zero(s[..., -1]))
    squares = (w * ((p - y) ** 2 - table.policy_stderr**2)).sum(axis=1)
    brier = Sums(per_game(np.stack([squares, w.sum(axis=1)], axis=1), table.games, n), ratio)
    return ece, brier


def pav_terms(table: Table, values: Floats, policy: Floats) -> tuple[Sums, Sums, Sums]:
    """The two terms of theorem 3.1 of Setlur et al. (arXiv 2410.08146), with the scores as the prover's values.

    A step of policy improvement that is paid ``Q^pi + alpha A^mu`` gains, up to constants, at least

        E_s Var_{a ~ pi}[A^mu(s, a)]  +  E_s E_{a ~ pi}[A^mu(s, a) A^pi(s, a)]

    the first term says whether the reward tells commands apart, the second whether it agrees with the policy's own advantage.
    ``A^mu(s, a)`` is the score less its mean under pi, ``A^pi(s, a)`` the label less its mean under pi: the ``on_policy`` label
    where all states have one, else the label that is measured against. Both terms depend on the scale of the scores: they are
    comparable between rankers whose scores are probabilities. The third number is not: the alignment divided by
    ``sqrt(E Var[A^mu] E Var[A^pi])``, a correlation in [-1, 1].

    Args:
        table: the labels.
        values: (S, A) scores as values.
        policy: (S, A) pi's probabilities.

    Returns:
        Statistics of the variance, the alignment, and the correlation.
    """
    truth = table.values if table.policy_values is None else table.policy_values
    mine, its = (x - (policy * x).sum(axis=1, keepdims=True) for x in (values, truth))
    variance, alignment, own = ((policy * a * b).sum(axis=1) for a, b in ((mine, mine), (mine, its), (its, its)))
    one = np.ones(len(values))
    n = len(table.game_ids)

    def sums(*columns: Floats) -> Floats:
        return per_game(np.stack(columns, axis=1), table.games, n)

    correlation = Sums(
        sums(alignment, variance, own), lambda s: s[..., 0] / _not_zero(np.sqrt(np.maximum(s[..., 1] * s[..., 2], 0)))
    )
    return Sums(sums(variance, one), ratio), Sums(sums(alignment, one), ratio), correlation


def epic(table: Table, values: Floats) -> Sums:
    """The EPIC distance between the scores and the labels as rewards (Gleave et al., arXiv 2006.13900).

    ``sqrt((1 - rho) / 2)``, rho being Pearson's correlation of the two rewards after what depends on the state alone was taken
    out of each, since that changes no policy's rank. Here the canonical reward of a command is its value less the mean over the
    state's commands: all commands alike and all states alike. 0 is the same reward up to scale and potentials, 1 the
    opposite. ``sqrt(1 / 2)`` is no relation, and what scores without any difference get.

    Args:
        table: the labels.
        values: (S, A) scores as values.
    """
    w = _weights(table)
    mine, its = (np.where(table.mask, x - (w * x).sum(axis=1, keepdims=True), 0.0) for x in (values, table.values))
    columns = np.stack([(w * a * b).sum(axis=1) for a, b in ((mine, its), (mine, mine), (its, its))], axis=1)

    def finish(sums: Floats) -> Floats:
        product = sums[..., 1] * sums[..., 2]
        rho = np.where(product > 0, sums[..., 0] / np.sqrt(np.where(product > 0, product, 1.0)), 0.0)
        return np.sqrt(np.maximum(0.0, (1 - rho) / 2))

    return Sums(per_game(columns, table.games, len(table.game_ids)), finish)


def _not_zero(x: Floats) -> Floats:
    return np.where(x == 0, np.nan, x)
