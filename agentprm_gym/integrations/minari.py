"""Minari: episodes as a data set of Farama's offline format, and back.

Minari takes spaces of text. An episode of it ends with an observation behind the last action, which the episodes of this
package do not hold, so each is played again in its game.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.episodes import Episode

try:
    import minari
    from minari.data_collector import EpisodeBuffer
except ImportError as error:
    raise ImportError(f"this needs minari: pip install 'agentprm-gym[minari]' ({error})") from error

_KEYS = ("task", "feedback", "admissible_commands")


def save_minari(
    episodes: Iterable[Episode],
    dataset_id: str,
    *,
    author: str | None = None,
    description: str = "Episodes of household text games (ALFWorld).",
    data_format: str = "arrow",
    **env_kwargs: Any,
) -> Any:
    """Write episodes as a Minari data set; ``MINARI_DATASETS_PATH`` says where, ``~/.minari/datasets`` otherwise.

    Args:
        episodes: of ALFWorld's or generated games, for example those of :func:`agentprm_gym.experts.demonstrations`.
        dataset_id: Minari's name, for example ``"alfworld/expert-v0"``; it must be new.
        author: for the data set's description.
        description: for the same.
        data_format: ``"arrow"``, ``"parquet"``, or ``"hdf5"`` (``pip install h5py``).
        **env_kwargs: of ``ALFWorld-v0``, for example ``games``: where the episodes' games are.

    Returns:
        The ``MinariDataset``. Observations are a dict of texts, actions are commands or whole responses.

    Raises:
        ValueError: there are no episodes, a game is not found, the game says something else than the episode, or the data set
            exists already.
        ImportError: a package that ``data_format`` needs is missing.
    """
    buffers, characters = [], set[str]()
    replayed = list(_replayed(episodes, env_kwargs))
    if not replayed:
        raise ValueError("no episodes: a data set of Minari needs at least one")
    longest = {key: 1 for key in (*_KEYS, "action")}
    for number, (episode, observations, rewards, terminated, truncated) in enumerate(replayed):
        actions = [turn.response or turn.command for turn in episode.turns]
        columns = {key: [str(o[key]) for o in observations] for key in _KEYS}
        for key, texts in (*columns.items(), ("action", actions)):
            longest[key] = max(longest[key], *map(len, texts))
            characters.update(*texts)
        n = len(actions)
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=columns,
                actions=actions,
                rewards=rewards,
                terminations=[False] * (n - 1) + [terminated],
                truncations=[False] * (n - 1) + [truncated],
                options={"game": episode.game_id, "split": episode.split, "policy": episode.policy},
            )
        )
    # Minari keeps a space of text with its characters, so it is given those that occur.
    charset = "".join(sorted(characters))
    space = {key: spaces.Text(longest[key], min_length=0, charset=charset) for key in longest}
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=gym.spec("ALFWorld-v0"),
        algorithm_name=", ".join(sorted({episode.policy for episode, *_ in replayed})) or None,
        author=author,
        observation_space=spaces.Dict({key: space[key] for key in _KEYS}),
        action_space=space["action"],
        description=description,
        data_format=data_format,
        requirements=["agentprm-gym"],
    )


def episodes_of_minari(dataset: Any, **env_kwargs: Any) -> Iterator[Episode]:
    """Read the episodes of a data set that :func:`save_minari` wrote.

    Args:
        dataset: a ``MinariDataset``, or its name.
        **env_kwargs: of ``ALFWorld-v0``: where the games are.

    Raises:
        ValueError: an episode does not say its game, or the game is not found.
    """
    dataset = minari.load_dataset(dataset) if isinstance(dataset, str) else dataset
    envs: dict[str, Any] = {}
    indices = [int(index) for index in dataset.episode_indices]
    for read, about in zip(
        dataset.iterate_episodes(indices), dataset.storage.get_episode_metadata(indices), strict=True
    ):
        told = about.get("options") or {}
        if not isinstance(told, dict) or not isinstance(told.get("game"), str):
            raise ValueError(
                f"episode {about.get('id')} does not say its game: expected a data set that save_minari wrote"
            )
        env = _env_of(envs, str(told.get("split", "train")), env_kwargs)
        env.reset(options={"game": told["game"]})
        for action in read.actions:
            env.step(str(action))
        yield env.episode(policy=str(told.get("policy", "")))


def _env_of(envs: dict[str, Any], split: str, env_kwargs: dict[str, Any]) -> Any:
    """The environment of a split, made at its first use."""
    if split not in envs:
        envs[split] = gym.make("ALFWorld-v0", split=split, **env_kwargs).unwrapped
    return envs[split]


def _replayed(
    episodes: Iterable[Episode], env_kwargs: dict[str, Any]
) -> Iterator[tuple[Episode, list[Any], Sequence[float], bool, bool]]:
    """Each episode with its observations (one more than turns), its rewards, and how it ended."""
    envs: dict[str, Any] = {}
    for episode in episodes:
        if not episode.turns:
            continue
        env = _env_of(envs, episode.split, env_kwargs)
        observation, _ = env.reset(options={"game": episode.game_id})
        observations, rewards, terminated = [observation], [], False
        for t, turn in enumerate(episode.turns):
            if observation["feedback"] != turn.feedback:
                raise ValueError(
                    f"game {episode.game_id!r} says {observation['feedback']!r} at turn {t}, and the episode "
                    f"{turn.feedback!r}: is it another wording (grammar=), or another source of games (games=)?"
                )
            observation, reward, terminated, _, _ = env.step(turn.command)
            observations.append(observation)
            rewards.append(float(reward))
        yield episode, observations, rewards, bool(terminated), not terminated
