"""Monte-Carlo targets for Q(s, a): what came of a command, averaged over all visits of the same state and command.

The paper's formula (section 3.1, stage 1) is the default: with an outcome reward in [0, 1], turn t of a won episode of T turns
is worth ``gamma ** (T - 1 - t)`` and every turn of a failure 0. The released code discounts from the start and counts failures
as -1, which neither prefers short solutions nor leaves failures at 0; ``discount="from_start", reward_range="signed"`` is that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentprm_gym.episodes import Episode, Turn
from algorithms.common.advantages import Floats, discounted_returns

#: How a turn's target is discounted: by the turns that follow, by those that came before, or not at all.
DISCOUNTS = ("to_go", "from_start", "none")
#: What a failure counts as: 0, or -1 with targets mapped back to [0, 1] by ``(x + 1) / 2``.
REWARD_RANGES = ("unit", "signed")


def state_keys(task: str, turns: Sequence[Turn]) -> list[bytes]:
    """A hash of each turn's state: the task, all feedback and commands so far, and what is possible now.

    That is what the policy sees. Reasons are left out, and so is the game: equal transcripts are one state wherever they come
    from.

    Returns:
        One key per turn; two turns have equal keys if and only if their transcripts up to the command are equal.
    """
    digest = hashlib.sha256(task.encode())
    keys = []
    for turn in turns:
        digest.update(b"\x00" + turn.feedback.encode())
        state = digest.copy()
        state.update(b"\x02" + "\n".join(turn.admissible_commands).encode())
        keys.append(state.digest())
        digest.update(b"\x01" + turn.command.encode())
    return keys


def turn_returns(episode: Episode, gamma: float, discount: str = "to_go", reward_range: str = "unit") -> Floats:
    """What each turn of an episode counts as, before averaging; (T,).

    With ``"to_go"`` and ``"unit"`` the discounted sum of the task's rewards from the turn on; else the outcome, the sum of all
    rewards, which must lie in [0, 1], discounted as asked for.

    Example:
        >>> from agentprm_gym.episodes import Episode, Turn
        >>> turns = [Turn("", [], "", "look", "look", True, r) for r in (0.0, 0.0, 1.0)]
        >>> won = Episode("g", "train", "t", "task", True, False, "p", 0, turns)
        >>> turn_returns(won, 0.5).tolist(), turn_returns(won, 0.5, "from_start", "signed").tolist()
        ([0.25, 0.5, 1.0], [1.0, 0.75, 0.625])

    Raises:
        ValueError: if an outcome lies outside [0, 1].
    """
    rewards = [turn.reward for turn in episode.turns]
    n = len(rewards)
    if (discount, reward_range) == ("to_go", "unit"):
        return discounted_returns(rewards, gamma)
    outcome = float(sum(rewards))
    if not -1e-6 <= outcome <= 1 + 1e-6:
        raise ValueError(
            f"the outcome of {episode.game_id} is {outcome:.3f}; discount={discount!r} with reward_range={reward_range!r} "
            "expects an outcome reward in [0, 1] (rewards in info['reward/env'] where shaped)"
        )
    t = np.arange(n)
    exponents = {"to_go": n - 1 - t, "from_start": t, "none": 0 * t}[discount]  # (T,)
    factors = np.power(gamma, exponents, dtype=np.float64)
    if reward_range == "unit":
        return factors * outcome
    return (factors * (2 * outcome - 1) + 1) / 2


@dataclass(slots=True)
class Visit:
    """What the visits of one (state, command) add up to.

    Attributes:
        total: sum of what they count as.
        n: number of visits.
        squares: sum of squares.
    """

    total: float = 0.0
    n: int = 0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Count one visit."""
        self.total, self.n, self.squares = self.total + value, self.n + 1, self.squares + value * value

    @property
    def mean(self) -> float:
        """The Monte-Carlo estimate of Q(s, a)."""
        return self.total / self.n

    @property
    def stderr(self) -> float:
        """Standard error of the mean; infinite after one visit, which says nothing about spread."""
        if self.n < 2:
            return math.inf
        variance = max(0.0, self.squares - self.total**2 / self.n) / (self.n - 1)
        return math.sqrt(variance / self.n)


