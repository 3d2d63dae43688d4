"""The ``fair`` value of a command: for a player who knows only what the transcript showed.

The label is the mean of a return over the worlds that such a player may believe to be in (:mod:`agentprm_gym.bench.belief`):

    fair(s, a) = E[R(w, a)],    R(w, a) = GAMMA ** n(w, a),  or 0 where n(w, a) > LIMIT,

where n(w, a) is the number of commands that the searching expert needs to win behind ``a`` in the world w; 0 where ``a``
itself wins. The expert (:class:`agentprm_gym.experts.SearchExpert`, without noise) has read the whole transcript. So R is
counted as the ``oracle`` label counts: it is GAMMA ** (cost to go) with the expert's commands in place of the shortest
plan's.

Worlds count as different where an object that the goal names lies elsewhere; others make no difference to R. The mean is taken
over K worlds, the same for all commands of a state. Where there are at most K, these are all that there are, and the value is
exact. Else the K / 2 likeliest worlds l_1, l_2, ... have their exact probabilities P, which add up to p, and from the others
d_1, d_2, ... are drawn in proportion to theirs:

    fair(s, a) = sum over i of P(l_i) R(l_i, a) + (1 - p) * mean over j of R(d_j, a)
    standard error = (1 - p) * std(R(d_j, a), ddof=1) / sqrt(K / 2)

Since all commands share the worlds, a difference of two commands has a smaller error; :func:`fair_returns` gives the single
returns for it. Where the goal's objects can lie in more than 200,000 ways, all K worlds are drawn, and p is 0.
"""

from __future__ import annotations

import hashlib
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agentprm_gym.bench.belief import Belief, World
from agentprm_gym.bench.states import BenchState, Labels
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.experts.costs import Costs
from agentprm_gym.experts.search import SearchExpert
from agentprm_gym.games.game import Game

#: The discount of all labels, per command.
GAMMA = 0.95
#: The searching expert has this many commands to win behind the command that is valued.
LIMIT = 50
#: The number of worlds behind a value.
N_WORLDS = 32


class FairReturns(NamedTuple):
    """The returns behind the values of a state's A commands.

    Attributes:
        returns: (W, A), in [0, 1]: of each command in each of W different worlds.
        weights: (W,), they add up to 1: the weight of each world.
        n_listed: the first so many worlds are the likeliest ones, and their weights are exact probabilities.
        n_drawn: so many draws are behind the other worlds; 0 where all possible worlds are listed.
        choice: the command that the searching expert gives in this state.
    """

    returns: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    n_listed: int
    n_drawn: int
    choice: str

    def labels(self) -> Labels:
        """Return the weighted means and their standard errors."""
        values = tuple(float(v) for v in np.clip(self.weights @ self.returns, 0.0, 1.0))
        if not self.n_drawn:
            return Labels(values=values)
        returns, weights = self.returns[self.n_listed :], self.weights[self.n_listed :]
        left = float(weights.sum())
        shares = weights / left
        variance = shares @ (returns - shares @ returns) ** 2 / (self.n_drawn - 1)
        errors = tuple(float(left * sqrt(v)) for v in variance)
        return Labels(values=values, stderr=errors, n=self.n_listed + self.n_drawn)


def state_entropy(state: BenchState) -> int:
    """Return 64 bits of a state's id, so that its random streams do not depend on other states."""
    return int.from_bytes(hashlib.sha256(state.state_id.encode()).digest()[:8], "big")


def fair_labels(
    game: Game,
    state: BenchState,
    n_worlds: int = N_WORLDS,
    seed: int = 0,
    *,
    gamma: float = GAMMA,
    limit: int = LIMIT,
    listing: bool = True,
) -> Labels:
    """Return the ``fair`` values of a state's commands; see the head of this file for the formula.

    Args:
        game: the game of the state, in the wording of its history.
        state: the state; its task has to be one of ALFWorld's own sentences, which the searching expert reads.
        n_worlds: K, 4 or more.
        seed: together with the state's id it determines all draws.
        gamma: the discount, above 0 and at most 1.
        limit: the searching expert has this many commands to win behind the valued one; 0 or more.
        listing: ``False`` draws all K worlds, so that p is 0.

    Returns:
        The values in the order of ``state.commands``. Without standard errors where they are exact.

    Raises:
        ValueError: the history is not one of this game, the task is in a person's words, or a number is out of its range.
        UnsupportedGameError: only the stock engine plays the game.
    """
    return fair_returns(game, state, n_worlds, seed, gamma=gamma, limit=limit, listing=listing).labels()


