"""From the scores of an episode's turns to what each turn is paid, once the episode is over.

The sum of process rewards can be driven up by playing on, or by repeating what scores well. These forms keep it bounded.
Formulas, with ``r_t`` the score of turn t of T:

* ``"clip"`` (Gao et al., arXiv 2410.15115): ``min(r_t, kappa) - kappa``. No turn is paid more than 0, so the return is bounded
  above whatever is done.
* ``"delta"`` (the same): ``r_t - r_{t+1}``, and the last turn 0 (its outcome is paid by the environment). The return-to-go of
  turn t is ``r_t - r_T``: it telescopes, so repeating good turns earns nothing.
* ``"min"`` (the min-form credit of PURE, arXiv 2504.15275): ``softmax_t(-r_t / tau) r_t``. For tau -> 0 the worst turn is paid
  all, and the return is the minimum. The paper was not at hand; the formula is from notes on it.
* ``"difference"``: ``r_t - r_{t-1}``, the first turn ``r_0``: the return is ``r_T``.

``"delta"`` and ``"min"`` look ahead, so no environment can pay them while it is played.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentprm_gym.checks import check_choice, check_float

CREDITS = ("clip", "delta", "min", "difference")


def turn_credit(scores: ArrayLike, how: str, *, kappa: float = 0.0, tau: float = 0.1) -> NDArray[np.float64]:
    """What each turn of a finished episode is paid.

    Args:
        scores: of its turns, (T,) with T of 1 or more, finite.
        how: one of :data:`CREDITS`.
        kappa: with ``"clip"``: the score from which on nothing is taken off.
        tau: with ``"min"``: how soft the minimum is, above 0.

    Returns:
        (T,).

    Raises:
        ValueError: ``how`` is unknown, a number is out of range, or the scores do not have this shape or are not finite.

    Example:
        >>> turn_credit([0.5, 0.25, 1.0], "delta").tolist(), turn_credit([0.5, 0.25, 1.0], "clip", kappa=0.5).tolist()
        ([0.25, -0.75, 0.0], [0.0, -0.25, 0.0])
    """
    check_choice("how", how, CREDITS)
    check_float("kappa", kappa)
    check_float("tau", tau, above=0.0)
    r = np.asarray(scores, dtype=np.float64)
    if r.ndim != 1 or not len(r) or not np.isfinite(r).all():
        raise ValueError(f"expected finite scores of shape (T,) with one turn or more, got {r!r}")
    if how == "clip":
        return np.minimum(r, kappa) - kappa
    if how == "delta":
        return np.append(r[:-1] - r[1:], 0.0)
    if how == "difference":
        return np.diff(r, prepend=0.0)
    weights = np.exp(-(r - r.min()) / tau)
    out: NDArray[np.float64] = weights / weights.sum() * r
    return out
