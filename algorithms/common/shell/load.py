"""Actors from what a user names: a saved model or a base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.llm.model import LanguageModel, ModelNotFoundError, lora_settings
from agentprm_gym.llm.saving import base_name, load_base, moved, read_save
from agentprm_gym.prm import load_prm
from algorithms.common.acting.actors import Actor
from algorithms.common.acting.planning.options import PLANNERS, SearchOptions, make_planner, needs_prm
from algorithms.common.acting.players import is_player, make_player
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.search import POLICY_WEIGHT, BestOfNActor, LookAheadActor, PRMGreedyActor, VoteActor
from algorithms.common.acting.server import ServerPolicy, is_server, load_server_policy
from algorithms.common.shell.base import LLMAlgorithm
from algorithms.common.shell.folders import is_save, saved_model
from algorithms.common.shell.machine import check_device

#: How a turn's command is found: drawn from the policy, or searched for.
SEARCHES = ("none", "best-of-n", "vote", "prm-greedy", "look-ahead", *PLANNERS)


def check_model(model: str) -> None:
    """Refuse a name that :func:`load_policy` would refuse, before any work is done.

    Args:
        model: see :func:`load_policy`; a server is not asked.

    Raises:
        FileNotFoundError: the zip is missing.
        ValueError: the name is unknown, or the file is not a save.
    """
    model = saved_model(model)
    if is_save(model):
        read_save(model)
    else:
        LLMAlgorithm.check_policy_name(model)


def load_policy(
    model: str, venv: VecEnv, device: str = "auto", *, base: str | None = None, **policy_kwargs: Any
) -> LLMPolicy | ServerPolicy:
    """The policy of a saved algorithm, a base model as it is, or a model on a server.

    Args:
        model: a zip, or the folder of a run; an alias, folder or hub id of a base model; or ``"openai:<base url>"``.
        venv: environments, for their spaces.
        device: torch device; ``"auto"`` takes a GPU where one is found.
        base: for a zip: folder or hub id of its base model, if that was moved.
        policy_kwargs: of :class:`LLMPolicy`; for a zip they override what was saved. For a server ``model_name`` and what
            :class:`ServerPolicy` and :class:`ServerClient` take (see :mod:`algorithms.common.acting.server`).

    Raises:
        FileNotFoundError: the zip or its base model is missing.
        ValueError: the name or the device is unknown, the device is missing, the base model is not the zip's, or ``base`` is
            given without a zip.
    """
    model = saved_model(model)
    if base is not None and not is_save(model):
        raise ValueError(
            f"base={base!r} says where the base model of a saved zip is, but {model!r} is not one: leave it out"
        )
    if is_server(model):
        return load_server_policy(model, **policy_kwargs)
    if not is_save(model):
        LLMAlgorithm.check_policy_name(model)
        kwargs = {"model": model, **policy_kwargs}
        return LLMPolicy(venv.observation_space, venv.action_space, device=check_device(device), **kwargs)
    saved = read_save(model)
    kwargs = {**saved.policy_kwargs, **policy_kwargs}
    if base is not None or "model" not in policy_kwargs:
        kwargs["model"] = base_name(saved, model, base)
    try:
        policy = LLMPolicy(venv.observation_space, venv.action_space, device=check_device(device), **kwargs)
    except ModelNotFoundError as error:
        if base is not None or "model" in policy_kwargs:
            raise
        raise moved(model, kwargs["model"]) from error
    policy.load_saved(saved, model)
    return policy


def load_language_model(path: str, base: str | None = None) -> LanguageModel:
    """The language model of a save with the policy's adapter; an environment is not needed.

    Args:
        path: a zip, or the folder of a run.
        base: folder or hub id of its base model, if that was moved.

    Raises:
        FileNotFoundError: the zip or its base model is missing.
        ValueError: the file is not a save, or its base model is another one now.
    """
    path = saved_model(path)
    saved = read_save(path)
    lm = load_base(saved, path, base)
    lm.add_adapter(POLICY, lora_settings(saved.adapter_configs[POLICY]))
    lm.load_adapter_state(POLICY, saved.adapters[POLICY])
    return lm


def chosen_policy_weight(policy_weight: float | None, model: str) -> float:
    """What the policy's log-probability counts in best-of-N.

    Args:
        policy_weight: what was asked for; ``None`` leaves it to this rule.
        model: see :func:`load_policy`. A server does not tell its log-probabilities, so there it is 0.
    """
    if policy_weight is not None:
        return policy_weight
    return 0.0 if is_server(model) else POLICY_WEIGHT


def load_actor(
    model: str,
    venv: VecEnv,
    *,
    search: str = "none",
    n: int = 8,
    depth: int = 1,
    policy_weight: float | None = None,
    prm: str | None = None,
    temperature: float = 1.0,
    search_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    base: str | None = None,
    **policy_kwargs: Any,
) -> Actor:
    """An actor with a row for each environment.

    Args:
        model: see :func:`load_policy`; or a player without a language model, ``"random"``, ``"expert"`` or ``"planner"``
            (see :mod:`algorithms.common.acting.players`), which takes no other argument.
        venv: environments.
        search: how a turn's command is found, one of :data:`SEARCHES` (see :mod:`algorithms.common.acting.search`).
        n: draws a turn with ``"best-of-n"`` and ``"vote"``, breadth with ``"look-ahead"``; 1 or more.
        depth: steps to look ahead, 1 or more.
        policy_weight: with ``"best-of-n"``: what the policy's log-probability counts beside Q, 0 or more. ``None``:
            :data:`~algorithms.common.acting.search.POLICY_WEIGHT`, and 0 where a server plays, which does not tell it.
        prm: a zip or a run's folder with the process reward model; by default the one in ``model``.
        temperature: of sampling, 0 or more; 0 takes the likeliest command.
        search_options: of the searches that plan, see
            :class:`~algorithms.common.acting.planning.options.SearchOptions`.
        device: torch device; ``"auto"`` takes a GPU where one is found.
        base: folder or hub id of the base model of a zip, if that was moved.
        policy_kwargs: see :func:`load_policy`.

    Raises:
        FileNotFoundError: a zip or its base model is missing.
        ValueError: the search is unknown, it needs a process reward model that is not there, or it cannot ask a server or a
            player without a language model.
    """
    if is_player(model):
        return make_player(model, venv, search=search, prm=prm, base=base, **policy_kwargs)
    model = saved_model(model)
    prm = None if prm is None else saved_model(prm)
    if search not in SEARCHES:
        raise ValueError(f"unknown search {search!r}: choose from {', '.join(SEARCHES)}")
    if is_server(model) and search in ("prm-greedy", "look-ahead"):
        raise ValueError(f"{search!r} asks a process reward model alone: name its zip in place of {model!r}")
    if is_server(model) and search == "best-of-n" and prm is None:
        raise ValueError(f"{model!r} has no process reward model to choose with: set prm (--prm) to a zip that has one")
    options = SearchOptions.of(search, search_options)
    if is_server(model) and search in PLANNERS and search != "vote-similar":
        raise ValueError(
            f"{search!r} reads a local policy's tokens, which {model!r} does not give: name a zip or a model"
        )
    policy = load_policy(model, venv, device, base=base, **policy_kwargs)
    actor = policy.actor(venv.num_envs, temperature=temperature)
    if search in PLANNERS:
        asks = needs_prm(search, options)
        judge = load_prm(prm or model, policy.lm) if asks and isinstance(policy, LLMPolicy) else None
        return make_planner(search, actor, judge, venv.num_envs, n=n, depth=depth, options=options)
    if search == "none":
        return actor
    if search == "vote":
        return VoteActor(actor, n)
    weight = chosen_policy_weight(policy_weight, model)
    if isinstance(policy, ServerPolicy):
        assert prm is not None
        return BestOfNActor(actor, load_prm(prm), venv.num_envs, n, policy_weight=weight)
    judge = load_prm(prm or model, policy.lm)
    if search == "prm-greedy":
        return PRMGreedyActor(judge, venv.num_envs, policy.cache_tokens)
    if search == "look-ahead":
        return LookAheadActor(judge, venv.num_envs, depth=depth, breadth=n, cache_tokens=policy.cache_tokens)
    return BestOfNActor(actor, judge, venv.num_envs, n, policy.cache_tokens, weight)
