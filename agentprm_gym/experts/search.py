"""The searching expert, which plays ALFWorld games in either wording.

:class:`SearchExpert` knows what any player may know: the task, what it has seen since the game began, and what is usually
kept where (totals over the train games, which the package ships). It gives a reason for each command. Its answer depends
only on what was seen, so it can also be asked about states that other players' commands led to.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import exp
from typing import NamedTuple

import numpy as np

from agentprm_gym.games.prior import OPENABLE, RECEPTACLES, holding_rate, may_hold
from agentprm_gym.games.wording import read_put

_TASKS = [
    (kind, re.compile(pattern + r"\.?$"))
    for kind, pattern in (
        ("two", r"put two (?P<o>\w+) in (?P<r>\w+)"),
        ("two", r"find two (?P<o>\w+) and put them in (?P<r>\w+)"),
        ("look", r"look at (?P<o>\w+) under the (?P<r>\w+)"),
        ("look", r"examine the (?P<o>\w+) with the (?P<r>\w+)"),
        ("heat", r"put a hot (?P<o>\w+) in (?P<r>\w+)"),
        ("cool", r"put a cool (?P<o>\w+) in (?P<r>\w+)"),
        ("clean", r"put a clean (?P<o>\w+) in (?P<r>\w+)"),
        ("heat", r"heat some (?P<o>\w+) and put it in (?P<r>\w+)"),
        ("cool", r"cool some (?P<o>\w+) and put it in (?P<r>\w+)"),
        ("clean", r"clean some (?P<o>\w+) and put it in (?P<r>\w+)"),
        ("put", r"put a (?P<o>\w+) in (?P<r>\w+)"),
        ("put", r"put some (?P<o>\w+) on (?P<r>\w+)"),
    )
]
_APPLIANCES = {"heat": "microwave", "cool": "fridge", "clean": "sinkbasin"}
_DONE = {"heat": "hot", "cool": "cold", "clean": "clean"}
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see ([^.]*)\.")
_OBJECTS = re.compile(r"\ban? (\w+ \d+)")
_PICKED = re.compile(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.")
_PUT_DOWN = re.compile(r"You (?:move|put) the (\w+ \d+) (?:to|in/on) the (\w+ \d+)\.")
_TREATED = re.compile(r"You (heat|cool|clean) the (\w+ \d+) using the (\w+ \d+)\.")


class TaskGoal(NamedTuple):
    """The parts of a task sentence.

    Attributes:
        kind: ``"put"``, ``"two"``, ``"look"``, ``"clean"``, ``"heat"`` or ``"cool"``.
        object_type: The type of the object, as in names ("mug").
        receptacle_type: The type of the receptacle, or of the lamp where the kind is ``"look"``.
    """

    kind: str
    object_type: str
    receptacle_type: str


@lru_cache(maxsize=4096)
def read_task(task: str) -> TaskGoal:
    """Read one of ALFWorld's twelve task sentences.

    Args:
        task: The sentence, for example ``"put a hot potato in fridge."``.

    Raises:
        ValueError: The sentence has another form, for example because a person wrote it.
    """
    sentence = task.strip().removeprefix("Your task is to: ")
    for kind, pattern in _TASKS:
        if found := pattern.match(sentence):
            return TaskGoal(kind, found["o"], found["r"])
    raise ValueError(
        f"expected one of ALFWorld's task sentences, such as 'put a hot potato in fridge.', got "
        f"{task!r}: the searching expert does not understand free text"
    )


# Names recur by the million where many rollouts are played, so their parts are kept, as are the views of equal commands.
@lru_cache(maxsize=4096)
def _type(name: str) -> str:
    return name.rsplit(" ", 1)[0]


@lru_cache(maxsize=4096)
def _number(name: str) -> int:
    return int(name.rsplit(" ", 1)[1])


class SearchExpert:
    """Searches the likeliest receptacles first, remembers what it saw, and says why."""

    def __init__(self, rng: np.random.Generator | None = None, noise: float = 0.0) -> None:
        """Make an expert.

        Args:
            rng: Source of the noise; ``numpy.random.default_rng(0)`` by default.
            noise: Standard deviation, 0 or more, of what is added to the logarithm of each receptacle's likelihood. With
                0 the order of the search is always the same, with 1 it is clearly disordered. Noise never makes the
                expert forget, or act at random.

        Raises:
            ValueError: The noise is negative.
        """
        if not noise >= 0.0:
            raise ValueError(f"expected noise of 0 or more, got {noise}")
        self.noise = noise
        self._rng = np.random.default_rng(0) if rng is None else rng
        self.reset()

    def reset(self) -> None:
        """Forget the game; call it before the first turn of another one."""
        self._receptacles: dict[str, float] = {}  # name -> factor on its likelihood
        self._contents: dict[str, list[str]] = {}
        self._searched: set[str] = set()
        self._treated: dict[str, set[str]] = defaultdict(set)
        self._refused: set[str] = set()
        self._unfit: set[tuple[str, str]] = set()  # (class of thing, receptacle that takes none)
        self._command: str | None = None

    def copy(self) -> SearchExpert:
        """Return an expert that remembers the same, and that goes on by itself; with noise, both draw from one source."""
        twin = SearchExpert(self._rng, self.noise)
        twin._receptacles = dict(self._receptacles)
        twin._contents = {r: list(inside) for r, inside in self._contents.items()}
        twin._searched, twin._refused, twin._unfit = set(self._searched), set(self._refused), set(self._unfit)
        twin._treated.update({o: set(done) for o, done in self._treated.items()})
        twin._command = self._command
        return twin

    def executed(self, command: str) -> None:
        """Tell the expert which command was executed, where it was not the one that :meth:`act` gave.

        Args:
            command: The command.
        """
        self._command = command

    def act(self, task: str, feedback: str, admissible_commands: Sequence[str]) -> tuple[str, str]:
        """Read what is seen and say what to do.

        Args:
            task: The task sentence.
            feedback: What the game said after the last command; on the first turn, the opening text.
            admissible_commands: The commands that are possible now.

        Returns:
            ``(reason, command)``: one sentence, and one of ``admissible_commands``.

        Raises:
            ValueError: The task sentence has an unknown form, or ``admissible_commands`` is empty.
        """
        if not admissible_commands:
            raise ValueError("expected at least one admissible command, got none")
        goal = read_task(task)
        view = _view(tuple(admissible_commands))
        self._see(feedback, view)
        reason, command = self._choose(goal, view)
        self._command = command
        return reason, command

    def _see(self, feedback: str, view: _View) -> None:
        for name in (*view.reachable, *view.here):
            if name not in self._receptacles:
                spread = self.noise * self._rng.standard_normal() if self.noise else 0.0
                self._receptacles[name] = exp(spread)
        if feedback.startswith("Nothing happens") and self._command is not None:
            self._refused.add(self._command)
        for on, inside, listing in _CONTENTS.findall(feedback):
            self._contents[on or inside] = _OBJECTS.findall(listing)
            self._searched.add(on or inside)
        for name, _ in _PICKED.findall(feedback):
            for contents in self._contents.values():
                if name in contents:
                    contents.remove(name)
        for name, where in _PUT_DOWN.findall(feedback):
            self._contents.setdefault(where, []).append(name)
        for verb, name, _ in _TREATED.findall(feedback):
            self._treated[name].discard({"heat": "cool", "cool": "heat"}.get(verb, ""))
            self._treated[name].add(verb)

    def _choose(self, goal: TaskGoal, view: _View) -> tuple[str, str]:
        held = view.held
        if held is None:
            return self._fetch(goal, view)
        if _type(held) != goal.object_type:
            return self._put_away(view, held)
        if goal.kind == "look":
            return self._light(goal, view, held)
        if goal.kind in _APPLIANCES and goal.kind not in self._treated[held]:
            return self._treat(goal, view, held)
        return self._deliver(goal, view, held)

    def _fetch(self, goal: TaskGoal, view: _View) -> tuple[str, str]:
        """The hand is empty: take a known target, else search for one."""
        wanted = goal.object_type
        settled = self._settled(goal)
        known = [
            (name, where)
            for where, contents in self._contents.items()
            if where != settled
            for name in contents
            if _type(name) == wanted and f"take {name} from {where}" not in self._refused
        ]
        if known:
            treated = self._treated
            name, where = min(
                known,
                key=lambda k: (
                    goal.kind not in treated[k[0]],
                    k[1] not in view.here,
                    _number(k[0]),
                ),
            )
            more = "another " if goal.kind == "two" and settled else ""
            if (take := f"take {name} from {where}") in view.commands:
                return f"I need {more or 'a '}{wanted} and there is {name}, so I take it.", take
            if where in view.here:
                return self._reveal(where, view, wanted)
            return f"I saw {name} on {where}, so I go there.", f"go to {where}"
        return self._search(wanted, view, skip=settled)

    def _settled(self, goal: TaskGoal) -> str | None:
        """Return the receptacle in which the first of two objects already stands, if any."""
        if goal.kind != "two":
            return None
        best, most = None, 0
        for name, contents in self._contents.items():
            n = sum(_type(o) == goal.object_type for o in contents)
            if n > most and _type(name) == goal.receptacle_type:
                best, most = name, n
        return best

    def _reveal(self, where: str, view: _View, wanted: str) -> tuple[str, str]:
        """Look into a receptacle at this location."""
        if (command := f"open {where}") in view.commands:
            return f"{where} is closed and may hold a {wanted}, so I open it.", command
        return f"I look whether {where} holds a {wanted}.", f"examine {where}"

    def _search(self, wanted: str, view: _View, skip: str | None = None) -> tuple[str, str]:
        """Search the receptacle whose likelihood to hold it is highest in relation to its price."""
        open_ = [r for r in self._receptacles if r not in self._searched and r != skip]
        if not open_:
            # All receptacles were seen and it was in none of them. It must have been moved, so search again.
            self._searched.clear()
            self._contents.clear()
            open_ = list(self._receptacles)

        n = Counter(map(_type, self._receptacles))

        def worth(name: str) -> tuple[float, int]:
            kind = _type(name)
            if name in view.here:
                price = 1
            else:
                price = 2 if kind in OPENABLE else 1
            return holding_rate(wanted, kind, n[kind]) * self._receptacles[name] / price, -_number(name)

        best = max(open_, key=worth)
        if best in view.here:
            return self._reveal(best, view, wanted)
        return (
            f"I need a {wanted} and have not searched {best} yet, so I go there.",
            f"go to {best}",
        )

    def _put_away(self, view: _View, held: str) -> tuple[str, str]:
        """The wrong thing is in the hand: put it where it does not disturb."""
        places = [c for c in view.puts.values() if c not in self._refused]
        if places:
            return f"I hold {held}, which the task does not need, so I put it away.", places[0]
        if view.openable_here:
            where = view.openable_here[0]
            return f"I need a place for {held}, so I open {where}.", f"open {where}"
        kind = _type(held)
        self._unfit.update((kind, r) for r in view.here)

        def fit(name: str) -> tuple[bool, bool, bool, int]:
            untried = (kind, name) not in self._unfit
            where = _type(name)
            return untried, may_hold(kind, where), where not in OPENABLE, -_number(name)

        if not view.reachable:
            return f"I see no place for {held}, so I look around.", next(iter(view.commands))
        best = max(view.reachable, key=fit)
        if not fit(best)[0]:
            return f"No place seems to take {held}; I try {best} again.", f"go to {best}"
        return f"The task does not need {held}; {best} may take it.", f"go to {best}"

    def _light(self, goal: TaskGoal, view: _View, held: str) -> tuple[str, str]:
        """The object is in the hand: turn on a lamp."""
        lamp = goal.receptacle_type
        for command in view.uses:
            if _type(command.removeprefix("use ")) == lamp and command not in self._refused:
                return f"I hold {held} and the {lamp} is here, so I turn it on.", command
        for where, contents in self._contents.items():
            if where not in view.here and any(_type(o) == lamp for o in contents):
                return (
                    f"I hold {held} and saw a {lamp} on {where}, so I go there.",
                    f"go to {where}",
                )
        return self._search(lamp, view)

    def _treat(self, goal: TaskGoal, view: _View, held: str) -> tuple[str, str]:
        """The object is in the hand: heat, cool or clean it."""
        appliance = _APPLIANCES[goal.kind]
        for command in view.commands:
            if command.startswith(f"{goal.kind} {held} with ") and command not in self._refused:
                return f"{held} must be {_DONE[goal.kind]}, so I {goal.kind} it here.", command
        tried = [r for r in view.here if _type(r) == appliance]
        self._refused.update(f"go to {r}" for r in tried)
        places = self._ordered(appliance, view)
        if not places:
            return self._search(goal.object_type, view)
        return f"{held} must be {_DONE[goal.kind]}, so I go to {places[0]}.", f"go to {places[0]}"

    def _deliver(self, goal: TaskGoal, view: _View, held: str) -> tuple[str, str]:
        """The object is in the hand, treated as the task asks: bring it where it belongs."""
        settled = self._settled(goal)
        ends = [settled] if settled else [r for r in view.here if _type(r) == goal.receptacle_type]
        for where in ends:
            if (put := view.puts.get(where)) is not None:
                return f"{held} belongs in {where}, so I put it there.", put
            if (command := f"open {where}") in view.commands:
                return f"{held} belongs in {where}, which is closed, so I open it.", command
        if settled and f"go to {settled}" in view.commands:
            return (
                f"The other {goal.object_type} is in {settled}, so I go there.",
                f"go to {settled}",
            )
        self._refused.update(f"go to {r}" for r in ends)
        places = self._ordered(goal.receptacle_type, view)
        if not places:
            return self._search(goal.object_type, view)
        return f"I have {held} and it belongs in {places[0]}, so I go there.", f"go to {places[0]}"

    def _ordered(self, kind: str, view: _View) -> list[str]:
        """Return the receptacles of a type to go to, those first that are known to be open."""
        places = [r for r in view.reachable if _type(r) == kind and f"go to {r}" not in self._refused]
        return sorted(places, key=lambda r: (r not in self._searched, _number(r)))


class _View:
    """What the admissible commands tell about the present state.

    Attributes:
        commands: The commands, as the keys of a dictionary.
        reachable: The receptacles at other locations.
        here: The receptacles at this location.
        puts: By receptacle, the command that puts the object in hand there.
        uses: The commands that turn something on.
        openable_here: The closed receptacles at this location.
        held: The object in hand, if any.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        self.commands = dict.fromkeys(commands)
        self.reachable: list[str] = []
        self.here: list[str] = []
        self.puts: dict[str, str] = {}
        self.uses: list[str] = []
        self.openable_here: list[str] = []
        self.held: str | None = None
        for command in commands:
            verb, _, rest = command.partition(" ")
            if verb == "go":
                self.reachable.append(rest[3:])
            elif verb == "examine":
                if _type(rest) in RECEPTACLES:
                    self.here.append(rest)
                else:  # only what is in the hand can be examined
                    self.held = rest
            elif (names := read_put(command)) is not None:
                self.puts[names[1]] = command
            elif verb == "use":
                self.uses.append(command)
            elif verb == "open":
                self.openable_here.append(rest)


@lru_cache(maxsize=2048)
def _view(commands: tuple[str, ...]) -> _View:
    """Return the view of these commands; nobody changes it."""
    return _View(commands)
