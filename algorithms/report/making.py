"""A report from folders: reads them, plays episodes again, and puts tables, pictures and episodes into one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentprm_gym.checks import check_int
from agentprm_gym.episodes import Episode
from algorithms.common.measure.evaluation import draw_games
from algorithms.report import charts, tables
from algorithms.report.page import render
from algorithms.report.replay import GAMMA, Replay, games_of, replay
from algorithms.report.scoring import Scorer
from algorithms.report.sources import Evaluation, Training, read_sources
from algorithms.report.viewing import Texts, embedded, episode_data

Replays = Mapping[str, Sequence[tuple[Episode, Replay | None]]]


def make_report(
    named: Mapping[str, str | Path],
    *,
    title: str = "Report",
    max_episodes: int = 150,
    scorer: Scorer | None = None,
    on_replay: Callable[[int, int], None] | None = None,
) -> str:
    """Make the page of a report.

    Args:
        named: names and folders, see :func:`read_sources`.
        title: of the page.
        max_episodes: how many episodes of each evaluation the viewer has, 1 or more, spread over the task types; tables are
            always about all of them, but for those about the planner.
        scorer: scores all commands of the episodes in the viewer that were played without a search; ``None``: nothing does.
        on_replay: called with the number of episodes that were played again and of all.

    Returns:
        HTML.

    Raises:
        FileNotFoundError: a folder is missing, or holds nothing to report on.
        ValueError: a file in it cannot be read.
    """
    check_int("max_episodes", max_episodes, 1)
    evaluations, trainings = read_sources(named)
    chosen = {one.name: _choose(one.episodes, max_episodes) for one in evaluations}
    total, n_done, notes = sum(map(len, chosen.values())), 0, []
    replays: dict[str, list[tuple[Episode, Replay | None]]] = {}
    for one in evaluations:
        games = games_of(one.about)
        pairs: list[tuple[Episode, Replay | None]] = []
        policy = None if scorer is None else scorer.policy_of(one.about)
        for episode in chosen[one.name]:
            if scorer is not None:
                episode = scorer.scored(episode, policy)
            pairs.append((episode, replay(episode, games, one.step_cap)))
            n_done += 1
            if on_replay is not None:
                on_replay(n_done, total)
        replays[one.name] = pairs
        notes += _notes(one, pairs, games.why_not)
    texts = Texts()
    runs = [
        {"name": texts.number(name), "episodes": [episode_data(episode, found, texts) for episode, found in pairs]}
        for name, pairs in replays.items()
    ]
    return render(
        title=title,
        sections=_sections(evaluations, trainings, replays),
        notes=notes,
        has_episodes=bool(runs),
        gamma=GAMMA,
        data=embedded({"texts": texts.all, "runs": runs}),
    )


def _choose(episodes: Sequence[Episode], n: int) -> list[Episode]:
    """At most ``n`` episodes, spread over the task types; of the same games in every evaluation."""
    if len(episodes) <= n:
        return list(episodes)
    return [episodes[i] for i in draw_games([episode.task_type for episode in episodes], n, seed=0)]


def _notes(one: Evaluation, pairs: Sequence[tuple[Episode, Replay | None]], why_not: str) -> list[str]:
    """What the reader of the viewer has to know about an evaluation."""
    notes = []
    if len(pairs) < len(one.episodes):
        notes.append(f"{one.name}: {len(pairs)} of {len(one.episodes)} episodes, spread over the task types.")
    without = sum(found is None for _, found in pairs)
    if without:
        why = why_not or "their games were not found, or play otherwise here"
        notes.append(f"{one.name}: {without} episodes are shown without a room and exact values: {why}.")
    return notes


def _sections(
    evaluations: Sequence[Evaluation], trainings: Sequence[Training], replays: Replays
) -> list[dict[str, Any]]:
    """The parts of the page above the viewer: a title, tables and pictures each."""
    sections: list[dict[str, Any]] = []
    if evaluations:
        compared = tables.pairs(evaluations)
        found = [*tables.success(evaluations), *([compared] if compared else []), tables.conditions(evaluations)]
        sections.append({"title": "Success", "tables": found, "pictures": [charts.success_picture(evaluations)]})
    scored = tables.scores(replays)
    if scored:
        sections.append({"title": "Scores of process reward models", "tables": [scored], "pictures": []})
    if trainings:
        pictures = charts.curve_pictures(trainings)
        sections.append({"title": "Training", "tables": [], "pictures": pictures})
    for training in trainings:
        made = (tables.begun_with(training), tables.last_values(training), tables.measures(training))
        shown = [table for table in made if table is not None]
        sections.append({"title": training.name, "tables": shown, "pictures": charts.run_pictures(training)})
    return sections
