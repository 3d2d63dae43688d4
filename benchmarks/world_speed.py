"""The world's speed against the stock stack: ``python -m benchmarks.world_speed [--quick] [--games SOURCE] [--out FILE]``.

All variants run in one process on the same games and the same commands (each game's walkthrough, with other admissible
commands in between), one thread. A repetition measures every variant once; ratios are medians over repetitions.

| key | what |
|---|---|
| ``step_ratio`` | a step of the native engine, admissible commands included, against the stock stack |
| ``load_ratio`` | first load of a game file: read, parsed, first frame |
| ``reset_ratio`` | reset of a game that was loaded before |
| ``gym_step_ratio`` | a step through ``gym.make`` with its default wrappers, against the stock stack's own step |
| ``vector_steps_per_second`` | environment steps a second of the vector environment, 64 environments, resets included |
| ``textworld_cached_ratio`` | a step of ``engine="textworld"`` with its caches, on commands that are new to it |
| ``textworld_seen_ratio`` | the same on commands that it has met before |
| ``train_games_mb`` | memory of all train games loaded, and ``growth_mb`` over a million steps |
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.engines.base import Engine
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.engines.textworld import TextWorldEngine
from agentprm_gym.games import Game, find_games, parse_game
from agentprm_gym.games.game import read_game_file
from agentprm_gym.observations import split_commands
from algorithms.cli.output import PlainConsole, provenance, write_json

RESULTS = Path(__file__).parent / "results"
N_ENVS = 64
#: Native steps and resets take microseconds, so a measurement repeats them this many times.
_INNER = 200


def script(game: Game, n: int, seed: int) -> list[str]:
    """Return commands to play in every variant: the walkthrough, with random admissible commands in between."""
    rng = random.Random(seed)
    engine = NativeEngine()
    frame = engine.reset(game)
    commands: list[str] = []
    walkthrough = list(game.walkthrough)
    while len(commands) < n:
        command = rng.choice(frame.admissible_commands)
        if walkthrough and walkthrough[0] in frame.admissible_commands and rng.random() < 0.4:
            command = walkthrough.pop(0)
        commands.append(command)
        frame = engine.step(command)
    return commands


def seconds(function: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step_time(engine: Engine, game: Game, commands: Sequence[str], inner: int = 1) -> float:
    """Return the seconds for one step; resets are not counted."""
    total = 0.0
    for _ in range(inner):
        engine.reset(game)
        start = time.perf_counter()
        for command in commands:
            engine.step(command)
        total += time.perf_counter() - start
    return total / inner / len(commands)


def gym_step_time(env: gym.Env[Any, Any], index: int, commands: Sequence[str], inner: int) -> float:
    """Return the seconds for one step through the wrappers; the reset after an episode's end is not counted."""
    total, n = 0.0, 0
    for _ in range(inner):
        env.reset(options={"game": index})
        for command in commands:
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(command)
            total += time.perf_counter() - start
            n += 1
            if terminated or truncated:
                env.reset(options={"game": index})
    return total / n


def load_native(path: str, game: Game) -> None:
    """Load a game for the first time: read the file, parse it, make the first frame."""
    NativeEngine().reset(parse_game(read_game_file(path), game_id=game.game_id, split=game.split, path=path))


