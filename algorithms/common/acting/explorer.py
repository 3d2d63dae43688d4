"""Plays the options of :class:`~algorithms.common.acting.exploration.Exploration`.

Tasks come in groups: the episodes of a group begin in the same state, since algorithms compare them. An iteration is played in
three parts:

1. groups from the start of their games, with snapshots;
2. groups from other states: of the reset distribution, or of the policy's own with one command of a uniform policy;
3. what hindsight proposes, at states of part 1.

Nothing is kept between iterations: own states are those of the policy as it is now. Only turns behind ``Rollout.n_history``
are learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode, Turn, read_episodes
from agentprm_gym.experts import demonstrate
from algorithms.common.acting.exploration import EXPERTS, Exploration
from algorithms.common.acting.hindsight import kept, propose
from algorithms.common.acting.requests import Sampler
from algorithms.common.acting.rollouts import Rollout, RolloutTask

#: Plays tasks in order, with the state before each turn where that is asked for.
PlayTasks = Callable[[Sequence[RolloutTask], bool], list[Rollout]]


@dataclass(frozen=True, slots=True)
class Start:
    """A state that episodes begin in.

    Attributes:
        snapshot: the environment's state.
        history: the turns before it.
        group: of which group it is: the game's number within the iteration.
    """

    snapshot: object
    history: list[Turn]
    group: int


class Explorer:
    """Plays an iteration's tasks as options of exploration say."""

    def __init__(
        self,
        options: Exploration,
        venv: VecEnv,
        play: PlayTasks,
        sampler: Callable[[int], Sampler],
        rng: np.random.Generator,
        seed: Sequence[int],
        gamma: float,
    ) -> None:
        """Make an explorer for one iteration.

        Args:
            options: what is played.
            venv: the environments.
            play: plays tasks with the policy.
            sampler: makes an actor of the policy with so many rows, which hindsight draws from.
            rng: draws groups and states.
            seed: first entropy of the random streams of part 3; those of parts 1 and 2 are the tasks' own.
            gamma: discount a turn, by which hindsight compares returns.

        Raises:
            ValueError: an option needs states, and the environment has no snapshots.
        """
        if options.uses_states and not (venv.has_attr("snapshot") and venv.has_attr("restore")):
            raise ValueError(
                "explore.reset_share, deviation_share and hindsight_states begin episodes in the middle: expected an "
                'environment with snapshot(), restore() and the reset option "snapshot", as those of this package'
            )
        self.options, self.venv, self.play, self.sampler = options, venv, play, sampler
        self.rng, self.seed, self.gamma = rng, tuple(seed), gamma
        self._demonstrations: dict[str, Episode] | None = None

    def __call__(self, tasks: Sequence[RolloutTask], groups: Sequence[int]) -> list[tuple[Rollout, int]]:
        """Play an iteration.

        Args:
            tasks: from the start of their games.
            groups: the group of each; tasks of a group are of one game.

        Returns:
            The rollouts of the tasks, in their order, each with its group; then what hindsight kept, in the groups of the
            episodes that it looked at.
        """
        tasks = [self._steered(task) for task in tasks]
        deviating, resetting = self._other_groups(sorted(set(groups)))
        out: list[Rollout | None] = [None] * len(tasks)
        first = [i for i, g in enumerate(groups) if g not in deviating and g not in resetting]
        played = self.play([tasks[i] for i in first], self.options.uses_states)
        for i, rollout in zip(first, played, strict=True):
            out[i] = rollout
        own = [(rollout, int(groups[i])) for i, rollout in zip(first, played, strict=True)]
        others = [i for i in range(len(tasks)) if out[i] is None]
        begun = self._begin(tasks, groups, own, deviating, others)
        for i, rollout in zip(others, self.play(begun, False) if begun else [], strict=True):
            out[i] = rollout
        rollouts = [(rollout, int(g)) for rollout, g in zip(out, groups, strict=True) if rollout is not None]
        return rollouts + self._hindsight(own)

    def _steered(self, task: RolloutTask) -> RolloutTask:
        """With the chance of the options, a task with a strategy in its prompt."""
        if not self.options.steer_share or self.rng.random() >= self.options.steer_share:
            return task
        return replace(task, instruction=str(self.rng.choice(list(self.options.strategies))))

    def _other_groups(self, groups: Sequence[int]) -> tuple[set[int], set[int]]:
        """The groups that begin with a deviation, and those that begin in a state of the reset distribution."""
        n = len(groups)
        n_deviating, n_resetting = (
            round(share * n) for share in (self.options.deviation_share, self.options.reset_share)
        )
        order = [groups[int(i)] for i in self.rng.permutation(n)][: min(n_deviating + n_resetting, max(0, n - 1))]
        return set(order[:n_deviating]), set(order[n_deviating:])

    # Parts 2: other states ---------------------------------------------------------------------
    def _begin(
        self,
        tasks: Sequence[RolloutTask],
        groups: Sequence[int],
        own: Sequence[tuple[Rollout, int]],
        deviating: set[int],
        others: Sequence[int],
    ) -> list[RolloutTask]:
        """Let groups begin elsewhere; one for which there is no such state begins at the start."""
        starts: dict[int, Start | None] = {}
        commands: dict[int, list[str]] = {}
        begun = []
        for i in others:
            group = int(groups[i])
            if group not in starts:
                starts[group] = self._own(own) if group in deviating else self._reset(tasks[i], own)
            start = starts[group]
            if start is None:
                begun.append(tasks[i])
                continue
            first = None
            if group in deviating:
                if not commands.get(group):
                    options = list(_commands_at(start, own))
                    commands[group] = [options[int(k)] for k in self.rng.permutation(len(options))]
                first = commands[group].pop()
            begun.append(self._task(start, tasks[i], first))
        return begun

    def _task(self, start: Start, task: RolloutTask, first_command: str | None) -> RolloutTask:
        return replace(
            task,
            options={"snapshot": start.snapshot},
            history=list(start.history),
            first_command=first_command,
            max_turns=step_limit(self.venv),
        )

    def _reset(self, task: RolloutTask, own: Sequence[tuple[Rollout, int]]) -> Start | None:
        """A state of the reset distribution: the source by its weight, an episode of it, and one of its turns."""
        o = self.options
        won = [pair for pair in own if pair[0].episode.success]
        sources = [(o.reset_expert, None), (o.reset_won, won), (o.reset_own, list(own))]
        usable = [(w, source) for w, source in sources if w and source != []]
        if not usable:
            return None
        weights = np.array([w for w, _ in usable])
        source = usable[int(self.rng.choice(len(usable), p=weights / weights.sum()))][1]
        return self._expert(task) if source is None else self._own(source)

    def _own(self, played: Sequence[tuple[Rollout, int]]) -> Start | None:
        """A state of the policy's own: an episode, and one of its turns behind the first."""
        long = [(r, g) for r, g in played if min(len(r.episode.turns), self.options.horizon + 1) > 1]
        if not long:
            return None
        rollout, group = long[int(self.rng.integers(len(long)))]
        t = int(self.rng.integers(1, min(len(rollout.episode.turns), self.options.horizon + 1)))
        return Start(rollout.snapshots[t], rollout.episode.turns[:t], group)

    def _expert(self, task: RolloutTask) -> Start | None:
        """A state of the expert's in the task's own game: its commands are replayed, and the texts compared."""
        episode = self._demonstration(task)
        if episode is None or len(episode.turns) < 2:
            return None
        t = int(self.rng.integers(1, min(len(episode.turns), self.options.horizon + 1)))
        return Start(replay(self.venv, episode, t), episode.turns[:t], -1)

    def _demonstration(self, task: RolloutTask) -> Episode | None:
        venv, expert = self.venv, self.options.expert
        if expert in EXPERTS:
            if not venv.has_attr("games"):
                raise ValueError(
                    f"explore.expert={expert!r} plays the games themselves, and this environment has no list of games "
                    "(attribute games): name a file of demonstrations"
                )
            games = venv.get_attr("games", indices=[0])[0]
            return demonstrate(games[int(task.options["game"])], expert)
        if self._demonstrations is None:
            if not Path(expert).is_file():
                raise FileNotFoundError(f"explore.expert: no demonstrations at {expert!r}, nor one of {EXPERTS}")
            self._demonstrations = {e.game_id: e for e in read_episodes(expert)}
        (shown,) = venv.env_method("reset", indices=[0], options=dict(task.options))
        return self._demonstrations.get(str(shown[1].get("game_id", "")))

    # Part 3: hindsight -------------------------------------------------------------------------
    def _hindsight(self, own: Sequence[tuple[Rollout, int]]) -> list[tuple[Rollout, int]]:
        """Alternatives at states of lost episodes (of all, where none was lost), those that turned out better."""
        o = self.options
        if not o.hindsight_states:
            return []
        lost = [pair for pair in own if not pair[0].episode.success] or list(own)
        out: list[tuple[Rollout, int]] = []
        for k in range(o.hindsight_states):
            rollout, group = lost[int(self.rng.integers(len(lost)))]
            t = int(self.rng.integers(min(len(rollout.episode.turns), o.horizon)))
            alternatives = propose(self.sampler, self.venv, rollout, t, o, self.rng)
            tasks = [
                RolloutTask(
                    {"snapshot": rollout.snapshots[t]},
                    (*self.seed, k, j),  # the same random numbers behind each alternative
                    history=list(rollout.episode.turns[:t]),
                    first_command=command,
                    max_turns=step_limit(self.venv),
                )
                for command in alternatives
                for j in range(o.hindsight_rollouts)
            ]
            tried = self.play(tasks, False) if tasks else []
            out += [(r, group) for r in kept(rollout, t, tried, self.gamma)]
        return out


