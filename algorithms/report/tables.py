"""The tables of a report: success by task type, paired comparisons, curves' last values, and how good a PRM's scores are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentprm_gym.episodes import Episode
from algorithms.common.measure.comparison import mean_interval
from algorithms.common.measure.evaluation import Rate, by_task_type, paired_difference
from algorithms.common.measure.prm_measures import ScoredState, calibration, judge_choices, rank_states
from algorithms.report.replay import GAMMA, Replay, disagrees
from algorithms.report.sources import CURVES, MEASURES, Evaluation, Training
from algorithms.report.viewing import scores_of


@dataclass(slots=True)
class Table:
    """A table of the page; all cells are plain texts.

    Attributes:
        head: names of the columns.
        rows: the cells.
        note: a sentence below it.
    """

    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def _percent(rate: Rate) -> str:
    if not rate.n:
        return "-"
    return f"{100 * rate.rate:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


def conditions(evaluations: Sequence[Evaluation]) -> Table:
    """What each evaluation is about, as its file says it."""
    table = Table(["evaluation", "model", "games", "list of games", "step cap", "action mode", "temperature", "search"])
    for one in evaluations:
        about, protocol = one.about, _mapping(one.about.get("protocol"))
        games = _mapping(about.get("games"))
        cells = [
            about.get("model"),
            " ".join(str(games[key]) for key in ("source", "split") if games.get(key)),
            str(games.get("content_hash") or "")[:12],
            one.step_cap,
            protocol.get("action_mode") or about.get("action_mode"),
            about.get("temperature"),
            about.get("search"),
        ]
        table.rows.append([one.name, *("-" if cell in (None, "") else str(cell) for cell in cells)])
    return table


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def success(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Success of each evaluation, over all games and by task type."""
    whole = Table(
        ["evaluation", "games", "success % [95 %]", "mean steps", "steps where won", "inadmissible %"],
        note="Wilson intervals. Failures count at the step limit in the mean steps.",
    )
    rates = {one.name: by_task_type(one.episodes, one.step_cap) for one in evaluations}
    for name, rows in rates.items():
        rate = rows[-1]
        numbers = (
            _number(rate.mean_steps, ".1f"),
            _number(rate.mean_steps_won, ".1f"),
            _number(100 * rate.inadmissible, ".1f"),
        )
        whole.rows.append([name, str(rate.n), _percent(rate), *numbers])
    types = list(dict.fromkeys(rate.name for rows in rates.values() for rate in rows[:-1]))
    split = Table(["success % by task type", *types])
    for name, rows in rates.items():
        found = {rate.name: f"{_percent(rate)} of {rate.n}" for rate in rows}
        split.rows.append([name, *(found.get(kind, "-") for kind in types)])
    return [whole, split] if types else [whole]


def _key(one: Evaluation) -> tuple[Any, ...]:
    """What must be equal where two evaluations are compared."""
    games = _mapping(one.about.get("games"))
    return one.about.get("env"), games.get("split"), games.get("content_hash"), one.step_cap


def pairs(evaluations: Sequence[Evaluation]) -> Table | None:
    """Each evaluation against the first one, where both were made under the same conditions; ``None`` without any."""
    first, *others = evaluations
    table = Table(
        [
            f"against {first.name}",
            "games in common",
            "difference, points [95 %]",
            "it alone won",
            "the first alone won",
            "p",
        ],
        note="Paired difference on the games that both played; p of McNemar's exact test. Evaluations under other conditions "
        "are left out.",
    )
    base = _by_game(first.episodes)
    for other in others:
        played = _by_game(other.episodes)
        both = sorted(base.keys() & played.keys())
        if not both or _key(other) != _key(first):
            continue
        d = paired_difference([base[g] for g in both], [played[g] for g in both])
        spread = f"{100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        table.rows.append([other.name, str(d.n), spread, str(d.only_second), str(d.only_first), f"{d.p_value:.3g}"])
    return table if table.rows else None


