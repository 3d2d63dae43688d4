"""The native engine: ALFWorld in plain Python, string for string what TextWorld says.

It holds only what can change. Where the stock stack's text depends on how it keeps facts, that is kept too: a "not in" fact
exists only after an object was taken, and it is what makes ``look`` say "Next to it, you see a candle 1".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentprm_gym.engines.base import Frame
from agentprm_gym.games.game import Game

_WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
NOTHING_HAPPENS = "Nothing happens."
_KNIVES = frozenset({"Knife", "ButterKnife"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state: everything of a running game that can change."""

    game_id: str
    location: str
    held: str | None
    contents: dict[str, tuple[str, ...]]
    locations: dict[str, tuple[str, ...]]
    opened: frozenset[str]
    hot: frozenset[str]
    cool: frozenset[str]
    clean: frozenset[str]
    sliced: frozenset[str]
    toggled: frozenset[str]
    taken_from: frozenset[tuple[str, str]]


def listing(names: Iterable[str]) -> str:
    """TextWorld's list: "a X", "a X, and a Y", "a X, a Y, and a Z"; "nothing" where there is none."""
    items = [f"a {name}" for name in names]
    return _join(items) if items else "nothing"


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + ", and " + items[-1]


class NativeEngine:
    """Runs one game at a time; resets and steps take microseconds."""

    def __init__(self) -> None:
        """Make an engine without a game."""
        self._game: Game | None = None

    # ------------------------------------------------------------------ interface
    def reset(self, game: Game) -> Frame:
        """Start a game; its first feedback is the welcome, the room and the task."""
        self._game = game
        here: dict[str, list[str]] = {}
        for receptacle, location in game.receptacles.items():
            here.setdefault(location, []).append(receptacle)
        self._at: dict[str, tuple[str, ...]] = {location: tuple(names) for location, names in here.items()}
        self._travel: dict[str, list[tuple[str, str]]] = {}
        properties = game.properties
        self._location, self._held = game.start, None
        self._contents = dict(game.contents)
        self._locations = dict(game.locations)
        self._opened, self._toggled = properties["opened"], properties["isToggled"]
        self._hot, self._cool, self._clean = properties["isHot"], properties["isCool"], properties["isClean"]
        self._sliced = properties["isSliced"]
        self._taken_from: frozenset[tuple[str, str]] = frozenset()
        room = (
            self._facing()
            if self._here()
            else (f"You are in the middle of a room. Looking quickly around you, you see {listing(game.receptacles)}.")
        )
        return self._frame(f"{_WELCOME}\n\n{room}\n\nYour task is to: {game.task}")

    def step(self, command: str) -> Frame:
        """Execute a command; surrounding white space does not matter, case does."""
        action = self._actions.get(command.strip())
        return self._frame(action() if action is not None else NOTHING_HAPPENS)

    def snapshot(self) -> Snapshot:
        """The current state."""
        return Snapshot(
            self._loaded().game_id,
            self._location,
            self._held,
            self._contents,
            self._locations,
            self._opened,
            self._hot,
            self._cool,
            self._clean,
            self._sliced,
            self._toggled,
            self._taken_from,
        )

    def restore(self, snapshot: object) -> Frame:
        """Go to a state of the loaded game.

        Raises:
            ValueError: if it is no snapshot of this game.
        """
        game_id = self._loaded().game_id
        if not isinstance(snapshot, Snapshot) or snapshot.game_id != game_id:
            got = snapshot.game_id if isinstance(snapshot, Snapshot) else type(snapshot).__name__
            raise ValueError(
                f"expected a snapshot of the loaded game {game_id!r}, got {got!r}; reset to that game first"
            )
        s = snapshot
        self._location, self._held, self._opened, self._taken_from = s.location, s.held, s.opened, s.taken_from
        # States share these dictionaries: every change replaces them (see _put and _remove).
        self._contents, self._locations = s.contents, s.locations
        self._hot, self._cool, self._clean = s.hot, s.cool, s.clean
        self._sliced, self._toggled = s.sliced, s.toggled
        return self._frame("")

    def close(self) -> None:
        """Nothing to release."""

    def subgoals(self) -> tuple[int, int]:
        """Privileged progress: ``(done, total)``, equal exactly when the game is won.

        * place: an object of the type is in hand or in place; (with a state: it has the state too;) and it is in place.
          The best object counts.
        * place two: for the best place: each of two objects counts one in hand, two in the place.
        * look: the object is in hand; a lamp at the agent's location is on.
        """
        game = self._loaded()
        goal = game.goal
        objects = [o for o, t in game.object_types.items() if t == goal.object_type]
        if goal.kind == "look":
            return int(self._held in objects) + int(self._lamp_here(goal.lamp_type)), 2
        places = [r for r, t in game.receptacle_types.items() if t == goal.receptacle_type]
        if goal.kind == "place_two":
            most = max((sum(o in objects for o in self._contents.get(r, ())) for r in places), default=0)
            return min(2 * min(most, 2) + int(most < 2 and self._held in objects), 4), 4
        having = {"hot": self._hot, "cool": self._cool, "clean": self._clean}.get(goal.state)
        total = 2 if having is None else 3
        best = 0
        for o in objects:
            placed = any(o in self._contents.get(r, ()) for r in places)
            ready = having is None or o in having
            if placed and ready:
                return total, total
            # An object put away before it has its state must be taken again: that it lies there is no progress.
            best = max(best, int(o == self._held) + int(having is not None and ready))
        return best, total

    # ------------------------------------------------------------------ state
    def _loaded(self) -> Game:
        if self._game is None:
            raise RuntimeError("no game is loaded; call reset(game) first")
        return self._game

    def _here(self) -> tuple[str, ...]:
        return self._at.get(self._location, ())

    def _accessible(self, receptacle: str) -> bool:
        return receptacle not in self._loaded().properties["openable"] or receptacle in self._opened

    def _lamp_here(self, lamp_type: str) -> bool:
        game = self._loaded()
        return any(
            o in self._toggled and game.object_types.get(o) == lamp_type and o in game.properties["toggleable"]
            for r in self._here()
            for o in self._contents.get(r, ())
        )

    def _won(self) -> bool:
        game = self._loaded()
        goal = game.goal
        if goal.kind == "look":
            held = self._held is not None and game.object_types.get(self._held) == goal.object_type
            return held and self._lamp_here(goal.lamp_type)
        having = {"hot": self._hot, "cool": self._cool, "clean": self._clean}.get(goal.state)
        n = 2 if goal.kind == "place_two" else 1
        for receptacle, kind in game.receptacle_types.items():
            if kind == goal.receptacle_type:
                found = 0
                for o in self._contents.get(receptacle, ()):
                    if game.object_types.get(o) == goal.object_type and (having is None or o in having):
                        found += 1
                if found >= n:
                    return True
        return False

    # ------------------------------------------------------------------ commands
    def _frame(self, feedback: str) -> Frame:
        """Collect what may be done now."""
        game = self._loaded()
        properties = game.properties
        actions: dict[str, Callable[[], str]] = {
            "look": self._look,
            "inventory": self._inventory,
            "help": lambda: game.help_text,
        }
        for command, receptacle in self._journeys():
            actions[command] = lambda r=receptacle: self._go(r)  # type: ignore[misc]
        held = self._held
        for r in self._here():
            kind = game.receptacle_types.get(r)
            actions[f"examine {r}"] = lambda r=r: self._examine_receptacle(r)  # type: ignore[misc]
            if r in properties["openable"]:
                if r in self._opened:
                    actions[f"close {r}"] = lambda r=r: self._close(r)  # type: ignore[misc]
                else:
                    actions[f"open {r}"] = lambda r=r: self._open(r)  # type: ignore[misc]
            inside = self._contents.get(r, ())
            if self._accessible(r):
                if held is None:
                    for o in inside:
                        if o in properties["pickupable"]:
                            actions[f"take {o} from {r}"] = lambda o=o, r=r: self._take(o, r)  # type: ignore[misc]
                elif (kind, game.object_types.get(held)) in game.fits:
                    actions[f"move {held} to {r}"] = lambda o=held, r=r: self._put(o, r)  # type: ignore[misc]
            for o in inside:
                if o in properties["toggleable"]:
                    actions[f"use {o}"] = lambda o=o: self._use(o)  # type: ignore[misc]
            if held is not None:
                if kind in game.sink_types and held in properties["cleanable"]:
                    actions[f"clean {held} with {r}"] = lambda o=held, r=r: self._change("clean", o, r)  # type: ignore[misc]
                if kind == "Microwave" and held in properties["heatable"]:
                    actions[f"heat {held} with {r}"] = lambda o=held, r=r: self._change("heat", o, r)  # type: ignore[misc]
                if kind == "Fridge" and held in properties["coolable"]:
                    actions[f"cool {held} with {r}"] = lambda o=held, r=r: self._change("cool", o, r)  # type: ignore[misc]
        if held is not None:
            actions[f"examine {held}"] = lambda: self._examine_object(held)
            if game.object_types.get(held) in _KNIVES:
                for o in properties["sliceable"]:
                    if self._location in self._locations.get(o, ()):
                        actions[f"slice {o} with {held}"] = lambda o=o: self._slice(o)  # type: ignore[misc]
        self._actions = actions
        return Frame(feedback, tuple(sorted(actions)), self._won())

    def _journeys(self) -> list[tuple[str, str]]:
        """Commands that go somewhere else: every receptacle that is not here."""
        found = self._travel.get(self._location)
        if found is None:
            found = [
                (f"go to {r}", r) for r, location in self._loaded().receptacles.items() if location != self._location
            ]
            self._travel[self._location] = found
        return found

    def _go(self, receptacle: str) -> str:
        self._location = self._loaded().receptacles[receptacle]
        return f"You arrive at {receptacle}. {self._examine_receptacle(receptacle)}"

    def _open(self, receptacle: str) -> str:
        self._opened = self._opened | {receptacle}
        return f"You open the {receptacle}. {self._examine_receptacle(receptacle)}"

    def _close(self, receptacle: str) -> str:
        self._opened = self._opened - {receptacle}
        return f"You close the {receptacle}."

    def _take(self, o: str, receptacle: str) -> str:
        self._contents = {**self._contents, receptacle: tuple(x for x in self._contents[receptacle] if x != o)}
        left = tuple(x for x in self._locations.get(o, ()) if x != self._location)
        self._locations = {**self._locations, o: left}
        self._taken_from = self._taken_from | {(o, receptacle)}
        self._held = o
        return f"You pick up the {o} from the {receptacle}."

    def _put(self, o: str, receptacle: str) -> str:
        order = self._loaded().order
        inside = sorted({*self._contents.get(receptacle, ()), o}, key=order.__getitem__)
        self._contents = {**self._contents, receptacle: tuple(inside)}
        places = tuple(dict.fromkeys((*self._locations.get(o, ()), self._location)))
        self._locations = {**self._locations, o: places}
        self._taken_from = self._taken_from - {(o, receptacle)}
        self._held = None
        return f"You move the {o} to the {receptacle}."

    def _use(self, o: str) -> str:
        self._toggled = self._toggled | {o}
        return f"You turn on the {o}."

    def _change(self, verb: str, o: str, receptacle: str) -> str:
        if verb == "clean":
            self._clean = self._clean | {o}
        elif verb == "heat":
            self._hot, self._cool = self._hot | {o}, self._cool - {o}
        else:
            self._cool, self._hot = self._cool | {o}, self._hot - {o}
        return f"You {verb} the {o} using the {receptacle}."

    def _slice(self, o: str) -> str:
        self._sliced = self._sliced | {o}
        return f"You sliced the {o} with the {self._held}."

    # ------------------------------------------------------------------ texts
    def _examine_receptacle(self, receptacle: str) -> str:
        inside = listing(self._contents.get(receptacle, ()))
        if receptacle not in self._loaded().properties["openable"]:
            return f"On the {receptacle}, you see {inside}."
        if receptacle in self._opened:
            return f"The {receptacle} is open. In it, you see {inside}."
        return f"The {receptacle} is closed."

    def _examine_object(self, o: str) -> str:
        game = self._loaded()
        if o in game.properties["isReceptacleObject"]:
            return f"This is a normal {o}. In it, you see {listing(game.inside.get(o, ()))}."
        hot, cool, clean, sliced = o in self._hot, o in self._cool, o in self._clean, o in self._sliced
        # The order of the grammar's rules; a hot sliced object that is clean matches the first.
        rules = (
            (clean and hot and sliced, "hot and clean sliced "),
            (clean and cool and sliced, "cool and clean sliced "),
            (clean and sliced, "clean sliced "),
            (hot and sliced, "hot sliced "),
            (cool and sliced, "cool sliced "),
            (clean and hot, "hot and clean "),
            (clean and cool, "cool and clean "),
            (hot, "hot "),
            (clean, "clean "),
            (cool, "cold "),
        )
        for holds, words in rules:
            if holds:
                return f"This is a {words}{o}."
        if o in game.properties["toggleable"] and o in self._toggled:
            return f"This {o} is on."
        if o in game.properties["sliceable"] and sliced:
            return f"This is a sliced {o}."
        return f"There's nothing special about {o}."

    def _inventory(self) -> str:
        if self._held is None:
            return "You are not carrying anything."
        return f"You are carrying: a {self._held}."

    def _look(self) -> str:
        if self._here():
            return self._facing()
        # Only the first look of a game lists the room: later the location is known, and nothing is there.
        return "You are in the middle of a room. Looking quickly around you, you see nothing."

    def _facing(self) -> str:
        here = self._here()
        order = self._loaded().order
        beside = [
            o
            for o, places in self._locations.items()
            if self._location in places
            for r in here
            if (o, r) in self._taken_from
        ]
        return f"You are facing the {_join(list(here))}. Next to it, you see {listing(sorted(beside, key=order.__getitem__))}."
