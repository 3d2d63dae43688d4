"""Rows of data sets out of episodes, one function for each format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from agentprm_gym import Episode, Turn
from agentprm_gym.experts import discounted
from agentprm_gym.llm.text_prompts import TextPrompt
from agentprm_gym.states import state_keys
from algorithms.agent_prm.targets import QTable

#: What episodes can become.
FORMATS = ("stepwise", "preferences", "values", "chat", "episodes")
Row = dict[str, Any]


def q_table(episodes: Iterable[Episode], gamma: float = 0.95, first_turns: Iterable[int] | None = None) -> QTable:
    """Pool the returns of episodes by state and command.

    Args:
        episodes: finished episodes with the task's own reward in their turns.
        gamma: discount a turn, in (0, 1].
        first_turns: for each the first turn that counts; by default 0. A branch counts from where it was branched.

    Raises:
        ValueError: ``gamma`` is out of range.
    """
    table = QTable(gamma)
    table.add(episodes, first_turns)
    return table


def messages(prompt: TextPrompt, task: str, turns: Sequence[Turn], *, answered: bool) -> list[dict[str, str]]:
    """Write turns as a conversation.

    Args:
        prompt: the prompt template.
        task: the task in words.
        turns: the turns, from the first one.
        answered: whether the last turn's answer is part of it.

    Returns:
        Messages with ``role`` (``"user"``, ``"assistant"``, in turn) and ``content``.
    """
    said = []
    for t, turn in enumerate(turns):
        text = prompt.prompt(task, turn.feedback, turn.admissible_commands, t == 0)
        said.append({"role": "user", "content": text})
        said.append({"role": "assistant", "content": prompt.response(turn.reason, turn.command)})
    return said if answered else said[:-1]


def stepwise_rows(
    episodes: Iterable[Episode], table: QTable, template: str = "full", threshold: float = 0.0
) -> Iterator[Row]:
    """Write episodes in TRL's schema of stepwise supervision.

    A step is an answer, and what was read before it, the first text aside: TRL judges at the end of a step. Labels are
    hard there: True where Q-hat is above the threshold. With 0 that is whether any rollout through the step has won.

    Args:
        episodes: the episodes.
        table: Q-hat of their states and commands, see :func:`q_table`.
        template: the prompt template.
        threshold: a label is True above it, 0 or more and below 1.

    Yields:
        ``prompt``, ``completions`` and ``labels``, and beside them ``values`` (Q-hat, the soft labels) and ``game_id``.

    Raises:
        ValueError: the threshold is out of range, or the template unknown.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be 0 or more and below 1, got {threshold!r}")
    prompt = TextPrompt(template)
    for episode in episodes:
        if not episode.turns:
            continue
        said = [one["content"] for one in messages(prompt, episode.task, episode.turns, answered=True)]
        steps = [said[1], *("\n".join(pair) for pair in zip(said[2::2], said[3::2], strict=True))]
        values = [
            tried[turn.command].mean if turn.command in tried else 0.0
            for turn, tried in zip(episode.turns, table.tried(episode), strict=True)
        ]
        yield {
            "prompt": said[0],
            "completions": steps,
            "labels": [value > threshold for value in values],
            "values": values,
            "game_id": episode.game_id,
        }


def preference_rows(
    episodes: Iterable[Episode], table: QTable, template: str = "full", min_gap: float = 0.1, min_visits: int = 1
) -> Iterator[Row]:
    """Write pairs of answers in the same state for DPO: the best command that was tried, and each clearly worse one.

    Args:
        episodes: the episodes; a state that several pass through is looked at once.
        table: Q-hat of their states and commands, see :func:`q_table`.
        template: the prompt template. Answers have no reasons, so that a pair differs in its commands only.
        min_gap: the least difference of Q-hat, above 0 and at most 1.
        min_visits: commands that were tried less often are left out.

    Yields:
        ``prompt``, ``chosen``, ``rejected`` (messages), ``chosen_value``, ``rejected_value`` and ``game_id``.

    Raises:
        ValueError: a number is out of range, or the template unknown.
    """
    if not 0 < min_gap <= 1 or min_visits < 1:
        raise ValueError(f"expected min_gap above 0 and at most 1, min_visits 1 or more, got {min_gap}, {min_visits}")
    prompt = TextPrompt(template)
    for episode, t, key in _states(episodes):
        tried = table.visits.get(key, {})
        possible = set(episode.turns[t].admissible_commands)
        known = [(v.mean, c) for c, v in tried.items() if v.n >= min_visits and c in possible]
        if len(known) < 2:
            continue
        best, chosen = max(known, key=lambda pair: (pair[0], pair[1]))
        read = messages(prompt, episode.task, episode.turns[: t + 1], answered=False)
        for value, command in sorted(known):
            if best - value >= min_gap:
                yield {
                    "prompt": read,
                    "chosen": [{"role": "assistant", "content": prompt.response("", chosen)}],
                    "rejected": [{"role": "assistant", "content": prompt.response("", command)}],
                    "chosen_value": best,
                    "rejected_value": value,
                    "game_id": episode.game_id,
                }