def _by_game(episodes: Sequence[Episode]) -> dict[str, Episode]:
    return {episode.game_id or str(episode.seed): episode for episode in episodes}


# ---------------------------------------------------------------------- process reward models
def scores(named: Mapping[str, Sequence[tuple[Episode, Replay | None]]]) -> Table | None:
    """How good the scores in episodes are; ``None`` where no evaluation has scores.

    Args:
        named: for each evaluation its episodes, with their replays.
    """
    table = Table(
        [
            *("evaluation", "scored commands", "calibration error", "states with the planner", "tau", "top-1"),
            *("choice gain", "disagrees with the planner %"),
        ],
        note=f"Calibration: scores of the commands that were executed against {GAMMA:g} to the power of the commands that "
        "followed until the game was won, 0 where it was not. The executed one of several is often the one with the highest "
        "score, so scores above the outcomes are expected. Tau (Kendall), top-1 and choice gain: the scored commands of a "
        "state against the planner's exact Q; 0 is chance in tau and gain.",
    )
    for name, episodes in named.items():
        executed, outcomes, states, n_apart = _scored(episodes)
        if not executed:
            continue
        fair = min(executed) >= 0 and max(executed) <= 1  # logits and sums cannot be calibrated
        ece = calibration(executed, outcomes).ece if fair else math.nan
        ranking, choice = rank_states(states), judge_choices(states)
        numbers = [_number(x) for x in (ranking.kendall_tau, ranking.top1, choice.ratio)]
        share = 100 * n_apart / len(states) if states else math.nan
        table.rows.append(
            [name, str(len(executed)), _number(ece), str(ranking.n_states), *numbers, _number(share, ".1f")]
        )
    return table if table.rows else None


def _scored(
    episodes: Sequence[tuple[Episode, Replay | None]],
) -> tuple[list[float], list[float], list[ScoredState], int]:
    """Scores of executed commands, what they promised, scored states with the planner's Q, and how many of them disagree."""
    executed: list[float] = []
    outcomes: list[float] = []
    states: list[ScoredState] = []
    n_apart = 0
    for episode, found in episodes:
        for t, turn in enumerate(episode.turns):
            scored = scores_of(turn)
            if turn.command in scored:
                executed.append(scored[turn.command])
                outcomes.append(GAMMA ** (len(episode.turns) - 1 - t) if episode.success else 0.0)
            if found is None:
                continue
            q = found.moments[t].q
            known = [c for c in scored if c in q]
            if len(known) > 1:
                states.append(ScoredState(np.array([scored[c] for c in known]), np.array([q[c] for c in known])))
                n_apart += disagrees(scored, q)
    return executed, outcomes, states, n_apart


# ---------------------------------------------------------------------- training
def begun_with(training: Training) -> Table | None:
    """What a run was begun with; ``None`` where it does not say."""
    rows = [[key, value] for key, value in training.settings.items()]
    return Table(["begun with", ""], rows) if rows else None


def last_values(training: Training) -> Table:
    """The last value of each curve, over seeds."""
    table = Table(["curve", "seeds", "last value [95 % over seeds]", "what it says"])
    for curve in training.curves:
        mean, half = mean_interval(curve.last())
        name = curve.tag if curve.label == training.name else f"{curve.tag} ({curve.label})"
        table.rows.append([name, str(len(curve.seeds)), _spread(float(mean), float(half)), CURVES[curve.tag]])
    return table


def measures(training: Training) -> Table | None:
    """How good a run's process reward model was at the end, over seeds; ``None`` where the run has none."""
    table = Table(["process reward model", "last value [95 % over seeds]", "what it says"])
    for tag, mean, half in training.measures:
        table.rows.append([tag, _spread(mean, half), MEASURES[tag.split(" ")[0]]])
    return table if table.rows else None


def _spread(mean: float, half: float) -> str:
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]" if math.isfinite(half) else f"{mean:.3f}"
