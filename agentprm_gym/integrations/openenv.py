"""An OpenEnv server: one environment for each websocket, for TRL, NeMo Gym and whatever else speaks OpenEnv.

``agentprm serve`` runs it. A session is a websocket at ``/ws``; the single HTTP requests ``/reset`` and ``/step`` of OpenEnv
make an environment each and so cannot play.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gymnasium.error import ResetNeeded
from pydantic import Field
from starlette.websockets import WebSocketDisconnect

import agentprm_gym
from agentprm_gym.experts import discounted
from agentprm_gym.integrations.household import REWARD, make_env
from agentprm_gym.observations import split_commands

try:
    from openenv.core.env_server import (
        Action,
        ConcurrencyConfig,
        Environment,
        Observation,
        State,
        create_fastapi_app,
    )
    from openenv.core.env_server.types import EnvironmentMetadata
except ImportError as error:
    raise ImportError(
        f"the OpenEnv server needs openenv-core: pip install 'agentprm-gym[openenv]' ({error})"
    ) from error

#: Rewards that are computed in microseconds; the others are asked in a thread, so that other sessions go on.
QUICK_REWARDS = ("outcome", "progress", "penalty", "oracle_q", "oracle_advantage", "oracle_potential")


class TextAction(Action):  # type: ignore[misc,unused-ignore]
    """What a player does."""

    command: str = Field(
        max_length=16_384, description="a bare command, or a whole response with a line 'ACTION: <command>'"
    )
    oracle: bool = Field(
        default=False, description="whether to tell Q* of the commands after it; the server must allow it"
    )


class TextObservation(Observation):  # type: ignore[misc,unused-ignore]
    """What a player reads, and what is known about the step. ``reward`` and ``done`` are OpenEnv's own fields."""

    task: str = Field(description="the task in words")
    feedback: str = Field(description="what the game says")
    admissible_commands: list[str] = Field(description="what is possible now")
    game_id: str = Field(description="the game")
    task_type: str = Field(default="", description="one of the six task types")
    is_admissible: bool | None = Field(default=None, description="whether the command was possible; null after a reset")
    won: bool = Field(default=False, description="whether the task is done")
    truncated: bool = Field(default=False, description="whether the step limit ended the episode")
    reward_env: float | None = Field(default=None, description="the environment's own part of the reward")
    reward_prm: float | None = Field(default=None, description="the process reward's part")
    oracle: dict[str, float] | None = Field(
        default=None, description="Q* of each admissible command, where it was asked for: privileged"
    )


class TextState(State):  # type: ignore[misc,unused-ignore]
    """Where a session is."""

    game_id: str | None = Field(default=None, description="the game")
    split: str | None = Field(default=None, description="the split that it belongs to")
    task_type: str | None = Field(default=None, description="one of the six task types")
    won: bool = Field(default=False, description="whether the task is done")
    done: bool = Field(default=True, description="whether a reset is needed")


