"""What a transcript shows about where objects lay when the game began.

The player sees an object in a receptacle in two ways: a text lists the receptacle ("On the shelf 1, you see a mug 2."), or a
command names both ("take mug 2 from shelf 1"). Three other things tell where an object is *not*, or that it is in one of a few
receptacles:

- A text that lists a receptacle without the object.
- With an empty hand, all things that can be taken here have a command, also in a neighbour of the receptacle that was gone to.
  A closed door hides them.
- Whatever can be turned on here has a command "use ...", also behind a closed door. With a knife in hand, whatever can be
  sliced here has a command "slice ...", also behind a closed door.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from agentprm_gym.episodes import Turn
from agentprm_gym.games.game import Game

_LISTED = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see ([^.]*)\.")
_NAMES = re.compile(r"\ban? (\w+ \d+)")
_PICKED = re.compile(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.")
_PUT = re.compile(r"You (?:move|put) the (\w+ \d+) (?:to|in/on) the (\w+ \d+)\.")
_TAKE = re.compile(r"take (\w+ \d+) from (\w+ \d+)")
_KNIVES = frozenset({"Knife", "ButterKnife"})

Names = frozenset[str]


class Evidence:
    """What the turns of a transcript show about the start of the game.

    Attributes:
        seen: by object, the receptacles in which it was seen, and where the player had not put it.
        listed: the receptacles that a text listed: all that they held is in ``seen``.
    """

    def __init__(self, game: Game, turns: Sequence[Turn]) -> None:
        """Read a transcript.

        Args:
            game: the game, for the names of receptacles and for what can be taken, turned on and sliced.
            turns: the turns; the command of the last one is not read.
        """
        self._game = game
        self.seen: dict[str, set[str]] = defaultdict(set)
        self.listed: set[str] = set()
        # Receptacles that showed all that can be taken.
        self._takeable_shown: set[str] = set()
        # By object: the receptacles where it cannot be, and sets of receptacles of which one must have held it.
        self._barred: dict[str, set[str]] = defaultdict(set)
        self._demands: dict[str, set[Names]] = defaultdict(set)
        # Pairs of object and receptacle that the player changed: what is seen later says nothing about the start.
        self._taken: set[tuple[str, str]] = set()
        self._placed: set[tuple[str, str]] = set()
        self._touched: set[tuple[str, str]] = set()
        for turn in turns:
            self._read(turn)

    def allowed(self, o: str) -> list[str] | None:
        """Return the receptacles, each of which alone explains all that was shown of an object that was not seen.

        Args:
            o: the object.

        Returns:
            The receptacles in the game's order; ``None`` where the object was seen in the receptacles ``seen[o]``, and these
            explain everything. An empty list where no single receptacle explains it: the object was in several.
        """
        demands = self._demands.get(o, set())
        if found := self.seen.get(o):
            return None if all(demand & found for demand in demands) else []
        barred = self._barred.get(o, set()) | self.listed
        if o in self._game.properties["pickupable"]:
            barred = barred | self._takeable_shown
        return [r for r in self._game.receptacles if r not in barred and all(r in demand for demand in demands)]

    def _read(self, turn: Turn) -> None:
        for o, r in _PICKED.findall(turn.feedback):
            self._see(o, r)
            self._taken.add((o, r))
            self._placed.discard((o, r))
            self._touched.add((o, r))
        for o, r in _PUT.findall(turn.feedback):
            self._taken.discard((o, r))
            self._placed.add((o, r))
            self._touched.add((o, r))
        for on, inside, listing in _LISTED.findall(turn.feedback):
            self.listed.add(on or inside)
            for o in _NAMES.findall(listing):
                self._see(o, on or inside)
        self._read_commands(turn.admissible_commands)

    def _see(self, o: str, r: str) -> None:
        if (o, r) not in self._touched:
            self.seen[o].add(r)

    def _read_commands(self, commands: Sequence[str]) -> None:
        game, known = self._game, frozenset(commands)
        examined = [c.removeprefix("examine ") for c in commands if c.startswith("examine ")]
        here = frozenset(r for r in examined if r in game.receptacles)
        held = next((o for o in examined if o not in game.receptacles), None)
        for command in commands:
            if (found := _TAKE.fullmatch(command)) is not None:
                self._see(found[1], found[2])
        if held is None:
            self._takeable_shown.update(r for r in here if f"open {r}" not in known)
        for o in game.properties["toggleable"]:
            self._tell(o, f"use {o}" in known, here)
        if held is not None and game.object_types.get(held) in _KNIVES:
            for o in game.properties["sliceable"] & usual(game):
                self._tell(o, f"slice {o} with {held}" in known, here)

    def _tell(self, o: str, shown: bool, here: Names) -> None:
        """A command tells that an object is in one of the receptacles here, or in none."""
        if not shown:
            self._barred[o] |= here
        elif not any((o, r) in self._placed for r in here):
            self._demands[o].add(frozenset(r for r in here if (o, r) not in self._taken))


def usual(game: Game) -> Names:
    """Return the objects whose location at the start is that of a receptacle that holds them: nearly all that are in one."""
    return frozenset(
        o
        for r, inside in game.contents.items()
        for o in inside
        if r in game.receptacles and game.locations.get(o) == (game.receptacles[r],)
    )
