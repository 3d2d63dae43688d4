"""The planner: shortest plans, and the exact cost of each state and command. It has privileged knowledge of the whole game.

:mod:`agentprm_gym.experts.costs` says why the costs are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.experts.costs import Costs, State
from agentprm_gym.games.game import Game

# Commands with these verbs change nothing that a goal depends on.
_IDLE = frozenset({"examine", "help", "inventory", "look", "slice"})
# Closing a door never helps either: a shortest plan does without it.
_POINTLESS = _IDLE | {"close"}
# A process may stay in one game for long: when this many plans are kept, they are dropped.
_MAX_KEPT = 20_000
# A reason names at most this many commands of the plan.
_N_NAMED = 3


def discounted(cost: float, gamma: float) -> float:
    """Return what a win after ``cost`` more commands is worth: ``gamma ** cost``, and 0 where no win is left.

    Args:
        cost: How many commands; infinite where the game cannot be won.
        gamma: The discount factor, from 0 to 1.
    """
    # A case of its own, since 1.0 ** inf is 1.0.
    return 0.0 if cost == inf else float(gamma**cost)


class Planner:
    """Knows the cost of every state of a game, the best commands, and a shortest plan.

    It knows what players do not see. A state is a snapshot of a native engine (``NativeEngine.snapshot()``). An answer takes
    between some microseconds and some hundred. Games in both wordings are understood.

    Example:
        >>> from agentprm_gym.experts import Planner
        >>> from agentprm_gym.games import find_games
        >>> planner = Planner(find_games("train", "generated")[0])
        >>> plan = planner.plan()
        >>> planner.cost_to_go(planner.start) == len(plan)
        True
        >>> planner.action_costs(planner.start)[plan[0]] == len(plan)
        True
    """

    def __init__(self, game: Game) -> None:
        """Prepare a game.

        Args:
            game: The game.

        Raises:
            UnsupportedGameError: Only the stock engine plays it.
        """
        self.game = game
        self._engine = NativeEngine()
        self._engine.reset(game)
        self.start: Snapshot = self._engine.snapshot()
        self._costs = Costs(game)
        self._destinations = {f"go to {r}": location for r, location in game.receptacles.items()}
        self._plans: dict[tuple[State, str], tuple[str, ...]] = {}

    def cost_to_go(self, state: Snapshot) -> float:
        """Return the least number of commands until the game is won.

        Args:
            state: The state.

        Returns:
            0.0 where it is won, ``math.inf`` where it can no longer be won.

        Raises:
            ValueError: It is a state of another game.
        """
        return float(self._costs.cost(self._costs.read(state), state.location))

    def action_costs(self, state: Snapshot, commands: Iterable[str] | None = None) -> dict[str, float]:
        """Return the cost of each command: 1 for the command itself, and the cost to go after it.

        Args:
            state: The state in which the command is given.
            commands: Any strings; a string that is not admissible costs 1 and changes nothing. By default all admissible
                commands.

        Raises:
            ValueError: It is a state of another game.
        """
        here = self._costs.read(state)
        if commands is None:
            commands = self._engine.restore(state).admissible_commands
        return {command: 1.0 + self._cost_after(state, here, command) for command in commands}

    def optimal_q(self, state: Snapshot, gamma: float = 0.95, steps_left: int | None = None) -> dict[str, float]:
        """Return Q*(s, a) of each admissible command, for a reward of 1 for winning that is discounted by ``gamma`` a step.

        A command that wins at once is worth 1.0, as in AgentPRM's Monte-Carlo targets (section 2 of the paper).

        Args:
            state: The state.
            gamma: The discount factor, from 0 to 1.
            steps_left: How many commands may still be given; a command that cannot win in time is worth 0. ``None`` for
                any number.

        Raises:
            ValueError: It is a state of another game.
        """
        limit = inf if steps_left is None else steps_left
        costs = self.action_costs(state)
        return {c: discounted(cost - 1, gamma) if cost <= limit else 0.0 for c, cost in costs.items()}

    def plan(self, state: Snapshot | None = None) -> tuple[str, ...]:
        """Return a shortest plan. Of several best commands it takes the first one in the order of the admissible commands.

        Args:
            state: Where the plan begins; ``None`` for the start of the game.

        Returns:
            The commands; an empty tuple where the game is won.

        Raises:
            ValueError: The game cannot be won from there, or it is a state of another game.
        """
        now = self.start if state is None else state
        here = self._costs.read(now)
        if self._costs.cost(here, now.location) == inf:
            raise ValueError(f"game {self.game.game_id!r} cannot be won from this state")
        states: list[tuple[State, str]] = []
        commands: list[str] = []
        rest = self._plans.get((here, now.location))
        while rest is None:
            cost = self._costs.cost(here, now.location)
            if not cost:
                rest = ()
                break
            states.append((here, now.location))
            for command in self._engine.restore(now).admissible_commands:
                if command.split(" ", 1)[0] not in _POINTLESS and self._cost_after(now, here, command) == cost - 1:
                    break
            else:
                raise AssertionError(f"no command of {self.game.game_id!r} is as good as its state")
            commands.append(command)
            self._engine.restore(now)
            self._engine.step(command)
            now = self._engine.snapshot()
            here = self._costs.read(now)
            rest = self._plans.get((here, now.location))
        whole = (*commands, *rest)
        if len(self._plans) + len(states) > _MAX_KEPT:
            self._plans.clear()
        self._plans.update((key, whole[i:]) for i, key in enumerate(states))
        return whole

    def _cost_after(self, state: Snapshot, here: State, command: str) -> float:
        words = command.strip()
        # To go where the agent is changes nothing, so this case needs no special care.
        destination = self._destinations.get(words)
        if destination is not None:
            return self._costs.cost(here, destination)
        if words.split(" ", 1)[0] in _IDLE:
            return self._costs.cost(here, state.location)
        self._engine.restore(state)
        self._engine.step(words)
        after = self._engine.snapshot()
        return self._costs.cost(self._costs.read(after), after.location)


class PlannerExpert:
    """Plays the shortest plan, and its reasons say so. It is privileged: a player cannot know this plan."""

    def __init__(self, game: Game) -> None:
        """Prepare a game.

        Args:
            game: The game that it plays.

        Raises:
            UnsupportedGameError: Only the stock engine plays it.
        """
        self.planner = Planner(game)

    def act(self, state: Snapshot) -> tuple[str, str]:
        """Say what to do in a state; any player's commands may have led there.

        Args:
            state: The state.

        Returns:
            ``(reason, command)``: one sentence, and the first command of :meth:`Planner.plan`; ``"look"`` where the game
            can no longer be won.

        Raises:
            ValueError: The game is won, or it is a state of another game.
        """
        cost = self.planner.cost_to_go(state)
        if cost == inf:
            return "Nothing wins the game any more, so I look around.", "look"
        if not cost:
            raise ValueError(f"game {self.planner.game.game_id!r} is won: there is nothing to do")
        plan = self.planner.plan(state)
        named = ", ".join(plan[:_N_NAMED]) + (", ..." if len(plan) > _N_NAMED else ".")
        return f"The shortest way is {len(plan)} more command{'s'[: len(plan) > 1]}: {named}", plan[0]
