"""Targets against siblings: what a command is worth beside the others that were tried in its state (BPO, arXiv 2607.14171).

Formula: at a snapshot of a state K commands are tried and played out, and command k gets::

    A_k = R_k - mean of the R_j of its K - 1 siblings

A state's own value is gone from the label, and with common random numbers much of the chance, too. A command that was tried
several times counts with its mean. States at which one command was tried have no label. The label is mapped from [-1, 1] to
[0, 1] by ``(A + 1) / 2``, so a PRM that is fitted to it says 0.5 for "as good as its siblings" and is no chance of winning.

BPO snapshots states where the policy is unsure: :func:`entropy_of`, and ``rollout.branch_states="entropy"``. Only the abstract
of the paper was at hand; its threshold is not known, so the states are drawn in proportion to the entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentprm_gym.episodes import Turn
from algorithms.agent_prm.targets import QTable, Visit
from algorithms.agent_prm.visits import moved


def sibling_advantages(returns: Sequence[float]) -> list[float]:
    """Each return less the mean of the others.

    Args:
        returns: of K siblings, 2 or more.

    Returns:
        K numbers that sum to 0.

    Example:
        >>> sibling_advantages([1.0, 0.0, 0.5])
        [0.75, -0.75, 0.0]
    """
    total, n = math.fsum(returns), len(returns)
    return [r - (total - r) / (n - 1) for r in returns]


def sibling_table(table: QTable) -> QTable:
    """Targets against siblings out of Monte-Carlo targets.

    Args:
        table: visits, each with returns in [0, 1].

    Returns:
        A table of the states at which two commands or more were tried; a command keeps the number of its visits.
    """
    out = QTable(table.gamma, table.discount, table.reward_range)
    for state, commands in table.visits.items():
        if len(commands) > 1:
            advantages = sibling_advantages([visit.mean for visit in commands.values()])
            out.visits[state] = {
                command: _visit(visit, (advantage + 1) / 2)
                for (command, visit), advantage in zip(commands.items(), advantages, strict=True)
            }
    return out


def _visit(visit: Visit, label: float) -> Visit:
    return moved(visit, min(max(label, 0.0), 1.0), scale=0.5)


def entropy_of(turn: Turn) -> float:
    """A lower bound of the policy's entropy at a turn, in nats, from the commands that it weighed there.

    What is left of its probability counts as one more command. 0 where a probability is not known.

    Args:
        turn: with ``candidates``.
    """
    log_probs = {c["command"]: c.get("log_prob") for c in turn.candidates or []}
    if not log_probs or any(p is None or not math.isfinite(p) for p in log_probs.values()):
        return 0.0
    known = [math.exp(min(float(p or 0.0), 0.0)) for p in log_probs.values()]
    rest = max(0.0, 1.0 - math.fsum(known))
    return -math.fsum(p * math.log(p) for p in (*known, rest) if p > 0)
