"""Demonstrations: an expert plays, and what it did is written down as episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.games.experts import SearchExpert
from agentprm_gym.games.game import Game


def demonstrate(game: Game, expert: SearchExpert | None = None, max_steps: int = 30, seed: int = 0) -> Episode:
    """Let an expert play one game natively.

    Args:
        game: The game.
        expert: Who plays; a noiseless `SearchExpert` by default. It is reset first.
        max_steps: After so many commands the episode is cut off.
        seed: Written into the episode, and the default expert's seed.

    Returns:
        The episode, its `policy` being `"expert:search"`; rewards are 1.0 on the winning turn,
        else 0.

    Raises:
        ValueError: `max_steps` below 1, or a task sentence that the expert does not understand.
    """
    # Here, because engines stand above games and need them.
    from agentprm_gym.engines.native import NativeEngine

    if max_steps < 1:
        raise ValueError(f"expected max_steps of at least 1, got {max_steps}")
    expert = SearchExpert(np.random.default_rng(seed)) if expert is None else expert
    expert.reset()
    engine = NativeEngine()
    frame = engine.reset(game)
    turns: list[Turn] = []
    while not frame.won and len(turns) < max_steps:
        before = frame
        reason, command = expert.act(game.task, before.feedback, before.admissible_commands)
        frame = engine.step(command)
        turns.append(
            Turn(
                feedback=before.feedback,
                admissible_commands=before.admissible_commands,
                reason=reason,
                command=command,
                response=f"{reason}\nACTION: {command}",
                is_admissible=True,
                reward=float(frame.won),
            )
        )
    engine.close()
    return Episode(
        game_id=game.game_id,
        split=game.split,
        task_type=game.task_type,
        task=game.task,
        success=frame.won,
        truncated=not frame.won,
        policy="expert:search",
        seed=seed,
        turns=turns,
    )


def demonstrations(
    games: Sequence[Game],
    n: int,
    seed: int = 0,
    *,
    indices: Sequence[int] | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Let the searching expert play games drawn by seed, and keep what it won.

    Args:
        games: Where to draw from, each game once at most.
        n: How many successful episodes are wanted.
        seed: Which games.
        indices: Draw from these only.
        on_episode: Called with each episode that is kept.

    Returns:
        `n` episodes, or as many as there are games that the expert wins (about 98 in 100).

    Raises:
        ValueError: `n` below 1.
        BadGameError: A game that was drawn cannot be played.

    Example:
        >>> from agentprm_gym.games import demonstrations, find_games
        >>> [e.success for e in demonstrations(find_games("train", "generated"), 2)]
        [True, True]
    """
    if n < 1:
        raise ValueError(f"expected n of at least 1, got {n}")
    pool = np.arange(len(games)) if indices is None else np.asarray(indices)
    kept: list[Episode] = []
    for index in np.random.default_rng([seed, 11]).permutation(pool):
        episode = demonstrate(games[int(index)], seed=int(index))
        if episode.success:
            kept.append(episode)
            if on_episode is not None:
                on_episode(episode)
        if len(kept) == n:
            break
    return kept
