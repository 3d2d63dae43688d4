"""Metrics within a state: does a ranker order the commands of one state, and what is its choice worth?

Each function takes a :class:`~agentprm_gym.bench.metrics_table.Table` and scores (S, A), and returns one number for each state.
NaN stands where the state says nothing. Ties of scores are broken at random; all numbers are the exact expectation over that.
Only the order of the scores within a state counts in this module, so any increasing function of them gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentprm_gym.bench.metrics_table import CHUNK, Bools, Floats, Table

#: The numbers of draws of the best-of-N curve.
N_DRAWS = tuple(range(1, 33))
#: Wrong commands that the right one stands beside.
N_WRONG = 4


@dataclass(frozen=True, slots=True)
class InState:
    """Numbers of each state.

    In the formulas s are the scores of a state's A commands, v their labels, V the highest label. "Better" and "best" are those
    of the pairs that count, see :func:`~agentprm_gym.bench.metrics_table.make_table`. A state without such a pair is left out
    of all of them (NaN).

    Attributes:
        pair_accuracy: (S,) over the pairs i better than j: the mean of ``[s_i > s_j] + [s_i = s_j] / 2``. Chance is 0.5.
        top1: (S,) the share of best commands among those with the highest score.
        best_of_five: (S,) one best command and four others are drawn without replacement: the probability that the best one is
            chosen by its score. NaN where there are fewer than four others. Chance is 0.2.
        kendall_tau: (S,) tau-b: ``(C - D) / sqrt(n_v n_s)``, of the pairs that count C in the same order, D in the
            opposite one, n_v in number, and n_s pairs of all without a tie of scores. 0 where all scores are equal: no
            opinion is no better than chance.
        auc: (S,) the probability that a best command has a higher score than another one, ties half. Chance is 0.5.
        regret: (S,) ``V - v(choice)``, the choice being the highest score.
        uniform_regret: (S,) ``V - mean(v)``, the regret of a uniform choice.
        curve: (S, 32) the regret of the highest-scored of N draws from a policy, for N = 1, ..., 32; see :func:`best_of_n`.
    """

    pair_accuracy: Floats
    top1: Floats
    best_of_five: Floats
    kendall_tau: Floats
    auc: Floats
    regret: Floats
    uniform_regret: Floats
    curve: Floats


def in_state(table: Table, scores: Floats, policy: Floats) -> InState:
    """Compute the metrics of each state.

    Args:
        table: the labels.
        scores: (S, A) finite; padded places do not matter.
        policy: (S, A) the probabilities with which a policy draws the commands; each row sums to 1 over its commands.

    Returns:
        The numbers.
    """
    pieces = [_of_chunk(table, slice(start, start + CHUNK), scores, policy) for start in range(0, len(scores), CHUNK)]
    return InState(**{name: np.concatenate([piece[name] for piece in pieces]) for name in InState.__slots__})


def _of_chunk(table: Table, part: slice, all_scores: Floats, all_policy: Floats) -> dict[str, Floats]:
    scores, policy = all_scores[part], all_policy[part]
    mask, values, order = table.mask[part], table.values[part], table.order[part]
    best, has_choice = table.best[part], table.has_choice[part]
    both = mask[:, :, None] & mask[:, None, :]  # (s, A, A)
    sign = np.sign(scores[:, :, None] - scores[:, None, :]).astype(np.int8) * both
    better = order > 0
    n_better = better.sum(axis=(1, 2)).astype(np.float64)  # of each pair once
    agree = (better * (1 + sign)).sum(axis=(1, 2)) / 2.0
    n_untied = np.abs(sign).sum(axis=(1, 2), dtype=np.int64) / 2.0
    # A product of signs is there twice for each pair.
    excess = (order * sign).sum(axis=(1, 2), dtype=np.int64) / 2.0
    chosen = mask & ~((sign < 0).any(axis=2))
    most = np.where(mask, values, -np.inf).max(axis=1)
    out = {
        "pair_accuracy": _divide(agree, n_better),
        "top1": _share(best, chosen),
        "best_of_five": _best_of_five(sign, both, best, mask),
        "kendall_tau": np.where(n_untied > 0, excess / np.sqrt(np.maximum(n_better * n_untied, 1)), 0.0),
        "auc": _auc(sign, best, mask & ~best),
        "regret": most - _share(values, chosen),
        "uniform_regret": most - _share(values, mask),
        "curve": most[:, None] - best_of_n(sign, both, values, policy),
    }
    return {name: np.where(has_choice if x.ndim == 1 else has_choice[:, None], x, np.nan) for name, x in out.items()}


def best_of_n(sign: NDArray[np.int8], both: Bools, values: Floats, policy: Floats) -> Floats:
    """The mean value of the highest-scored of N draws (with replacement) of a policy, exactly.

    With F(i) the probability that a draw scores no more than command i, and G(i) that it scores less, the highest score of N
    draws is that of i or of a tie with it with probability ``F(i)^N - G(i)^N``, and of the tied commands i is the one with
    probability ``p(i) / (F(i) - G(i))``. So

        value(N) = sum_i p(i) / (F(i) - G(i)) * (F(i)^N - G(i)^N) * v(i)

    It is what the mean over all sets of N draws tends to: nothing is drawn, so there is no error of an estimate.

    Args:
        sign: (s, A, A) 1 where the first command has the higher score, -1 where the lower.
        both: (s, A, A) which places hold two commands.
        values: (s, A) labels.
        policy: (s, A) probabilities, 0 in padded places.

    Returns:
        (s, 32) for each N of :data:`N_DRAWS`.
    """
    lower = np.einsum("sij,sj->si", (sign > 0) & both, policy)  # G
    tied = np.einsum("sij,sj->si", (sign == 0) & both, policy)  # F - G, p(i) or more
    # Rounding must not make a probability of more than 1.
    upper = np.minimum(lower + tied, 1.0)
    share = np.divide(policy * values, tied, out=np.zeros_like(policy), where=tied > 0)
    return np.stack([(share * (upper**n - lower**n)).sum(axis=1) for n in N_DRAWS], axis=1)


def _best_of_five(sign: NDArray[np.int8], both: Bools, best: Bools, mask: Bools) -> Floats:
    """The probability that a best command beats four others that are drawn without replacement.

    Of W others L score less than the best command and E the same. Four of the ``L + E`` with e ties are drawn with probability
    ``C(L, 4 - e) C(E, e) / C(W, 4)``, and then the best command is chosen with probability ``1 / (1 + e)``.
    """
    other = mask & ~best
    n_other = other.sum(axis=1)
    counted = both & other[:, None, :]
    lower = ((sign > 0) & counted).sum(axis=2)  # (s, A)
    tied = ((sign == 0) & counted).sum(axis=2)
    wins = np.zeros(lower.shape)
    for e in range(N_WRONG + 1):
        wins += _choose(lower, N_WRONG - e) * _choose(tied, e) / (1 + e)
    ways = _choose(n_other, N_WRONG)
    return _divide((wins * best).sum(axis=1) / np.maximum(best.sum(axis=1), 1), ways)


def _choose(n: NDArray[np.int64], k: int) -> Floats:
    """Number of sets of k of n things; 0 where n is less than k."""
    out = np.ones(n.shape)
    for i in range(k):
        out *= np.maximum(n - i, 0) / (i + 1)
    return out


def _auc(sign: NDArray[np.int8], first: Bools, second: Bools) -> Floats:
    """(s,) the probability that a command of the first kind scores more than one of the second, ties half; else NaN."""
    pairs = first[:, :, None] & second[:, None, :]
    return _divide((pairs * (1 + sign)).sum(axis=(1, 2)) / 2.0, pairs.sum(axis=(1, 2)).astype(np.float64))


def dead_end_auc(table: Table, scores: Floats) -> Floats:
    """Whether the scores warn of dead ends: of each state the AUROC of "leads into a dead end" against a low score.

    The probability that a command that leads into a dead end scores less than one that does not, ties half.

    Args:
        table: the labels.
        scores: (S, A).

    Returns:
        (S,); NaN where all commands or none lead into a dead end, or the panel does not tell it.
    """
    if table.dead is None:
        return np.full(len(scores), np.nan)
    out = []
    for start in range(0, len(scores), CHUNK):
        part = slice(start, start + CHUNK)
        mask, dead = table.mask[part], table.dead[part]
        sign = np.sign(scores[part][:, :, None] - scores[part][:, None, :]).astype(np.int8)
        out.append(_auc(sign, mask & ~dead, mask & dead))
    return np.concatenate(out)


def _share(values: NDArray[np.generic], which: Bools) -> Floats:
    """(s,) mean of values over some places of each row; every row has one."""
    total: Floats = (values * which).sum(axis=1, dtype=np.float64)
    mean: Floats = total / np.maximum(which.sum(axis=1), 1)
    return mean


def _divide(a: Floats, b: Floats) -> Floats:
    """The quotient, NaN where b is 0."""
    out: Floats = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)
    return out
