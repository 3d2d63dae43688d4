"""Rows of data sets read as episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium as gym

from agentprm_gym import Episode


def episodes_of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Episode]:
    """Read rows of the format ``"episodes"``.

    Args:
        rows: the rows, as :meth:`Episode.to_dict` writes them; keys that hold None may be missing.

    Raises:
        ValueError: a row is no episode; the message names its number.
    """
    for number, row in enumerate(rows):
        try:
            turns = [
                {key: value for key, value in turn.items() if value is not None} for turn in row.get("turns") or ()
            ]
            yield Episode.from_dict({**row, "turns": turns})
        except (ValueError, AttributeError) as error:
            raise ValueError(f"row {number} is no episode: {error}") from None


def episodes_of_chats(rows: Iterable[Mapping[str, Any]], policy: str = "", **env_kwargs: Any) -> Iterator[Episode]:
    """Play conversations again, which gives whole episodes: what was admissible, rewards, and whether the game was won.

    Args:
        rows: rows with ``messages``, ``game_id`` and ``split``, for example those of :func:`chat_rows`. Messages of the role
            ``"assistant"`` are the answers, in order.
        policy: the name that the episodes are given where a row has none.
        **env_kwargs: of ``ALFWorld-v0``, for example ``games``.

    Raises:
        ValueError: a row lacks something, its game is not found, or the game says something else than the row; the message
            names its number.
    """
    envs: dict[str, Any] = {}
    for number, row in enumerate(rows):
        missing = [key for key in ("messages", "game_id", "split") if not row.get(key)]
        if missing:
            raise ValueError(f"row {number} lacks {missing}: a conversation is played again in the game that it names")
        split = row["split"]
        if split not in envs:
            envs[split] = gym.make("ALFWorld-v0", split=split, **env_kwargs).unwrapped
        env = envs[split]
        observation, _ = env.reset(options={"game": row["game_id"]})
        read = ""
        for message in row["messages"]:
            if message["role"] != "assistant":
                read = message["content"]
                continue
            if observation["feedback"].strip() not in read:
                raise ValueError(
                    f"row {number}: game {row['game_id']!r} says {observation['feedback']!r}, which is not in the message "
                    "before an answer; is it another release's wording (grammar=), or another source of games (games=)?"
                )
            if not env.running:
                raise ValueError(f"row {number} has answers after the end of game {row['game_id']!r}")
            observation, *_ = env.step(message["content"])
        yield env.episode(policy=row.get("policy") or policy)