class OpenEnvEnvironment(Environment):  # type: ignore[misc,unused-ignore]
    """One session: ``ALFWorldPRM-v0`` behind OpenEnv's interface.

    The reward of a step is the environment's own (1.0 for the win) and the process reward, which are also told apart.
    """

    #: Sessions share parsed games, which nobody changes, and nothing else.
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, oracle: bool = False, gamma: float = 0.95, **env_kwargs: Any) -> None:
        """Make an environment.

        Args:
            oracle: whether clients may ask for Q*, which a player does not know.
            gamma: discount of Q* a turn, in (0, 1].
            **env_kwargs: of ``ALFWorldPRM-v0``: ``split``, ``games``, ``reward``, ``max_episode_steps``, ...

        Raises:
            ValueError: the environment refuses its arguments, or ``gamma`` is out of range.
            FileNotFoundError: games or a reward's file were not found.
        """
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma!r}")
        self._env = make_env(**env_kwargs)
        has_quick_reward = env_kwargs.get("reward", REWARD) in QUICK_REWARDS
        self._quick = has_quick_reward and env_kwargs.get("engine", "native") == "native"
        self._allows_oracle, self._gamma = oracle, gamma
        self._state = TextState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        game: int | str | None = None,
        oracle: bool = False,
    ) -> TextObservation:
        """Start an episode.

        Args:
            seed: seeds the shuffle of the games and begins a new pass; without, the next game of the shuffle is played.
            episode_id: a name for the episode, which ``state`` tells.
            game: index or id of a game to play.
            oracle: whether to tell Q* of the commands.

        Raises:
            ValueError: the game is unknown, or the server does not tell Q*.
        """
        self._check_oracle(oracle)
        self._state = TextState(episode_id=episode_id)
        observation, info = self._env.reset(seed=seed, options=None if game is None else {"game": game})
        self._state = TextState(
            episode_id=episode_id,
            game_id=info["game_id"],
            split=info["split"],
            task_type=info["task_type"],
            done=False,
        )
        return self._observation(observation, info, oracle=oracle)

    def step(self, action: TextAction, timeout_s: float | None = None) -> TextObservation:
        """Play a command.

        Args:
            action: the command or the whole response.
            timeout_s: not used: a step takes microseconds, with a learnt reward milliseconds.

        Raises:
            ResetNeeded: no episode is running.
            ValueError: the server does not tell Q*.
        """
        self._check_oracle(action.oracle)
        if self._state.done:
            raise ResetNeeded("no episode is running: reset first")
        observation, reward, terminated, truncated, info = self._env.step(action.command)
        self._state.step_count += 1
        self._state.won, self._state.done = bool(info["won"]), bool(terminated or truncated)
        return self._observation(
            observation,
            info,
            oracle=action.oracle,
            reward=float(reward),
            done=bool(terminated or truncated),
            truncated=bool(truncated and not terminated),
            is_admissible=bool(info["is_admissible"]),
            reward_env=info["reward/env"],
            reward_prm=info["reward/prm"],
        )

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        game: int | str | None = None,
        oracle: bool = False,
    ) -> TextObservation:
        """As :meth:`reset`; in a thread, since a game may have to be read."""
        return await asyncio.to_thread(self.reset, seed, episode_id, game, oracle)

    async def step_async(self, action: TextAction, timeout_s: float | None = None) -> TextObservation:
        """As :meth:`step`; without a thread where the reward is quick, since changing threads takes longer than the step."""
        return self.step(action) if self._quick else await asyncio.to_thread(self.step, action)

    @property
    def state(self) -> TextState:
        """Where the session is."""
        return self._state

    def get_metadata(self) -> Any:
        """Name, description and version, for OpenEnv's pages."""
        return EnvironmentMetadata(
            name="agentprm-gym",
            description="ALFWorld household tasks in text, with process rewards",
            version=agentprm_gym.__version__,
        )

    def close(self) -> None:
        """Release the environment; steps need a reset from then on."""
        self._state.done = True
        self._env.close()

    def _check_oracle(self, wanted: bool) -> None:
        if wanted and not self._allows_oracle:
            raise ValueError("this server does not tell Q*: start it with --oracle, or leave 'oracle' out")

    def _observation(
        self, observation: Mapping[str, str], info: Mapping[str, Any], *, oracle: bool, **more: Any
    ) -> TextObservation:
        values = None
        if oracle and not more.get("done"):
            costs = self._env.get_wrapper_attr("action_costs")()
            values = {command: discounted(cost - 1, self._gamma) for command, cost in costs.items()}
        return TextObservation(
            task=observation["task"],
            feedback=observation["feedback"],
            admissible_commands=list(split_commands(observation["admissible_commands"])),
            game_id=info["game_id"],
            task_type=info["task_type"],
            won=bool(info["won"]),
            oracle=values,
            **more,
        )


def make_app(
    *,
    max_sessions: int = 256,
    session_timeout: float | None = 3600.0,
    oracle: bool = False,
    gamma: float = 0.95,
    **env_kwargs: Any,
) -> Any:
    """Make the server as an ASGI application (FastAPI).

    Args:
        max_sessions: how many websockets may play at once, 1 or more; a further one is told so and closed.
        session_timeout: seconds without a message after which a session is freed; ``None``: never. A websocket that
            is closed, also because its process ended, frees its session at once.
        oracle: whether clients may ask for Q*.
        gamma: discount of Q*.
        **env_kwargs: of ``ALFWorldPRM-v0``.

    Raises:
        ValueError: a number is out of range, or the environment refuses its arguments.
        FileNotFoundError: games or a reward's file were not found.
    """
    if max_sessions < 1:
        raise ValueError(f"max_sessions must be 1 or more, got {max_sessions}")

    def make() -> OpenEnvEnvironment:
        return OpenEnvEnvironment(oracle=oracle, gamma=gamma, **env_kwargs)

    make().close()  # what is wrong with the arguments should be said at the start
    config = ConcurrencyConfig(max_concurrent_envs=max_sessions, session_timeout=session_timeout)
    app = create_fastapi_app(make, TextAction, TextObservation, concurrency_config=config)
    app.add_middleware(_QuietEnd)
    return app


class _QuietEnd:
    """Ends a websocket that its client has left without a traceback: OpenEnv closes it once more, which is an error by then."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except WebSocketDisconnect:
            if scope["type"] != "websocket":
                raise


def serve(app: Any, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Run the server until it is interrupted.

    Args:
        app: what :func:`make_app` returned.
        host: the address to listen at: this machine only by default. There is no password: whoever reaches it may play.
        port: the port.
    """
    server(app, host, port).run()


def server(app: Any, host: str = "127.0.0.1", port: int = 8000, log_level: str = "warning") -> Any:
    """Make uvicorn's server, for :func:`serve` and for tests.

    Args:
        app: what :func:`make_app` returned.
        host: the address.
        port: the port; 0 for any that is free.
        log_level: of uvicorn.
    """
    import uvicorn

    # A trainer that computes for minutes answers no pings; its session must survive that. Dead ones are freed when their
    # connection breaks, or after session_timeout.
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_ping_timeout=None,
    )
    return uvicorn.Server(config)
