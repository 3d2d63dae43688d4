"""What AgentPRM adds to stage 3: measured returns as evidence, imitation of won episodes, and search with the new PRM.

The paper has none of these: ``prior_visits=None, imitation_coef=0`` leaves its stage 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentprm_gym.episodes import Episode
from algorithms.agent_prm.improve_options import AgentImproveOptions
from algorithms.agent_prm.rollout import Experience
from algorithms.agent_prm.targets import QTable
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.prm.evidence import Evidence
from algorithms.common.prm.play import Play, Streams


@dataclass(frozen=True)
class AgentImproveStage(AgentImproveOptions):
    """Stage 3 with its options; ``improve=`` takes one, or a dict of its fields."""

    def states(
        self, experience: Experience, targets: Callable[[], QTable]
    ) -> tuple[list[tuple[Episode, Sequence[int]]], Evidence | None]:
        """Where the policy is improved: all states of the trunks, or with evidence those at which several commands were tried.

        Args:
            experience: what was played.
            targets: gives its targets, where they are needed.

        Returns:
            Episodes, each with the turns that serve as states; and the evidence, if any.
        """
        if self.prior_visits is None:
            return [(e, range(len(e.turns))) for e in experience.episodes], None
        table = targets()
        tried = [(e, [t for t, visits in enumerate(table.tried(e)) if len(visits) > 1]) for e in experience.episodes]
        return [(e, turns) for e, turns in tried if turns], Evidence(table.tried, self.prior_visits)

    def won(self, experience: Experience) -> list[tuple[Episode, int]]:
        """Won episodes with their first own turn: the shortest few of each game, or the easy games would be all."""
        by_game: dict[str, list[tuple[Episode, int]]] = {}
        for r in (rollout for name in Experience.PARTS for rollout in getattr(experience, name)):
            if r.episode.success:
                by_game.setdefault(r.episode.game_id, []).append((r.episode, r.n_history))
        shortest = (sorted(won, key=lambda pair: len(pair[0].turns)) for won in by_game.values())
        return [item for won in shortest for item in won[: self.n_imitated_per_game]]

    def search(self, play: Play, games: Sequence[int], streams: Streams) -> list[Rollout]:
        """Play other games with the new PRM choosing among the policy's draws."""
        chosen = streams.rng("search").choice(games, min(self.n_searched, len(games)), replace=False)
        tasks = streams.tasks("search episodes", chosen)
        return play(tasks, "search", record=False, best_of=self.search_best_of, planner=self.planner())
