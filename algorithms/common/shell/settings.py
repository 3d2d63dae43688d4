"""Settings as a save holds them: plain JSON types."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from peft import LoraConfig

from agentprm_gym.checks import check_float
from agentprm_gym.llm.model import lora_settings
from agentprm_gym.llm.prompts import TEMPLATES, template_source
from agentprm_gym.spaces import UnicodeText
from algorithms.common.shell import machine


def plain_settings(value: Any, name: str) -> Any:
    """Settings as JSON types, which a save holds and a constructor takes again.

    Args:
        value: numbers (NumPy's too), strings, booleans, ``None``, paths, torch types, dataclasses, a ``LoraConfig``, and lists,
            tuples, sets and mappings of these.
        name: what the setting is called, for the error.

    Raises:
        ValueError: a value of another type, or a number that is not finite.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        return plain_settings(value.item(), name)
    if isinstance(value, (int, float)):
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, LoraConfig):
        return plain_settings(lora_settings(value.to_dict()), name)
    if is_dataclass(value) and not isinstance(value, type):
        return plain_settings(asdict(value), name)
    if isinstance(value, Mapping):
        return {str(key): plain_settings(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain_settings(item, name) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain_settings(item, name) for item in value]
    raise ValueError(
        f"{name} cannot be saved: expected numbers, strings, paths, or lists and mappings of these, got {type(value).__name__}"
    )


#: What is more than this is a learning rate for small models (:data:`~algorithms.common.shell.machine.SMALL_MODEL`).
LARGE_LEARNING_RATE = 5e-4


def warn_of_learning_rates(rates: Mapping[str, float], n_parameters: int) -> None:
    """Warn where learning rates that suit the bundled model meet a large one, for example as the defaults.

    Args:
        rates: the learning rates, by the names of their settings.
        n_parameters: of the base model.
    """
    high = [f"{name}={rate:g}" for name, rate in rates.items() if rate > LARGE_LEARNING_RATE]
    if n_parameters >= machine.SMALL_MODEL and high:
        warnings.warn(
            f"{' and '.join(high)} {'suits' if len(high) == 1 else 'suit'} the bundled model of a million parameters, and this "
            f"base has {n_parameters / 1e6:,.0f} million: begin with about 1e-4 (docs/your_own.md)",
            UserWarning,
            stacklevel=3,
        )


def check_learning_rate(learning_rate: Any) -> float:
    """A learning rate as a plain number.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    try:
        return check_float("learning_rate", learning_rate, above=0)
    except ValueError as error:
        raise ValueError(f"{error}; algorithms here decay it themselves") from None


def portable(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Policy settings as a save holds them: a template file's text, and no leave to run a model's code."""
    kwargs = {k: v for k, v in policy_kwargs.items() if k != "trust_remote_code"}
    if kwargs.get("template") not in (None, *TEMPLATES):
        kwargs["template"] = template_source(kwargs["template"])
    return kwargs


def space_to_json(space: gym.Space[Any]) -> Any:
    """A text space, or a dict of them, as JSON: ``[least, most]`` characters each."""
    if isinstance(space, gym.spaces.Dict):
        return {key: space_to_json(sub) for key, sub in space.spaces.items()}
    assert isinstance(space, UnicodeText)
    return [space.min_length, space.max_length]


def space_from_json(data: Any) -> gym.Space[Any]:
    """The inverse of :func:`space_to_json`."""
    if isinstance(data, dict):
        return gym.spaces.Dict({key: space_from_json(value) for key, value in data.items()})
    return UnicodeText(data[1], min_length=data[0])


def with_buffers(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """An environment as it is, whose observations Stable-Baselines3's vector environments can hold.

    Args:
        env: one environment.

    Raises:
        ValueError: its observation has a ``gymnasium.spaces.Text``, for which they have no buffer.
    """
    space = env.observation_space
    texts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    for key, text in texts.items():
        if isinstance(text, gym.spaces.Text) and not isinstance(text, UnicodeText):
            raise ValueError(
                f"observation[{key!r}] is a gymnasium.spaces.Text, of which Stable-Baselines3 cannot make vectors: expected "
                f"agentprm_gym.spaces.UnicodeText({text.max_length})"
            )
    return env
