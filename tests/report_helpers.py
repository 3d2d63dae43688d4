"""Evaluations for the tests of reports: games that were really played, with candidates and, where wanted, hostile texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.episodes import Episode, Turn, write_episodes
from agentprm_gym.experts import Planner
from agentprm_gym.games import Game, GameList

#: What a game or a model may write to take over a page that shows it.
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    "<!--<script>\u2028\u2029\u202eevil\u0000\x1b[31m\"'`${window.hacked=3}&lt; {{ 7 * 7 }} $x_1$"
)


def played(game: Game, commands: Sequence[str], *, success: bool, max_steps: int = 30) -> Episode:
    """An episode with these commands."""
    engine, turns = NativeEngine(), []
    frame = engine.reset(game)
    for command in commands:
        before, frame = frame, engine.step(command)
        turns.append(
            Turn(
                feedback=before.feedback,
                admissible_commands=before.admissible_commands,
                command=command,
                response=command,
                is_admissible=command in before.admissible_commands,
                reward=float(frame.won),
                log_prob=-0.5,
            )
        )
    assert frame.won == success
    truncated = not success and len(turns) == max_steps
    kinds = {"split": game.split, "task_type": game.task_type, "task": game.task}
    return Episode(game_id=game.game_id, success=success, truncated=truncated, turns=turns, seed=0, **kinds)


def by_planner(game: Game) -> Episode:
    """The shortest way."""
    return played(game, Planner(game).plan(), success=True)


def idle(game: Game, n: int = 30) -> Episode:
    """Look around until the step limit."""
    return played(game, ["look"] * n, success=False)


def with_candidates(episode: Episode, game: Game, *, wrong: bool) -> Episode:
    """The same episode as a search would have recorded it: two commands a turn, scored by the planner, or against it."""
    planner, engine, turns = Planner(game), NativeEngine(), []
    engine.reset(game)
    for turn in episode.turns:
        q = planner.optimal_q(engine.snapshot(), 0.95)
        other = min(q, key=lambda c: q[c])
        scores = {turn.command: q[turn.command], other: q[other]}
        if wrong:
            scores = {c: 1 - s for c, s in scores.items()}
        rows = [{"command": c, "response": c, "score": s, "log_prob": -1.0} for c, s in scores.items()]
        turns.append(replace(turn, candidates=rows))
        engine.restore(engine.snapshot())
        engine.step(turn.command)
    return replace(episode, turns=turns)


def hostile(episode: Episode) -> Episode:
    """The same episode, said in words that attack a page; commands and games stay, so that it can be played again."""
    turns = [
        replace(t, feedback=HOSTILE + t.feedback, reason=HOSTILE, response=HOSTILE + t.command) for t in episode.turns
    ]
    return replace(episode, task=HOSTILE, task_type=HOSTILE + episode.task_type, policy=HOSTILE, turns=turns)


def write_evaluation(folder: Path, listed: GameList, episodes: Sequence[Episode], **about: object) -> Path:
    """A folder as ``agentprm eval`` leaves it."""
    note = {"source": listed.source, "split": listed.split, "content_hash": listed.content_hash}
    write_episodes(folder / "episodes.jsonl.gz", episodes)
    told = {"model": "tiny", "env": "ALFWorld-v0", "games": note, "max_steps": 30, "temperature": 1.0, **about}
    (folder / "result.json").write_text(json.dumps(told), encoding="utf-8")
    return folder
