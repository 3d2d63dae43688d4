"""Post-hoc rationalisation (AgentPRM, arXiv 2502.10325, section 4.1 (3)): what would have been better, as is known afterwards.

After an episode, alternatives are proposed at an earlier state by somebody who knows what came later: the policy with a summary
of it in its prompt, or the planner. The policy plays on from each of them, and an alternative is kept where

    mean_k R(s, a', k) > R(s, a)        R = sum_i gamma^i r_{t+i}, the measured return from the state on

with ``R(s, a)`` of the episode that was played. What is kept holds no hindsight: its transcript is the plain one. The paper's
body gives no formula; that alternatives are kept by measured outcome is how its authors' later code does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from algorithms.common.acting.exploration import Exploration
from algorithms.common.acting.requests import Request, Sampler
from algorithms.common.acting.rollouts import Rollout, told

#: How many sentences of what came later stand in the prompt.
_N_FACTS = 3


def summary(rollout: Rollout, t: int) -> str:
    """What an episode showed behind a turn about the things that its task names.

    Args:
        rollout: the episode.
        t: the turn; what it and the turns before it showed is left out.

    Returns:
        The last few sentences that name a word of the task, a text of one line; empty where there are none.
    """
    words = {w for w in re.findall(r"[a-z]+", rollout.episode.task.lower()) if len(w) > 2}
    words -= {"the", "and", "put", "some", "them", "two", "with", "look", "under"}
    later = [turn.feedback for turn in rollout.episode.turns[t + 1 :]]
    if rollout.final_observation is not None:
        later.append(rollout.final_observation.get("feedback", ""))
    sentences = [s.strip() for text in later for s in re.split(r"(?<=[.!?])\s+", text) if s.strip()]
    naming = [s for s in dict.fromkeys(sentences) if words & set(re.findall(r"[a-z]+", s.lower()))]
    return " ".join(naming[-_N_FACTS:])


def propose(
    sampler: Callable[[int], Sampler],
    venv: VecEnv,
    rollout: Rollout,
    t: int,
    options: Exploration,
    rng: np.random.Generator,
) -> list[str]:
    """Alternatives to what was done at a turn, distinct, without the command that was played.

    Args:
        sampler: makes an actor of the policy.
        venv: the environments; the planner is asked in the first one.
        rollout: an episode with snapshots.
        t: the turn.
        options: who proposes, and how many.
        rng: random stream of the draws.

    Raises:
        ValueError: the planner is to propose, and the environment has none.
    """
    turn = rollout.episode.turns[t]
    if options.hindsight_by == "planner":
        if not venv.has_attr("action_costs"):
            raise ValueError(
                "explore.hindsight_by='planner' needs an environment with action_costs(), such as ALFWorld-v0: "
                "use hindsight_by='policy'"
            )
        venv.env_method("restore", rollout.snapshots[t], indices=[0])
        (costs,) = venv.env_method("action_costs", indices=[0])
        best = [c for c in sorted(costs, key=costs.__getitem__) if np.isfinite(costs[c])]
        return [c for c in best if c != turn.command][: options.hindsight_draws]
    facts = summary(rollout, t)
    actor = sampler(1)
    instruction = f"Looking back, you know: {facts}" if facts else ""
    actor.start(0, told(rollout.episode.task, instruction), rollout.episode.turns[:t])
    request = Request(0, rollout.episode.task, turn.feedback, turn.admissible_commands, rng)
    (drawn,) = actor.sample([request], options.hindsight_draws)
    commands = dict.fromkeys(a.command for a in drawn if a.command in turn.admissible_commands)
    return [c for c in commands if c != turn.command]


def measured(rollout: Rollout, t: int, gamma: float) -> float:
    """The discounted return of an episode from a turn on, by the task's own rewards."""
    return float(sum(gamma**i * turn.reward for i, turn in enumerate(rollout.episode.turns[t:])))


def kept(played: Rollout, t: int, tried: Sequence[Rollout], gamma: float) -> list[Rollout]:
    """The rollouts of the alternatives that turned out better than what was played.

    Args:
        played: the episode that hindsight looked at.
        t: the turn.
        tried: rollouts of alternatives at this turn, several of each.
        gamma: discount a turn, in (0, 1].
    """
    by_command: dict[str, list[Rollout]] = {}
    for rollout in tried:
        by_command.setdefault(rollout.episode.turns[t].command, []).append(rollout)
    baseline = measured(played, t, gamma)
    better = [rs for rs in by_command.values() if np.mean([measured(r, t, gamma) for r in rs]) > baseline]
    return [r for rs in better for r in rs]
