"""Evaluation: every game of a split exactly once, success per task type with 95 % intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.checks import check_int
from agentprm_gym.episodes import Episode
from agentprm_gym.games.names import TASK_TYPES
from algorithms.common.acting.actors import Actor
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.shell.machine import use_fast_threads

#: Standard normal quantile of a 95 % interval.
Z = 1.959964


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate.

    Attributes:
        name: what the rate is about, a task type or ``"all"``.
        n: number of games played.
        successes: number of games won.
        low: lower end of the 95 % Wilson interval, in [0, 1].
        high: upper end of the interval, in [0, 1].
        mean_steps: mean number of turns of an episode; failures count at the step limit.
        mean_steps_won: the same of the games that were won alone; NaN without any.
        inadmissible: share of all turns whose command was not admissible, in [0, 1]; NaN without turns.
    """

    name: str
    n: int
    successes: int
    low: float
    high: float
    mean_steps: float
    mean_steps_won: float = math.nan
    inadmissible: float = math.nan

    @property
    def rate(self) -> float:
        """Share of games won."""
        return self.successes / self.n if self.n else float("nan")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson, JASA 22, 1927).

    Args:
        successes: number of games won.
        n: number of games played; without any the interval is (0, 1).

    Returns:
        Lower and upper end, in [0, 1].

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # Of none or of all the ends are 0 and 1; rounding would leave them just inside.
    return (max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0)


def rate(name: str, episodes: Sequence[Episode], max_steps: int | None = None) -> Rate:
    """Success rate of episodes.

    Args:
        name: what the rate is about.
        episodes: the episodes; without any the rate is NaN.
        max_steps: the step limit, which failures count as; ``None``: as many turns as they had.

    Example:
        >>> from agentprm_gym.episodes import Turn
        >>> def played(success, n):
        ...     turns = [Turn(feedback="", admissible_commands=["look"], command="look")] * n
        ...     return Episode(game_id="g", split="train", task_type="", task="", success=success, turns=turns)
        >>> both = rate("all", [played(True, 4), played(False, 2)], max_steps=30)
        >>> both.rate, both.mean_steps, both.mean_steps_won, both.inadmissible
        (0.5, 17.0, 4.0, 0.0)
    """
    won = [len(e.turns) for e in episodes if e.success]
    lost = [len(e.turns) if max_steps is None else max_steps for e in episodes if not e.success]
    foreign = [not turn.is_admissible for e in episodes for turn in e.turns]
    steps, steps_won, inadmissible = (float(np.mean(x)) if x else math.nan for x in (won + lost, won, foreign))
    return Rate(name, len(episodes), len(won), *wilson(len(won), len(episodes)), steps, steps_won, inadmissible)


