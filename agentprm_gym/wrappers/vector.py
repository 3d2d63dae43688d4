"""A process reward for all environments of a Gymnasium ``VectorEnv``, in one batch a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv, VectorRewardWrapper, VectorWrapper
from gymnasium.wrappers.vector import NormalizeReward
from numpy.typing import NDArray

from agentprm_gym.envs.base import EnvState, Observation
from agentprm_gym.envs.vector import Observations
from agentprm_gym.envs.workers import watched
from agentprm_gym.rewards import FACTS, RewardLike, make_reward, name_of, needs_of, score_infos
from agentprm_gym.wrappers.turns import (
    TurnRecorder,
    check_observations,
    pairs,
    second_reward,
    share,
    unknown_fact,
)

_Steps = tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class VectorProcessReward(VectorWrapper[Observations, Sequence[str], Observations, Sequence[str], NDArray[Any]]):
    """Add a process reward to the rewards of text game environments, one call for all of them.

    What :class:`ProcessRewardWrapper` does for one environment, with one forward pass a step. Around the vector of
    ``ALFWorld-v0`` it gives what ``gym.make_vec("ALFWorldPRM-v0")`` gives. It takes what ``gym.make_vec`` makes of this
    package's ids, and ``SyncVectorEnv`` and ``AsyncVectorEnv`` around any environments with the three texts as observations, in
    all three autoreset modes. A step in which an environment only resets itself is not a turn: it is not scored, and its reward
    stays what it is.

    ``info["reward/env"]`` and ``info["reward/prm"]`` hold the two parts, and ``info["reward/parts"]`` those of a sum. With
    ``"SameStep"``, those of a turn that ended an episode are in ``info["final_info"]``, where everything about that turn is.

    Example:
        >>> import gymnasium as gym, agentprm_gym
        >>> envs = VectorProcessReward(gym.make_vec("ALFWorld-v0", num_envs=2, games="generated"), "penalty")
        >>> observations, infos = envs.reset(seed=0)
        >>> observations, rewards, terminations, truncations, infos = envs.step(["inventory", "dance"])
        >>> rewards.tolist()
        [0.0, -0.1]
    """

    def __init__(
        self,
        env: VectorEnv[Observations, Sequence[str], NDArray[Any]],
        reward: RewardLike,
        reward_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap environments.

        Args:
            env: vectorised text game environments.
            reward: what ``make_reward`` takes: a name, an object with a method ``score``, a class, a function.
            reward_kwargs: passed on to the process reward.

        Raises:
            ValueError: the reward is unknown, the environments have one already, a wrapper inside changes their reward, or the
                reward is privileged and the environments reset themselves in the same step (use ``ALFWorldPRM-v0`` for those:
                the true state is gone by then).
            TypeError: ``env`` is not a ``VectorEnv`` of Gymnasium, its observations are not the three texts, or it does not
                know what the reward needs.
        """
        if not isinstance(env, VectorEnv):
            other = "ProcessRewardWrapper" if isinstance(env, gym.Env) else "agentprm_gym.wrappers.sb3.VecProcessReward"
            raise TypeError(
                f"expected a VectorEnv of Gymnasium, got {type(env).__name__}: use {other} for it if that is an environment"
            )
        super().__init__(env)
        _check_inside(env)
        check_observations(_single(env), env)
        self.process_reward = make_reward(reward, **dict(reward_kwargs or {}))
        self._needs = needs_of(self.process_reward)
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        if self._needs and self._mode is AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the process reward {name_of(self.process_reward)!r} reads the true state, which is gone when an environment "
                'has reset itself in the same step; use autoreset_mode="NextStep", or gym.make_vec("ALFWorldPRM-v0")'
            )
        for fact in sorted(self._needs):
            if not self._have(FACTS[fact]):
                raise TypeError(unknown_fact(self.process_reward, fact, env))
        self._keeps_turns = self._have("turns")
        self._begun = False
        self._recorders = [TurnRecorder() for _ in range(self.num_envs)]
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; arguments as for the environments.

        Args:
            seed: the environments' seeds.
            options: the environments' options.
        """
        mask = None if options is None else options.get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # a list of seeds is fine
        self._begin(observations, np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask)
        self._ended &= False if mask is None else ~mask
        self._begun = True
        return observations, infos

    def step(self, actions: Sequence[str]) -> _Steps:
        """Step all environments and add the process reward to those that did not only reset themselves.

        Args:
            actions: one for each environment, a command or a whole response.

        Raises:
            ValueError: an environment has a process reward already, or this one returned a wrong shape or a value that is
                not finite.
            ResetNeeded: ``reset`` was not called yet.
            WorkerError: a worker process of the environments ended.
        """
        if not self._begun:
            raise ResetNeeded("no episode is running: call reset() first")
        actions = list(actions)
        resetting = self._ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, dtype=np.bool_)
        with watched(self.env):
            before = self._facts()
            observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "reward/prm" in infos or "reward/prm" in infos.get("final_info", {}):
            raise ValueError(second_reward(self.env))
        after = self._facts()
        self._ended = np.logical_or(terminations, truncations)
        restarted = self._ended if self._mode is AutoresetMode.SAME_STEP else resetting
        played = np.flatnonzero(~resetting).tolist()
        batch = []
        for i in played:
            told = infos["final_info"] if restarted[i] else infos
            row = infos["final_obs"][i] if restarted[i] else _row(observations, i)
            own = {key: told[key][i] for key in ("reason", "command", "is_admissible") if key in told}
            known = pairs(before[i], after[i])
            batch.append(
                self._recorders[i].record(actions[i], float(rewards[i]), own, row, bool(terminations[i]), known)
            )
        added = score_infos(self.process_reward, batch, [float(rewards[i]) for i in played]) if batch else []
        rewards = np.array(rewards, dtype=np.float64)  # (num_envs,)
        for i, extra in zip(played, added, strict=True):
            rewards[i] += extra["reward/prm"]
            self._add_info(infos["final_info"] if restarted[i] else infos, extra, i)
        if restarted.any():
            self._begin(observations, restarted)
        return observations, rewards, terminations, truncations, infos

    def restore(self, i: int, state: EnvState) -> tuple[Observation, dict[str, Any]]:
        """Go to a point of an episode in one environment; see ``TextVectorEnv.restore``, which only that class has.

        Args:
            i: index of the environment.
            state: what ``snapshot`` returned.
        """
        observation, info = self.unwrapped.restore(i, state)  # type: ignore[attr-defined]
        self._recorders[i].begin(observation, state.turns)
        self._ended[i] = state.done
        return dict(observation), info

    def _begin(self, observations: Mapping[str, Sequence[str]], which: NDArray[np.bool_]) -> None:
        """Begin the episodes of the environments that were reset."""
        # An episode may begin in the middle (a restored point): ask what came before, where the environments know.
        turns = self._call("turns") if self._keeps_turns else ((),) * self.num_envs
        for i in np.flatnonzero(which).tolist():
            self._recorders[i].begin(_row(observations, i), turns[i])

    def _have(self, name: str) -> bool:
        return _have(self.env, name)

    def _facts(self) -> list[dict[str, float]]:
        out: list[dict[str, float]] = [{} for _ in range(self.num_envs)]
        for fact in sorted(self._needs):
            for row, told in zip(out, self._call(FACTS[fact]), strict=True):
                row[fact] = share(told) if fact == "progress" else float(told)
        return out

    def _call(self, name: str) -> tuple[Any, ...]:
        # Of the environments: vector wrappers do not pass a call on.
        return tuple(self.unwrapped.call(name))  # type: ignore[attr-defined]


def _row(observations: Mapping[str, Sequence[str]], i: int) -> Observation:
    return {key: str(texts[i]) for key, texts in observations.items()}


def _single(env: VectorEnv[Any, Any, Any]) -> spaces.Space[Any]:
    return getattr(env, "single_observation_space", None) or env.observation_space


def _have(env: VectorEnv[Any, Any, Any], name: str) -> bool:
    """Whether all environments, those in worker processes included, have an attribute."""
    call = getattr(env.unwrapped, "call", None)
    return call is not None and all(call("has_wrapper_attr", name))


def _check_inside(env: VectorEnv[Any, Any, Any]) -> None:
    """Refuse a second process reward, and wrappers that would have it count a changed reward as the environments' own."""
    inner: Any = env
    while isinstance(inner, VectorWrapper):
        if isinstance(inner, VectorProcessReward):
            raise ValueError(second_reward(env, inner.process_reward))
        if isinstance(inner, (VectorRewardWrapper, NormalizeReward)):
            name = type(inner).__name__
            raise ValueError(
                f"{name} changes the environments' reward, which would be taken for their own: put it outside, "
                f"{name}(VectorProcessReward(env, ...))"
            )
        inner = inner.env
    if _have(inner, "process_reward"):
        raise ValueError(second_reward(env))
