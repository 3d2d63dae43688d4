"""Metrics of a ranker on a panel, each with a bootstrap interval over games: overall, by task type, and for the worst type.

    metrics = PanelMetrics(panel.states, "fair")
    report = metrics.measure(scores)  # for each state one score a command
    report["pair_accuracy"].overall.value

The formulas stand where they are computed: :mod:`~agentprm_gym.bench.metrics_state` (the order within a state),
:mod:`~agentprm_gym.bench.metrics_value` (scores as values and rewards) and :mod:`~agentprm_gym.bench.metrics_walks` (the first
bad step). Every metric is a mean over states, or a function of such means, in which each state counts the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentprm_gym.bench.metrics_bootstrap import (
    Estimate,
    Statistic,
    Sums,
    estimate,
    mean_statistic,
    per_game,
    ratio,
    resample,
)
from agentprm_gym.bench.metrics_state import N_DRAWS, InState, dead_end_auc, in_state
from agentprm_gym.bench.metrics_table import Bools, Floats, make_table
from agentprm_gym.bench.metrics_value import calibration, epic, pav_terms, pooled_auc, pooled_dead_end_auc
from agentprm_gym.bench.metrics_walks import find_walks, first_bad_step
from agentprm_gym.bench.states import BenchState
from agentprm_gym.checks import check_int

__all__ = ["METRICS", "Estimate", "Metric", "PanelMetrics", "Report"]

#: For each state one number a command.
Rows = Sequence[Sequence[float]] | Sequence[Floats]

#: Names of the metrics, and whether more is better; ``None`` for a number that is no judgement.
METRICS: Mapping[str, bool | None] = {
    "pair_accuracy": True,
    "top1": True,
    "best_of_five": True,
    "kendall_tau": True,
    "regret": False,
    "normalised_regret": True,
    "auc": True,
    "pooled_auc": None,
    "dead_end_auc": True,
    "pooled_dead_end_auc": None,
    "first_bad_step_f1": True,
    "best_of_4_regret": False,
    "best_of_16_regret": False,
    "best_of_32_regret": False,
    "over_optimisation": False,
    "ece": False,
    "brier": False,
    "pav_variance": None,
    "pav_alignment": None,
    "pav_correlation": True,
    "epic_distance": False,
}
#: Numbers of draws that stand among the metrics; the whole curve is a field of its own.
_DRAWS = (4, 16, 32)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of one ranker.

    Attributes:
        overall: over all states.
        by_type: for each task type.
        worst: the worst task type's value. Its interval is that of the minimum (or maximum) over the types in each sample of
            games, so it is lower than the value of any one type that is named beforehand. NaN where more is not better or
            worse.
        worst_type: which type that is; empty where there is none.
        n: number of states that say something.
    """

    overall: Estimate
    by_type: Mapping[str, Estimate]
    worst: Estimate
    worst_type: str
    n: int


