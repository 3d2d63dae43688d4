"""Worlds that a player may believe to be in: the hidden objects are drawn anew, and all that the transcript showed stays.

**The prior.** A game's receptacles and its catalogue of objects (their names, so their types and numbers, and their
properties) are taken as known. What is hidden is where the objects lie. Each object ``o`` of the catalogue lies in one
receptacle ``h(o)``, and independently of each other

    P(h(o) = r)  is proportional to  holding_rate(type of o, type of r, number of receptacles of this type)

(:func:`agentprm_gym.games.prior.holding_rate`: totals over the real train games, shared among receptacles of one type, and a
tiny rate for pairs that never occur). The game is not won at its start.

**The posterior** is the prior, restricted to the worlds that show the transcript to the letter. What a transcript tells is a
set of receptacles for each object (:mod:`agentprm_gym.bench.belief_evidence`), so

    P(h | transcript)  is proportional to  [h is not won at the start] * product over unseen o of [h(o) in A(o)] * P(h(o)),

where A(o) are the receptacles in which ``o`` can still be. It is sampled by drawing each unseen object from its restricted
distribution. A draw that is won at the start is drawn again, all its objects of the goal's type. Each drawn world then replays
the transcript, and a difference of a single letter is an error.

**What is assumed beyond that.** From the game itself, so in favour of the player, come: the catalogue (how many mugs the room
has); the conditions of objects at the start (some lie cool in the fridge); which receptacles are reached from one location;
what is inside of a bowl. In the games some 2 % of the objects are in several receptacles at once. An object that was seen is
only where it was seen; one that was not seen is in one receptacle. That is the limit of a prior in which each further
receptacle has a vanishing probability. In the rare case that no single receptacle explains what was shown, the object keeps
the receptacles that it has. An unseen object stands at the location of its receptacle. Where that is not so in the game (1 of
250 objects in real games, none in generated ones), it keeps its location, which only decides where it can be sliced. That some
receptacles hold one thing at a time, and that things stand in company, is not modelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agentprm_gym.bench.belief_evidence import Evidence, usual
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.native import NativeEngine, Snapshot
from agentprm_gym.episodes import Turn
from agentprm_gym.games.game import Game
from agentprm_gym.games.prior import holding_rate

# A draw that is won at the start is drawn again, at most so often: much rarer worlds do not occur.
_MAX_DRAWS = 1_000_000
_BATCH = 4096
# Up to so many ways to place what the goal names are listed: four objects in twenty receptacles have 160,000.
_MAX_LISTED = 200_000


class World(NamedTuple):
    """A world that is consistent with a transcript.

    Attributes:
        start: its first state; ``NativeEngine.restore`` takes it after a reset with the game.
        now: its state after the transcript.
        weight: its probability among the worlds that were returned with it.
    """

    start: Snapshot
    now: Snapshot
    weight: float


class Worlds(NamedTuple):
    """Worlds for a weighted mean.

    Attributes:
        worlds: different worlds, with weights that add up to 1.
        n_listed: the first so many are the likeliest ones, and their weights are exact probabilities.
        n_drawn: so many draws are behind the others; 0 where all possible worlds are listed.
    """

    worlds: list[World]
    n_listed: int
    n_drawn: int


def replay_turns(engine: NativeEngine, frame: Frame, turns: Sequence[Turn], what: str) -> Snapshot:
    """Play the commands of a transcript, and compare all that is shown with it.

    Args:
        engine: at the start of the game.
        frame: what the engine shows there.
        turns: one turn or more; the command of the last one is not played.
        what: names the game in the error.

    Returns:
        The state before the last turn's command.

    Raises:
        ValueError: a feedback or the admissible commands differ, or the game is won before the last turn.
    """
    for t, turn in enumerate(turns):
        shown = frame.feedback, tuple(frame.admissible_commands)
        wanted = turn.feedback, tuple(turn.admissible_commands)
        if shown != wanted:
            said, expected = next((a, b) for a, b in zip(shown, wanted, strict=True) if a != b)
            raise ValueError(
                f"{what}: turn {t} of the history shows {expected!r}, but the game shows {said!r}; "
                "give the game and the wording in which the history was played"
            )
        if frame.won:
            raise ValueError(f"{what}: the game is won before turn {t}; give a history of a game that goes on")
        if t < len(turns) - 1:
            frame = engine.step(turn.command)
    return engine.snapshot()


class Belief:
    """What a player may believe who has seen a transcript and nothing else.

    Attributes:
        allowed: by unseen object, the receptacles in which it can be.
        chances: by unseen object, the probability of each of these; they add up to 1.
        relevant: the unseen objects of the types that the goal names.
    """

    def __init__(self, game: Game, turns: Sequence[Turn]) -> None:
        """Read a transcript.

        Args:
            game: a game that the native engine plays.
            turns: one turn or more, from the start of the game; the command of the last one is not read.

        Raises:
            ValueError: the transcript is not one of this game.
            UnsupportedGameError: only the stock engine plays the game.
        """
        if not turns:
            raise ValueError("expected a history of at least one turn, got none")
        self._game, self._turns = game, tuple(turns)
        self._engine = NativeEngine()
        self._opening = self._engine.reset(game)
        self._base = self._engine.snapshot()
        self._now = replay_turns(self._engine, self._opening, self._turns, game.game_id)
        self._at_home = usual(game)
        goal = game.goal
        self._fixed: dict[str, tuple[str, ...]] = {}
        self.allowed: dict[str, tuple[str, ...]] = {}
        self.chances: dict[str, npt.NDArray[np.float64]] = {}
        evidence = Evidence(game, turns)
        for o, homes in self._homes().items():
            allowed = evidence.allowed(o)
            if allowed is None:
                self._fixed[o] = tuple(r for r in game.receptacles if r in evidence.seen[o])
                continue
            if self._wins_alone(o):
                allowed = [r for r in allowed if game.receptacle_types.get(r) != goal.receptacle_type]
            if allowed:
                self.allowed[o] = tuple(allowed)
                self.chances[o] = self._rates(o, allowed)
            else:
                self._fixed[o] = homes
        named = {goal.object_type, goal.lamp_type}
        self.relevant = tuple(o for o in self.allowed if game.object_types.get(o) in named)
        self._pairs = self._check_pairs()

    @property
    def n_relevant(self) -> int:
        """In how many ways the unseen objects that the goal names can lie, those that are won at the start included."""
        return prod(len(self.allowed[o]) for o in self.relevant)

    def draw(self, n: int, rng: np.random.Generator) -> list[World]:
        """Draw worlds, independently of each other, with replacement.

        Args:
            n: how many, 1 or more.
            rng: source of the draws.

        Returns:
            n worlds of equal weight; equal draws are the same object.

        Raises:
            ValueError: ``n`` is below 1.
            RuntimeError: none of a million draws is a game that is not won at its start.
        """
        if n < 1:
            raise ValueError(f"expected n of at least 1, got {n}")
        rows = self._draw_relevant(n, rng)
        made: dict[tuple[int, ...], World] = {}
        out = []
        for row, rest in zip(rows, self._draw_rest(n, rng), strict=True):
            key = (*row, *rest.values())
            if key not in made:
                made[key] = self._world(row, rest, 1.0 / n)
            out.append(made[key])
        return out

    def likeliest_and_drawn(self, n: int, rng: np.random.Generator, n_listed: int | None = None) -> Worlds:
        """Return worlds for a weighted mean over all that a player may believe, as far as they differ in what the goal names.

        Where there are at most n worlds, they are all listed, with their probabilities. Else the likeliest ``n_listed`` worlds
        are, and from the others, whose probability is small but whose number is large, the rest of n is drawn. Merely drawing
        would often miss worlds that are rare, and then show too small an error.

        Worlds that differ only in objects that the goal does not name are the same to whoever looks only for what it names. So
        these objects are drawn once for all worlds, which makes what is seen in the worlds as equal as it can be.

        Args:
            n: how many worlds, 4 or more; equal draws are merged.
            rng: source of the draws.
            n_listed: how many of them are the likeliest ones, 0 to n - 2; half of them by default. With 0, n worlds are drawn.

        Raises:
            ValueError: a number is out of its range.
            RuntimeError: see :meth:`draw`.
        """
        if n < 4:
            raise ValueError(f"expected n of at least 4, got {n}")
        listed = n // 2 if n_listed is None else n_listed
        if not 0 <= listed <= n - 2:
            raise ValueError(f"expected n_listed from 0 to {n - 2}, got {listed}")
        rest = next(self._draw_rest(1, rng))
        if self.n_relevant > _MAX_LISTED or listed == 0:
            drawn, weights, n_drawn = self._draw_relevant(n, rng), np.zeros(0), n
            likeliest: list[tuple[int, ...]] = []
        else:
            likeliest, weights, drawn = self._list_and_draw(n, listed, rng)
            n_drawn = len(drawn)
        worlds = [self._world(row, rest, float(w)) for row, w in zip(likeliest, weights, strict=True)]
        left = 1.0 - float(weights.sum())
        worlds += [self._world(row, rest, left * count / n_drawn) for row, count in Counter(drawn).items()]
        return Worlds(worlds, len(likeliest), n_drawn)

    def _list_and_draw(
        self, n: int, n_listed: int, rng: np.random.Generator
    ) -> tuple[list[tuple[int, ...]], npt.NDArray[np.float64], list[tuple[int, ...]]]:
        """Return the likeliest draws of what the goal names, their probabilities, and draws from the others."""
        shape = tuple(len(self.allowed[o]) for o in self.relevant)
        chances = np.ones(1)
        for o in self.relevant:
            chances = np.multiply.outer(chances, self.chances[o]).ravel()
        rows = np.stack(np.unravel_index(np.arange(len(chances)), shape or (1,)), axis=1)[:, : len(shape)]
        chances[self._won_rows(rows)] = 0.0
        chances /= chances.sum()
        possible = int((chances > 0).sum())
        order = np.argsort(-chances, kind="stable")
        if possible <= n:
            n_listed = possible
        likeliest = order[:n_listed]
        weights = chances[likeliest]
        chances[likeliest] = 0.0
        drawn = _choose(rng, chances, n - n_listed) if possible > n else np.zeros(0, dtype=np.int64)
        return list(map(tuple, rows[likeliest].tolist())), weights, list(map(tuple, rows[drawn].tolist()))

    # The prior --------------------------------------------------------------------------------

    def _homes(self) -> dict[str, tuple[str, ...]]:
        """The catalogue: the objects that are in some receptacle at a location, with these receptacles in the game."""
        homes: dict[str, list[str]] = {}
        for r in self._game.receptacles:
            for o in self._game.contents.get(r, ()):
                homes.setdefault(o, []).append(r)
        return {o: tuple(homes[o]) for o in sorted(homes)}

    def _rates(self, o: str, allowed: Sequence[str]) -> npt.NDArray[np.float64]:
        n = Counter(map(_type, self._game.receptacles))
        rates = np.array([holding_rate(_type(o), _type(r), n[_type(r)]) for r in allowed])
        return np.asarray(rates / rates.sum())

    def _is_target(self, o: str) -> bool:
        """Whether an object counts for the goal from the start on, once it is in a place of the goal's type."""
        game, goal = self._game, self._game.goal
        return (
            goal.kind != "look"
            and game.object_types.get(o) == goal.object_type
            and all(o in game.properties[p] for p in (*goal.affordances, *goal.states))
        )

    def _wins_alone(self, o: str) -> bool:
        return self._game.goal.kind == "place" and self._is_target(o)

    def _check_pairs(self) -> tuple[tuple[int, npt.NDArray[np.int64]], ...]:
        """For "two in one place": which of the unseen objects count, and what place each of their receptacles is.

        Returns:
            For each such object its number in ``relevant``, and for each receptacle allowed to it the number of the place, or
            -1 where it is none.
        """
        game = self._game
        if game.goal.kind != "place_two":
            return ()
        places = [r for r, kind in game.receptacle_types.items() if kind == game.goal.receptacle_type]
        number = {r: i for i, r in enumerate(places)}
        self._standing = np.zeros(len(places), dtype=np.int64)
        for o, homes in self._fixed.items():
            if self._is_target(o):
                for r in homes:
                    if r in number:
                        self._standing[number[r]] += 1
        return tuple(
            (i, np.array([number.get(r, -1) for r in self.allowed[o]]))
            for i, o in enumerate(self.relevant)
            if self._is_target(o)
        )

    def _won_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of (n, relevant) draws have two objects of the goal in one place from the start on."""
        won = np.zeros(len(rows), dtype=bool)
        if self._pairs:
            at = np.stack([places[rows[:, i]] for i, places in self._pairs], axis=1)  # (n, objects)
            for place, standing in enumerate(self._standing):
                won |= (at == place).sum(axis=1) + standing >= 2
        return won

    # Drawing ----------------------------------------------------------------------------------

    def _draw_relevant(self, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Draw the objects that the goal names: for each draw the indices in ``allowed``."""
        kept: list[tuple[int, ...]] = []
        for _ in range(_MAX_DRAWS // _BATCH):
            size = n if not self._pairs else max(_BATCH, n)
            columns = [_choose(rng, self.chances[o], size) for o in self.relevant]
            rows = np.stack(columns, axis=1) if columns else np.zeros((size, 0), dtype=np.int64)
            kept += map(tuple, rows[~self._won_rows(rows)][: n - len(kept)].tolist())
            if len(kept) == n:
                return kept
        raise RuntimeError(
            f"{self._game.game_id}: none of {_MAX_DRAWS} drawn worlds is a game that is not won at its start; "
            "its objects lie in places where the prior does not expect them: leave out this state"
        )

    def _draw_rest(self, n: int, rng: np.random.Generator) -> Iterator[dict[str, int]]:
        """Draw all other unseen objects, n times: the index in ``allowed`` by object."""
        others = [o for o in self.allowed if o not in self.relevant]
        columns = [_choose(rng, self.chances[o], n).tolist() for o in others]
        return (dict(zip(others, row, strict=True)) for row in (zip(*columns, strict=True) if others else [()] * n))

    def _world(self, row: Sequence[int], rest: dict[str, int], weight: float) -> World:
        """Build a world and replay the transcript in it."""
        game = self._game
        chosen = {**dict(zip(self.relevant, row, strict=True)), **rest}
        lying: dict[str, list[str]] = {r: [] for r in game.receptacles}
        for o, homes in self._fixed.items():
            for r in homes:
                lying[r].append(o)
        locations: dict[str, tuple[str, ...]] = {}
        for o, i in chosen.items():
            home = self.allowed[o][i]
            lying[home].append(o)
            if o in self._at_home:
                locations[o] = (game.receptacles[home],)
        contents = {r: tuple(sorted(inside, key=game.order.__getitem__)) for r, inside in lying.items()}
        changed = {r: inside for r, inside in contents.items() if inside != game.contents.get(r, ())}
        start = self._base._replace(contents=changed, locations=locations)
        frame = self._engine.restore(start)._replace(feedback=self._opening.feedback)
        now = replay_turns(self._engine, frame, self._turns, f"a world drawn for {game.game_id}")
        return World(start, now, weight)


def consistent_worlds(game: Game, turns: Sequence[Turn], n: int, rng: np.random.Generator) -> list[World]:
    """Draw worlds that show a transcript to the letter: every feedback and all admissible commands, turn by turn.

    Args:
        game: the game that was played; hidden objects are drawn anew, see the head of this file.
        turns: its turns so far, one or more (``BenchState.history``); the command of the last one is not read.
        n: how many worlds, 1 or more; they are drawn independently.
        rng: source of the draws.

    Returns:
        n worlds, each of weight 1 / n.

    Raises:
        ValueError: the transcript is not one of this game, or ``n`` is below 1.
    """
    return Belief(game, turns).draw(n, rng)


def _choose(rng: np.random.Generator, chances: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Draw n indices."""
    edges = np.cumsum(chances)
    drawn = np.searchsorted(edges, rng.random(n) * edges[-1], side="right")
    return np.asarray(np.minimum(drawn, len(chances) - 1), dtype=np.int64)


def _type(name: str) -> str:
    return name.rsplit(" ", 1)[0]