def measure_game(game: Game, index: int, env: gym.Env[Any, Any], n_steps: int, seed: int) -> dict[str, float]:
    """Measure every variant once on one game; return seconds."""
    commands = script(game, n_steps, seed)
    out: dict[str, float] = {}
    native, stock, cached = NativeEngine(), TextWorldEngine(cached=False), TextWorldEngine()
    assert game.path is not None
    path = game.path
    out["native_load"] = seconds(lambda: load_native(path, game))
    # In the stock engine's second reset, and in the cached engine's second round of steps, the game is known.
    out["stock_load"] = seconds(lambda: stock.reset(game))
    out["stock_reset"] = seconds(lambda: stock.reset(game))
    out["stock_step"] = step_time(stock, game, commands)
    out["cached_load"] = seconds(lambda: cached.reset(game))
    out["cached_step"] = step_time(cached, game, commands)
    out["seen_step"] = step_time(cached, game, commands)
    native.reset(game)
    out["native_reset"] = seconds(lambda: [native.reset(game) for _ in range(_INNER)]) / _INNER
    out["native_step"] = step_time(native, game, commands, _INNER)
    out["gym_step"] = gym_step_time(env, index, commands, _INNER // 4)
    for engine in (native, stock, cached):
        engine.close()
    return out


def vector_rate(split: str, games: str, n_steps: int, seed: int) -> float:
    """Return the steps per second of 64 environments with random admissible commands; the games are parsed before."""
    envs: Any = gym.make_vec(
        "ALFWorld-v0", num_envs=N_ENVS, vectorization_mode="vector_entry_point", split=split, games=games
    )
    rng = random.Random(seed)
    observation, _ = envs.reset(seed=seed)
    total = 0.0
    for _ in range(n_steps):
        actions = [rng.choice(split_commands(commands)) for commands in observation["admissible_commands"]]
        start = time.perf_counter()
        observation, *_ = envs.step(actions)
        total += time.perf_counter() - start
    envs.close()
    return n_steps * N_ENVS / total


_MEMORY = """
import json, sys
from benchmarks.world_speed import memory
print(json.dumps(memory(sys.argv[1], int(sys.argv[2]))))
"""


def resident_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def memory(games: str, n_steps: int) -> dict[str, float]:
    """Return the megabytes of all train games when loaded, and by how much a process grows over many steps."""
    listed = find_games("train", games)
    gc.collect()
    before = resident_mb()
    parsed = list(listed)
    gc.collect()
    loaded = resident_mb()
    rng = random.Random(0)
    engine = NativeEngine()

    def play(n: int) -> None:
        for _ in range(n // 50):
            frame = engine.reset(parsed[rng.randrange(len(parsed))])
            for _ in range(50):
                frame = engine.step(rng.choice(frame.admissible_commands))

    play(n_steps // 10)  # after this the caches of texts are full
    gc.collect()
    warm = resident_mb()
    play(n_steps)
    gc.collect()
    return {"train_games_mb": loaded - before, "growth_mb": resident_mb() - warm, "n_games": float(len(parsed))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition on two games, for a first look")
    parser.add_argument("--games", default="alfworld", help="a source with files: 'alfworld' or a folder")
    parser.add_argument("--n-games", type=int, default=6, help="games, spread over the train split")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="commands a game")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "world_speed.json")
    args = parser.parse_args()
    repetitions = 1 if args.quick else args.repetitions
    n_games = 2 if args.quick else args.n_games
    listed = find_games("train", args.games)
    picked = [i * (len(listed) // n_games) for i in range(n_games)]
    env = gym.make("ALFWorld-v0", games=args.games)
    console = PlainConsole()
    rounds: list[dict[str, float]] = []
    with console.status("the stock stack takes its time") as status:
        # The first game of a process takes longer, because of imports and compilations.
        measure_game(listed[picked[-1] + 1], picked[-1] + 1, env, 3, args.seed)
        for repetition in range(repetitions):
            rows = []
            for k, index in enumerate(picked):
                status.update(f"repetition {repetition + 1} of {repetitions}, game {k + 1} of {n_games}")
                # Each repetition takes other games, so that caches are empty.
                at = (index + repetition) % len(listed)
                rows.append(measure_game(listed[at], at, env, args.steps, args.seed + repetition))
            rounds.append({key: statistics.median(row[key] for row in rows) for key in rows[0]})
        status.update("vector environment")
        vector_rate("valid_seen", args.games, 60, args.seed)  # parses the games
        rates = [vector_rate("valid_seen", args.games, 100 if args.quick else 400, s) for s in range(repetitions)]
        status.update("memory, in a process of its own")
        command = [sys.executable, "-c", _MEMORY, args.games, "100000" if args.quick else "1000000"]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    held = json.loads(out.stdout.splitlines()[-1])

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(r[slow] / r[fast] for r in rounds)

    figures = {
        "step_ratio": ratio("stock_step", "native_step"),
        "load_ratio": ratio("stock_load", "native_load"),
        "reset_ratio": ratio("stock_reset", "native_reset"),
        "gym_step_ratio": ratio("stock_step", "gym_step"),
        "vector_steps_per_second": statistics.median(rates),
        "textworld_cached_ratio": ratio("stock_step", "cached_step"),
        "textworld_seen_ratio": ratio("stock_step", "seen_step"),
        "textworld_cached_load_ratio": ratio("stock_load", "cached_load"),
        **held,
        **{f"{key}_us": 1e6 * statistics.median(r[key] for r in rounds) for key in rounds[0]},
        "stock_steps_per_second": 1 / statistics.median(r["stock_step"] for r in rounds),
    }
    _print(console, figures)
    write_json(
        args.out,
        {
            "name": "world_speed",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [args.seed],
            "quick": args.quick,
            "repetitions": repetitions,
            "figures": figures,
            "rows": rounds,
        },
    )
    print(f"written to {args.out}")


def _print(console: Console, figures: dict[str, float]) -> None:
    table = Table(title="one core, medians")
    for column in ("what", "ours", "stock", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for label, fast, slow, key in (
        ("step, native engine", "native_step_us", "stock_step_us", "step_ratio"),
        ("first load of a file", "native_load_us", "stock_load_us", "load_ratio"),
        ("reset of a game already seen", "native_reset_us", "stock_reset_us", "reset_ratio"),
        ("step through gym.make", "gym_step_us", "stock_step_us", "gym_step_ratio"),
        ("step, engine='textworld', new commands", "cached_step_us", "stock_step_us", "textworld_cached_ratio"),
        ("step, engine='textworld', seen commands", "seen_step_us", "stock_step_us", "textworld_seen_ratio"),
    ):
        table.add_row(label, f"{figures[fast]:,.1f} us", f"{figures[slow]:,.0f} us", f"{figures[key]:,.0f}")
    vector, stock = figures["vector_steps_per_second"], figures["stock_steps_per_second"]
    table.add_row("vector environment, steps/s", f"{vector:,.0f}", f"{stock:.1f}", f"{vector / stock:,.0f}")
    table.add_row(f"memory of {figures['n_games']:,.0f} train games", f"{figures['train_games_mb']:.0f} MB", "", "")
    table.add_row("growth over the steps after that", f"{figures['growth_mb']:.1f} MB", "", "")
    console.print(table)


if __name__ == "__main__":
    main()
