"""Options of stage 3 that only AgentPRM has, beside :class:`~algorithms.common.prm.improve.ImproveStage`'s.

The paper has none of these: ``prior_visits=None, imitation_coef=0`` leaves its objective alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentprm_gym.checks import check_fields
from algorithms.common.acting.planning.options import PLANNERS, WITH_DEPTH, SearchOptions
from algorithms.common.prm.improve import ImproveStage
from algorithms.common.prm.play import Planner


@dataclass(frozen=True)
class AgentImproveOptions(ImproveStage):
    """Options of stage 3 that only AgentPRM has, beside :class:`~algorithms.common.prm.improve.ImproveStage`'s.

    Attributes:
        n_updates: optimizer updates an iteration; fewer than InversePRM's, whose iterations are larger.
        prior_visits: how many Monte-Carlo visits the PRM's score counts for where both exist; pairs are then drawn among
            commands that were tried. ``None`` leaves the ranking to the PRM, as in the paper.
        n_imitated_per_game: won episodes of each game that are imitated, the shortest.
        n_searched: games that are played once more by best-of-N with the new PRM; those won are imitated, too (expert
            iteration, Anthony et al., arXiv 1705.08439).
        search_best_of: draws a turn of that search, 2 or more.
        searched_by: ``"best-of-n"``, or a search that plans, one of
            :data:`~algorithms.common.acting.planning.options.PLANNERS`: what it won is distilled into the policy (section 4.3).
        search_depth: with a search that plans: how many steps ahead, 1 or more.
        search_options: with a search that plans: see
            :class:`~algorithms.common.acting.planning.options.SearchOptions`.
    """

    n_updates: int = 50
    prior_visits: float | None = 1.0
    n_imitated_per_game: int = 2
    n_searched: int = 0
    search_best_of: int = 4
    searched_by: str = "best-of-n"
    search_depth: int = 2
    search_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that have no effect with the others."""
        super().__post_init__()
        least = {"n_imitated_per_game": 1, "n_searched": 0, "search_best_of": 2}
        check_fields(
            "improve",
            self,
            ints={**least, "search_depth": 1},
            floats={"prior_visits": 0.0},
            choices={"searched_by": ("best-of-n", *PLANNERS)},
        )
        SearchOptions.of(self.searched_by, self.search_options)

    def without_effect(self) -> set[str]:
        """Options that the others make meaningless."""
        idle = super().without_effect()
        idle |= {"prior_visits"} if self.objective == "imitation" else set()
        idle |= set() if self.n_searched else {"search_best_of", "searched_by", "search_depth", "search_options"}
        idle |= set() if self.searched_by in WITH_DEPTH else {"search_depth"}
        idle |= set() if self.searched_by in PLANNERS else {"search_options"}
        imitates = self.objective == "imitation" or self.imitation_coef > 0
        return idle if imitates else idle | {"n_imitated_per_game", "n_searched"}

    def planner(self) -> Planner | None:
        """Return the search that plans; ``None`` for best-of-N."""
        if self.searched_by not in PLANNERS:
            return None
        return Planner(self.searched_by, self.search_depth, SearchOptions.of(self.searched_by, self.search_options))
