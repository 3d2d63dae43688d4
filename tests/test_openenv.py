"""The OpenEnv server, with OpenEnv's own client: it plays what the environment plays, in sessions that are apart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import pytest

import agentprm_gym  # noqa: F401  # registers the environments
from tests.cli_helpers import Cli

openenv = pytest.importorskip("openenv.core", reason="needs the extra 'openenv' (openenv-core)")
# Of the package and of what it uses.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

from agentprm_gym.integrations import openenv as ours  # noqa: E402  # it needs the package

GAMES = {"games": "generated"}
#: A client that comes too late reads the reason, or finds the connection closed.
FULL = r"CAPACITY|1000 \(OK\)"


@contextmanager
def running(**kwargs: Any) -> Iterator[Callable[[], Any]]:
    """A server in a thread; yields what makes a client of it."""
    server = ours.server(ours.make_app(**{**GAMES, **kwargs}), port=0, log_level="error")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield lambda: openenv.GenericEnvClient(base_url=f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client() -> Iterator[Callable[[], Any]]:
    with running(reward="penalty", oracle=True, max_episode_steps=4, max_sessions=3) as make:
        yield make


def test_it_plays_what_the_environment_plays(client: Callable[[], Any]) -> None:
    env = gym.make("ALFWorldPRM-v0", reward="penalty", max_episode_steps=4, **GAMES)
    with client().sync() as session:
        told, (observation, info) = session.reset(game=5, episode_id="mine"), env.reset(options={"game": 5})
        assert told.observation["game_id"] == info["game_id"]
        assert session.state()["episode_id"] == "mine"
        for step, action in enumerate(["inventory", "REASON: where?\nACTION: look", "dance", "look"]):
            assert told.observation["task"] == observation["task"]
            assert told.observation["feedback"] == observation["feedback"]
            assert "\n".join(told.observation["admissible_commands"]) == observation["admissible_commands"]
            observation, reward, terminated, truncated, info = env.step(action)
            told = session.step({"command": action})
            assert (told.reward, told.done) == (reward, terminated or truncated)
            assert told.observation["is_admissible"] == info["is_admissible"]
            parts = told.observation["reward_env"], told.observation["reward_prm"]
            assert parts == (info["reward/env"], info["reward/prm"])
            assert session.state()["step_count"] == step + 1
        assert told.observation["truncated"]
        with pytest.raises(RuntimeError, match="reset first"):
            session.step({"command": "look"})
        assert not session.reset(game=5).done


def test_the_same_seed_is_the_same_games(client: Callable[[], Any]) -> None:
    env = gym.make("ALFWorld-v0", **GAMES)
    wanted = [env.reset(seed=7)[1]["game_id"], env.reset()[1]["game_id"]]
    with client().sync() as session:
        assert [session.reset(seed=7).observation["game_id"], session.reset().observation["game_id"]] == wanted


def test_a_won_game(client: Callable[[], Any], one_of_each_type: list[int]) -> None:
    with running(max_episode_steps=50) as make, make().sync() as session:
        told = session.reset(game=one_of_each_type[0])
        env = gym.make("ALFWorld-v0", max_episode_steps=50, **GAMES)
        env.reset(options={"game": one_of_each_type[0]})
        while not told.done:
            costs = env.unwrapped.action_costs()
            command = min(costs, key=lambda c: costs[c])
            env.step(command)
            told = session.step({"command": command})
        assert (told.reward, told.observation["won"], told.observation["truncated"]) == (1.0, True, False)
        assert session.state()["won"]


def test_wrong_messages_leave_the_session_alive(client: Callable[[], Any]) -> None:
    with client().sync() as session:
        with pytest.raises(RuntimeError, match="reset first"):
            session.step({"command": "look"})
        with pytest.raises(RuntimeError, match="no game"):
            session.reset(game="no such game")
        session.reset(game=0)
        for action in ({"command": "look", "speed": 2}, {}, {"command": "x" * 20_000}, {"command": 3}):
            with pytest.raises(RuntimeError, match="VALIDATION_ERROR"):
                session.step(action)
        assert session.step({"command": "look"}).observation["is_admissible"]


def test_the_oracle_speaks_where_it_is_asked_and_allowed(client: Callable[[], Any]) -> None:
    env = gym.make("ALFWorld-v0", **GAMES).unwrapped
    with client().sync() as session:
        assert session.reset(game=0).observation["oracle"] is None
        values = session.reset(game=0, oracle=True).observation["oracle"]
        env.reset(options={"game": 0})
        assert values == pytest.approx({c: 0.95 ** (cost - 1) for c, cost in env.action_costs().items()})
    with running() as make, make().sync() as session:
        with pytest.raises(RuntimeError, match="--oracle"):
            session.reset(oracle=True)
        session.reset(game=0)
        with pytest.raises(RuntimeError, match="--oracle"):
            session.step({"command": "look", "oracle": True})


def test_sessions_are_apart_counted_and_freed(client: Callable[[], Any]) -> None:
    async def play() -> None:
        sessions = [await client().connect() for _ in range(3)]
        told = [await session.reset(game=game) for game, session in enumerate(sessions)]
        ids = [one.observation["game_id"] for one in told]
        assert len(set(ids)) == 3
        told = list(await asyncio.gather(*(session.step({"command": "look"}) for session in sessions)))
        assert [one.observation["game_id"] for one in told] == ids
        with pytest.raises(Exception, match=FULL):
            await client().reset()
        # One says goodbye, one is cut off, as when its process ends.
        await sessions[0].close()
        sessions[1]._ws.transport.abort()
        for game in (3, 4):
            sessions.append(await reset_once_there_is_room(client, game))
        assert (await sessions[2].step({"command": "look"})).observation["game_id"] == ids[2]
        for session in sessions[2:]:
            await session.close()

    asyncio.run(play())


async def reset_once_there_is_room(client: Callable[[], Any], game: int) -> Any:
    for _ in range(100):
        session = client()
        try:
            await session.reset(game=game)
            return session
        except Exception:  # the server frees it in its own time
            await session.close()
            await asyncio.sleep(0.1)
    raise AssertionError("no session was freed")


@pytest.mark.slow
def test_an_idle_session_is_freed_after_its_time() -> None:
    async def play(make: Callable[[], Any]) -> None:
        idle = make()
        await idle.reset(game=0)
        with pytest.raises(Exception, match=FULL):
            await make().reset()
        await asyncio.sleep(12)
        other = await reset_once_there_is_room(make, 1)
        with pytest.raises(RuntimeError, match="reset first"):
            await idle.step({"command": "look"})
        await idle.close()
        await other.close()

    with running(max_sessions=1, session_timeout=2.0) as make:
        asyncio.run(play(make))


@pytest.mark.slow
def test_a_client_that_answers_no_pings_keeps_its_session() -> None:
    """A trainer that computes for a minute answers none; uvicorn would end it after 40 seconds by default."""

    async def play(make: Callable[[], Any]) -> None:
        session = make()
        await session.reset(game=0)
        time.sleep(50)
        assert (await session.step({"command": "look"})).observation["is_admissible"]
        await session.close()

    with running() as make:
        asyncio.run(play(make))


def test_only_this_machine_is_served_by_default() -> None:
    from algorithms.cli.main import build_parser

    app = ours.make_app(**GAMES)
    assert ours.server(app).config.host == build_parser()[0].parse_args(["serve"]).host == "127.0.0.1"


def test_wrong_arguments_are_refused_before_it_serves(cli: Cli) -> None:
    with pytest.raises(ValueError, match="max_sessions"):
        ours.make_app(max_sessions=0)
    done = cli("serve", "--games", "generated", "--reward", "progres")
    assert (done.status, "progress" in done.err) == (2, True)
