"""How good a process reward model is on labelled states that it was not fitted to."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from algorithms.common.learning.advantages import Floats
from algorithms.common.measure.figures import record_fit
from algorithms.common.measure.prm_measures import (
    Calibration,
    ChoiceReport,
    RankingReport,
    ScoredState,
    calibration,
    judge_choices,
    rank_states,
)

#: From so many held-out targets on, a PRM that is no better than a constant is warned of: fewer differ by chance.
ENOUGH = 100


@dataclass(slots=True)
class LabelledState:
    """The commands of a state with logits and targets.

    Attributes:
        logits: (n_commands,) of Q.
        targets: (n_commands,) in [0, 1].
        visits: (n_commands,) how many visits stand behind each target.
        log_probs: (n_commands,) the policy's, in nats; ``None`` where they are not known.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    visits: torch.Tensor
    log_probs: Floats | None = None


@dataclass(slots=True)
class PRMReport:
    """How good a process reward model is on labelled episodes it has not seen.

    Attributes:
        bce: mean soft binary cross-entropy, weighted by visits; NaN without data.
        constant_bce: what the best constant score would have, the mean target; NaN without data.
        n_targets: how many targets there are.
        pair_accuracy: share of within-state pairs, targets at least ``min_gap`` apart, that it orders correctly; NaN
            without pairs.
        n_pairs: how many such pairs there are.
        spread: mean standard deviation of its scores within a state; NaN without states of several commands.
        calibration: its scores against the labels, weighted by visits; ``calibration.ece`` in one number.
        ranking: the order within states, Kendall's tau and top-1 against the labels.
        choice: what its choice among the labelled commands is worth.
    """

    bce: float
    constant_bce: float
    n_targets: int
    pair_accuracy: float
    n_pairs: int
    spread: float
    calibration: Calibration
    ranking: RankingReport
    choice: ChoiceReport


@torch.no_grad()
def judge_prm(states: Iterable[LabelledState], min_gap: float) -> PRMReport:
    """Judge a process reward model on labelled states.

    Args:
        states: scored by it.
        min_gap: two targets of one state count as different from this gap on.
    """
    bce = weight = spread = 0.0
    correct = pairs = n_states = 0
    scored: list[ScoredState] = []
    visits: list[Floats] = []
    for state in states:
        z, y, n = state.logits, state.targets, state.visits
        losses = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")  # (n_commands,)
        bce, weight = bce + float((losses * n).sum()), weight + float(n.sum())
        scored.append(ScoredState(torch.sigmoid(z.double()).cpu().numpy(), y.double().cpu().numpy(), state.log_probs))
        visits.append(n.cpu().numpy())
        if len(z) > 1:
            better = (y[:, None] - y[None, :]) >= min_gap  # (n_commands, n_commands)
            correct += int(((z[:, None] > z[None, :]) & better).sum())
            pairs += int(better.sum())
            spread += float(torch.sigmoid(z).std())
            n_states += 1
    nan = float("nan")
    targets = np.concatenate([np.zeros(0), *(s.targets for s in scored)])  # (N,)
    counts = np.concatenate([np.zeros(0), *visits])  # (N,)
    return PRMReport(
        bce / weight if weight else nan,
        _entropy(float(counts @ targets / counts.sum())) if weight else nan,
        len(targets),
        correct / pairs if pairs else nan,
        pairs,
        spread / n_states if n_states else nan,
        calibration(
            np.concatenate([np.zeros(0), *(s.scores for s in scored)]),
            targets,
            counts,
        ),
        rank_states(scored, min_gap),
        judge_choices(scored),
    )


def _entropy(p: float) -> float:
    """Cross-entropy of targets with mean p against the constant score p, in nats."""
    return float(-sum(x * np.log(x) for x in (p, 1 - p) if x > 0))


def record_heldout(logger: Logger, report: PRMReport, losses: Sequence[float]) -> None:
    """Log a report as ``prm/heldout_*``, and the loss of each update as a figure; warn of a PRM that says nothing."""
    # One that orders the commands of a state is of use, though its scores may be too high or too low.
    orders = report.pair_accuracy > 0.5  # not so without pairs
    if report.n_targets >= ENOUGH and report.bce >= report.constant_bce and not orders:
        warnings.warn(
            f"on {report.n_targets} targets of held-out games the process reward model is no better than a constant score "
            f"(cross-entropy {report.bce:.3f}, constant {report.constant_bce:.3f}, {len(losses)} updates): play more games "
            "(rollout.n_games), or fit longer (prm.n_epochs, prm.learning_rate)",
            stacklevel=2,
        )
    logger.record("prm/heldout_bce", report.bce)
    logger.record("prm/heldout_bce_constant", report.constant_bce)
    logger.record("prm/heldout_pair_accuracy", report.pair_accuracy)
    logger.record("prm/heldout_pairs", report.n_pairs)
    logger.record("prm/within_state_spread", report.spread)
    record_fit(logger, report.calibration, report.ranking, report.choice, losses)
