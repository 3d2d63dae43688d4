"""Observations as one text, for trainers that take a prompt; a prompt template writes it out of the three texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agentprm_gym.envs.base import Observation
from agentprm_gym.envs.vector import Observations
from agentprm_gym.llm.text_prompts import TextPrompt
from agentprm_gym.observations import KEYS, split_commands
from agentprm_gym.spaces import UnicodeText

#: The greatest length of a text, in characters: more than a prompt template may write.
MAX_TEXT = 400_000


class ObservationText:
    r"""Writes an observation as one text.

    Example:
        >>> writer = ObservationText("compact")
        >>> writer({"task": "find a mug.", "feedback": "You see nothing.", "admissible_commands": "look"}, first=True)
        'You see nothing.\nTask: find a mug.\n>'
    """

    def __init__(self, template: str = "full", *, always_first: bool = False) -> None:
        """Read the template.

        Args:
            template: ``"compact"``, ``"full"``, ``"react"``, the path of a ``.jinja`` file, or a template's text; see
                :mod:`agentprm_gym.llm.text_prompts`.
            always_first: whether every text is written as if it were the first of its episode, with the instructions.

        Raises:
            ValueError: the template is unknown or broken.
            FileNotFoundError: there is no such file.
        """
        self.template, self.always_first = template, always_first
        self._prompt = TextPrompt(template)

    def __call__(self, observation: Mapping[str, Any], first: bool) -> str:
        """Write an observation.

        Args:
            observation: the three texts.
            first: whether it is the first of its episode, where templates put their instructions.
        """
        commands = split_commands(str(observation["admissible_commands"]))
        task, feedback = str(observation["task"]), str(observation["feedback"])
        return self._prompt.prompt(task, feedback, commands, first or self.always_first)


class TextObservationWrapper(gym.Wrapper[str, str, Observation, str], RecordConstructorArgs):
    r"""Give each observation as one text, which a prompt template writes.

    Trainers that keep a conversation append one text after the other: the first one of an episode holds the instructions.
    Trainers that show the model one observation at a time want the instructions each time: ``always_first=True``. Process
    rewards read the three texts, so they go inside: ``TextObservationWrapper(ProcessRewardWrapper(env, ...))``.

    Example:
        >>> import agentprm_gym
        >>> env = TextObservationWrapper(gym.make("ALFWorld-v0", games="generated"), "compact")
        >>> text, info = env.reset(seed=0, options={"game": 0})
        >>> text.endswith("Task: put a box in armchair.\n>")
        True
        >>> env.step("inventory")[0]
        'You are not carrying anything.\nTask: put a box in armchair.\n>'
    """

    def __init__(self, env: gym.Env[Observation, str], template: str = "full", always_first: bool = False) -> None:
        """Wrap an environment.

        Args:
            env: a text game environment, wrapped or not.
            template: ``"compact"``, ``"full"``, ``"react"``, the path of a ``.jinja`` file, or a template's text.
            always_first: whether every text is written as if it were the first of its episode, with the instructions.

        Raises:
            ValueError: the template is unknown or broken.
            FileNotFoundError: there is no such file.
            TypeError: ``env`` is a vector environment, or its observations are not the three texts.
        """
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"expected a gymnasium.Env, got {type(env).__name__}: use VectorTextObservation for a VectorEnv of Gymnasium"
            )
        RecordConstructorArgs.__init__(self, template=template, always_first=always_first)
        # Gymnasium annotates the environment inside with the types outside.
        super().__init__(env)  # type: ignore[arg-type]
        _check_texts(env.observation_space, env.unwrapped)
        self.observation_space = UnicodeText(MAX_TEXT)
        self.write = ObservationText(template, always_first=always_first)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; arguments as for the environment.

        Args:
            seed: the environment's seed.
            options: the environment's options.
        """
        inside: Any = self.env
        observation, info = inside.reset(seed=seed, options=options)
        return self.write(observation, first=True), info

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """Step the environment.

        Args:
            action: a command or a whole response.
        """
        inside: Any = self.env
        observation, reward, terminated, truncated, info = inside.step(action)
        return self.write(observation, first=False), reward, terminated, truncated, info


