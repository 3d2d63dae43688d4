"""Rollouts: an actor plays a list of tasks in a vector environment and episodes come back.

Each task has a random stream of its own, so the same seeds give the same episodes however many environments run. An
environment that finishes takes the next task at once; one without a next task is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn
from algorithms.common.actors import Actor, Answer, Request

#: Called after every vector step with SB3's local names; returning False ends the collection.
OnStep = Callable[[dict[str, Any]], bool]


@dataclass(slots=True)
class RolloutTask:
    """One episode to play.

    Attributes:
        options: the environment's reset options ("game", "snapshot"); empty lets the environment choose.
        seed: entropy of the episode's random stream.
        history: turns that were played already, where ``options`` hold a snapshot of a running game.
        first_command: executed at the first turn in place of the actor's choice.
        max_turns: the episode counts as truncated after this many turns, the history included; ``None`` leaves it to
            the environment.
    """

    options: dict[str, Any]
    seed: Sequence[int]
    history: list[Turn] = field(default_factory=list)
    first_command: str | None = None
    max_turns: int | None = None


@dataclass(slots=True)
class Rollout:
    """A played task.

    Attributes:
        episode: all turns, the history included.
        snapshots: the game's state before each turn that was played here, where they were asked for.
        n_history: how many turns were history.
    """

    episode: Episode
    snapshots: list[object]
    n_history: int


@dataclass(slots=True)
class _Running:
    index: int
    task: RolloutTask
    rng: np.random.Generator
    turns: list[Turn]
    snapshots: list[object]
    info: dict[str, Any]
    observation: dict[str, str]


def collect(
    actor: Actor,
    venv: VecEnv,
    tasks: Sequence[RolloutTask],
    *,
    policy_name: str = "",
    snapshots: bool = False,
    on_step: OnStep | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Rollout] | None:
    """Play every task once.

    Args:
        actor: answers the running episodes.
        venv: environments with the observation keys task, feedback and admissible_commands.
        tasks: what to play.
        policy_name: written into the episodes.
        snapshots: keep the state before each turn.
        on_step: called after every vector step.
        on_episode: called with each finished episode.

    Returns:
        The rollouts in the order of the tasks, or ``None`` if ``on_step`` ended the collection.
    """
    out: list[Rollout | None] = [None] * len(tasks)
    running: dict[int, _Running] = {}
    n_next = 0
    report = on_episode or (lambda _: None)

    def begin(row: int) -> None:
        nonlocal n_next
        running.pop(row, None)
        if n_next == len(tasks):
            return
        task = tasks[n_next]
        observation, info = venv.env_method("reset", options=dict(task.options), indices=[row])[0]
        rng = np.random.default_rng(list(task.seed))
        running[row] = _Running(n_next, task, rng, list(task.history), [], info, observation)
        actor.start(row, str(observation["task"]), task.history)
        n_next += 1

    if len(tasks) < venv.num_envs:
        venv.reset()  # environments without a task are stepped along with the others
    for row in range(venv.num_envs):
        begin(row)
    while running:
        rows = sorted(running)
        requests = [_request(row, running[row]) for row in rows]
        if snapshots:
            for row, state in zip(rows, venv.env_method("snapshot", indices=rows), strict=True):
                running[row].snapshots.append(state)
        actions = np.full(venv.num_envs, "", dtype=object)
        for request, answer in zip(requests, actor.answer(requests), strict=True):
            turn = _turn(running[request.row], request, answer)
            running[request.row].turns.append(turn)
            actor.executed(request.row, turn.command)
            actions[request.row] = turn.command
        new_obs, rewards, dones, infos = venv.step(actions)
        assert isinstance(new_obs, dict)
        for row in rows:
            run = running[row]
            info = infos[row]
            run.turns[-1].reward = float(info.get("reward/env", rewards[row]))
            run.turns[-1].is_admissible = bool(info.get("is_admissible", True))
            cut = run.task.max_turns is not None and len(run.turns) >= run.task.max_turns
            if dones[row] or cut:
                truncated = bool(info.get("TimeLimit.truncated", False)) or not dones[row]
                episode = _episode(run, info, policy_name, truncated=truncated)
                out[run.index] = Rollout(episode, run.snapshots, len(run.task.history))
                report(episode)
                begin(row)
            else:
                run.observation = {key: value[row] for key, value in new_obs.items()}
        if on_step is not None and not on_step(
            {"actions": actions, "new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
        ):
            return None
    return [rollout for rollout in out if rollout is not None]


def _request(row: int, run: _Running) -> Request:
    task, feedback, commands = (str(run.observation[key]) for key in ("task", "feedback", "admissible_commands"))
    return Request(row, task, feedback, commands.split("\n"), run.rng)


def _turn(run: _Running, request: Request, answer: Answer) -> Turn:
    """The turn that is about to be played: the actor's, or the first one that the task asks for."""
    command, candidates = answer.command, answer.candidates
    if run.task.first_command is not None and len(run.turns) == len(run.task.history):
        command, candidates = run.task.first_command, None
    return Turn(
        feedback=request.feedback,
        admissible_commands=request.admissible_commands,
        command=command,
        response=command,
        candidates=candidates,
    )


def _episode(run: _Running, info: dict[str, Any], policy_name: str, *, truncated: bool) -> Episode:
    success = bool(info.get("is_success", run.turns[-1].reward > 0))
    return Episode(
        game_id=str(run.info.get("game_id", "")),
        split=str(run.info.get("split", "")),
        task_type=str(run.info.get("task_type", "")),
        task=str(run.observation["task"]),
        success=success,
        truncated=truncated and not success,
        policy=policy_name,
        seed=int(run.task.seed[-1]),
        turns=run.turns,
    )
