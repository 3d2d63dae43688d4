"""Adding a process reward to an environment's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from agentprm_gym.envs.base import Observation, Step
from agentprm_gym.rewards import ProcessReward, ScoredTurn, checked, make_reward


class ProcessRewardWrapper(
    gym.Wrapper[Observation, str, Observation, str],
    RecordConstructorArgs,
):
    """Add a process reward to the reward of a text game environment.

    Each step leaves both parts in ``info``: ``"reward/env"`` (the environment's own) and
    ``"reward/prm"`` (what was added). The wrapper keeps nothing between steps: the transcript and
    the progress are asked from the environment, so ``snapshot()`` and ``restore()`` work through
    it.

    Args:
        env: An environment of this package, wrapped or not.
        reward: A registered name, or ``"prm:<path>"``. A name and not an object, so that
            ``env.spec`` can be written down and a model is not copied.
        reward_kwargs: Passed on to the process reward.

    Raises:
        ValueError: The reward is unknown, or ``env`` has a process reward already.
        TypeError: ``env`` keeps no transcript.
    """

    def __init__(
        self,
        env: gym.Env[Observation, str],
        reward: str = "progress",
        reward_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        kwargs = dict(reward_kwargs or {})
        RecordConstructorArgs.__init__(self, reward=reward, reward_kwargs=kwargs)
        gym.Wrapper.__init__(self, env)
        if env.has_wrapper_attr("process_reward"):
            name = env.get_wrapper_attr("process_reward").name
            raise ValueError(
                f"{env} has the process reward {name!r} already; a second one would count the "
                "first as the environment's own. Wrap ALFWorld-v0 instead."
            )
        needed = [name for name in ("turns", "subgoals") if not env.has_wrapper_attr(name)]
        if needed:
            raise TypeError(
                f"{env.unwrapped} has no {' and no '.join(map(repr, needed))}: a process reward "
                "needs a text game environment, for example gym.make('ALFWorld-v0')"
            )
        self.process_reward: ProcessReward = make_reward(reward, **kwargs)

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step and add the process reward.

        Raises:
            ValueError: The process reward returned a wrong shape or a value that is not finite.
        """
        before = [progress(self.env)] if self.process_reward.privileged else None
        observation, reward, terminated, truncated, info = self.env.step(action)
        step = observation, float(reward), terminated, truncated, info
        return add_process_reward(self.process_reward, [self.env], [step], before)[0]


def progress(env: gym.Env[Any, Any]) -> float:
    """Return the share of the task's subgoals that are done in the current state, 0 to 1."""
    done, total = env.get_wrapper_attr("subgoals")()
    return float(done / total)


def add_process_reward(
    process_reward: ProcessReward,
    envs: Sequence[gym.Env[Any, Any]],
    steps: Sequence[Step],
    progress_before: Sequence[float] | None,
) -> list[Step]:
    """Score the turns that some environments just made, in one batch.

    Args:
        process_reward: What to score with.
        envs: The environments, after their steps.
        steps: What the steps returned.
        progress_before: :func:`progress` before each step, or None where it is not needed.

    Returns:
        The steps with the sum of both rewards, and with the two parts in ``info``.

    Raises:
        ValueError: The process reward returned a wrong shape or a value that is not finite.
    """
    batch = [
        ScoredTurn(
            task=observation["task"],
            turns=env.get_wrapper_attr("turns"),
            terminated=terminated,
            feedback=observation["feedback"],
            admissible_commands=tuple(observation["admissible_commands"].split("\n")),
            progress=None if progress_before is None else (progress_before[i], progress(env)),
        )
        for i, (env, (observation, _, terminated, _, _)) in enumerate(zip(envs, steps, strict=True))
    ]
    scores = checked(process_reward.score(batch), len(batch), process_reward.name).tolist()
    return [
        (observation, reward + score, terminated, truncated, {**info, "reward/env": reward, "reward/prm": score})
        for (observation, reward, terminated, truncated, info), score in zip(steps, scores, strict=True)
    ]