class VectorTextObservation(VectorWrapper[tuple[str, ...], Sequence[str], Observations, Sequence[str], NDArray[Any]]):
    r"""Give the observations of text game environments as one text each: :class:`TextObservationWrapper` for a vector.

    It takes all three autoreset modes; with ``"SameStep"`` the texts in ``infos["final_obs"]`` are written, too.

    Example:
        >>> import agentprm_gym
        >>> envs = VectorTextObservation(gym.make_vec("ALFWorld-v0", num_envs=2, games="generated"), "compact")
        >>> texts, infos = envs.reset(seed=0, options={"game": 0})
        >>> envs.step(["inventory", "dance"])[0][1]
        'Nothing happens.\nTask: put a box in armchair.\n>'
    """

    def __init__(
        self,
        env: VectorEnv[Observations, Sequence[str], NDArray[Any]],
        template: str = "full",
        always_first: bool = False,
    ) -> None:
        """Wrap environments.

        Args:
            env: vectorised text game environments.
            template: as for :class:`TextObservationWrapper`.
            always_first: as for :class:`TextObservationWrapper`.

        Raises:
            ValueError: the template is unknown or broken.
            FileNotFoundError: there is no such file.
            TypeError: ``env`` is no vector environment of Gymnasium, or its observations are not the three texts.
        """
        if not isinstance(env, VectorEnv):
            raise TypeError(
                f"expected a VectorEnv of Gymnasium, got {type(env).__name__}: use TextObservationWrapper for one environment"
            )
        super().__init__(env)
        _check_texts(getattr(env, "single_observation_space", None) or env.observation_space, env)
        self.write = ObservationText(template, always_first=always_first)
        self.single_observation_space = UnicodeText(MAX_TEXT)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._texts: tuple[str, ...] = ()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``; arguments as for the environments.

        Args:
            seed: the environments' seeds.
            options: the environments' options.
        """
        mask = None if options is None else options.get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # a list of seeds is fine
        first = np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.asarray(mask)
        # An environment that goes on shows what it showed before.
        written = self._write(observations, first)
        self._texts = tuple(
            new if begins or not self._texts else self._texts[i]
            for i, (new, begins) in enumerate(zip(written, first.tolist(), strict=True))
        )
        self._ended &= ~first
        return self._texts, infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step all environments.

        Args:
            actions: one for each environment, a command or a whole response.

        Raises:
            ResetNeeded: ``reset`` was not called yet.
        """
        if not self._texts:
            raise ResetNeeded("no episode is running: call reset() first")
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.logical_or(terminations, truncations)
        first = {AutoresetMode.NEXT_STEP: self._ended, AutoresetMode.SAME_STEP: ended}.get(
            self._mode, np.zeros(self.num_envs, dtype=np.bool_)
        )
        if "final_obs" in infos:
            final = np.empty(self.num_envs, dtype=object)
            for i in np.flatnonzero(ended).tolist():
                final[i] = self.write(infos["final_obs"][i], first=False)
            infos = {**infos, "final_obs": final}
        self._texts, self._ended = self._write(observations, first), ended
        return self._texts, rewards, terminations, truncations, infos

    def _write(self, observations: Mapping[str, Sequence[str]], first: NDArray[np.bool_]) -> tuple[str, ...]:
        rows = zip(*(observations[key] for key in KEYS), first.tolist(), strict=True)
        return tuple(self.write(dict(zip(KEYS, row, strict=True)), begins) for *row, begins in rows)


def _check_texts(space: spaces.Space[Any], what: object) -> None:
    known = sorted(space.spaces) if isinstance(space, spaces.Dict) else []
    missing = [key for key in KEYS if key not in known]
    if missing:
        raise TypeError(
            f"{what} has no {missing} in its observations: expected a text game environment whose observations are a "
            f"gymnasium.spaces.Dict with the keys {list(KEYS)}, for example gym.make('ALFWorld-v0')"
        )
