"""Monte-Carlo targets for Q(s, a): discounted return-to-go, averaged over all visits of the same state and command.

The paper's formula (section 3.1, stage 1): with an outcome reward in [0, 1], a turn t of a successful episode of T turns is
worth ``gamma ** (T - 1 - t)`` and every turn of a failure 0. (The released code uses ``gamma ** t`` and returns in {-1, +1},
which neither prefers short solutions nor leaves failures at 0.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentprm_gym.episodes import Episode, Turn
from algorithms.common.advantages import discounted_returns


def state_keys(task: str, turns: Sequence[Turn]) -> list[bytes]:
    """A hash of each turn's state: the task and everything seen and done before, reasons left out.

    Returns:
        One key per turn; two turns have equal keys if and only if their transcripts up to the command are equal.
    """
    digest = hashlib.sha256(task.encode())
    keys = []
    for turn in turns:
        digest.update(b"\x00" + turn.feedback.encode())
        keys.append(digest.digest())
        digest.update(b"\x01" + turn.command.encode())
    return keys


@dataclass(slots=True)
class Visit:
    """What the visits of one (state, command) add up to.

    Attributes:
        total: sum of the returns-to-go.
        n: number of visits.
    """

    total: float = 0.0
    n: int = 0

    @property
    def mean(self) -> float:
        """The Monte-Carlo estimate of Q(s, a)."""
        return self.total / self.n


class QTable:
    """Pools returns-to-go by (state, command), as in the paper; there is no bootstrapping."""

    def __init__(self, gamma: float) -> None:
        """Make an empty table.

        Args:
            gamma: discount in (0, 1].

        Raises:
            ValueError: for a discount outside (0, 1].
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        self.gamma = gamma
        self.visits: dict[bytes, dict[str, Visit]] = {}

    def add(self, episodes: Iterable[Episode], first_turn: Iterable[int] | None = None) -> None:
        """Add episodes.

        Args:
            episodes: finished episodes.
            first_turn: for each episode the first turn that counts. An episode that was continued from the middle of
                another counts from there only: its history's returns belong to a different behaviour (the command that
                was forced there), not to the policy.
        """
        starts = first_turn if first_turn is not None else (0 for _ in iter(int, 1))
        for episode, start in zip(episodes, starts, strict=False):
            returns = discounted_returns([turn.reward for turn in episode.turns], self.gamma)
            for t, key in enumerate(state_keys(episode.task, episode.turns)):
                if t >= start:
                    visit = self.visits.setdefault(key, {}).setdefault(episode.turns[t].command, Visit())
                    visit.total += float(returns[t])
                    visit.n += 1

    def histogram(self) -> dict[int, int]:
        """How many (state, command) pairs were visited how often: ``{visits: pairs}``."""
        counts: dict[int, int] = {}
        for commands in self.visits.values():
            for visit in commands.values():
                counts[visit.n] = counts.get(visit.n, 0) + 1
        return dict(sorted(counts.items()))


@dataclass(slots=True)
class Label:
    """One target for the process reward model.

    Attributes:
        turn: which turn of the episode; the state is the transcript up to its prompt.
        command: the command judged.
        q: Monte-Carlo mean in [0, 1].
        n: visits behind it.
    """

    turn: int
    command: str
    q: float
    n: int


@dataclass(slots=True)
class LabelledEpisode:
    """An episode as the trunk that carries labels of several commands at several turns."""

    episode: Episode
    labels: list[Label]


def label_episodes(episodes: Sequence[Episode], table: QTable) -> list[LabelledEpisode]:
    """Attach every (state, command) of a table once to an episode that passes through the state.

    Raises:
        ValueError: if a target lies outside [0, 1], which the soft binary cross-entropy cannot take.
    """
    seen: set[bytes] = set()
    out = []
    for episode in episodes:
        labels = []
        for t, key in enumerate(state_keys(episode.task, episode.turns)):
            if key in seen or key not in table.visits:
                continue
            seen.add(key)
            for command, visit in table.visits[key].items():
                if not -1e-6 <= visit.mean <= 1 + 1e-6:
                    raise ValueError(
                        f"Monte-Carlo target {visit.mean:.3f} of {episode.game_id} turn {t} is outside [0, 1]; "
                        "AgentPRM expects an outcome reward in [0, 1] (rewards in info['reward/env'] where shaped)"
                    )
                labels.append(Label(t, command, min(max(visit.mean, 0.0), 1.0), visit.n))
        if labels:
            out.append(LabelledEpisode(episode, labels))
    return out
