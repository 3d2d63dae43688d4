"""Speed of ``agentprm serve``: ``python -m benchmarks.serve_speed [--quick] [--sessions 64] [--out FILE]``.

The server is a process of its own, as the command starts it. The clients are OpenEnv's own, all in this process. Each session
plays random admissible commands, episode after episode, and waits for the answer to one before it sends the next. A round
counts the steps of all sessions over some seconds, resets not counted but their time included. Needs two cores that nothing
else uses, one for the server and one for the clients, and Linux, whose count of CPU time it reads.

| key | what |
|---|---|
| ``steps_per_second`` | steps of all sessions a second; median over rounds, with the least and the most |
| ``steps_per_server_second`` | steps for each second of the server's CPU time |
| ``steps_per_client_second`` | steps for each second of the clients' CPU time |
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from algorithms.cli.output import PlainConsole, make_table, provenance, write_json

RESULTS = Path(__file__).parent / "results"
PORT = 8731


@contextmanager
def served(port: int, sessions: int) -> Iterator[int]:
    """Run the server; yields its process number.

    Raises:
        RuntimeError: it ended, or it does not answer within three minutes.
    """
    words = [
        "serve",
        "--games",
        "generated",
        "--reward",
        "progress",
        "--port",
        str(port),
        "--max-sessions",
        str(sessions),
    ]
    command = [sys.executable, "-m", "algorithms.cli.main", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(1800):
                if process.poll() is not None:
                    raise RuntimeError(f"agentprm serve ended: {process.stderr.read() if process.stderr else ''}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise RuntimeError("agentprm serve did not answer within three minutes")
            yield process.pid
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, as Linux counts it."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def play(url: str, sessions: int, rounds: int, seconds: float, pid: int) -> list[dict[str, float]]:
    """Let all sessions play, and count; returns a row for each round."""
    from openenv.core import GenericEnvClient

    n_steps, is_over = 0, False

    async def session(number: int) -> None:
        nonlocal n_steps
        rng = random.Random(number)
        async with GenericEnvClient(base_url=url) as env:
            while not is_over:
                result = await env.reset(seed=rng.randrange(10_000))
                while not result.done and not is_over:
                    commands = result.observation["admissible_commands"]
                    result = await env.step({"command": rng.choice(commands)})
                    n_steps += 1

    players = [asyncio.create_task(session(number)) for number in range(sessions)]
    rows = []
    await asyncio.sleep(seconds / 2)  # all are connected, and the games are read
    for _ in range(rounds):
        steps, server, clients, begun = n_steps, cpu_seconds(pid), time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        done, took = n_steps - steps, time.perf_counter() - begun
        rows.append(
            {
                "steps": done,
                "seconds": took,
                "steps_per_second": done / took,
                "steps_per_server_second": done / (cpu_seconds(pid) - server),
                "steps_per_client_second": done / (time.process_time() - clients),
            }
        )
    is_over = True
    await asyncio.gather(*players)
    return rows


def figures_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians over rounds, with the least and the most of the first."""
    keys = ("steps_per_second", "steps_per_server_second", "steps_per_client_second")
    figures = {key: statistics.median(row[key] for row in rows) for key in keys}
    rates = [row["steps_per_second"] for row in rows]
    return {**figures, "steps_per_second_low": min(rates), "steps_per_second_high": max(rates)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: a first look")
    parser.add_argument("--sessions", type=int, default=64, help="clients at once")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_speed.json", help="result file")
    args = parser.parse_args()
    rounds, seconds = (1, 3.0) if args.quick else (5, 10.0)
    with served(args.port, args.sessions) as pid:
        rows = asyncio.run(play(f"http://127.0.0.1:{args.port}", args.sessions, rounds, seconds, pid))
    figures: dict[str, Any] = figures_of(rows)
    table = make_table("steps of all sessions", "a second", "a second of the server's CPU", "of the clients' CPU")
    low, high = figures["steps_per_second_low"], figures["steps_per_second_high"]
    table.add_row(
        f"{args.sessions} sessions, {rounds} rounds",
        f"{figures['steps_per_second']:,.0f} ({low:,.0f} to {high:,.0f})",
        f"{figures['steps_per_server_second']:,.0f}",
        f"{figures['steps_per_client_second']:,.0f}",
    )
    PlainConsole(width=110).print(table)
    if args.quick:
        return
    about = {"date": datetime.date.today().isoformat(), "seeds": [], "sessions": args.sessions, "cores": os.cpu_count()}
    write_json(args.out, {"name": "serve_speed", **provenance(), **about, "figures": figures, "rows": rows})
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
