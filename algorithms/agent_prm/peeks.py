"""Peeks: single steps of the engine from snapshots, so that TD labels commands that were never played out.

From a state of a trunk each of several commands is executed once, and the game is left there. The policy is not asked, so a
peek costs one step of the environment. What it shows is kept as a rollout whose own turns are the step and, unless the game
ended, the turn that would have come next; that one's command is no one's choice and is not learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentprm_gym.episodes import Turn
from agentprm_gym.observations import split_commands
from algorithms.agent_prm.branching import branch_tasks
from algorithms.agent_prm.options import RolloutOptions
from algorithms.common.acting.actors import Answer, Request
from algorithms.common.acting.rollouts import Rollout, RolloutTask
from algorithms.common.prm.play import Play, Streams


class NoActor:
    """Answers with the first admissible command: every task has a first command of its own, and ends behind it."""

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode; see :class:`~algorithms.common.acting.actors.Actor`."""

    def executed(self, row: int, turn: Turn) -> None:
        """Take note of what was executed; see :class:`~algorithms.common.acting.actors.Actor`."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose a response for each request; see :class:`~algorithms.common.acting.actors.Actor`."""
        return [Answer(next(iter(r.admissible_commands), ""), float("nan")) for r in requests]


def play_from_states(
    options: RolloutOptions, play: Play, trunks: Sequence[Rollout], streams: Streams, max_turns: int | None
) -> tuple[list[Rollout], list[Rollout]]:
    """Play branches from states of the trunks, and peek from others.

    Args:
        options: how many of either, and how.
        play: plays tasks with the policy as it is now.
        trunks: with snapshots, or nothing is played: not every environment has them.
        streams: random streams of the iteration.
        max_turns: step limit of an episode, which branches keep to; ``None``: there is not any.

    Returns:
        The branches and the peeks.
    """

    def tasks_at(n_states: int, name: str, **how: Any) -> list[RolloutTask]:
        if not n_states or not any(r.snapshots for r in trunks):
            return []
        seed, rng = streams.seed(f"{name} episodes"), streams.rng(name)
        how |= {"n_states": n_states, "n_candidates": options.n_branch_candidates, "max_turns": max_turns}
        return branch_tasks(trunks, seed=seed, rng=rng, **how)

    branching = tasks_at(
        options.n_branch_states, "branch", n_rollouts=options.n_branch_rollouts, prefer=options.branch_states
    )
    # A branch begins where a state was chosen, so its success says nothing about the policy's success rate.
    branches = play(branching, "branch", record=False) if branching else []
    return branches, peek(play, tasks_at(options.n_peek_states, "peek"))


def peek(play: Play, tasks: Sequence[RolloutTask]) -> list[Rollout]:
    """Take the first command of each task.

    Args:
        play: steps the environments and counts the steps.
        tasks: with snapshots and first commands, see :func:`algorithms.agent_prm.branching.branch_tasks`.
    """
    single = [replace(task, max_turns=len(task.history) + 1) for task in tasks]
    return [with_next_state(r) for r in play(single, "peek", record=False, actor=NoActor())] if single else []


def with_next_state(rollout: Rollout) -> Rollout:
    """A peek as it is kept: with the turn that would have come next, and not as a success to imitate.

    Args:
        rollout: of one turn behind its history.

    Raises:
        ValueError: the game goes on, and the environment did not tell what it showed.
    """
    episode = replace(rollout.episode, success=False)
    if not rollout.cut_off:
        return replace(rollout, episode=episode)
    seen = rollout.final_observation
    if seen is None:
        raise ValueError("a peek does not know what the game showed after its step: expected an observation there")
    commands = split_commands(seen["admissible_commands"])
    turn = Turn(feedback=seen["feedback"], admissible_commands=commands, command=next(iter(commands), ""))
    return replace(rollout, episode=replace(episode, turns=[*episode.turns, turn]))
