"""Rollouts: an actor plays a list of tasks in a vector environment and episodes come back.

Each task has a random stream of its own, so the same seeds give the same episodes however many environments run. An
environment that finishes takes the next task at once; one without a next task is not asked again.

An environment without a list of games has whatever games its ``reset`` makes: there, game ``k`` of a task is
``reset(seed=k)``, and the same number is the same game again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from agentprm_gym.answers import write_response
from agentprm_gym.envs.workers import are_alive, watched
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.observations import split_commands
from agentprm_gym.wrappers.sb3 import TaskReward
from algorithms.common.acting.actors import Actor, Answer, Request
from algorithms.common.acting.ranks import ranks

#: Called after every vector step with SB3's local names and ``n_running``, how many episodes took a turn in it; returning False
#: ends the collection.
OnStep = Callable[[dict[str, Any]], bool]


@dataclass(slots=True)
class RolloutTask:
    """One episode to play.

    Attributes:
        options: the environment's reset options ("game", "snapshot"); empty lets the environment choose. Where the environment
            has no list of games, a whole number as "game" is the seed of ``reset``.
        seed: entropy of the episode's random stream.
        history: turns that were played already, where ``options`` hold a snapshot of a running game.
        first_command: executed at the first turn in place of the actor's choice.
        max_turns: the episode counts as truncated after this many turns, the history included; ``None`` leaves it to
            the environment.
        instruction: what the actor is told behind the task, such as a strategy; the episode does not hold it.
    """

    options: dict[str, Any]
    seed: Sequence[int]
    history: list[Turn] = field(default_factory=list)
    first_command: str | None = None
    max_turns: int | None = None
    instruction: str = ""


def told(task: str, instruction: str) -> str:
    """A task's text as an actor is told it, with an instruction behind it where there is one."""
    return f"{task} {instruction}" if instruction else task


@dataclass(slots=True)
class Rollout:
    """A played task.

    Attributes:
        episode: all turns, the history included.
        snapshots: the game's state before each turn that was played here, where they were asked for.
        n_history: how many turns were history.
        rewards: what the environment paid for each turn that was played here, process rewards included; the turns
            themselves hold the task's own.
        final_observation: what the environment showed after the last turn, with the observation's keys; ``None`` where it did
            not tell.
        cut_off: whether the episode would have gone on from there: a step limit or the task's ``max_turns`` ended it.
    """

    episode: Episode
    snapshots: list[object]
    n_history: int
    rewards: list[float] = field(default_factory=list)
    final_observation: dict[str, str] | None = None
    cut_off: bool = False


@dataclass(slots=True)
class _Running:
    index: int
    task: RolloutTask
    rng: np.random.Generator
    turns: list[Turn]
    snapshots: list[object]
    info: dict[str, Any]
    observation: dict[str, str]
    rewards: list[float] = field(default_factory=list)


class PlaysElsewhere(Protocol):
    """Who plays with the policy of an actor in place of this process.

    See :class:`~algorithms.common.acting.replicas.Workers` and :class:`~algorithms.common.acting.sampler.ServerSampler`.

    Attributes:
        policy: the policy that they play with.
        n_replaced: how many of them ended and were replaced.
    """

    policy: Any
    n_replaced: int

    def collect_for(
        self,
        actor: Any,
        tasks: Sequence[RolloutTask],
        *,
        policy_name: str = "",
        snapshots: bool = False,
        on_step: OnStep | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Rollout] | None:
        """Play every task once; arguments and result as for :func:`collect`."""


