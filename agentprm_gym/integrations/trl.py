"""TRL's GRPO on the household games: as tools of an environment, or as rollouts that keep each turn's reward.

:class:`TextGame` is what ``GRPOTrainer(environment_factory=...)`` takes: a model with tool calls plays by its tool ``act``,
and the episode's reward is one number. :class:`TextGameRollouts` is what ``GRPOTrainer(rollout_func=...)`` takes: a model that
answers in text plays, and the rewards of its turns reach the reward functions. TRL's own loss takes one number for each
episode in both.

This module does not import TRL. Its rollouts call the trainer's ``_generate_single_turn`` (TRL 1.16), so that they sample with
transformers or vLLM as the trainer is set up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from agentprm_gym.integrations.household import make_env
from agentprm_gym.wrappers.text import ObservationText

_RULES = (
    "You play a text game about a household. Do the task by calling the tool act with one admissible command at a time, copied "
    'verbatim. "Nothing happens." means that a command was not understood.'
)


class TextGame:
    """An environment for ``GRPOTrainer(environment_factory=...)``: one tool, ``act``.

    The rows of the data set name the game, since the rollouts of a group must play the same one (:func:`game_rows`). The
    reward is the sum of the turns' rewards, with a process reward as well as without: TRL takes one number for each episode.

    Example:
        >>> game = TextGame(games="generated", reward="penalty")
        >>> game.reset(game=0).splitlines()[-1]
        'look'
        >>> game.act("dance").splitlines()[0]
        'Nothing happens.'
        >>> game.get_reward()
        -0.1
    """

    def __init__(self, **env_kwargs: Any) -> None:
        """Make an environment.

        Args:
            **env_kwargs: of ``ALFWorldPRM-v0``; by default without a process reward.

        Raises:
            ValueError: the environment refuses its arguments.
            FileNotFoundError: games or a reward's file were not found.
        """
        self._env = make_env(**env_kwargs)
        self._rewards: list[float] = []
        self._done = True

    def reset(self, game: int | str | None = None, **row: Any) -> str:
        """Start an episode.

        Args:
            game: index or id of the game.
            **row: the other columns of the data set's row, which are not used.

        Returns:
            The rules, the task and the first observation; TRL adds them to the row's prompt.

        Raises:
            ValueError: the row names no game, or an unknown one.
        """
        if game is None:
            raise ValueError(
                "the data set's rows need a column 'game', since the rollouts of a group must play the same game: "
                "datasets.Dataset.from_list(game_rows(64))"
            )
        observation, _ = self._env.reset(options={"game": game})
        self._rewards, self._done = [], False
        return f"{_RULES}\n\n{_told(observation)}"

    def act(self, command: str) -> str:
        """Give the game a command and read what happens.

        Args:
            command: One of the admissible commands, copied verbatim, for example "go to fridge 1".

        Returns:
            What happened, and the commands that are admissible now.
        """
        if self._done:
            raise ValueError("the game is over")
        observation, reward, terminated, truncated, info = self._env.step(command)
        self._rewards.append(float(reward))
        self._done = terminated or truncated
        if self._done:
            why = "the task is done" if info["won"] else "no turns are left"
            return f"{observation['feedback'].strip()}\n\nThe game is over: {why}."
        return _told(observation)

    def get_reward(self) -> float:
        """Return the sum of the turns' rewards so far."""
        return float(sum(self._rewards))


def environment_factory(**env_kwargs: Any) -> Callable[[], TextGame]:
    """Make what ``GRPOTrainer(environment_factory=...)`` takes.

    Args:
        **env_kwargs: of ``ALFWorldPRM-v0``; by default without a process reward.
    """
    return lambda: TextGame(**env_kwargs)


def game_rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    """Make rows of a data set for :class:`TextGame`: an empty prompt, which the game fills, and the index of a game.

    Args:
        n: how many games.
        first: the first one.
    """
    return [{"prompt": [{"role": "user", "content": ""}], "game": first + i} for i in range(n)]


def _told(observation: Mapping[str, str]) -> str:
    return f"{observation['feedback'].strip()}\n\nAdmissible commands:\n{observation['admissible_commands']}"


