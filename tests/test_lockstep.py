"""Lockstep: the native engine says what the stock TextWorld + ALFWorld stack says, string for string."""

from __future__ import annotations

import random

import pytest

from agentprm_gym.engines import make_engine
from agentprm_gym.games import TASK_TYPES, Game, GameList, find_games

N_RANDOM = 30
NONSENSE = ["dance", "", "go to moon 1", "OPEN FRIDGE 1", "take the apple", "ACTION: look"]


def walk(game: Game, commands: list[str], rng: random.Random, n_random: int) -> int:
    """Play commands, then random admissible ones mixed with nonsense, in both engines; returns the steps compared."""
    native, stock = make_engine("native"), make_engine("textworld")
    ours, theirs = native.reset(game), stock.reset(game)
    assert ours == theirs, game.game_id
    script = [*commands, *[None] * n_random]
    for position in sorted(rng.sample(range(len(script)), 5)):
        script.insert(position, rng.choice(NONSENSE))
    script.insert(3, f"  {script[0]}  " if script[0] else "  look ")
    steps = 0
    for command in script:
        # Kinds first: uniform choice would be nearly all walks and hide most rules.
        if command is None:
            kinds: dict[str, list[str]] = {}
            for c in ours.admissible_commands:
                kinds.setdefault(c.split()[0], []).append(c)
            command = rng.choice(kinds[rng.choice(sorted(kinds))])
        ours, theirs = native.step(command), stock.step(command)
        assert ours == theirs, (game.game_id, command)
        steps += 1
    stock.close()
    return steps


def pick_games(games: GameList, n: int, rng: random.Random) -> list[int]:
    """Games of all six types in turn, preferring the oddities that only real games have."""
    by_type = {t: [i for i, g in enumerate(games.game_ids) if g.startswith(t)] for t in TASK_TYPES}
    out: list[int] = []
    while len(out) < n:
        kind = TASK_TYPES[len(out) % len(TASK_TYPES)]
        some = [i for i in rng.sample(by_type[kind], 12) if i not in out]
        out.append(max(some, key=lambda i: _oddity(games[i], len(out))))
    return out


def _oddity(game: Game, turn: int) -> float:
    """How odd a game is, in the sense that comes in turn."""
    holders: dict[str, int] = {}
    for objects in game.contents.values():
        for o in objects:
            holders[o] = holders.get(o, 0) + 1
    shared = len(game.receptacles) - len(set(game.receptacles.values()))
    senses = (
        sum(n > 1 for n in holders.values()),
        shared,
        len(game.inside),
        len(game.properties["isCool"]),
        sum(len(places) > 1 for places in game.locations.values()),
        len(game.properties["sliceable"]) * len(game.properties["heatable"]),
    )
    return senses[turn % len(senses)]


def test_real_games(real_games: GameList) -> None:
    rng = random.Random(1)
    steps = [
        walk(real_games[i], list(real_games[i].walkthrough), rng, N_RANDOM) for i in pick_games(real_games, 6, rng)
    ]
    assert sum(steps) > 6 * (N_RANDOM + 5)


@pytest.mark.slow
def test_fifty_real_games(real_games: GameList) -> None:
    rng = random.Random(2)
    for i in pick_games(real_games, 50, rng):
        walk(real_games[i], list(real_games[i].walkthrough), rng, N_RANDOM)


def test_generated_games() -> None:
    games = find_games("valid_unseen", "generated")
    rng = random.Random(3)
    for i in (0, 3):
        walk(games[i], list(games[i].walkthrough), rng, 12)
