"""Targets shaped by a reference policy mu (Choudhury, arXiv 2502.10325, section 4.2 and its released code).

Formula, with ``V^mu`` fitted to rollouts of the policy that learning began with::

    A^mu(s, a) = r + gamma V^mu(s') - V^mu(s)
    y(s, a)    = (1 - alpha) Q-hat(s, a) + alpha A^mu(s, a)           averaged over visits
    target     = (y + alpha) / (1 + alpha)                            which maps [-alpha, 1] to [0, 1]

``alpha`` anneals: ``shaping_coef * shaping_decay ** iteration``. With few rollouts ``A^mu`` says what a policy that is known
thinks of a step; the more rollouts, the less it is needed. Differences from the released code, on purpose:

1. Units match: ``V^mu`` and ``Q-hat`` are both discounted returns in [0, 1]. There, ``V`` is a raw logit beside returns in
   [-1, 1].
2. The turn that ends an episode keeps ``-V^mu(s)``, with ``V^mu`` of nothing as 0. There, both terms are dropped. Only with it
   do the advantages of an episode add up, discounted, to ``G_0 - V^mu(s_0)``: without it, a policy could gain by ending games
   where ``V^mu`` is high.
3. The map to [0, 1] is the same for all states and monotone, in place of a sigmoid about the mean of the data.

Where mu is the policy itself and V is exact, ``A^mu`` is ``Q - V``, so that the order within a state is that of Q for every
``alpha``. Where mu is another policy, its opinion counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from algorithms.agent_prm.targets import QTable, Visit
from algorithms.agent_prm.values import Values, transitions
from algorithms.agent_prm.visits import moved
from algorithms.common.acting.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference policy thinks of states.

    Attributes:
        values: V^mu by state key.
        alpha: what its advantage counts, in [0, 1].
    """

    values: Values
    alpha: float


def advantages(rollout: Rollout, values: Values, gamma: float, *, n: int | None = None) -> list[float]:
    """A^mu of the turns that a rollout played itself; the last one without a value behind it.

    Args:
        rollout: what was played.
        values: V^mu by state key.
        gamma: discount a turn, in (0, 1].
        n: only of the first so many; ``None``: all.
    """
    return [
        step.reward + gamma * (0.0 if step.after is None else values[step.after]) - values[step.state]
        for step in transitions(rollout, n=n)
    ]


def shaped_table(
    table: QTable, played: Sequence[Rollout], peeks: Sequence[Rollout], reference: Reference, gamma: float
) -> QTable:
    """Mix the advantages of a reference policy into targets.

    Args:
        table: the targets, in [0, 1].
        played: what they are of.
        peeks: single steps.
        reference: V^mu, and what it counts.
        gamma: discount a turn, in (0, 1].

    Returns:
        The shaped targets of the states and commands of the table; ``table`` itself where alpha is 0.
    """
    alpha = reference.alpha
    if alpha == 0:
        return table
    found: dict[tuple[bytes, str], list[float]] = {}
    for rollouts, n in ((played, None), (peeks, 1)):
        for rollout in rollouts:
            for step, a in zip(
                transitions(rollout, n=n), advantages(rollout, reference.values, gamma, n=n), strict=True
            ):
                found.setdefault((step.state, step.command), []).append(a)
    out = QTable(table.gamma, table.discount, table.reward_range)
    for state, commands in table.visits.items():
        out.visits[state] = {
            command: _visit(visit, found[state, command], alpha) for command, visit in commands.items()
        }
    return out


def _visit(visit: Visit, seen: Sequence[float], alpha: float) -> Visit:
    mixed = (1 - alpha) * visit.mean + alpha * sum(seen) / len(seen)
    label = (mixed + alpha) / (1 + alpha)
    return moved(visit, min(max(label, 0.0), 1.0), scale=(1 - alpha) / (1 + alpha))