def fair_returns(
    game: Game,
    state: BenchState,
    n_worlds: int = N_WORLDS,
    seed: int = 0,
    *,
    gamma: float = GAMMA,
    limit: int = LIMIT,
    listing: bool = True,
) -> FairReturns:
    """Return the single returns that :func:`fair_labels` averages, and the searching expert's choice.

    Arguments and errors are those of :func:`fair_labels`.
    """
    if n_worlds < 4:
        raise ValueError(f"expected n_worlds of at least 4, got {n_worlds}")
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"expected gamma above 0 and at most 1, got {gamma}")
    if limit < 0:
        raise ValueError(f"expected a limit of 0 or more commands, got {limit}")
    expert, choice = read_transcript(state)
    rng = np.random.default_rng([seed, state_entropy(state)])
    found = Belief(game, state.history).likeliest_and_drawn(n_worlds, rng, None if listing else 0)
    player = _Player(game, state, expert, limit)
    steps = np.array([[player.steps(world, command) for command in state.commands] for world in found.worlds])
    return FairReturns(
        returns=np.where(np.isfinite(steps), gamma**steps, 0.0),
        weights=np.array([world.weight for world in found.worlds]),
        n_listed=found.n_listed,
        n_drawn=found.n_drawn,
        choice=choice,
    )


def read_transcript(state: BenchState) -> tuple[SearchExpert, str]:
    """Let a searching expert read a state's history.

    Returns:
        The expert, and the command that it gives in the state.

    Raises:
        ValueError: the task is not one of ALFWorld's own sentences.
    """
    expert, choice = SearchExpert(), ""
    for turn in state.history:
        _, choice = expert.act(state.task, turn.feedback, turn.admissible_commands)
        if turn is not state.history[-1]:
            expert.executed(turn.command)
    return expert, choice


class _Node:
    """What the searching expert remembers at a point of its play, and what it has said there.

    Attributes:
        expert: its memory.
        command: what it said last.
        next: the points that follow, by what the game shows.
    """

    __slots__ = ("command", "expert", "next")

    def __init__(self, expert: SearchExpert, command: str) -> None:
        self.expert, self.command = expert, command
        self.next: dict[tuple[str, tuple[str, ...]], _Node] = {}


class _Player:
    """Plays commands and the searching expert behind them, in many worlds of a game.

    The expert knows only what is shown. As long as two worlds show the same, it is asked once for both.
    """

    def __init__(self, game: Game, state: BenchState, expert: SearchExpert, limit: int) -> None:
        self._task, self._expert, self._limit = state.task, expert, limit
        self._engine = NativeEngine()
        self._engine.reset(game)
        self._costs = Costs(game)
        self._roots: dict[str, _Node] = {}

    def steps(self, world: World, command: str) -> float:
        """Return how many commands the expert needs behind a command, or infinity where it does not win in time."""
        self._engine.restore(world.now)
        frame = self._engine.step(command)
        after = self._engine.snapshot()
        # Nobody wins from a dead end, so nobody has to try.
        if self._costs.cost(self._costs.read(after), after.location) > self._limit:
            return inf
        node = self._roots.get(command)
        if node is None:
            expert = self._expert.copy()
            expert.executed(command)
            node = self._roots[command] = _Node(expert, command)
        return self._play(node, frame)

    def _play(self, node: _Node, frame: Frame) -> float:
        for n in range(self._limit):
            if frame.won:
                return n
            shown = (frame.feedback, frame.admissible_commands)
            after = node.next.get(shown)
            if after is None:
                expert = node.expert.copy()
                after = node.next[shown] = _Node(expert, expert.act(self._task, *shown)[1])
            node = after
            frame = self._engine.step(node.command)
        return self._limit if frame.won else inf