def _commands_at(start: Start, own: Sequence[tuple[Rollout, int]]) -> Sequence[str]:
    """The commands that are admissible in an own state."""
    for rollout, _ in own:
        t = len(start.history)
        if t < len(rollout.snapshots) and rollout.snapshots[t] is start.snapshot:
            return rollout.episode.turns[t].admissible_commands
    raise AssertionError("a deviation begins in an own state")


def step_limit(venv: VecEnv) -> int | None:
    """Step limit of an episode; ``None`` where the environment does not tell one."""
    spec = venv.get_attr("spec", indices=[0])[0]
    limit: Any = None if spec is None else spec.max_episode_steps
    return None if limit is None else int(limit)


def replay(venv: VecEnv, episode: Episode, t: int) -> object:
    """Play the first commands of an episode again in the first environment, and return the state behind them.

    Args:
        venv: environments with the episode's game.
        episode: what was played.
        t: how many commands, 0 or more.

    Raises:
        ValueError: the game says something else than the episode holds.
    """
    ((observation, _),) = venv.env_method("reset", indices=[0], options={"game": episode.game_id})
    for i, turn in enumerate(episode.turns[:t]):
        if observation["feedback"] != turn.feedback:
            raise ValueError(
                f"the demonstration of {episode.game_id!r} does not replay: turn {i} shows {observation['feedback']!r}, and "
                f"the demonstration has {turn.feedback!r}; was it recorded in another wording (grammar), or of another game?"
            )
        ((observation, *_),) = venv.env_method("step", turn.command, indices=[0])
    (state,) = venv.env_method("snapshot", indices=[0])
    return state
