"""Players without a language model, as baselines of an evaluation: ``agentprm eval random``, ``expert``, ``planner``.

* :class:`RandomActor` draws among the admissible commands.
* :class:`ExpertActor` is the searching expert (:class:`agentprm_gym.experts.SearchExpert`), who knows what a player may know.
* :class:`PlannerActor` plays a shortest plan of the true game. **Privileged**: a player cannot know it.

Nothing here loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentprm_gym.episodes import Turn
from agentprm_gym.experts import SearchExpert
from algorithms.common.acting.requests import Actor, Answer, Request

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

#: Names that stand where a model is named. A folder of the same name is named ``./random``.
PLAYERS = ("random", "expert", "planner")


class RandomActor:
    """Draws each command with the same probability among the admissible ones."""

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Nothing to remember; see :class:`Actor`."""

    def executed(self, row: int, turn: Turn) -> None:
        """Nothing to remember; see :class:`Actor`."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Draw a command for each request."""
        out = []
        for request in requests:
            n = len(request.admissible_commands)
            out.append(Answer(request.admissible_commands[int(request.rng.integers(n))], -math.log(n)))
        return out


class ExpertActor:
    """The searching expert, one for each running episode."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._experts: dict[int, tuple[str, SearchExpert]] = {}

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode; the expert sees the turns that were played already."""
        expert = SearchExpert()
        for turn in history:
            expert.act(task, turn.feedback, turn.admissible_commands)
            expert.executed(turn.command)
        self._experts[row] = task, expert

    def executed(self, row: int, turn: Turn) -> None:
        """Tell the expert what was executed; see :class:`Actor`."""
        self._experts[row][1].executed(turn.command)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask the expert of each request.

        Raises:
            ValueError: the expert does not understand a task's sentence.
        """
        out = []
        for request in requests:
            task, expert = self._experts[request.row]
            reason, command = expert.act(task, request.feedback, request.admissible_commands)
            out.append(Answer(command, math.nan, reason=reason))
        return out


class PlannerActor:
    """Takes the first of the commands from which the fewest are left. It asks the environment for their exact costs."""

    def __init__(self, venv: VecEnv) -> None:
        """Take the environments.

        Args:
            venv: the environments that are played in; row i of a request is environment i.

        Raises:
            ValueError: the environments do not know the costs of commands, as ALFWorld's do.
        """
        if not venv.has_attr("action_costs"):
            raise ValueError(
                "the player 'planner' needs an environment that knows the exact cost of each command (action_costs), as "
                "ALFWorld's do: choose another player"
            )
        self._venv = venv

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Nothing to remember; see :class:`Actor`."""

    def executed(self, row: int, turn: Turn) -> None:
        """Nothing to remember; see :class:`Actor`."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose a command of the least cost for each request; where nothing wins any more, the first one."""
        out = []
        for request in requests:
            (costs,) = self._venv.env_method("action_costs", indices=[request.row])
            out.append(Answer(min(request.admissible_commands, key=costs.__getitem__), math.nan))
        return out


def is_player(model: str) -> bool:
    """Whether a name is that of a player without a language model."""
    return model in PLAYERS


def make_player(name: str, venv: VecEnv, *, search: str = "none", **options: object) -> Actor:
    """Make a player.

    Args:
        name: one of :data:`PLAYERS`.
        venv: the environments that are played in.
        search: how a turn's command is found; a player knows ``"none"`` alone.
        options: what was asked for beside it, which a player does not take; ``None`` asks for nothing.

    Raises:
        ValueError: the name is unknown, an option is given, or the environments do not know what the planner needs.
    """
    given = [*(["search"] if search != "none" else []), *(key for key, value in options.items() if value is not None)]
    if given:
        raise ValueError(f"the player {name!r} has no language model: leave out {', '.join(given)}")
    if name == "random":
        return RandomActor()
    if name == "expert":
        return ExpertActor()
    if name == "planner":
        return PlannerActor(venv)
    raise ValueError(f"unknown player {name!r}: choose from {', '.join(PLAYERS)}")