def collect(
    actor: Actor,
    venv: VecEnv,
    tasks: Sequence[RolloutTask],
    *,
    policy_name: str = "",
    snapshots: bool = False,
    on_step: OnStep | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    progress_bar: bool = False,
    workers: PlaysElsewhere | None = None,
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
        progress_bar: show one, with the success rate so far.
        workers: who play in place of ``venv``, with the actor's policy; ``on_step`` is then called once an episode.

    Where several processes train together (:mod:`algorithms.common.acting.ranks`), each plays its share of the tasks, all get
    all rollouts, and ``on_step`` and ``on_episode`` are called when everything was played, once an episode.

    Returns:
        The rollouts in the order of the tasks, or ``None`` if ``on_step`` ended the collection.
    """
    if ranks().size > 1:
        return _collect_together(
            actor,
            venv,
            tasks,
            policy_name,
            snapshots,
            workers,
            on_step or (lambda names: True),
            on_episode or (lambda episode: None),
        )
    return collect_here(
        actor,
        venv,
        tasks,
        policy_name=policy_name,
        snapshots=snapshots,
        on_step=on_step,
        on_episode=on_episode,
        progress_bar=progress_bar,
        workers=workers,
    )


def step_of(rollout: Rollout) -> dict[str, Any]:
    """What ``on_step`` is told where it is called once an episode: how many turns were played; no infos and no rewards."""
    nothing = np.zeros(0)
    names: dict[str, Any] = {"actions": [], "new_obs": {}, "rewards": nothing, "dones": nothing > 0, "infos": []}
    return {**names, "n_running": len(rollout.episode.turns) - rollout.n_history}


def _collect_together(
    actor: Actor,
    venv: VecEnv,
    tasks: Sequence[RolloutTask],
    policy_name: str,
    snapshots: bool,
    workers: PlaysElsewhere | None,
    on_step: OnStep,
    on_episode: Callable[[Episode], None],
) -> list[Rollout] | None:
    """Play this process's share, and exchange rollouts and counters with the others."""
    crew = ranks()
    own = list(crew.mine(tasks))
    counts, rows = getattr(actor, "counts", Counter[str]()), getattr(actor, "rows", None)
    before, fed = Counter(counts), 0 if rows is None else rows.decoder.n_fed
    played = (
        collect_here(actor, venv, own, policy_name=policy_name, snapshots=snapshots, workers=workers) if own else []
    )
    of_all = crew.gather(played)
    rollouts = [(of_all[i % crew.size] or [])[i // crew.size] for i in range(len(tasks))]
    new = Counter(counts)
    new.subtract(before)
    counts.clear()
    counts.update(before + crew.counted(new))
    if rows is not None:
        rows.decoder.n_fed = fed + int(crew.total(rows.decoder.n_fed - fed))
    for rollout in rollouts:
        on_episode(rollout.episode)
    if not all(on_step(step_of(rollout)) for rollout in rollouts):
        return None
    return rollouts


def collect_here(
    actor: Actor,
    venv: VecEnv,
    tasks: Sequence[RolloutTask],
    *,
    policy_name: str = "",
    snapshots: bool = False,
    on_step: OnStep | None = None,
    on_episode: Callable[[Episode], None] | None = None,
    progress_bar: bool = False,
    workers: PlaysElsewhere | None = None,
) -> list[Rollout] | None:
    """What :func:`collect` does in one process; arguments and result are the same."""
    out: list[Rollout | None] = [None] * len(tasks)
    stopped = False

    def watched(names: dict[str, Any]) -> bool:
        nonlocal stopped
        stopped = on_step is not None and not on_step(names)
        return not stopped

    wins = done = 0
    with tqdm(total=len(tasks), unit="episode", disable=not progress_bar) as bar:

        def finished(episode: Episode) -> None:
            nonlocal wins, done
            done, wins = done + 1, wins + episode.success
            if on_episode is not None:
                on_episode(episode)
            bar.set_postfix(success=f"{wins / done:.3f}", refresh=False)
            bar.update()

        how: dict[str, Any] = {"policy_name": policy_name, "snapshots": snapshots, "on_step": watched}
        if workers is not None:
            return workers.collect_for(actor, tasks, on_episode=finished, **how)
        for index, rollout in stream(actor, venv, tasks, **how):
            out[index] = rollout
            finished(rollout.episode)
    return None if stopped else [rollout for rollout in out if rollout is not None]


def stream(
    actor: Actor,
    venv: VecEnv,
    tasks: Iterable[RolloutTask],
    *,
    policy_name: str = "",
    snapshots: bool = False,
    on_step: OnStep | None = None,
) -> Iterator[tuple[int, Rollout]]:
    """Play tasks and yield each episode as it finishes; arguments as for :func:`collect`.

    Tasks are drawn one by one as environments become free, so they may come from an endless generator.

    Yields:
        The task's number and its rollout, in the order in which they finish.

    Raises:
        WorkerError: a worker process of the environments ended.
    """
    with watched(venv):
        yield from _stream(actor, venv, tasks, policy_name, snapshots, on_step)


def _stream(
    actor: Actor, venv: VecEnv, tasks: Iterable[RolloutTask], policy_name: str, snapshots: bool, on_step: OnStep | None
) -> Iterator[tuple[int, Rollout]]:
    """What :func:`stream` does."""
    running: dict[int, _Running] = {}
    task_reward = TaskReward(venv)
    queue = enumerate(tasks)
    has_queue, has_games = venv.has_attr("queue_tasks"), venv.has_attr("n_games")

    def begin(row: int) -> bool:
        running.pop(row, None)
        index, task = next(queue, (None, None))
        if index is None or task is None:
            return False
        how = reset_arguments(task.options, has_games)
        observation, info = venv.env_method("reset", indices=[row], **how)[0]
        if has_queue and "game_id" in info:
            # A vector environment begins another episode by itself when one ends, which is not looked at here: let it be
            # one of the same game, or it would draw and read a new one.
            venv.env_method("queue_tasks", [{"game": info["game_id"]}], replace=True, indices=[row])
        task_reward.begin(row)
        rng = np.random.default_rng(list(task.seed))
        running[row] = _Running(index, task, rng, list(task.history), [], info, observation)
        actor.start(row, told(str(observation["task"]), task.instruction), task.history)
        return True

    for row in range(venv.num_envs):
        if not begin(row):
            # Environments without a task are stepped along with the others.
            for idle in range(row, venv.num_envs):
                venv.env_method("reset", indices=[idle])
            break
    try:
        yield from _play(actor, venv, running, begin, task_reward, policy_name, snapshots, on_step)
    finally:
        if has_queue and are_alive(venv):
            venv.env_method("queue_tasks", [], replace=True)


def reset_arguments(options: Mapping[str, Any], has_games: bool) -> dict[str, Any]:
    """Keyword arguments of an environment's ``reset`` that begin a task.

    Args:
        options: the task's reset options.
        has_games: whether the environment has a list of games (``n_games``), from which the option "game" chooses.

    Raises:
        ValueError: the environment has no list of games, and the task names one of a list.
    """
    if has_games or "game" not in options:
        return {"options": dict(options)}
    rest = {key: value for key, value in options.items() if key != "game"}
    game = options["game"]
    if isinstance(game, bool) or not isinstance(game, (int, np.integer)):
        raise ValueError(
            "this environment has no list of games (n_games), so its games are the seeds of reset(): expected a whole number "
            f"as the game, got {game!r}"
        )
    return {"seed": int(game), **({"options": rest} if rest else {})}


def _play(
    actor: Actor,
    venv: VecEnv,
    running: dict[int, _Running],
    begin: Callable[[int], bool],
    task_reward: TaskReward,
    policy_name: str,
    snapshots: bool,
    on_step: OnStep | None,
) -> Iterator[tuple[int, Rollout]]:
    """Step the running episodes until all are done; ``begin`` puts the next task in a row that is free."""
    reads = _reads_responses(venv)
    while running:
        rows = sorted(running)
        if snapshots:
            for row, state in zip(rows, venv.env_method("snapshot", indices=rows), strict=True):
                running[row].snapshots.append(state)
        actions = _act(actor, venv, running, reads)
        new_obs, rewards, dones, infos = venv.step(actions)
        assert isinstance(new_obs, dict)
        finished = []
        for row, own in zip(rows, task_reward.of_step(rewards, dones, infos, rows), strict=True):
            run = running[row]
            run.rewards.append(float(rewards[row]))
            run.turns[-1].reward = own
            shown = {key: value[row] for key, value in new_obs.items()}
            rollout = _stepped(run, bool(dones[row]), infos[row], shown, policy_name)
            if rollout is None:
                run.observation = shown
            else:
                finished.append((run.index, rollout))
                begin(row)
        yield from finished
        names = {"actions": actions, "new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
        if on_step is not None and not on_step({**names, "n_running": len(rows)}):
            return


def _reads_responses(venv: VecEnv) -> bool:
    """Whether the environments read reason and command out of a whole response, as those of this package do."""
    return venv.has_attr("reads_responses") and bool(venv.get_attr("reads_responses", indices=[0])[0])


def _act(actor: Actor, venv: VecEnv, running: Mapping[int, _Running], reads_responses: bool) -> npt.NDArray[np.object_]:
    """Let the actor answer all running episodes; environments without one get the empty string."""
    looks_ahead = venv if getattr(actor, "needs_look_ahead", False) else None
    requests = [_request(row, run, looks_ahead) for row, run in sorted(running.items())]
    _check_choices(actor, requests)
    actions = np.full(venv.num_envs, "", dtype=object)  # (n_envs,)
    for request, answer in zip(requests, actor.answer(requests), strict=True):
        turn = _turn(running[request.row], request, answer)
        running[request.row].turns.append(turn)
        actor.executed(request.row, turn)
        actions[request.row] = _said(turn, venv) if reads_responses else turn.command
    return actions


def _check_choices(actor: Actor, requests: Sequence[Request]) -> None:
    """Refuse a turn at which a policy that chooses among admissible commands has none to choose from.

    Raises:
        ValueError: the environment listed no admissible command.
    """
    mode = getattr(getattr(actor, "responder", None), "mode", "generate")
    for request in requests if mode != "generate" else ():
        if not request.admissible_commands:
            raise ValueError(
                f"the environment lists no admissible command after {request.feedback!r}, and action_mode={mode!r} chooses "
                'among them: let observation["admissible_commands"] hold one command a line, or use action_mode="generate"'
            )


def _said(turn: Turn, venv: VecEnv) -> str:
    """Reason and command, where there is a reason that a process reward may read; else the command.

    Not the response itself: the policy may read its answers otherwise than the environment does.
    """
    said = write_response(turn.reason, turn.command, turn.admissible_commands)
    return said if venv.action_space.contains(said) else turn.command


def _stepped(
    run: _Running, done: bool, info: dict[str, Any], shown: dict[str, str], policy_name: str
) -> Rollout | None:
    """Write down what a step brought; returns the rollout where it ended the episode."""
    turn = run.turns[-1]
    turn.is_admissible = bool(info.get("is_admissible", turn.is_admissible))
    cut = run.task.max_turns is not None and len(run.turns) >= run.task.max_turns
    if not (done or cut):
        return None
    truncated = bool(info.get("TimeLimit.truncated", False)) or not done
    # An environment that is done has been reset, and what it shows belongs to its next episode.
    final = info.get("terminal_observation") if done else shown
    return Rollout(
        _episode(run, info, policy_name, truncated=truncated),
        run.snapshots,
        len(run.task.history),
        run.rewards,
        None if final is None else {key: str(value) for key, value in final.items()},
        truncated,
    )


def _request(row: int, run: _Running, looks_ahead: VecEnv | None) -> Request:
    task, feedback, commands = (str(run.observation[key]) for key in ("task", "feedback", "admissible_commands"))
    look = None
    if looks_ahead is not None:
        venv = looks_ahead

        def look(sequences: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...], bool]]:
            (seen,) = venv.env_method("look_ahead", sequences, indices=[row])
            return list(seen)

    return Request(row, task, feedback, split_commands(commands), run.rng, look)


def _turn(run: _Running, request: Request, answer: Answer) -> Turn:
    """The turn that is about to be played: the actor's, or the first one that the task asks for."""
    if run.task.first_command is not None and len(run.turns) == len(run.task.history):
        answer = Answer(run.task.first_command, float("nan"))
    return answer.turn(request)


def _episode(run: _Running, info: dict[str, Any], policy_name: str, *, truncated: bool) -> Episode:
    # Without the environment's word, an episode that ended with a reward has succeeded.
    success = bool(info.get("is_success", run.turns[-1].reward > 0 and not truncated))
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
