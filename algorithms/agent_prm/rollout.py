"""Stage 1 of Algorithm 1: roll out the policy pi_{i-1} on train games, each several times so that states recur.

Branches (section 4.1, resets) are an addition: at some states several commands that the policy weighed are each tried from a
snapshot, and the policy plays on. They tell the commands *of one state* apart; :mod:`algorithms.agent_prm.branching` chooses
the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from agentprm_gym.episodes import Episode
from algorithms.agent_prm.options import RolloutOptions
from algorithms.agent_prm.peeks import play_from_states
from algorithms.agent_prm.targets import QTable
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.prm.play import Play, Streams
from algorithms.common.shell.checkpoints import read_rollouts, write_rollouts

if TYPE_CHECKING:
    from algorithms.agent_prm.labels import Notes


@dataclass(slots=True)
class Experience:
    """What the policy of an iteration played.

    Attributes:
        trunks: whole episodes, with snapshots and the commands that were weighed; the PRM is fitted to these.
        others: more whole episodes of the same games; they count as visits.
        branches: continuations from states of the trunks; they count as visits, their history does not.
        searched: episodes in which the fitted PRM chose among the policy's draws: another policy's, so no visits of this one's.
        peeks: single steps from states of the trunks, for targets that need no more, see :mod:`algorithms.agent_prm.peeks`.
        notes: values of states, where targets need them; written by :class:`algorithms.agent_prm.labels.Labels`.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("trunks", "others", "branches", "searched", "peeks")

    trunks: list[Rollout]
    others: list[Rollout] = field(default_factory=list)
    branches: list[Rollout] = field(default_factory=list)
    searched: list[Rollout] = field(default_factory=list)
    peeks: list[Rollout] = field(default_factory=list)
    notes: Notes | None = field(default=None, init=False)  # not of a copy with other parts

    @property
    def episodes(self) -> list[Episode]:
        """Episodes of the trunks."""
        return [rollout.episode for rollout in self.trunks]

    @classmethod
    def write(cls, folder: Path, experience: Experience) -> None:
        """Write the rollouts for a checkpoint; snapshots are left out, since no later stage needs them."""
        write_rollouts(folder, {name: getattr(experience, name) for name in cls.PARTS})

    @classmethod
    def read(cls, folder: Path) -> Experience:
        """Read what :meth:`write` wrote."""
        return cls(**read_rollouts(folder))

    @property
    def games(self) -> list[str]:
        """Ids of the games of the trunks, sorted."""
        return sorted({episode.game_id for episode in self.episodes})

    @classmethod
    def joined(cls, parts: Sequence[Experience]) -> Experience:
        """The experience of several iterations as one."""
        return cls(*([r for e in parts for r in getattr(e, name)] for name in cls.PARTS))

    def add_visits(self, table: QTable) -> QTable:
        """Count the visits of this policy in a table; returns it."""
        played = [*self.trunks, *self.others, *self.branches]
        table.add([r.episode for r in played], [r.n_history for r in played])
        return table


@dataclass(frozen=True)
class RolloutStage(RolloutOptions):
    """Stage 1 with its options; ``rollout=`` takes one, or a dict of its fields."""

    def __call__(self, play: Play, games: Sequence[int], streams: Streams, max_turns: int | None) -> Experience:
        """Roll out the policy as it is now.

        Args:
            play: plays tasks with it.
            games: indices of the train games.
            streams: random streams of the iteration.
            max_turns: step limit of an episode, which branches keep to; ``None``: there is not any.
        """
        rng = streams.rng("roll out")
        chosen = rng.choice(games, min(self.n_games, len(games)), replace=False)
        tasks = streams.tasks("episodes", np.repeat(chosen, self.n_repeats))
        order = [int(i) for i in rng.permutation(len(tasks))]
        n_trunks = len(order) if self.n_trunks is None else self.n_trunks
        first, rest = [tasks[i] for i in order[:n_trunks]], [tasks[i] for i in order[n_trunks:]]
        trunks = play(first, "roll out", snapshots=True, n_candidates=self.n_branch_candidates)
        others = play(rest, "roll out more") if rest else []
        branches, peeks = play_from_states(self, play, trunks, streams, max_turns)
        return Experience(trunks, others, branches, peeks=peeks)
