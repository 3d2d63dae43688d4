"""What is logged about a fit: how good the PRM is on games that it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.agent_prm.fit import forward
from algorithms.agent_prm.relative import MIN_GAP
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.targets import LabelledEpisode, QTable
from algorithms.common.learning.batches import pieces
from algorithms.common.measure.figures import record_visits
from algorithms.common.measure.heldout import LabelledState, judge_prm, record_heldout
from algorithms.common.measure.prm_measures import candidate_log_probs

if TYPE_CHECKING:
    from algorithms.agent_prm.agent_prm import AgentPRM


@torch.no_grad()
def labelled_states(
    prm: ProcessRewardModel, data: Sequence[LabelledEpisode], micro_batch_size: int = 32
) -> Iterator[LabelledState]:
    """Labelled states with the PRM's logits, for :func:`algorithms.common.measure.heldout.judge_prm`."""
    for part in pieces(data, micro_batch_size):
        with prm.lm.active(prm.adapter):
            scored = zip(*forward(prm, part), strict=True)
        turns = [(e.episode.turns[t], [row.command for row in rows]) for e in part for t, rows in e.by_turn().items()]
        for (turn, commands), (logits, targets, visits) in zip(turns, scored, strict=True):
            yield LabelledState(logits, targets, visits, candidate_log_probs(turn, commands))


def report_fit(
    model: AgentPRM,
    experience: Experience,
    table: QTable,
    data: Sequence[LabelledEpisode],
    held_out: Sequence[LabelledEpisode],
    losses: Sequence[float],
) -> None:
    """Log how a fit went.

    Args:
        model: whose PRM was fitted.
        experience: what was played.
        table: its targets.
        data: what the PRM was fitted to.
        held_out: labelled episodes of games that it was not fitted to.
        losses: of each update.
    """
    logger, branched = model.logger, [r.episode.success for r in experience.branches] or [False]
    logger.record("rollout/branch_success_rate", float(np.mean(branched)))
    record_visits(logger, [visit.n for commands in table.visits.values() for visit in commands.values()])
    logger.record("prm/loss", float(np.mean(losses[-(len(losses) // model.fit.n_epochs) :])))
    report = judge_prm(labelled_states(model.prm, held_out, model.micro_batch_size), MIN_GAP)
    record_heldout(logger, report, losses)
    unseen = {e.episode.game_id for e in held_out}
    model.record_planner(
        [r for r in experience.trunks if r.episode.game_id in unseen and r.snapshots and not r.n_history]
    )
    model.record_opinion([e.episode for e in (*held_out, *data)])