def value_rows(
    episodes: Iterable[Episode],
    table: QTable,
    template: str = "full",
    optimal: Mapping[bytes, Mapping[str, float]] | None = None,
) -> Iterator[Row]:
    """Write a row for each state with soft labels of its commands.

    Args:
        episodes: the episodes; a state that several pass through has one row, of the first of them.
        table: Q-hat of their states and commands, see :func:`q_table`.
        template: the prompt template.
        optimal: Q* by state and command, see :func:`optimal_values`.

    Yields:
        ``state`` (a hash of the transcript), ``game_id``, ``split``, ``task_type``, ``task``, ``turn``, ``messages`` (what
        the player reads), ``commands`` (all that are admissible, then others that were tried), and for each command
        ``q_hat`` (None where it was not tried), ``visits`` and ``q_star`` (None where it is not known).

    Raises:
        ValueError: the template is unknown.
    """
    prompt = TextPrompt(template)
    for episode, t, key in _states(episodes):
        turn, tried, known = episode.turns[t], table.visits.get(key, {}), (optimal or {}).get(key, {})
        commands = [*turn.admissible_commands, *(c for c in tried if c not in turn.admissible_commands)]
        yield {
            "state": key.hex(),
            "game_id": episode.game_id,
            "split": episode.split,
            "task_type": episode.task_type,
            "task": episode.task,
            "turn": t,
            "messages": messages(prompt, episode.task, episode.turns[: t + 1], answered=False),
            "commands": commands,
            "q_hat": [tried[c].mean if c in tried else None for c in commands],
            "visits": [tried[c].n if c in tried else 0 for c in commands],
            "q_star": [known.get(c) for c in commands],
        }


def chat_rows(episodes: Iterable[Episode], template: str = "full", only_won: bool = True) -> Iterator[Row]:
    """Write episodes as conversations for supervised fine-tuning.

    Args:
        episodes: the episodes.
        template: the prompt template.
        only_won: leave out episodes that were not won.

    Yields:
        ``messages``, and beside them ``game_id``, ``split``, ``task_type``, ``success`` and ``policy``.

    Raises:
        ValueError: the template is unknown.
    """
    prompt = TextPrompt(template)
    for episode in episodes:
        if episode.turns and (episode.success or not only_won):
            said = messages(prompt, episode.task, episode.turns, answered=True)
            own = ("game_id", "split", "task_type", "success", "policy")
            yield {"messages": said, **{name: getattr(episode, name) for name in own}}


def _states(episodes: Iterable[Episode]) -> Iterator[tuple[Episode, int, bytes]]:
    """Every state once, with the first episode that passes through it, and its turn there."""
    seen = set[bytes]()
    for episode in episodes:
        for t, key in enumerate(state_keys(episode.task, episode.turns)):
            if key not in seen:
                seen.add(key)
                yield episode, t, key


def optimal_values(
    episodes: Iterable[Episode], gamma: float = 0.95, **env_kwargs: Any
) -> dict[bytes, dict[str, float]]:
    """Compute Q* of every admissible command in the states of episodes, by playing them again.

    Equal transcripts of several games are one state; its Q* is that of the first game.

    Args:
        episodes: the episodes.
        gamma: discount a turn, in (0, 1].
        **env_kwargs: of ``ALFWorld-v0``, for example ``games``; the split is each episode's own.

    Returns:
        Q* by state and command. States of games that are not found, or that say something else, are missing.
    """
    out: dict[bytes, dict[str, float]] = {}
    envs: dict[str, Any] = {}
    for episode in episodes:
        if episode.split not in envs:
            envs[episode.split] = gym.make("ALFWorld-v0", split=episode.split, **env_kwargs).unwrapped
        env = envs[episode.split]
        try:
            observation, _ = env.reset(options={"game": episode.game_id})
        except ValueError:  # another source of games
            continue
        for key, turn in zip(state_keys(episode.task, episode.turns), episode.turns, strict=True):
            if observation["feedback"] != turn.feedback or not env.running:
                break
            if key not in out:
                costs = env.action_costs()
                out[key] = {c: discounted(cost - 1, gamma) for c, cost in costs.items()}
            observation, *_ = env.step(turn.command)
    return out
