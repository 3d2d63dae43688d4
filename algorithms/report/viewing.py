"""What the page's script reads: episodes, rooms and values as small JSON, with every text made harmless."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentprm_gym.engines.native import Snapshot
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.games import Game
from agentprm_gym.plain_text import plain
from algorithms.report.replay import Replay, disagrees, targets

#: Longer texts of one turn are cut, and say so.
MAX_TEXT = 4000


class Texts:
    """Texts that occur often, each kept once; the page knows them by their numbers.

    Texts of games, models and files come in here and nowhere else: what a browser would obey, or what turns the order of the
    other characters around, is replaced (:func:`agentprm_gym.plain_text.plain`).
    """

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        harmless = plain(text)
        if len(harmless) > MAX_TEXT:
            harmless = f"{harmless[:MAX_TEXT]} … ({len(harmless) - MAX_TEXT} more characters)"
        found = self._numbers.setdefault(harmless, len(self.all))
        if found == len(self.all):
            self.all.append(harmless)
        return found

    def numbers(self, texts: Sequence[str]) -> list[int]:
        """The numbers of several texts."""
        return [self.number(text) for text in texts]


def embedded(data: Any) -> str:
    r"""JSON that can stand in a ``<script>`` element: no character in it ends the element or a line.

    Args:
        data: JSON types, without numbers that are not finite.

    Example:
        >>> embedded(["</script>", "\u2028"])
        '["\\u003c/script\\u003e","\\u2028"]'

    Raises:
        ValueError: for a number that is not finite.
    """
    # Only ASCII: separators of lines and marks of direction are written as escapes.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def scores_of(turn: Turn) -> dict[str, float]:
    """The scores of the commands that were compared; of a command with several answers the best one."""
    scores: dict[str, float] = {}
    for candidate in turn.candidates or ():
        command, score = candidate.get("command"), _number(candidate.get("score"))
        if isinstance(command, str) and score is not None:
            scores[command] = max(score, scores.get(command, -math.inf))
    return scores


def _number(value: Any) -> float | None:
    """A finite number; ``None`` for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def episode_data(episode: Episode, found: Replay | None, texts: Texts) -> dict[str, Any]:
    """One episode.

    Args:
        episode: the episode.
        found: the same, played again; ``None`` without a room.
        texts: where texts are kept.

    Returns:
        ``g``, ``t``, ``k``: number of the game's id, the task type, the task; ``s``: whether it was won; ``u``: the turns;
        ``d``: turns at which the PRM and the planner disagree; and with a room ``m``, and ``w``: the turn after which the game
        could not be won any more in time, or ``None``.
    """
    turns = []
    apart = []
    for t, turn in enumerate(episode.turns):
        moment = None if found is None else found.moments[t]
        row = _turn_data(turn, texts)
        if moment is not None and found is not None:
            row["q"] = [_round(moment.q[command]) for command in turn.admissible_commands]
            row["v"] = _round(max(moment.q.values(), default=0.0))
            row["e"] = None if moment.cost == math.inf else int(moment.cost)
            row["x"] = None if moment.loss == math.inf else int(moment.loss)
            row["z"] = _state_data(moment.state, found.game, texts)
            if disagrees(scores_of(turn), moment.q):
                apart.append(t)
        turns.append(row)
    data: dict[str, Any] = {
        "g": texts.number(episode.game_id or str(episode.seed)),
        "t": texts.number(episode.task_type or "no type"),
        "k": texts.number(episode.task),
        "s": int(episode.success),
        "u": turns,
        "d": apart,
    }
    if found is not None:
        data |= {"m": _room_data(found.game, texts), "w": found.lost_at}
    return data


def _turn_data(turn: Turn, texts: Texts) -> dict[str, Any]:
    """A turn: ``f`` feedback, ``a`` admissible commands, ``c`` command, ``b`` whether it was admissible, ``r`` reason.

    ``o`` is the whole answer where it says more; ``p`` its probability; ``n`` the candidates, as command, score, probability.
    """
    row: dict[str, Any] = {
        "f": texts.number(turn.feedback),
        "a": texts.numbers(turn.admissible_commands),
        "c": texts.number(turn.command),
        "b": int(turn.is_admissible),
    }
    if turn.reason:
        row["r"] = texts.number(turn.reason)
    if turn.response.strip() not in ("", turn.command):
        row["o"] = texts.number(turn.response)
    if turn.log_prob is not None:
        row["p"] = _round(math.exp(min(0.0, turn.log_prob)))
    candidates = []
    for one in turn.candidates or ():
        log_prob = _number(one.get("log_prob"))
        probability = None if log_prob is None else math.exp(min(0.0, log_prob))
        candidates.append(
            [texts.number(str(one.get("command"))), _round(_number(one.get("score"))), _round(probability)]
        )
    if candidates:
        row["n"] = candidates
    return row


def _room_data(game: Game, texts: Texts) -> dict[str, Any]:
    """A room: ``r`` receptacles, ``l`` location of each, ``o`` those with doors, ``c`` contents at the start.

    ``g`` and ``p`` are the objects and the places that the goal is about.
    """
    places = {location: i for i, location in enumerate(dict.fromkeys(game.receptacles.values()))}
    objects, wanted = targets(game)
    return {
        "r": texts.numbers(list(game.receptacles)),
        "l": [places[location] for location in game.receptacles.values()],
        "o": texts.numbers([r for r in game.receptacles if r in game.properties["openable"]]),
        "c": {str(texts.number(r)): texts.numbers(inside) for r, inside in game.contents.items() if inside},
        "g": texts.numbers(objects),
        "p": texts.numbers(wanted),
    }


def _state_data(state: Snapshot, game: Game, texts: Texts) -> dict[str, Any]:
    """Where everything is: ``l`` the player's location, ``h`` the object in hand, ``o`` open doors, ``c`` new contents.

    ``y`` are objects with what was done to them, in words.
    """
    places = {location: i for i, location in enumerate(dict.fromkeys(game.receptacles.values()))}
    row: dict[str, Any] = {"l": places.get(state.location, -1), "o": texts.numbers(sorted(state.opened))}
    if state.held is not None:
        row["h"] = texts.number(state.held)
    if state.contents:
        row["c"] = {str(texts.number(r)): texts.numbers(inside) for r, inside in state.contents.items()}
    done: dict[str, list[str]] = {}
    kinds: Mapping[str, frozenset[str]] = {
        "clean": state.clean - game.properties["isClean"],
        "hot": state.hot,
        "cool": state.cool,
        "sliced": state.sliced,
        "on": state.toggled,
    }
    for word, objects in kinds.items():
        for o in sorted(objects):
            done.setdefault(o, []).append(word)
    if done:
        row["y"] = {str(texts.number(o)): ", ".join(words) for o, words in done.items()}
    return row
