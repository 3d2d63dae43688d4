"""verl-agent's ALFWorld on this package's engine: the same interface, prompts and rewards, in one process and without Ray.

In verl-agent, import ``build_alfworld_envs`` from here in place of its own; its environment manager, projection and
configuration stay. :class:`AlfworldManager` is that manager for trainers without verl-agent. Nothing here imports verl-agent.

The two prompts are verl-agent's (Copyright 2025 Nanyang Technological University and the verl-agent team, Apache License 2.0),
so that models that were trained there read what they know. The spelling "observaitons" is part of them; some of its
descendants correct it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.observations import split_commands

#: What a model reads at the first turn, and where no history is shown.
FIRST_PROMPT = """
You are an expert agent operating in the ALFRED Embodied Environment.
Your current observation is: {current_observation}
Your admissible actions of the current situation are: [{admissible_actions}].

Now it's your turn to take an action.
You should first reason step-by-step about the current situation. This reasoning process MUST be enclosed within <think> </think> tags. 
Once you've finished your reasoning, you should choose an admissible action for current step and present it within <action> </action> tags.
"""  # noqa: E501
#: What it reads at later turns.
LATER_PROMPT = """
You are an expert agent operating in the ALFRED Embodied Environment. Your task is to: {task_description}
Prior to this step, you have already taken {step_count} step(s). Below are the most recent {history_length} observaitons and the corresponding actions you took: {action_history}
You are now at step {current_step} and your current observation is: {current_observation}
Your admissible actions of the current situation are: [{admissible_actions}].

