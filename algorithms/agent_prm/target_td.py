"""TD and GAE targets: labels of low variance out of one step and a value model (Xi et al., arXiv 2511.08325).

Formulas (their section on labels; GAE is equation 16 of Schulman et al., arXiv 1506.02438)::

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    A-hat_t = sum_k (gamma lambda)^k delta_{t+k}
    Q-hat_t = V(s_t) + A-hat_t

With ``lambda = 0`` that is ``r + gamma V(s')``: it needs a single step, so a *peek* (one step of the engine from a snapshot)
labels a command that was never played out. With ``lambda = 1`` it is the Monte-Carlo return. ``V`` is 0 behind an episode's
last turn. Labels are averaged over visits, as all targets are.

Their loss is ``L_Q + beta L_A``. ``L_A`` is :func:`progress_loss`. The form of ``L_A`` here, squared differences between turns
that follow each other, is this package's reading of "progress": only the abstract and a summary of the paper were at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from algorithms.agent_prm.targets import LabelledEpisode, QTable, Visit
from algorithms.agent_prm.values import Values, transitions
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.advantages import gae


def td_table(
    played: Sequence[Rollout], peeks: Sequence[Rollout], values: Values, gamma: float, gae_lambda: float
) -> QTable:
    """Q-hat by TD (``gae_lambda=0``) or GAE of all that was played, and by TD of what was only peeked at.

    Args:
        played: whole episodes and branches; their history does not count.
        peeks: single steps, see :mod:`algorithms.agent_prm.peeks`.
        values: V by state key, of all their states.
        gamma: discount a turn, in (0, 1].
        gae_lambda: from 0 (trusts V) to 1 (trusts the returns).

    Returns:
        Means over visits. A label is cut off at 0 and 1, between which every return lies; with a reward on the last turn only,
        none is outside.

    Raises:
        ValueError: the rewards of an episode add up to something outside [0, 1].
    """
    table = QTable(gamma)
    for rollout in played:
        steps = transitions(rollout)
        rewards = [step.reward for step in steps]
        _check_outcome(rollout, sum(rewards))
        before = [values[step.state] for step in steps]
        labels = np.asarray(before) + gae(rewards, before, gamma, gae_lambda)  # (T,)
        for step, label in zip(steps, labels.tolist(), strict=True):
            _add(table, step.state, step.command, label)
    for rollout in peeks:
        for step in transitions(rollout, n=1):
            after = 0.0 if step.after is None else values[step.after]
            _add(table, step.state, step.command, step.reward + gamma * after)
    return table


def _add(table: QTable, state: bytes, command: str, label: float) -> None:
    table.visits.setdefault(state, {}).setdefault(command, Visit()).add(min(max(label, 0.0), 1.0))


def _check_outcome(rollout: Rollout, outcome: float) -> None:
    if not -1e-6 <= outcome <= 1 + 1e-6:
        raise ValueError(
            f"the rewards of {rollout.episode.game_id} add up to {outcome:.3f}, which is outside [0, 1]; TD and GAE targets "
            "expect an outcome reward in [0, 1]"
        )


def progress_of(
    part: Sequence[LabelledEpisode], logits: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """``L_A`` of some episodes, a scalar, summed.

    Args:
        part: the episodes.
        logits: of all their labelled turns in order, (n_commands,) each.
        targets: for each (n_commands,).
    """
    start, losses = 0, []
    for labelled in part:
        by_turn = labelled.by_turn()
        stop = start + len(by_turn)
        executed = []
        for t, rows in by_turn.items():
            commands, done = [row.command for row in rows], labelled.episode.turns[t].command
            executed.append(commands.index(done) if done in commands else None)
        losses.append(progress_loss(logits[start:stop], targets[start:stop], executed, list(by_turn)))
        start = stop
    return torch.stack(losses).sum()


def progress_loss(
    logits: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    executed: Sequence[int | None],
    turns: Sequence[int],
) -> torch.Tensor:
    """``L_A``: how far progress, the difference between turns that follow each other, is from that of the targets.

    ``sum_t [(Q_t - Q_{t-1}) - (Q-hat_t - Q-hat_{t-1})]^2`` over neighbours of one episode that both have a target.

    Args:
        logits: for each labelled turn of an episode, in order, (n_commands,).
        targets: for each (n_commands,), in [0, 1].
        executed: for each the place of the executed command among its commands; ``None`` where that has no target.
        turns: for each its index in the episode.

    Returns:
        A scalar.
    """
    total = logits[0].new_zeros(())
    previous: tuple[int, torch.Tensor, torch.Tensor] | None = None
    for z, y, i, t in zip(logits, targets, executed, turns, strict=True):
        here = None if i is None else (t, torch.sigmoid(z[i]), y[i])
        if here is not None and previous is not None and previous[0] == t - 1:
            total = total + ((here[1] - previous[1]) - (here[2] - previous[2])) ** 2
        previous = here
    return total
