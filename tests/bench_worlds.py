"""States of games from several players, and the worlds that are consistent with them, found by trying all."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod

from agentprm_gym.bench import BenchState
from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.episodes import Turn
from agentprm_gym.experts.search import SearchExpert
from agentprm_gym.games import GameList, find_games
from agentprm_gym.games.game import Game
from agentprm_gym.games.prior import holding_rate

#: How often a player gives a random command in place of the searching expert's. The clumsy one also says what is not possible.
PLAYERS = {"expert": 0.0, "mixed": 0.4, "random": 1.0, "clumsy": 0.2}
_IMPOSSIBLE = ("dance", "", "go to shelf 99", "take mug 1 from desk 1", "open fridge 1", "examine mug 1")


def history_of(game: Game, commands: Sequence[str]) -> tuple[Turn, ...]:
    """The turns after these commands; the last one is to be decided."""
    engine = NativeEngine()
    frame = engine.reset(game)
    turns = []
    for command in commands:
        turns.append(Turn(feedback=frame.feedback, admissible_commands=frame.admissible_commands, command=command))
        frame = engine.step(command)
        assert not frame.won
    turns.append(Turn(feedback=frame.feedback, admissible_commands=frame.admissible_commands, command=""))
    return tuple(turns)


def play(game: Game, player: str, rng: random.Random, max_steps: int = 30) -> list[str]:
    """The commands of an episode, without one that wins."""
    engine, expert, commands = NativeEngine(), SearchExpert(), []
    frame = engine.reset(game)
    for _ in range(max_steps):
        _, command = expert.act(game.task, frame.feedback, frame.admissible_commands)
        if rng.random() < PLAYERS[player]:
            command = rng.choice(frame.admissible_commands)
        elif player == "clumsy" and rng.random() < 0.3:
            command = rng.choice(_IMPOSSIBLE)
        expert.executed(command)
        frame = engine.step(command)
        if frame.won:
            break
        commands.append(command)
    return commands


def state_of(game: Game, commands: Sequence[str], name: str = "") -> BenchState:
    return BenchState(
        state_id=f"{game.game_id}/{name}/{len(commands)}",
        game_id=game.game_id,
        split=game.split,
        task_type=game.task_type,
        player="random",
        task=game.task,
        history=history_of(game, commands),
    )


def states(
    games: Sequence[Game], n: int, seed: int = 0, players: Sequence[str] = tuple(PLAYERS)
) -> Iterator[tuple[Game, BenchState]]:
    """One state of each of n random games, at a random turn; the players take turns."""
    rng = random.Random(seed)
    for i in range(n):
        game, player = games[rng.randrange(len(games))], players[i % len(players)]
        commands = play(game, player, rng)
        yield game, state_of(game, commands[: rng.randint(0, len(commands))], f"{player} {i}")


def small_games(n: int = 3000) -> GameList:
    """Games with few objects and few places to hide them."""
    return find_games(
        "train",
        "generated",
        generator_kwargs={"n_receptacles": [3, 5], "n_objects": [2, 3], "n_games": n},
    )


def has_single_homes(game: Game) -> bool:
    """Whether no object is in two receptacles."""
    return max(Counter(o for inside in game.contents.values() for o in inside).values()) == 1


def as_game(game: Game, start: Snapshot) -> Game:
    """The game that a world is, with tables of its own."""
    return replace(game, contents={**game.contents, **start.contents}, locations={**game.locations, **start.locations})


def shows(game: Game, history: Sequence[Turn]) -> bool:
    """Whether the game shows this history to the letter, and is not won in it."""
    engine = NativeEngine()
    frame = engine.reset(game)
    for t, turn in enumerate(history):
        if frame.won or (frame.feedback, frame.admissible_commands) != (turn.feedback, turn.admissible_commands):
            return False
        if t < len(history) - 1:
            frame = engine.step(turn.command)
    return True


def all_consistent(game: Game, history: Sequence[Turn]) -> list[tuple[dict[str, str], Game, float]]:
    """All worlds that show the history: where each object lies, the game, and its exact probability.

    It tries every receptacle for every object of a game in which each object has one home, seen or not.
    """
    assert has_single_homes(game)
    objects = sorted(o for inside in game.contents.values() for o in inside)
    n = Counter(r.rsplit(" ", 1)[0] for r in game.receptacles)
    found = []
    for homes in product(game.receptacles, repeat=len(objects)):
        lying = dict(zip(objects, homes, strict=True))
        world = replace(
            game,
            contents={
                r: tuple(sorted((o for o in objects if lying[o] == r), key=game.order.__getitem__))
                for r in game.receptacles
            },
            locations={**game.locations, **{o: (game.receptacles[r],) for o, r in lying.items()}},
        )
        if shows(world, history):
            kinds = [(o.rsplit(" ", 1)[0], r.rsplit(" ", 1)[0]) for o, r in lying.items()]
            found.append((lying, world, prod(holding_rate(o, r, n[r]) for o, r in kinds)))
    total = sum(rate for *_, rate in found)
    return [(lying, world, rate / total) for lying, world, rate in found]
