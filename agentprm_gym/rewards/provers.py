"""Provers of process advantage verifiers (PAV; Setlur et al., arXiv 2410.08146, section 3): best of K continuations.

A prover is a policy mu whose advantage is paid beside the outcome. That of ``BoK(pi)``, which plays on K times and keeps the
best outcome, needs no rollouts of its own (section 3.3)::

    Q^BoK(s, a) = 1 - (1 - Q^pi(s, a))^K
    V^BoK(s)    = 1 - (1 - V^pi(s))^K
    A^BoK(s, a) = Q^BoK(s, a) - V^BoK(s) = (1 - V^pi)^K - (1 - Q^pi)^K

Its mean under pi is 0 or less, by Jensen, and not 0: paid every turn, it charges for the number of turns. ``centred`` takes its
mean under pi off. K magnifies differences near ``Q = 0`` and mutes them near 1. With ``K = 1`` it is the policy's own
advantage.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentprm_gym.checks import check_int


def best_of_k(q: ArrayLike, k: int) -> NDArray[np.float64]:
    """``1 - (1 - q)^k``: the chance that one of k independent continuations wins.

    Args:
        q: chances in [0, 1], any shape.
        k: 1 or more.

    Raises:
        ValueError: ``k`` is not a whole number of 1 or more, or a chance is outside [0, 1].

    Example:
        >>> best_of_k([0.02, 0.05, 0.8, 0.9], 4).round(4).tolist()
        [0.0776, 0.1855, 0.9984, 0.9999]
    """
    check_int("best_of", k, 1)
    chances = np.asarray(q, dtype=np.float64)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError(f"a prover needs chances of winning in [0, 1], got {chances.min()} to {chances.max()}")
    # Exact for small chances, too.
    with np.errstate(divide="ignore"):
        out: NDArray[np.float64] = -np.expm1(k * np.log1p(-chances))
    return out


def best_of_k_advantage(q: ArrayLike, policy: ArrayLike, k: int, *, centred: bool = True) -> NDArray[np.float64]:
    """A^BoK of the commands of a state.

    Args:
        q: Q^pi of the A commands, (A,) in [0, 1].
        policy: pi of them, (A,); their sum is taken as 1.
        k: 1 or more.
        centred: whether the mean under pi is taken off, or ``V^BoK`` as in the paper.

    Returns:
        (A,).

    Raises:
        ValueError: as :func:`best_of_k` does.

    Example:
        >>> best_of_k_advantage([0.02, 0.05], [0.5, 0.5], 4, centred=False).round(4).tolist()
        [-0.0552, 0.0527]
    """
    chances, weights = np.asarray(q, dtype=np.float64), np.asarray(policy, dtype=np.float64)
    after, weights = best_of_k(chances, k), weights / weights.sum()
    before = weights @ after if centred else best_of_k(weights @ chances, k)
    out: NDArray[np.float64] = after - before
    return out
