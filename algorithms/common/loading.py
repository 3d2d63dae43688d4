"""Actors from what a user names: a saved model or a base model."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.rewards.prm import load_prm
from agentprm_gym.saving import read_save
from algorithms.common.actors import Actor
from algorithms.common.base import LLMAlgorithm
from algorithms.common.policy import LLMPolicy
from algorithms.common.search import BestOfNActor


def check_model(model: str) -> None:
    """Refuse a name that :func:`load_policy` would refuse, before any work is done.

    Raises:
        FileNotFoundError: if there is no such zip.
        ValueError: for an unknown name, or a file that is no save.
    """
    if _is_save(model):
        read_save(model)
    else:
        LLMAlgorithm.check_policy_name(model)


def _is_save(model: str) -> bool:
    return model.endswith(".zip") or Path(model).is_file() or Path(model + ".zip").is_file()


def load_policy(model: str, venv: VecEnv, device: str = "auto") -> LLMPolicy:
    """The policy of a saved algorithm, or a base model as it is.

    Args:
        model: a zip, or an alias, folder or hub id of a base model.
        venv: environments, for their spaces.
        device: torch device.

    Raises:
        FileNotFoundError: if there is no such zip.
        ValueError: for an unknown name.
    """
    if not _is_save(model):
        LLMAlgorithm.check_policy_name(model)
        return LLMPolicy(venv.observation_space, venv.action_space, model=model, device=get_device(device))
    saved = read_save(model)
    policy = LLMPolicy(
        venv.observation_space,
        venv.action_space,
        device=get_device(device),
        **saved.manifest["data"]["policy_kwargs"],
    )
    policy.load_saved(saved, model)
    return policy


def load_actor(model: str, venv: VecEnv, *, best_of: int = 1, temperature: float = 1.0, device: str = "auto") -> Actor:
    """An actor with a row for each environment.

    Args:
        model: see :func:`load_policy`.
        venv: environments.
        best_of: with N > 1, draw N commands and let the save's process reward model choose.
        temperature: of sampling.
        device: torch device.

    Raises:
        ValueError: if ``best_of`` asks for a process reward model that the save does not hold.
    """
    policy = load_policy(model, venv, device)
    actor = policy.actor(venv.num_envs, temperature=temperature)
    if best_of == 1:
        return actor
    prm = load_prm(model, policy.lm)
    return BestOfNActor(actor, prm, venv.num_envs, best_of)
