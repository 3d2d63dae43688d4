"""``TextWorldPRM-v0``: TextWorld's games with a process reward built in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode

from agentprm_gym.envs.base import Step
from agentprm_gym.envs.textworld import TextWorldEnv
from agentprm_gym.envs.vector import TextVectorEnv
from agentprm_gym.rewards import ProcessReward, make_reward
from agentprm_gym.wrappers.process_reward import check_facts, step_all


class TextWorldPRMEnv(TextWorldEnv):
    """:class:`TextWorldEnv` whose reward has a process reward added, as in ALFWorldPRM-v0.

    ``info["reward/env"]`` and ``info["reward/prm"]`` hold the two parts; ``"progress"`` is about the
    share of the game's score.

    Args:
        game: As in TextWorld-v0.
        on_bad_game: As in TextWorld-v0.
        reward: As in ALFWorldPRM-v0.
        reward_kwargs: Passed on to the process reward.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        FileNotFoundError: As in TextWorld-v0, or there is no PRM at the path.
        ValueError: As in TextWorld-v0, or the reward is unknown.
        TypeError: The reward needs a planner, which only the household games have.
    """

    def __init__(
        self,
        game: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        on_bad_game: str = "raise",
        reward: str = "progress",
        reward_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.process_reward: ProcessReward = make_reward(reward, **dict(reward_kwargs or {}))
        check_facts(self, self.process_reward)
        super().__init__(game, on_bad_game, render_mode)

    def step(self, action: str) -> Step:
        """Step as TextWorld-v0 does and add the process reward.

        Raises:
            ValueError: The process reward returned a wrong shape or a value that is not finite.
            TypeError: ``action`` is no string.
            ResetNeeded: There is no running episode.
        """
        return step_all([self], [action], TextWorldEnv.step)[0]


class TextWorldPRMVectorEnv(TextVectorEnv):
    """``TextWorldPRM-v0`` as a vector environment: one call of the process reward a step scores all.

    See :class:`TextVectorEnv` and :class:`TextWorldPRMEnv`. The environments share one process reward.
    """

    env_class = TextWorldPRMEnv
    envs: Sequence[TextWorldPRMEnv] = ()

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_envs, max_episode_steps, autoreset_mode, **kwargs)
        for env in self.envs:
            env.process_reward = self.envs[0].process_reward

    def _play(self, indices: Sequence[int], actions: Sequence[str]) -> Sequence[Step]:
        return step_all([self.envs[i] for i in indices], [actions[i] for i in indices], TextWorldEnv.step)