@dataclass(frozen=True, slots=True)
class Report:
    """All metrics of one ranker.

    Attributes:
        metrics: by name, see :data:`METRICS`. A metric that cannot be measured here is NaN.
        curve: regret of the highest-scored of N draws of the policy, for N = 1, ..., 32.
        labels: which labels.
        n_states: states of the panel.
        n_choices: states with a pair of commands that counts.
        n_games: games of the panel.
        n_walks: walks behind ``first_bad_step_f1``.
    """

    metrics: Mapping[str, Metric]
    curve: Sequence[Estimate]
    labels: str
    n_states: int
    n_choices: int
    n_games: int
    n_walks: int

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types; NaN becomes ``None``."""
        return {
            "labels": self.labels,
            "n_states": self.n_states,
            "n_choices": self.n_choices,
            "n_games": self.n_games,
            "n_walks": self.n_walks,
            "metrics": {
                name: {
                    **_as_json(m.overall),
                    "n": m.n,
                    "by_task_type": {kind: _as_json(e) for kind, e in m.by_type.items()},
                    "worst": {**_as_json(m.worst), "task_type": m.worst_type},
                }
                for name, m in self.metrics.items()
            },
            "best_of_n": [{"n": n, **_as_json(e)} for n, e in zip(N_DRAWS, self.curve, strict=True)],
        }


def _as_json(e: Estimate) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in (("value", e.value), ("low", e.low), ("high", e.high))}


class PanelMetrics:
    """Measures rankers on one panel; what does not depend on the ranker is computed once.

    Attributes:
        table: the labels, see :mod:`~agentprm_gym.bench.metrics_table`.
        walks: see :mod:`~agentprm_gym.bench.metrics_walks`.
        policy: (S, A) probabilities of the policy that best-of-N and the PAV terms draw commands from.
    """

    def __init__(
        self,
        states: Sequence[BenchState],
        labels: str = "oracle",
        *,
        policy: Rows | None = None,
        gap: float = 0.0,
        z: float = 2.0,
        n_samples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Read the labels.

        Args:
            states: the panel.
            labels: which labels, one of :data:`~agentprm_gym.bench.states.LABELS`.
            policy: for each state the probabilities with which a policy draws its commands; ``None``: all alike. Each row is
                0 or more and sums to 1.
            gap: the least difference of labels that counts as one; see :func:`~agentprm_gym.bench.metrics_table.make_table`.
            z: the same in standard errors, where labels are estimates.
            n_samples: samples of games for the intervals, 0 or more (0: no intervals).
            seed: draws the samples.

        Raises:
            ValueError: there are no states, labels are missing, or an argument is out of range.
        """
        self.table = make_table(states, labels, gap=gap, z=z)
        self.walks = find_walks(states)
        t = self.table
        if policy is None:
            self.policy: Floats = t.mask / t.n_commands[:, None]
        else:
            self.policy = t.padded(policy, "probabilities of the policy")
            sums = self.policy.sum(axis=1)
            if not (np.isfinite(self.policy).all() and (self.policy >= 0).all() and np.allclose(sums, 1, atol=1e-4)):
                bad = int(np.argmax(~(np.abs(sums - 1) <= 1e-4)))
                raise ValueError(
                    f"probabilities of the policy must be 0 or more and sum to 1 in each state, got {sums[bad]} in state "
                    f"{states[bad].state_id!r}"
                )
            self.policy = self.policy / sums[:, None]
        self._samples = resample(len(t.game_ids), check_int("n_samples", n_samples, 0), seed)

    def measure(
        self,
        scores: Rows,
        *,
        values: Rows | None = None,
        calibrated: bool = False,
    ) -> Report:
        """Measure one ranker.

        Args:
            scores: for each state one finite score a command, higher is better. Only their order within a state counts in the
                in-state metrics.
            values: the same as values or rewards, for the metrics in which sizes count (PAV terms, EPIC, calibration);
                ``None``: the scores themselves.
            calibrated: whether the values are probabilities of winning, which ``ece`` and ``brier`` are about.

        Returns:
            The report.

        Raises:
            ValueError: a row has another number of scores than commands, a number is not finite, or a probability is not in
                [0, 1].
        """
        t = self.table
        s = t.padded(scores, "scores")
        x = s if values is None else t.padded(values, "values")
        if not (np.isfinite(s).all() and np.isfinite(x).all()):
            raise ValueError("scores must be finite")
        if calibrated and not ((x >= 0) & (x <= 1)).all():
            raise ValueError("calibration is about probabilities of winning in [0, 1], got other values")
        found = in_state(t, s, self.policy)
        dead = dead_end_auc(t, s)
        has_choice = t.has_choice
        statistics: dict[str, tuple[Statistic | None, Bools]] = {
            name: (mean_statistic(numbers, t.games, len(t.game_ids)), np.isfinite(numbers))
            for name, numbers in (
                *((n, getattr(found, n)) for n in ("pair_accuracy", "top1", "best_of_five", "kendall_tau")),
                *(("regret", found.regret), ("auc", found.auc), ("dead_end_auc", dead)),
                *((f"best_of_{n}_regret", found.curve[:, N_DRAWS.index(n)]) for n in _DRAWS),
            )
        }
        everywhere = np.ones(len(s), dtype=np.bool_)
        statistics["normalised_regret"] = (self._normalised(found), has_choice)
        statistics["over_optimisation"] = (self._over_optimisation(found), has_choice)
        statistics["pooled_auc"] = (pooled_auc(t, s), everywhere)
        statistics["pooled_dead_end_auc"] = (pooled_dead_end_auc(t, s), everywhere)
        statistics["first_bad_step_f1"] = (first_bad_step(t, s, self.walks), self._in_walks())
        ece, brier = (calibration(t, x) if calibrated else None) or (None, None)
        variance, alignment, correlation = pav_terms(t, x, self.policy)
        statistics |= {
            "ece": (ece, everywhere),
            "brier": (brier, everywhere),
            "pav_variance": (variance, everywhere),
            "pav_alignment": (alignment, everywhere),
            "pav_correlation": (correlation, everywhere),
            "epic_distance": (epic(t, x), everywhere),
        }
        metrics = {name: self._metric(*statistics[name], better) for name, better in METRICS.items()}
        curve = [
            self._overall(mean_statistic(found.curve[:, i], t.games, len(t.game_ids))) for i in range(len(N_DRAWS))
        ]
        return Report(metrics, curve, t.kind, len(s), int(has_choice.sum()), len(t.game_ids), len(self.walks))

    def _normalised(self, found: InState) -> Sums:
        """1 less the summed regret by that of a uniform choice: 1 is perfect, 0 no better than chance, less is harmful."""
        columns = np.nan_to_num(np.stack([found.uniform_regret - found.regret, found.uniform_regret], axis=1))
        return Sums(per_game(columns, self.table.games, len(self.table.game_ids)), ratio)

    def _over_optimisation(self, found: InState) -> Sums:
        """The regret of the best of 32 draws less the least regret of the curve: what too much choice costs; 0 or more."""
        known = self.table.has_choice
        columns = np.concatenate([np.nan_to_num(found.curve), known[:, None]], axis=1)

        def finish(sums: Floats) -> Floats:
            curve = sums[..., :-1] / np.where(sums[..., -1:] == 0, np.nan, sums[..., -1:])
            out: Floats = curve[..., -1] - curve.min(axis=-1)
            return out

        return Sums(per_game(columns, self.table.games, len(self.table.game_ids)), finish)

    def _in_walks(self) -> Bools:
        """(S,) which states a walk begins in."""
        out = np.zeros(len(self.table.mask), dtype=np.bool_)
        out[[walk.states[0] for walk in self.walks]] = True
        return out

    # Samples of games -------------------------------------------------------------------------
    def _overall(self, statistic: Statistic) -> Estimate:
        everything = np.ones((1, len(self.table.game_ids)))
        return estimate(float(statistic.values(everything)[0]), statistic.values(self._samples))

    def _metric(self, statistic: Statistic | None, known: Bools, better: bool | None) -> Metric:
        t = self.table
        nothing = Estimate(float("nan"), float("nan"), float("nan"))
        if statistic is None:
            return Metric(nothing, dict.fromkeys(t.type_names, nothing), nothing, "", 0)
        by_type: dict[str, Estimate] = {}
        samples = []
        for i, name in enumerate(t.type_names):
            own = (t.types == i).astype(np.float64)
            samples.append(statistic.values(self._samples * own))
            by_type[name] = estimate(float(statistic.values(own[None])[0]), samples[-1])
        worst, worst_type = nothing, ""
        measured = [name for name in by_type if np.isfinite(by_type[name].value)]
        if better is not None and measured:
            sign = 1.0 if better else -1.0
            worst_type = min(measured, key=lambda name: sign * by_type[name].value)
            table = np.stack(samples) * sign  # (types, B)
            # A sample without a game of some type says nothing about that type.
            lowest = np.where(np.isfinite(table), table, np.inf).min(axis=0)
            worst = estimate(by_type[worst_type].value, np.where(np.isfinite(lowest), lowest * sign, np.nan))
        return Metric(self._overall(statistic), by_type, worst, worst_type, int(known.sum()))