class QTable:
    """Pools what turns count as by (state, command), as in the paper; there is no bootstrapping."""

    def __init__(self, gamma: float, discount: str = "to_go", reward_range: str = "unit") -> None:
        """Make an empty table.

        Args:
            gamma: discount in (0, 1].
            discount: one of :data:`DISCOUNTS`.
            reward_range: one of :data:`REWARD_RANGES`.

        Raises:
            ValueError: for a discount outside (0, 1], or a name that is none of these.
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        if discount not in DISCOUNTS:
            raise ValueError(f"discount must be one of {', '.join(map(repr, DISCOUNTS))}, got {discount!r}")
        if reward_range not in REWARD_RANGES:
            raise ValueError(f"reward_range must be one of {', '.join(map(repr, REWARD_RANGES))}, got {reward_range!r}")
        self.gamma, self.discount, self.reward_range = gamma, discount, reward_range
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
            returns = turn_returns(episode, self.gamma, self.discount, self.reward_range)
            for t, key in enumerate(state_keys(episode.task, episode.turns)):
                if t >= start:
                    visit = self.visits.setdefault(key, {}).setdefault(episode.turns[t].command, Visit())
                    visit.add(float(returns[t]))

    def histogram(self) -> dict[int, int]:
        """How many (state, command) pairs were visited how often: ``{visits: pairs}``."""
        counts: dict[int, int] = {}
        for commands in self.visits.values():
            for visit in commands.values():
                counts[visit.n] = counts.get(visit.n, 0) + 1
        return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class Target:
    """One row of :func:`monte_carlo_targets`; ``row["target"]`` is ``row.target``.

    Attributes:
        episode: index of the first episode that passes through the state.
        turn: which turn of it.
        state: hash of what the policy sees there.
        command: the command.
        target: mean over the visits, in [0, 1].
        count: number of visits.
        stderr: standard error of the mean; infinite where there was one visit.
    """

    episode: int
    turn: int
    state: bytes
    command: str
    target: float
    count: int
    stderr: float

    def __getitem__(self, name: str) -> Any:
        """A field by its name."""
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)


def monte_carlo_targets(
    episodes: Sequence[Episode],
    gamma: float = 0.95,
    discount: str = "to_go",
    reward_range: str = "unit",
) -> list[Target]:
    """Targets for Q(s, a), visits of the same state and command pooled (paper section 3.1, stage 1).

    A state is what the policy sees: task, history of feedback and commands, present feedback and admissible commands. Equal
    text pools over episodes and games. To split rows into train and test, split the *episodes* by game and call this on each.

    Args:
        episodes: finished episodes with the task's own reward in their turns.
        gamma: discount a turn, in (0, 1].
        discount: ``"to_go"``: ``gamma ** (T - 1 - t)``, short solutions are worth more; ``"from_start"``: ``gamma ** t``;
            ``"none"``.
        reward_range: ``"unit"``: failures count 0. ``"signed"``: -1, and means are mapped back by ``(x + 1) / 2``.
            ``"from_start"`` with ``"signed"`` gives the released code's targets.

    Returns:
        One row for each (state, command) that was visited, in the order of the first visits.

    Raises:
        ValueError: for arguments out of range, or a target outside [0, 1].
    """
    table = QTable(gamma, discount, reward_range)
    table.add(episodes)
    rows: dict[tuple[bytes, str], Target] = {}
    first: dict[bytes, tuple[int, int]] = {}
    for i, episode in enumerate(episodes):
        for t, key in enumerate(state_keys(episode.task, episode.turns)):
            where = first.setdefault(key, (i, t))
            command = episode.turns[t].command
            if (key, command) not in rows:
                visit = table.visits[key][command]
                mean = _within_unit(visit.mean, episode, t)
                rows[key, command] = Target(*where, key, command, mean, visit.n, visit.stderr)
    return list(rows.values())


def _within_unit(value: float, episode: Episode, t: int) -> float:
    """A target that the soft binary cross-entropy can take.

    Raises:
        ValueError: it lies outside [0, 1].
    """
    if not -1e-6 <= value <= 1 + 1e-6:
        raise ValueError(
            f"Monte-Carlo target {value:.3f} of {episode.game_id} turn {t} is outside [0, 1]; "
            "AgentPRM expects an outcome reward in [0, 1] (rewards in info['reward/env'] where shaped)"
        )
    return min(max(value, 0.0), 1.0)


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
                labels.append(Label(t, command, _within_unit(visit.mean, episode, t), visit.n))
        if labels:
            out.append(LabelledEpisode(episode, labels))
    return out
