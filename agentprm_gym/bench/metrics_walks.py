"""The first bad step of an episode (ProcessBench, Zheng et al., arXiv 2412.06559).

It needs labels of consecutive turns of one episode. A state of a panel does not say what was done in it, but the next state of
the same game and player does: its history is longer by the command. So walks are found in the panel (:func:`find_walks`); a
panel that is to have this metric must hold states of consecutive turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentprm_gym.bench.metrics_bootstrap import Sums, per_game
from agentprm_gym.bench.metrics_table import Floats, Ints, Table
from agentprm_gym.bench.states import BenchState

#: Steps that a walk must have.
MIN_STEPS = 2


@dataclass(frozen=True, slots=True)
class Walk:
    """Consecutive turns of one episode.

    Attributes:
        states: index of the state of each step among the panel's states.
        commands: index of the command that was executed there, among the state's commands.
    """

    states: tuple[int, ...]
    commands: tuple[int, ...]


def find_walks(states: Sequence[BenchState], min_steps: int = MIN_STEPS) -> list[Walk]:
    """Find consecutive turns: states of one game and player where the history of one is that of the other and one command.

    Args:
        states: a panel's states, in any order.
        min_steps: walks of fewer steps are left out; 1 or more. The last state of a chain has no step, since nothing says what
            was done in it.

    Returns:
        The longest chains, each as the states and commands of its steps. A chain may begin after the first turn: "first" means
        the first in the chain.
    """
    index: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for i, state in enumerate(states):
        index.setdefault((state.game_id, state.player, tuple(state.played())), i)
    parents = {
        i: index[(game, player, played[:-1])]
        for (game, player, played), i in index.items()
        if played and (game, player, played[:-1]) in index
    }
    ends = [i for i in parents if i not in set(parents.values())]
    walks = []
    for end in ends:
        chain = [end]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
        chain.reverse()
        commands = [states[b].history[-2].command for b in chain[1:]]
        steps = chain[:-1]
        known = all(command in states[i].commands for i, command in zip(steps, commands, strict=True))
        if known and len(steps) >= min_steps:
            places = [states[i].commands.index(command) for i, command in zip(steps, commands, strict=True)]
            walks.append(Walk(tuple(steps), tuple(places)))
    return walks


def first_bad_step(table: Table, scores: Floats, walks: Sequence[Walk]) -> Sums | None:
    """The F1 of finding the first bad step of a walk.

    A step is bad where another command is better by enough to count. A ranker calls a step bad where the state's highest score
    is above the executed command's by more than a threshold. Of walks with a bad step, the share where the first step that is
    called bad is the first bad one; of walks without one, the share where no step is called bad; F1 is the harmonic mean of
    the two shares.

    A threshold is needed since scores have no scale of their own. It is not fitted to what it is measured on: the games are
    parted into two halves, and each half takes the threshold that has the highest F1 on the other one.

    Args:
        table: the labels.
        scores: (S, A).
        walks: from :func:`find_walks`, of the same states.

    Returns:
        The statistic; ``None`` without walks.
    """
    if not walks:
        return None
    best = table.best
    top = np.where(table.mask, scores, -np.inf).max(axis=1)
    width = max(len(walk.states) for walk in walks)
    margins = np.full((len(walks), width), -np.inf)
    bad = np.zeros((len(walks), width), dtype=np.bool_)
    for row, walk in enumerate(walks):
        at, done = np.array(walk.states), np.array(walk.commands)
        margins[row, : len(at)] = top[at] - scores[at, done]
        bad[row, : len(at)] = ~best[at, done]
    truth = _first(bad)
    games: Ints = table.games[[walk.states[0] for walk in walks]]
    half = games % 2
    predicted = np.zeros(len(walks), dtype=np.int64)
    for own in (0, 1):
        other = half != own
        if not other.any():  # one game alone: there is nothing else to take a threshold from
            other = ~other
        threshold = _threshold(margins[other], truth[other])
        predicted[half == own] = _first(margins[half == own] > threshold)
    hit, erroneous = predicted == truth, truth >= 0
    columns = np.stack([hit & erroneous, erroneous, hit & ~erroneous, ~erroneous], axis=1).astype(np.float64)
    return Sums(per_game(columns, games, len(table.game_ids)), _f1)


def _first(flags: np.ndarray) -> Ints:
    """(W,) index of the first True of each row, -1 where there is none."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1), -1)


def _threshold(margins: Floats, truth: Ints) -> float:
    """The threshold with the highest F1; of several the least."""
    found = np.unique(margins[np.isfinite(margins)])
    # Every margin that occurs would be too many to try where there are thousands.
    tried = np.unique(np.concatenate([[0.0], np.quantile(found, np.linspace(0, 1, 201), method="lower")]))
    best, at = -1.0, 0.0
    erroneous = truth >= 0
    for threshold in tried.tolist():
        hit = _first(margins > threshold) == truth
        sums = np.array([hit[erroneous].sum(), erroneous.sum(), hit[~erroneous].sum(), (~erroneous).sum()], dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            f1 = float(np.nan_to_num(_f1(sums)))
        if f1 > best:
            best, at = f1, threshold
    return at


def _f1(sums: Floats) -> Floats:
    """(..., 4) hits and number of walks with a bad step and of those without, to F1; NaN where one kind is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        total = a + b
        out: Floats = np.where(total == 0, 0.0, 2 * a * b / np.where(total == 0, 1.0, total))
    return out
