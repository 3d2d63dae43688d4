"""Environments that the options ask for: ALFWorld's or the user's own, with a process reward where one is wanted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithms.cli import arguments
from algorithms.common.shell.folders import saved_model
from algorithms.registry import import_module, import_object

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from algorithms.common.measure.eval_callback import GamesEvalCallback

#: How the names of rewards begin that hold a colon and are not classes.
_REWARD_KINDS = ("prm", "reference", "implicit", "judge")


def import_modules(args: argparse.Namespace) -> None:
    """Import the modules of ``--import``, and let modules of the current folder be found.

    Raises:
        ValueError: a module is not found.
    """
    # At the end: a file of the user's must not take the place of a package that is installed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in args.modules:
        import_module(module, f"--import {module}")


def reward_name(given: str) -> str:
    """The name under which :func:`make_reward` makes the process reward of ``--reward``.

    Args:
        given: a name that :func:`make_reward` takes, also with the folder of a run, or ``package.module:Class``, which is
            registered here.

    Raises:
        ValueError: the class is not found, or the folder holds several models.
    """
    kind, colon, where = given.partition(":")
    if not colon or kind in _REWARD_KINDS:
        # A run's folder stands for its model; other names stay as they are.
        return f"{kind}:{saved_model(where)}" if colon else given
    from agentprm_gym.rewards import register_reward

    factory = import_object(given, "--reward")
    name = given.replace(":", ".")
    register_reward(name, factory)
    return name


def make_env(args: argparse.Namespace, env_id: str | None = None, **kwargs: Any) -> VecEnv:
    """The environments of ``--env``, side by side.

    Args:
        args: the options.
        env_id: another id.
        kwargs: more arguments of the environment.

    Raises:
        ValueError: the id is unknown, or the arguments do not fit it.
    """
    import gymnasium as gym

    from algorithms.common.measure.evaluation import make_eval_env

    env_id = env_id or getattr(args, "env", None) or "ALFWorld-v0"
    kwargs = arguments.env_kwargs(args, **kwargs)
    try:
        return make_eval_env(env_id, n_envs=args.n_envs, **kwargs)
    except gym.error.Error as error:
        raise ValueError(
            f"--env {env_id}: {error}. An environment of your own: --import the module that registers it"
        ) from error
    except TypeError as error:
        raise ValueError(f"--env {env_id} does not take the arguments {kwargs}: {error}") from error


def task_types(venv: VecEnv, n: int) -> list[str]:
    """Task type of each game, which its id begins with; empty where games do not have ids."""
    games = venv.get_attr("games", indices=[0])[0] if venv.has_attr("games") else None
    ids: Sequence[str] = getattr(games, "game_ids", None) or [""] * n
    return [game_id.split("-", 1)[0] for game_id in ids]


def drawn_games(venv: VecEnv, n: int, seed: int) -> list[int]:
    """Some of the games that environments list, spread over the task types; all where there are not more."""
    from algorithms.common.measure.evaluation import draw_games

    there = int(venv.get_attr("n_games", indices=[0])[0])
    return draw_games(task_types(venv, there), n, seed)


def make_training_env(args: argparse.Namespace) -> VecEnv:
    """The environments to train in, with the process reward of ``--reward``.

    Raises:
        ValueError: as :func:`make_env`; or the reward is unknown, or asks for what the environment cannot tell.
    """
    from agentprm_gym.rewards import make_reward, needs_of

    if args.reward is None:
        return make_env(args)
    kwargs = args.reward_kwargs or {}
    name = reward_name(args.reward)
    reward = make_reward(name, **kwargs)
    if not needs_of(reward):
        from agentprm_gym.wrappers.sb3 import VecProcessReward

        return VecProcessReward(make_env(args), reward)
    # What only each game's own environment can tell.
    if args.env is None:
        return make_env(args, "ALFWorldPRM-v0", reward=name, reward_kwargs=kwargs)
    return _wrapped(args, name, kwargs)


def make_eval_callback(args: argparse.Namespace, folder: Path) -> GamesEvalCallback:
    """What plays held-out games while an algorithm learns; close its ``eval_env`` afterwards.

    Args:
        args: the options, with ``eval_every`` and its like.
        folder: where the best policy and the evaluations are written.

    Raises:
        FileNotFoundError: the split has no games.
        ValueError: the environment lists its games, and they are those that are trained on.
    """
    from algorithms.common.measure.eval_callback import GamesEvalCallback
    from algorithms.common.measure.evaluation import lists_games
    from algorithms.common.shell.base import N_SEEDS

    if arguments.is_alfworld(args):
        venv = make_env(argparse.Namespace(**{**vars(args), "split": args.eval_split}))
        games: Sequence[int] = drawn_games(venv, args.eval_games, 0)
    else:
        venv = make_env(args)
        if lists_games(venv):
            venv.close()
            raise ValueError(
                f"--eval-every: --env {args.env} lists its games, and all of them are trained on: in Python, give other games "
                "to algorithms.GamesEvalCallback"
            )
        games = range(N_SEEDS, N_SEEDS + args.eval_games)
    return GamesEvalCallback(venv, games=games, every=args.eval_every, folder=folder)


def _wrapped(args: argparse.Namespace, reward: str, reward_kwargs: dict[str, Any]) -> VecEnv:
    """Environments of the user's own, each with a privileged process reward around it."""
    import gymnasium as gym
    from stable_baselines3.common.env_util import make_vec_env

    from agentprm_gym.wrappers import ProcessRewardWrapper

    make_env(
        argparse.Namespace(**{**vars(args), "n_envs": 1})
    ).close()  # says what is wrong with the id or its arguments
    make = partial(gym.make, args.env, **arguments.env_kwargs(args))
    return make_vec_env(lambda: ProcessRewardWrapper(make(), reward, reward_kwargs), n_envs=args.n_envs)
