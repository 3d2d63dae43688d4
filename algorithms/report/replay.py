"""An episode played again in the native engine: where everything was at each turn, and what each command was worth.

Files of episodes hold texts alone. The game has the rest, as long as it is found on this machine and gives the same admissible
commands at each turn; else an episode is shown without a room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.episodes import Episode
from agentprm_gym.experts.planner import Planner, discounted
from agentprm_gym.games import DataNotFoundError, Game, GameList, find_games

#: Discount a turn of the planner's Q, as in AgentPRM's targets.
GAMMA = 0.95


@dataclass(slots=True)
class Moment:
    """The game before a turn.

    Attributes:
        state: where everything is.
        q: the exact Q of each admissible command for a player that knows the whole game; 0 where it cannot win any more.
        cost: least number of commands until the game is won; infinite where it cannot be won.
        cost_after: the same after the command that was given.
    """

    state: Snapshot
    q: Mapping[str, float]
    cost: float
    cost_after: float

    @property
    def loss(self) -> float:
        """How many commands the one that was given cost more than the best one; infinite where it ended all hope."""
        return 0.0 if self.cost == inf else self.cost_after + 1 - self.cost


@dataclass(slots=True)
class Replay:
    """An episode played again.

    Attributes:
        game: the game.
        moments: one for each turn.
        step_cap: the step limit of the episode; ``None`` where it is not known.
    """

    game: Game
    moments: list[Moment]
    step_cap: int | None = None

    @property
    def lost_at(self) -> int | None:
        """The first turn whose command made it impossible to win within the step limit; ``None`` where there is none.

        A player that knows the whole game could have won before that turn, and could no longer after it.
        """
        for t, moment in enumerate(self.moments):
            left = inf if self.step_cap is None else self.step_cap - t
            if moment.cost <= left and moment.cost < inf and (moment.cost_after == inf or moment.cost_after > left - 1):
                return t
        return None


@dataclass(slots=True)
class Games:
    """The games of an evaluation, as far as they are found on this machine.

    Attributes:
        listed: the list; ``None`` without games.
        why_not: why there are none, in words.
    """

    listed: GameList | None = None
    why_not: str = ""
    _planners: dict[str, Planner] = field(default_factory=dict)

    def planner(self, game_id: str) -> Planner | None:
        """The planner of a game; ``None`` where the game is not found, or only the stock engine plays it."""
        if self.listed is None:
            return None
        if game_id not in self._planners:
            try:
                self._planners[game_id] = Planner(self.listed[self.listed.index(game_id)])
            except (ValueError, OSError):
                return None
        return self._planners[game_id]


def games_of(about: Mapping[str, Any]) -> Games:
    """Find the games that a result is about.

    Args:
        about: a result file of ``agentprm eval`` or ``agentprm demo``.
    """
    note = about.get("games")
    if not isinstance(note, Mapping) or not isinstance(note.get("split"), str):
        return Games(why_not="the result does not name its games")
    protocol = about.get("protocol")
    kwargs = protocol.get("env_kwargs") if isinstance(protocol, Mapping) else None
    wanted = {key: kwargs[key] for key in ("grammar", "generator_kwargs") if key in kwargs} if kwargs else {}
    try:
        listed = find_games(note["split"], str(note.get("source")), **wanted)
        # Not compared with the content hash: an evaluation of some task types has another one. Each episode is checked.
        return Games(listed) if len(listed) else Games(why_not="no games were found")
    except (DataNotFoundError, ValueError, TypeError, OSError) as error:
        return Games(why_not=f"the games are not on this machine ({error})")


def replay(episode: Episode, games: Games, step_cap: int | None = None) -> Replay | None:
    """Play an episode again.

    Args:
        episode: the episode.
        games: where its game is looked for.
        step_cap: the step limit; ``None``: not known.

    Returns:
        The replay; ``None`` where the game is not found, or an episode with these commands would have had other admissible
        commands than it had.
    """
    planner = games.planner(episode.game_id)
    if planner is None:
        return None
    engine = NativeEngine()
    frame = engine.reset(planner.game)
    moments: list[Moment] = []
    for turn in episode.turns:
        if tuple(frame.admissible_commands) != tuple(turn.admissible_commands):
            return None
        state = engine.snapshot()
        costs = planner.action_costs(state, dict.fromkeys([*turn.admissible_commands, turn.command]))
        # A command that is not admissible changes nothing: its Q is shown nowhere.
        q = {c: discounted(costs[c] - 1, GAMMA) for c in turn.admissible_commands}
        moments.append(Moment(state, q, planner.cost_to_go(state), costs[turn.command] - 1))
        frame = engine.step(turn.command)
    return Replay(planner.game, moments, step_cap)


def disagrees(scores: Mapping[str, float], q: Mapping[str, float]) -> bool:
    """Whether a process reward model and the planner disagree about a turn.

    They do where the command that the model scores highest is not the best one, by the planner's Q, of those that it scored.

    Args:
        scores: of the commands that were scored.
        q: the exact Q of each admissible command.

    Example:
        >>> disagrees({"look": 0.9, "open fridge 1": 0.2}, {"look": 0.5, "open fridge 1": 0.6, "go to desk 1": 0.7})
        True
    """
    known = [c for c in scores if c in q]
    if len(known) < 2:
        return False
    favourite = max(known, key=lambda c: scores[c])
    return q[favourite] < max(q[c] for c in known)


def targets(game: Game) -> tuple[Sequence[str], Sequence[str]]:
    """The objects and the receptacles, or lamps, that a game's goal is about."""
    goal = game.goal
    objects = [
        o for o, kind in game.object_types.items() if kind in (goal.object_type, goal.lamp_type or goal.object_type)
    ]
    return objects, [r for r, kind in game.receptacle_types.items() if kind == goal.receptacle_type]
