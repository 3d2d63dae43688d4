"""Workers of an algorithm: they must have its policy, and play in environments like its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.replicas import Workers
from algorithms.common.acting.rollouts import PlaysElsewhere
from algorithms.common.shell.checkpoints import describe_environment


def check_workers(workers: PlaysElsewhere, policy: LLMPolicy, venv: VecEnv, *, compares: bool = False) -> None:
    """Refuse workers of another policy, and let them refuse other environments before they play.

    Args:
        workers: who play for an algorithm.
        policy: the algorithm's.
        venv: the algorithm's.
        compares: whether the algorithm compares log-probabilities with those of the policy that acted.

    Raises:
        ValueError: the workers have another policy, or they draw from another distribution than an algorithm that compares
            log-probabilities takes them to.
    """
    if workers.policy is not policy:
        raise ValueError(
            "the workers play with another policy than the algorithm trains: make them with model.policy, after the model"
        )
    if isinstance(workers, Workers):
        workers.check = partial(_check_like, describe_environment(venv))
    elif compares and policy.responder.mode == "constrained" and policy.temperature != 1:
        raise ValueError(
            "a server divides the logits of each token by the temperature, and a policy here those of whole commands, so at "
            f"temperature {policy.temperature:g} ratios between them mean nothing: train with temperature 1, or without a "
            "sampler"
        )


def _check_like(wanted: Mapping[str, Any], venv: VecEnv) -> None:
    """Refuse a worker's environments where they differ from the algorithm's.

    Raises:
        ValueError: the games, the step limit or the process reward differ.
    """
    now = describe_environment(venv)
    differs = {key: (value, now[key]) for key, value in wanted.items() if now[key] != value}
    if differs:
        told = "; ".join(f"{key}: expected {a!r}, got {b!r}" for key, (a, b) in differs.items())
        raise ValueError(f"make_venv makes other environments than the algorithm has ({told}): make both alike")
