"""Visits whose mean is another one: how targets are made out of Monte-Carlo targets."""

from __future__ import annotations

from algorithms.agent_prm.targets import Visit


def moved(visit: Visit, mean: float, scale: float = 1.0) -> Visit:
    """As many visits with another mean, and their standard deviation times a factor.

    Args:
        visit: visits of one state and command.
        mean: the new mean.
        scale: the factor.
    """
    spread = scale * scale * max(0.0, visit.squares - visit.total**2 / visit.n)
    return Visit(mean * visit.n, visit.n, spread + mean * mean * visit.n)