class TextGameRollouts:
    """Rollouts for ``GRPOTrainer(rollout_func=...)`` that keep each turn's reward.

    Prompts are the first texts of games, which :meth:`rows` makes. An episode is one sequence: what the model says, and
    between, masked, what the game says. Beside what TRL needs, reward functions get for each episode ``turn_rewards`` (as the
    environment paid them, with the process reward), ``turn_ends`` (for each the index of its answer's last token) and ``won``;
    :func:`summed_rewards` is a reward function of them. TRL's loss takes its one number; advantages of turns need a trainer of
    yours, whose ``_calculate_rewards`` finds these fields in its inputs.
    """

    __name__ = "text_game_rollouts"

    def __init__(
        self,
        template: str = "full",
        *,
        max_turn_tokens: int = 128,
        max_tokens: int = 4096,
        **env_kwargs: Any,
    ) -> None:
        """Make rollouts.

        Args:
            template: the prompt template of the texts, see :class:`agentprm_gym.wrappers.TextObservationWrapper`.
            max_turn_tokens: longest answer in tokens. With vLLM the trainer's ``max_completion_length`` is sampled and cut
                to this.
            max_tokens: an episode ends where its completion would be longer.
            **env_kwargs: of ``ALFWorldPRM-v0``; by default without a process reward.

        Raises:
            ValueError: the template is unknown, or the environment refuses its arguments.
            FileNotFoundError: games, a reward's file or a template's were not found.
        """
        self._write = ObservationText(template)
        self._kwargs = env_kwargs
        self._max_turn, self._max = max_turn_tokens, max_tokens
        self._envs = [make_env(**env_kwargs)]
        self._games: dict[str, int] = {}

    def rows(self, n: int, first: int = 0) -> list[dict[str, Any]]:
        """Make rows of a data set: the prompt is the first text of a game.

        Args:
            n: how many games.
            first: the first one.
        """
        out = []
        for game in range(first, first + n):
            observation, _ = self._envs[0].reset(options={"game": game})
            text = self._write(observation, first=True)
            self._games[text] = game
            out.append({"prompt": [{"role": "user", "content": text}]})
        return out

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Play an episode for each prompt, all side by side.

        Args:
            prompts: prompts that :meth:`rows` made.
            trainer: the ``GRPOTrainer``.

        Returns:
            ``prompt_ids``, ``completion_ids``, ``logprobs`` (None where the trainer samples with transformers), ``env_mask``
            (1 for the model's tokens), ``turn_rewards``, ``turn_ends`` and ``won``, for each prompt.

        Raises:
            ValueError: a prompt is not one of :meth:`rows`.
        """
        tokenizer = getattr(trainer, "_tokenizer", trainer.processing_class)
        while len(self._envs) < len(prompts):
            self._envs.append(make_env(**self._kwargs))
        episodes = []
        for prompt, env in zip(prompts, self._envs, strict=False):
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            if text not in self._games:
                raise ValueError("expected prompts that rows() of these rollouts made: pass them as the train_dataset")
            env.reset(options={"game": self._games[text]})
            episodes.append(_Episode(env, _ids(tokenizer, [{"role": "user", "content": text}])))
        while running := [one for one in episodes if not one.done]:
            answers, logprobs = self._sample(trainer, [[*one.prompt, *one.completion] for one in running])
            for i, (one, ids) in enumerate(zip(running, answers, strict=True)):
                ids = ids[: self._max_turn]
                said = tokenizer.decode(ids, skip_special_tokens=True)
                text = one.play(said, ids, None if logprobs is None else logprobs[i][: len(ids)], self._write)
                if text is not None:
                    one.read(_next_turn(tokenizer, text, ids[-1] if ids else None), self._max - self._max_turn)
        known = [one.logprobs for one in episodes]
        return {
            "prompt_ids": [one.prompt for one in episodes],
            "completion_ids": [one.completion for one in episodes],
            "logprobs": None if any(one is None for one in known) else known,
            "env_mask": [one.mask for one in episodes],
            "turn_rewards": [one.rewards for one in episodes],
            "turn_ends": [one.ends for one in episodes],
            "won": [one.won for one in episodes],
        }

    def _sample(self, trainer: Any, ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        config = getattr(trainer, "generation_config", None)
        before = getattr(config, "max_new_tokens", None)
        if config is not None:
            config.max_new_tokens = self._max_turn
        try:
            answers, logprobs = trainer._generate_single_turn(ids, None, {}, 1)
        finally:
            if config is not None:
                config.max_new_tokens = before
        return answers, logprobs


def summed_rewards(completions: Sequence[Any], turn_rewards: Sequence[Sequence[float]], **_: Any) -> list[float]:
    """Add up each episode's turn rewards: a reward function for :class:`TextGameRollouts`.

    Args:
        completions: not used; TRL passes them.
        turn_rewards: what the rollouts returned.
    """
    return [float(sum(rewards)) for rewards in turn_rewards]


class _Episode:
    """One episode of the rollouts, as tokens."""

    def __init__(self, env: gym.Env[Any, Any], prompt: list[int]) -> None:
        self.env, self.prompt = env, prompt
        self.completion: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] | None = []
        self.rewards: list[float] = []
        self.ends: list[int] = []
        self.done = self.won = False

    def play(self, said: str, ids: list[int], logprobs: list[float] | None, write: ObservationText) -> str | None:
        """Play an answer; returns the next text, or None where the episode has ended."""
        self.completion += ids
        self.mask += [1] * len(ids)
        self.logprobs = None if logprobs is None or self.logprobs is None else [*self.logprobs, *logprobs]
        self.ends.append(len(self.completion) - 1)
        observation, reward, terminated, truncated, info = self.env.step(said)
        self.rewards.append(float(reward))
        self.done, self.won = terminated or truncated, bool(info["won"])
        return None if self.done else write(observation, first=False)

    def read(self, ids: list[int], room: int) -> None:
        """Add what the game says; the episode ends where no room for another answer is left."""
        if len(self.completion) + len(ids) > room:
            self.done = True
            return
        self.completion += ids
        self.mask += [0] * len(ids)
        if self.logprobs is not None:
            self.logprobs += [0.0] * len(ids)


def _ids(tokenizer: Any, conversation: list[dict[str, str]], *, answer: bool = True) -> list[int]:
    told = tokenizer.apply_chat_template(conversation, add_generation_prompt=answer, tokenize=True, return_dict=True)
    return list(told["input_ids"])


def _next_turn(tokenizer: Any, text: str, last: int | None) -> list[int]:
    """The tokens between an answer and the next one: the end of the turn where it is missing, and what the game says."""
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    whole = _ids(tokenizer, [*before, {"role": "user", "content": text}])
    start = _ids(tokenizer, before, answer=False)
    end = tokenizer.eos_token_id
    if end not in start:
        return whole[len(start) :]
    position = len(start) - 1 - start[::-1].index(end)
    return whole[position + 1 :] if last == end else whole[position:]
