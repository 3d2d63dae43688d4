"""Small panels for the tests of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from agentprm_gym.bench import BenchState, Labels
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.episodes import Turn
from agentprm_gym.experts.planner import Planner
from agentprm_gym.games import find_games

GAMMA = 0.95


@cache
def small_panel(
    n_games: int = 8, n_turns: int = 6, players: Sequence[str] = ("expert", "random")
) -> tuple[BenchState, ...]:
    """Every turn of some generated games, played by the planner and at random, with ``oracle`` and ``on_policy`` labels."""
    games = find_games("train", "generated")
    types = [game_id.split("-", 1)[0] for game_id in games.game_ids]
    firsts = [types.index(kind) for kind in sorted(set(types))]
    # One of each task type, then two in which a dead end is a turn away from an expert's path.
    firsts += [i for i in (16, 40) if i not in firsts]
    chosen = [*firsts, *(i for i in range(len(games)) if i not in firsts)][:n_games]
    out = []
    for g in chosen:
        game = games[g]
        planner = Planner(game)
        for player in players:
            rng = np.random.default_rng([g, players.index(player)])
            engine = NativeEngine()
            frame = engine.reset(game)
            turns: list[Turn] = []
            for t in range(n_turns):
                if frame.won:
                    break
                now = engine.snapshot()
                costs = planner.action_costs(now)
                commands = tuple(frame.admissible_commands)
                steps = tuple(None if np.isinf(costs[c]) else int(costs[c]) - 1 for c in commands)
                q = [0.0 if s is None else GAMMA**s for s in steps]
                wins = rng.binomial(20, 0.8 * np.array(q)) / 20
                out.append(
                    BenchState(
                        state_id=f"{game.game_id}/{player}/{t}",
                        game_id=game.game_id,
                        split=game.split,
                        task_type=game.task_type,
                        player=player,
                        task=game.task,
                        history=(*turns, Turn(feedback=frame.feedback, admissible_commands=commands, command="")),
                        steps_to_go=steps,
                        labels={
                            "oracle": Labels(values=tuple(q)),
                            "on_policy": Labels(
                                values=tuple(wins.tolist()),
                                stderr=tuple(np.sqrt(wins * (1 - wins) / 19).tolist()),
                                n=20,
                            ),
                        },
                    )
                )
                best = commands[int(np.argmax(q))]
                command = best if player == "expert" and max(q) > 0 else commands[int(rng.integers(len(commands)))]
                turns.append(Turn(feedback=frame.feedback, admissible_commands=commands, command=command))
                frame = engine.step(command)
    return tuple(out)


def state_of(
    values: Sequence[float],
    *,
    game: str = "g",
    kind: str = "oracle",
    stderr: Sequence[float] | None = None,
    task_type: str = "pick",
    name: str = "s",
    steps: Sequence[int | None] | None = None,
    history: Sequence[str] = (),
    player: str = "expert",
) -> BenchState:
    """A state with given labels; commands are ``c0``, ``c1``, ..."""
    commands = tuple(f"c{i}" for i in range(len(values)))
    turns = [Turn(feedback="seen", admissible_commands=commands, command=c) for c in history]
    return BenchState(
        state_id=name,
        game_id=game,
        split="train",
        task_type=task_type,
        player=player,
        task="do it",
        history=(*turns, Turn(feedback="seen", admissible_commands=commands, command="")),
        steps_to_go=tuple(1 for _ in values) if steps is None else tuple(steps),
        labels={kind: Labels(values=tuple(values), stderr=None if stderr is None else tuple(stderr), n=9)},
    )
