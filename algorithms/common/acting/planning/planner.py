"""What the actors that plan ahead share: they follow the episodes, and turn requests into situations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from agentprm_gym.episodes import Turn
from algorithms.common.acting.planning.side_by_side import side_by_side
from algorithms.common.acting.planning.situations import PolicyPrior, PRMScorer, Situation, World, add_up
from algorithms.common.acting.planning.world_model import WorldModel
from algorithms.common.acting.requests import Answer, Request


class PlanningActor(ABC):
    """An actor that looks at situations behind the present one, or at several commands of it, before it chooses.

    Its models keep what they read of a transcript from call to call, see :class:`~agentprm_gym.llm.prefixes.PrefixCache`, and
    forget it where an episode begins.

    Attributes:
        needs_look_ahead: whether collectors have to give requests the true game, which is privileged.
    """

    def __init__(self, world: World | None, *models: Any) -> None:
        """Make an actor.

        Args:
            world: where commands are tried; ``None``: nowhere.
            *models: what else is asked, each with a counter ``calls``.
        """
        self.world = world
        self._models = models
        self.needs_look_ahead = world is not None and world.privileged
        self._played: dict[int, tuple[str, list[Turn]]] = {}

    @property
    def calls(self) -> Counter[str]:
        """How often each kind of model was asked, see :mod:`algorithms.common.acting.planning.situations`."""
        return add_up(self.world, *self._models)

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self._played[row] = task, [turn.bare() for turn in history]
        for model in self._models:
            if isinstance(model, PolicyPrior | PRMScorer):
                model.forget()

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self._played[row][1].append(turn.bare())

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`."""
        searches = [partial(self.choose, request, self._situation(request)) for request in requests]
        # A model of the world writes a token at a time: for several episodes at once that takes hardly longer than for one.
        if isinstance(self.world, WorldModel) and len(searches) > 1:
            return side_by_side(searches)
        return [search() for search in searches]

    def _situation(self, request: Request) -> Situation:
        task, turns = self._played[request.row]
        return Situation(task, tuple(turns), request.feedback, tuple(request.admissible_commands))

    @abstractmethod
    def choose(self, request: Request, situation: Situation) -> Answer:
        """Choose a command for one request."""
