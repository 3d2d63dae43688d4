"""Resets (section 4.1): at some states of the rollouts each of several commands is tried, and the policy plays on.

Rollouts from the start of a game visit most states once, with one command. Branches tell the commands of one state apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algorithms.agent_prm.target_siblings import entropy_of
from algorithms.common.acting.rollouts import Rollout, RolloutTask

#: Only states of the first so many turns are branched: later ones leave no time to recover before the step limit.
HORIZON = 12


def branch_tasks(
    rollouts: Sequence[Rollout],
    *,
    n_states: int,
    n_candidates: int,
    n_rollouts: int = 1,
    max_turns: int | None,
    seed: Sequence[int],
    rng: np.random.Generator,
    prefer: str = "uniform",
) -> list[RolloutTask]:
    """Choose states and make a task of each command to try there.

    Args:
        rollouts: with snapshots and weighed candidates.
        n_states: how many states.
        n_candidates: distinct commands tried at each.
        n_rollouts: how often each is tried. Rollout k of all commands of a state has the same random stream.
        max_turns: step limit of an episode, its history included; ``None`` leaves it to the environment.
        seed: first entropy of the tasks' random streams.
        rng: chooses the states.
        prefer: one of :data:`~algorithms.agent_prm.options.BRANCH_STATES`: which turns of an episode.
    """
    # The same number from every episode: drawn from all turns alike, most would come from long failures, where the
    # policy runs in circles and no command makes a difference.
    per_episode = -(-n_states // max(1, len(rollouts)))
    states = []
    for r, rollout in enumerate(rollouts):
        turns = rollout.episode.turns[:HORIZON]
        # Of its history a rollout has no snapshots.
        own = [t for t in range(len(turns)) if t >= rollout.n_history]
        open_turns = [t for t in own if len(turns[t].candidates or ()) > 1]
        if prefer == "entropy" and open_turns:
            unsure = np.array([entropy_of(turns[t]) for t in open_turns]) + 1e-9
            order = rng.choice(len(open_turns), len(open_turns), replace=False, p=unsure / unsure.sum())
        else:
            order = rng.permutation(len(open_turns))
        states += [(r, open_turns[int(i)]) for i in order[:per_episode]]
    tasks: list[RolloutTask] = []
    for i in rng.permutation(len(states))[:n_states]:
        r, t = states[int(i)]
        turns = rollouts[r].episode.turns
        tasks += [
            RolloutTask(
                {"snapshot": rollouts[r].snapshots[t - rollouts[r].n_history]},
                # What the policy draws behind two commands differs by the commands alone, as far as it can.
                (*seed, int(i), k),
                history=list(turns[:t]),
                first_command=str(candidate["command"]),
                max_turns=max_turns,
            )
            for candidate in (turns[t].candidates or [])[:n_candidates]
            for k in range(n_rollouts)
        ]
    return tasks