Now it's your turn to take an action.
You should first reason step-by-step about the current situation. This reasoning process MUST be enclosed within <think> </think> tags. 
Once you've finished your reasoning, you should choose an admissible action for current step and present it within <action> </action> tags.
"""  # noqa: E501

#: The splits by the names that verl-agent has for them.
_SPLITS = {"eval_in_distribution": "valid_seen", "eval_out_of_distribution": "valid_unseen"}
_WIN = 10.0
_TASK = "Your task is to: "
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_TAIL = 30  # characters of an answer without tags that the game gets


class AlfworldEnvs:
    """Many environments, stepped together, as verl-agent's class of this name. A group of ``group_n`` plays the same games.

    An environment whose episode has ended stays there until the next reset: its text is repeated, it pays nothing.
    """

    multi_modal = False

    def __init__(
        self,
        seed: int,
        env_num: int,
        group_n: int = 1,
        is_train: bool = True,
        env_kwargs: Mapping[str, Any] | None = None,
        max_steps: int = 50,
    ) -> None:
        """Make environments.

        Args:
            seed: of the first group; the next one has ``seed + 1``.
            env_num: how many groups.
            group_n: how many environments a group has.
            is_train: whether the games are those of ``train``.
            env_kwargs: ``eval_dataset`` (``"eval_in_distribution"`` or ``"eval_out_of_distribution"``), which counts where
                ``is_train`` is False; the rest is for ``ALFWorldPRM-v0``, for example ``games`` and ``reward``.
            max_steps: turns of an episode.

        Raises:
            ValueError: a number is not positive, the data set is unknown, or the environment refuses its arguments.
            FileNotFoundError: games or a reward's file were not found.
        """
        if env_num < 1 or group_n < 1:
            raise ValueError(f"expected env_num and group_n of 1 or more, got {env_num} and {group_n}")
        kwargs = {"reward": "outcome", **dict(env_kwargs or {})}
        dataset = kwargs.pop("eval_dataset", "eval_in_distribution")
        if dataset not in _SPLITS:
            raise ValueError(f"unknown eval_dataset {dataset!r}: choose from {', '.join(_SPLITS)}")
        kwargs["split"] = "train" if is_train else _SPLITS[dataset]
        self.env_num, self.group_n, self.num_processes = env_num, group_n, env_num * group_n
        self._envs = [
            gym.make("ALFWorldPRM-v0", max_episode_steps=max_steps, disable_env_checker=True, **kwargs)
            for _ in range(self.num_processes)
        ]
        self._seeds: list[int] | None = [seed + i // group_n for i in range(self.num_processes)]
        self._commands: list[list[str]] = [[] for _ in self._envs]
        self._last: list[tuple[str, dict[str, Any]]] = []
        self._ended = [True] * self.num_processes

    def reset(self) -> tuple[list[str], None, list[dict[str, Any]]]:
        """Start an episode in each environment; each group's games come from its own shuffle.

        Returns:
            Texts, None in place of images, and infos with ``won``, ``admissible_commands`` and ``extra.gamefile``.
        """
        self._last = []
        for i, env in enumerate(self._envs):
            observation, info = env.reset(seed=None if self._seeds is None else self._seeds[i])
            self._last.append(self._told(i, observation, info))
        self._seeds, self._ended = None, [False] * self.num_processes
        return [text for text, _ in self._last], None, [dict(info) for _, info in self._last]

    def step(self, actions: Sequence[str]) -> tuple[list[str], None, list[float], list[bool], list[dict[str, Any]]]:
        """Play a command in each environment.

        Args:
            actions: one for each environment.

        Returns:
            Texts, None in place of images, rewards (10 for a win, and the process reward where there is one), whether the
            episodes have ended (won, or out of turns), and infos.

        Raises:
            ValueError: there is not one action for each environment.
        """
        if len(actions) != self.num_processes:
            raise ValueError(f"expected {self.num_processes} actions, got {len(actions)}")
        rewards = [0.0] * self.num_processes
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            if self._ended[i]:
                continue
            observation, _, terminated, truncated, info = env.step(action)
            rewards[i] = _WIN * float(info["won"]) + float(info["reward/prm"])
            self._last[i], self._ended[i] = self._told(i, observation, info), terminated or truncated
        texts, infos = [text for text, _ in self._last], [dict(info) for _, info in self._last]
        return texts, None, rewards, list(self._ended), infos

    def _told(self, i: int, observation: Mapping[str, str], info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        text = observation["feedback"]
        self._commands[i] = list(split_commands(observation["admissible_commands"]))
        # A game without a file is named by its id, so that the results of each task type can be told apart.
        file = info.get("extra.gamefile", info["game_id"])
        more = {"admissible_commands": self._commands[i], "observation_text": text, "extra.gamefile": file}
        return text, {**info, **more}

    @property
    def get_admissible_commands(self) -> list[list[str]]:
        """What is possible now in each environment; verl-agent has a property of this name."""
        return self._commands

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()


def build_alfworld_envs(
    alf_config_path: str | None,
    seed: int,
    env_num: int,
    group_n: int,
    resources_per_worker: Mapping[str, Any] | None = None,
    is_train: bool = True,
    env_kwargs: Mapping[str, Any] | None = None,
) -> AlfworldEnvs:
    """Make environments with the arguments of verl-agent's function of this name.

    Args:
        alf_config_path: not used: the games are found by ``ALFWORLD_DATA``, or named by ``env_kwargs={"games": ...}``.
        seed: of the first group.
        env_num: how many groups.
        group_n: how many environments a group has; they play the same games.
        resources_per_worker: not used: there are no workers.
        is_train: whether the games are those of ``train``.
        env_kwargs: see :class:`AlfworldEnvs`.

    Raises:
        ValueError: as :class:`AlfworldEnvs`.
        FileNotFoundError: as :class:`AlfworldEnvs`.
    """
    return AlfworldEnvs(seed, env_num, group_n, is_train, env_kwargs)


def alfworld_projection(
    actions: Sequence[str], action_pools: Sequence[Sequence[str]] | None = None
) -> tuple[list[str], list[int]]:
    """Read commands out of answers by verl-agent's rule.

    Args:
        actions: the answers.
        action_pools: not used, as in verl-agent: an answer may be valid and its command not admissible.

    Returns:
        The commands in lower case: what stands within ``<action> </action>``, else the end of the answer. For each 1 where
        the answer is well-formed (both pairs of tags, no Chinese), else 0.

    Example:
        >>> alfworld_projection(["<think>a mug?</think> <action>Look</action>", "look"])
        (['look', 'look'], [1, 0])
    """
    commands, valid = [], []
    for answer in actions:
        text = answer.lower()
        start, end = text.find("<action>"), text.find("</action>")
        tagged = start >= 0 and end >= 0
        commands.append(text[start + len("<action>") : end].strip() if tagged else text[-_TAIL:])
        thought = "<think>" in answer and "</think>" in answer
        valid.append(int(tagged and thought and not _CHINESE.search(answer)))
    return commands, valid


class AlfworldManager:
    """verl-agent's environment manager: texts that a model reads, answers that it gave, rewards and what is valid.

    Example:
        >>> manager = AlfworldManager(AlfworldEnvs(0, env_num=2, env_kwargs={"games": "generated"}))
        >>> observations, infos = manager.reset()
        >>> answers = ["<think>where am I?</think><action>look</action>", "dance"]
        >>> observations, rewards, dones, infos = manager.step(answers)
        >>> [int(info["is_action_valid"]) for info in infos]
        [1, 0]
    """

    def __init__(self, envs: AlfworldEnvs, history_length: int = 2, invalid_action_penalty: float = 0.0) -> None:
        """Make a manager.

        Args:
            envs: the environments.
            history_length: how many of the last turns a prompt shows, 0 or more.
            invalid_action_penalty: taken off the reward where an answer is not well-formed. verl-agent's trainer does this
                itself (0.1), so there it stays 0.

        Raises:
            ValueError: ``history_length`` is negative.
        """
        if history_length < 0:
            raise ValueError(f"history_length must be 0 or more, got {history_length}")
        self.envs, self.history_length, self.penalty = envs, history_length, invalid_action_penalty
        self._history: list[list[tuple[str, str]]] = []
        self._tasks: list[str] = []
        self._texts: list[str] = []

    def reset(self, kwargs: Any = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Start an episode in each environment.

        Args:
            kwargs: not used; verl-agent passes it.

        Returns:
            ``text`` (prompts), ``image`` (None) and ``anchor`` (what the games said, for groups of steps); and infos.
        """
        self._texts, _, infos = self.envs.reset()
        self._tasks = [text.partition(_TASK)[2].strip() for text in self._texts]
        self._history = [[] for _ in self._texts]
        return self._observations(), infos

    def step(
        self, text_actions: Sequence[str]
    ) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_], list[dict[str, Any]]]:
        """Play an answer in each environment.

        Args:
            text_actions: whole answers.

        Returns:
            Observations as those of :meth:`reset`, rewards ``(n,)``, whether the episodes have ended ``(n,)``, and infos with
            ``is_action_valid``.
        """
        commands, valid = alfworld_projection(text_actions, self.envs.get_admissible_commands)
        for history, text, command in zip(self._history, self._texts, commands, strict=True):
            history.append((text, command))
        self._texts, _, rewards, dones, infos = self.envs.step(commands)
        for info, well_formed in zip(infos, valid, strict=True):
            info["is_action_valid"] = np.array(well_formed)
        paid = np.array(rewards) - self.penalty * (1 - np.array(valid))
        return self._observations(), paid, np.array(dones), infos

    def _observations(self) -> dict[str, Any]:
        prompts = [self._prompt(i) for i in range(len(self._texts))]
        return {"text": prompts, "image": None, "anchor": list(self._texts)}

    def _prompt(self, i: int) -> str:
        actions = "\n ".join(f"'{command}'" for command in self.envs.get_admissible_commands[i] if command != "help")
        history, text = self._history[i], self._texts[i]
        if not history or not self.history_length:
            return FIRST_PROMPT.format(current_observation=text, admissible_actions=actions)
        first = max(len(history) - self.history_length, 0)
        shown = [
            f"[Observation {t + 1}: '{said}', Action {t + 1}: '{command}']"
            for t, (said, command) in enumerate(history)
            if t >= first
        ]
        return LATER_PROMPT.format(
            task_description=self._tasks[i],
            step_count=len(history),
            history_length=len(shown),
            action_history="\n".join(shown),
            current_step=len(history) + 1,
            current_observation=text,
            admissible_actions=actions,
        )
