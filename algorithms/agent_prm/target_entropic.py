"""Entropic targets of ER-PRM (Zhang et al., arXiv 2412.11006, section 3; ``MCTS/calculate_score.py`` of its code).

Formula::

    y(s, a) = (1 / eta) ln mean over visits of exp(eta R)

``eta -> 0`` is the mean, ``eta -> inf`` the maximum, ``eta < 0`` a soft minimum; ``y`` lies between the smallest and the
largest return. With outcomes 0 and 1 and a share p of wins it is ``(1 / eta) ln((1 - p) + p exp(eta))``. That is monotone in p:
the order within a state stays, and only the curvature changes. Where returns are discounted, ``eta > 0`` prefers the risky
short win. Few visits bias it (Jensen): downwards for ``eta > 0``, upwards for ``eta < 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from agentprm_gym.episodes import Episode
from agentprm_gym.states import state_keys
from algorithms.agent_prm.targets import QTable, Visit
from algorithms.agent_prm.visits import moved

#: The largest absolute value of eta: exp(-eta) must not vanish beside 1 by more than double precision can hold.
MAX_ETA = 100.0


def entropic_mean(values: Sequence[float], eta: float) -> float:
    """``(1 / eta) ln mean exp(eta x)``; the mean where eta is 0.

    Args:
        values: one or more finite numbers.
        eta: any finite number.

    Example:
        >>> [round(entropic_mean([0.0, 0.0, 0.0, 1.0], eta), 3) for eta in (0.0, 1.0, 5.0, -1.0)]
        [0.25, 0.357, 0.727, 0.172]
    """
    if eta == 0:
        return math.fsum(values) / len(values)
    highest = max(eta * x for x in values)  # log-sum-exp, so that nothing overflows
    total = math.fsum(math.exp(eta * x - highest) for x in values)
    return (highest + math.log(total / len(values))) / eta


def entropic_table(
    episodes: Iterable[Episode],
    first_turn: Iterable[int],
    returns: Callable[[Episode], Sequence[float]],
    gamma: float,
    eta: float,
) -> QTable:
    """Entropic targets of what was played.

    Args:
        episodes: the episodes.
        first_turn: for each the first turn that counts.
        returns: gives what each turn of an episode counts before averaging, (T,).
        gamma: discount a turn, in (0, 1].
        eta: temperature, not 0.

    Returns:
        A table whose means are the targets. Standard errors are those of the plain mean.
    """
    found: dict[bytes, dict[str, list[float]]] = {}
    for episode, first in zip(episodes, first_turn, strict=True):
        values = returns(episode)
        for t, key in enumerate(state_keys(episode.task, episode.turns)):
            if t >= first:
                found.setdefault(key, {}).setdefault(episode.turns[t].command, []).append(float(values[t]))
    table = QTable(gamma)
    for state, commands in found.items():
        table.visits[state] = {command: _visit(values, eta) for command, values in commands.items()}
    return table


def _visit(values: Sequence[float], eta: float) -> Visit:
    plain = Visit()
    for value in values:
        plain.add(value)
    return moved(plain, entropic_mean(values, eta))
