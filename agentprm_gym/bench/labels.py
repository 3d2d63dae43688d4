"""The three labels of a state's commands: ``oracle``, ``fair`` and ``on_policy``.

All three are a value Q(s, a) in [0, 1], counted in the same way: a win that follows n commands behind ``a`` is worth
``GAMMA ** n``, so 1 where ``a`` itself wins, and 0 where no win follows.

| label       | who plays behind ``a``                    | what it knows        | value                                     |
|-------------|-------------------------------------------|----------------------|-------------------------------------------|
| `oracle`    | the planner                               | the whole game       | ``GAMMA ** steps_to_go``, 0 in a dead end |
| `fair`      | the searching expert                      | the transcript       | mean over K worlds that show the same     |
| `on_policy` | a policy, the same one for all states     | the transcript       | mean over n rollouts in the game itself   |

``fair`` has a file of its own, :mod:`agentprm_gym.bench.label_fair`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

from agentprm_gym.bench.belief import Belief, World, consistent_worlds, replay_turns
from agentprm_gym.bench.label_fair import GAMMA, LIMIT, N_WORLDS, FairReturns, fair_labels, fair_returns, state_entropy
from agentprm_gym.bench.states import BenchState, Labels
from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.episodes import Turn
from agentprm_gym.experts.planner import Planner
from agentprm_gym.games.game import Game

__all__ = [
    "GAMMA",
    "LIMIT",
    "N_WORLDS",
    "Belief",
    "Continuation",
    "FairReturns",
    "PlayOn",
    "World",
    "consistent_worlds",
    "exactly_labelled",
    "fair_labels",
    "fair_returns",
    "on_policy_labels",
    "oracle_labels",
    "replay",
    "steps_to_go",
]


def replay(game: Game, state: BenchState) -> Snapshot:
    """Play a state's history in its game and compare every text with it.

    Args:
        game: the game, in the wording of the history.
        state: the state.

    Returns:
        The state of the native engine in which the command is to be decided.

    Raises:
        ValueError: the game is another one, a feedback or the admissible commands of a turn differ, or the game is won before.
        UnsupportedGameError: only the stock engine plays the game.
    """
    if game.game_id != state.game_id:
        raise ValueError(f"state {state.state_id!r}: expected its game {state.game_id!r}, got {game.game_id!r}")
    if not state.history:
        raise ValueError(f"state {state.state_id!r}: expected a history of at least one turn, got none")
    engine = NativeEngine()
    return replay_turns(engine, engine.reset(game), state.history, f"state {state.state_id!r}")


def steps_to_go(game: Game, state: BenchState) -> tuple[int | None, ...]:
    """Return for each command the length of a shortest way to win behind it, with full knowledge of the game.

    Args:
        game: the game, in the wording of the history.
        state: the state.

    Returns:
        0 where the command wins, ``None`` where the game cannot be won any more behind it (a dead end).

    Raises:
        ValueError: see :func:`replay`.
        UnsupportedGameError: only the stock engine plays the game.
    """
    costs = Planner(game).action_costs(replay(game, state), state.commands)
    return tuple(None if costs[command] == inf else int(costs[command]) - 1 for command in state.commands)


def oracle_labels(game: Game, state: BenchState, gamma: float = GAMMA) -> Labels:
    """Return Q* of each command: ``gamma ** steps_to_go``, and 0 in a dead end. The values are exact.

    Args:
        game: the game, in the wording of the history.
        state: the state.
        gamma: the discount, above 0 and at most 1.

    Raises:
        ValueError: see :func:`replay`; or ``gamma`` is out of its range.
        UnsupportedGameError: only the stock engine plays the game.
    """
    return _of_steps(steps_to_go(game, state), gamma)


def exactly_labelled(
    game: Game, state: BenchState, n_worlds: int = N_WORLDS, seed: int = 0, gamma: float = GAMMA
) -> BenchState:
    """Return the state with ``steps_to_go`` and with its ``oracle`` and ``fair`` labels; other labels are kept.

    Args:
        game: the game, in the wording of the history.
        state: the state.
        n_worlds: see :func:`fair_labels`.
        seed: see :func:`fair_labels`.
        gamma: the discount of both labels, above 0 and at most 1.

    Raises:
        ValueError: see :func:`replay` and :func:`fair_labels`.
        UnsupportedGameError: only the stock engine plays the game.
    """
    steps = steps_to_go(game, state)
    labels = {
        **state.labels,
        "oracle": _of_steps(steps, gamma),
        "fair": fair_labels(game, state, n_worlds, seed, gamma=gamma),
    }
    return replace(state, steps_to_go=steps, labels=labels)


def _of_steps(steps: Sequence[int | None], gamma: float) -> Labels:
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"expected gamma above 0 and at most 1, got {gamma}")
    return Labels(values=tuple(0.0 if n is None else float(gamma**n) for n in steps))


class Continuation(NamedTuple):
    """An episode to go on with: one command is given, and a policy plays on.

    Attributes:
        game: the game.
        snapshot: the state of the native engine before the command.
        history: the turns so far, which the policy has read; without the turn to be decided.
        command: the command that is executed first.
        seed: entropy of the episode's random stream; another one for each continuation.
    """

    game: Game
    snapshot: Snapshot
    history: tuple[Turn, ...]
    command: str
    seed: tuple[int, ...]


#: Plays continuations to their ends. It returns for each the number of the policy's commands behind the given one until the
#: game was won (0 where the given command won), or ``None`` where it was not won within the player's limit of steps.
PlayOn = Callable[[Sequence[Continuation]], Sequence[int | None]]


def on_policy_labels(
    pairs: Sequence[tuple[Game, BenchState]],
    play_on: PlayOn,
    n_rollouts: int,
    seed: int = 0,
    *,
    gamma: float = GAMMA,
    states_per_call: int | None = None,
    commands: Sequence[Sequence[str]] | None = None,
) -> list[Labels]:
    """Estimate Q of a policy for all commands of states: the mean of ``gamma ** steps`` over rollouts in the game itself.

    The standard error is ``std(ddof=1) / sqrt(n)``. It is 0 where all n rollouts took the same number of steps, which with a
    small n does not mean that the value is exact.

    Args:
        pairs: states with their games, in the wording of the histories.
        play_on: plays the policy.
        n_rollouts: rollouts of each command, 2 or more.
        seed: first entropy of all random streams. A stream also depends on the state's id, on the command's place and
            on the rollout's number.
        gamma: the discount, above 0 and at most 1.
        states_per_call: so many states are handed to ``play_on`` at once; ``None`` for all of them.
        commands: for each state the commands to label; ``None``: all of its commands.

    Returns:
        The labels in the order of ``pairs``, each in the order of its state's commands, or of ``commands``.

    Raises:
        ValueError: a number is out of its range, a history is not one of its game, or ``play_on`` returns another number of
            results, or a number of steps below 0.
        UnsupportedGameError: only the stock engine plays a game.
    """
    if n_rollouts < 2:
        raise ValueError(f"expected n_rollouts of at least 2, which a standard error needs, got {n_rollouts}")
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"expected gamma above 0 and at most 1, got {gamma}")
    if states_per_call is not None and states_per_call < 1:
        raise ValueError(f"expected states_per_call of at least 1, or None, got {states_per_call}")
    wanted = [state.commands for _, state in pairs] if commands is None else [tuple(some) for some in commands]
    size = states_per_call or max(1, len(pairs))
    labels: list[Labels] = []
    for first in range(0, len(pairs), size):
        part, asked = pairs[first : first + size], wanted[first : first + size]
        continuations = [
            Continuation(game, snapshot, tuple(state.history[:-1]), command, (seed, state_entropy(state), a, k))
            for (game, state), some in zip(part, asked, strict=True)
            for snapshot in (replay(game, state),)
            for a, command in enumerate(some)
            for k in range(n_rollouts)
        ]
        returns = np.array([_discounted(steps, gamma) for steps in _played(play_on, continuations)])
        done = 0
        for some in asked:
            n = len(some) * n_rollouts
            labels.append(_averaged(returns[done : done + n].reshape(-1, n_rollouts)))
            done += n
    return labels


def _played(play_on: PlayOn, continuations: Sequence[Continuation]) -> Sequence[int | None]:
    results = play_on(continuations)
    if len(results) != len(continuations):
        raise ValueError(f"expected {len(continuations)} results of the player, one a continuation, got {len(results)}")
    return results


def _discounted(steps: int | None, gamma: float) -> float:
    if steps is None:
        return 0.0
    if steps < 0:
        raise ValueError(f"expected 0 or more steps to a win, or None, got {steps}")
    return float(gamma**steps)


def _averaged(returns: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Labels:
    """Return the labels of (A, n) returns."""
    n = returns.shape[1]
    spread = returns.std(axis=1, ddof=1) / sqrt(n)
    return Labels(values=tuple(returns.mean(axis=1).tolist()), stderr=tuple(spread.tolist()), n=n)