def by_task_type(episodes: Sequence[Episode], max_steps: int | None = None) -> list[Rate]:
    """Success rate of each task type that occurs, in the fixed order, then of all.

    Args:
        episodes: the episodes; those without a task type count in the last row alone.
        max_steps: the step limit, which failures count as; ``None``: as many turns as they had.
    """
    present = {e.task_type for e in episodes if e.task_type}
    names = [t for t in TASK_TYPES if t in present] + sorted(present - set(TASK_TYPES))
    rows = [rate(name, [e for e in episodes if e.task_type == name], max_steps) for name in names]
    return [*rows, rate("all", episodes, max_steps)]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of two success rates on the same games.

    Attributes:
        difference: rate of the second minus rate of the first, in [-1, 1].
        low: lower end of the 95 % interval of the difference.
        high: upper end of the interval.
        n: number of games.
        only_first: games that the first won and the second lost.
        only_second: games that the second won and the first lost.
        p_value: of McNemar's exact test that both are as likely to win a game that one alone won, see :func:`mcnemar`.
    """

    difference: float
    low: float
    high: float
    n: int
    only_first: int
    only_second: int
    p_value: float


def mcnemar(only_first: int, only_second: int) -> float:
    """P-value of McNemar's exact test (McNemar, Psychometrika 12, 1947), two-sided.

    Games that both won or both lost say nothing about which is better. Of the others, were both equally good, each would be
    won by either with probability 1/2. The test gives the probability of a split as uneven as the one found, or more.

    Args:
        only_first: games that the first alone won, 0 or more.
        only_second: games that the second alone won, 0 or more.

    Returns:
        In (0, 1]; 1 where no game was won by one alone.

    Example:
        >>> mcnemar(1, 5)  # 2 * (1 + 6) / 2 ** 6
        0.21875
    """
    n = check_int("only_first", only_first, 0) + check_int("only_second", only_second, 0)
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    # Whole numbers as long as possible: 2 ** n alone is too large for a float from 1,024 games on.
    return min(1.0, 2 * tail / 2**n)


def paired_difference(first: Sequence[Episode], second: Sequence[Episode]) -> PairedDifference:
    """Compare two evaluations of the same games (normal approximation on the per-game differences).

    Args:
        first: episodes of the first evaluation, one for each game.
        second: episodes of the second, in any order.

    Raises:
        ValueError: the two did not play the same games once each.
    """
    a, b = ({e.game_id: float(e.success) for e in episodes} for episodes in (first, second))
    if set(a) != set(b) or len(a) != len(first) or len(b) != len(second):
        raise ValueError("a paired difference needs two evaluations that played the same games once each")
    d = np.array([b[game] - a[game] for game in sorted(a)])
    mean = float(d.mean())
    half = Z * float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else float("inf")
    lost, won = int((d < 0).sum()), int((d > 0).sum())
    return PairedDifference(mean, mean - half, mean + half, len(d), lost, won, mcnemar(lost, won))


def make_eval_env(env_id: str = "ALFWorld-v0", n_envs: int = 64, **env_kwargs: Any) -> VecEnv:
    """A vector environment to evaluate in; rewards and success are the true task's.

    Args:
        env_id: id of a registered environment.
        n_envs: how many episodes run side by side, 1 or more.
        env_kwargs: keyword arguments of the environment, and ``max_episode_steps``.
    """
    # Not by its id: then Stable-Baselines3 would ask for a render mode, which not every environment knows.
    return make_vec_env(partial(gym.make, env_id), n_envs=check_int("n_envs", n_envs, 1), env_kwargs=env_kwargs)


def draw_games(task_types: Sequence[str], n: int, seed: int) -> list[int]:
    """Draw games by a seed, spread evenly over the task types.

    Args:
        task_types: task type of each game.
        n: how many to draw, 1 or more; all where there are not more.
        seed: of the draw, 0 or more.

    Returns:
        Indices of the games, in order. A larger ``n`` with the same seed adds games to those of a smaller one.

    Example:
        >>> draw_games(["cook", "cook", "cook", "clean", "clean", "look"], 3, seed=0)
        [1, 4, 5]
    """
    rng = np.random.default_rng(check_int("seed", seed, 0))
    left = {kind: [i for i, t in enumerate(task_types) if t == kind] for kind in sorted(set(task_types))}
    queues = [list(rng.permutation(indices)) for indices in left.values()]
    drawn: list[int] = []
    while len(drawn) < n and any(queues):
        # Types take turns, in another order in each round.
        for k in rng.permutation(len(queues)):
            if queues[k] and len(drawn) < n:
                drawn.append(int(queues[k].pop()))
    return sorted(drawn)


def evaluate(
    actor: Actor,
    venv: VecEnv,
    *,
    games: Sequence[int] | None = None,
    seed: int = 0,
    policy_name: str = "",
    on_episode: Callable[[Episode], None] | None = None,
    on_turns: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play every game of the environment's split exactly once.

    Args:
        actor: who plays; it must have as many rows as ``venv`` has environments.
        venv: environments over the split.
        games: indices of the games to play; ``None``: all. In an environment that does not list its games game k is what
            ``reset(seed=k)`` begins.
        seed: of the episodes' random streams, 0 or more; the episode of game i has the same stream for every player.
        policy_name: written into the episodes.
        on_episode: called with each finished episode, as soon as it is finished.
        on_turns: called after each step of the environments with how many episodes took a turn in it.

    Returns:
        The episodes in the order of the games.

    Raises:
        ValueError: the environment does not list its games, and ``games`` is missing.
    """
    seed = check_int("seed", seed, 0)
    if games is None:
        if not lists_games(venv):
            raise ValueError(
                "the environment does not list its games (it has no attribute n_games): say which seeds of reset() to play, "
                "for example games=range(100)"
            )
        games = range(int(venv.get_attr("n_games", indices=[0])[0]))
    tasks = [RolloutTask({"game": int(game)}, (seed, int(game))) for game in games]
    lm = _language_model(actor)
    if lm is not None:
        use_fast_threads(lm)

    def on_step(names: dict[str, Any]) -> bool:
        if on_turns is not None:
            on_turns(int(names["n_running"]))
        return True

    rollouts = collect(actor, venv, tasks, policy_name=policy_name, on_step=on_step, on_episode=on_episode)
    assert rollouts is not None
    return [r.episode for r in rollouts]


def _language_model(actor: Any) -> Any:
    """The local language model that an actor runs; ``None`` for others, such as a server."""
    rows = getattr(actor, "prm_rows", None)
    return getattr(getattr(actor, "policy", actor), "lm", None) or (None if rows is None else rows.prm.lm)


def lists_games(venv: VecEnv) -> bool:
    """Whether environments have a list of games, from which ``reset(options={"game": i})`` takes one."""
    return venv.has_attr("n_games")
