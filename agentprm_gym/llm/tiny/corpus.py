"""The corpus of the offline model: people of every skill who run errands in generated games.

The offline model stands for a pretrained language model. It should know words, places and what commands do, it should follow
an instruction that it reads, and notice what it has seen; it should not yet know the job. So its corpus has three kinds of
episodes:

* ``"asked"``: the task line shows the game's task, but the player does what someone asks for in the middle of the transcript
  ("Please: heat some cup and put it in cabinet."), and the next thing after that. Here it learns what instructions mean.
* ``"task"``: the player does what the task line says. When that is done, the line shows another errand.
* ``"own"``: the player does something else that no line says. So the task line alone does not tell what comes next.

Players differ in skill: some search in a sensible order and remember what they saw; others act at random at times, forget what
they have searched, or take things that nobody asked for. Some say what they notice ("Say: again."), always about what the
transcript itself shows: the wanted thing is in sight, or it is not, or the place was seen before; a thing of another kind was
taken; the errand is done. These remarks teach the model to notice: an earlier form of this corpus, which had no word for "not
here" and weighted all tokens of commands alike, did not teach it in 18 million tokens whether a wanted thing is in sight.
No remark says which command would be best.

The first :data:`N_SCHOOL` episodes are easier: good players who mostly do what the task line says. Without them a model of this
size spends most of its training before it looks for the thing that a sentence names; behind them it learns that people differ.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from agentprm_gym.engines import make_engine
from agentprm_gym.episodes import Turn
from agentprm_gym.experts.search import SearchExpert, TaskGoal, read_task
from agentprm_gym.games import Game, find_games
from agentprm_gym.games.prior import RECEPTACLES, may_hold

#: Kinds of episodes, and how often they occur; first in the easier episodes.
SCHOOL_KINDS = {"asked": 0.2, "task": 0.8}
KINDS = {"asked": 0.5, "task": 0.25, "own": 0.25}
#: How many episodes are easier.
N_SCHOOL = 36_000
#: Share of the games in the wording of release 2.1.1.
P_OLDER = 0.1
#: Share of the players who say what they notice.
P_REMARKS = 0.5
#: Errands, by how often they occur. {o}: an object type, {r}: a receptacle type. The sentences are those of the games.
ERRANDS = (
    ("put a {o} in {r}.", 0.15),
    ("put some {o} on {r}.", 0.15),
    ("put a clean {o} in {r}.", 0.06),
    ("clean some {o} and put it in {r}.", 0.06),
    ("put a hot {o} in {r}.", 0.06),
    ("heat some {o} and put it in {r}.", 0.06),
    ("put a cool {o} in {r}.", 0.06),
    ("cool some {o} and put it in {r}.", 0.06),
    ("put two {o} in {r}.", 0.09),
    ("find two {o} and put them in {r}.", 0.09),
    ("look at {o} under the desklamp.", 0.08),
    ("examine the {o} with the desklamp.", 0.08),
)
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see ([^.]*)\.")
_OBJECTS = re.compile(r"\ban? (\w+ \d+)")
_USES = {"heat": "heat", "cool": "cool", "clean": "clean"}


class Player(NamedTuple):
    """How well somebody plays; all are probabilities a turn but ``noise``.

    Attributes:
        noise: of the order in which places are searched, see :class:`SearchExpert`.
        random: that the command is a random one.
        forgets: that the player forgets which places were searched.
        grabs: that a thing nobody asked for is taken, where there is one at hand.
        returns: that the player walks to a place that was seen before.
    """

    noise: float = 0.3
    random: float = 0.0
    forgets: float = 0.0
    grabs: float = 0.0
    returns: float = 0.0


#: The players, and how often they occur; first in the easier episodes.
SCHOOL_PLAYERS: tuple[tuple[Player, float], ...] = (
    (Player(noise=0.0), 0.5),
    (Player(), 0.3),
    (Player(noise=0.6, random=0.1), 0.2),
)
PLAYERS: tuple[tuple[Player, float], ...] = (
    (Player(noise=0.0), 0.15),
    (Player(), 0.15),
    (Player(noise=0.6, random=0.1), 0.15),
    (Player(noise=0.6, random=0.3), 0.15),
    (Player(noise=0.6, forgets=0.15, returns=0.15), 0.15),
    (Player(noise=0.6, grabs=0.3), 0.1),
    (Player(noise=1.0, random=0.15, forgets=0.1, grabs=0.15, returns=0.1), 0.1),
    (Player(random=1.0), 0.05),
)


@dataclass
class Told:
    """An episode as it is told: the turns, and the task line that each of them shows.

    Attributes:
        tasks: the task line of each turn.
        turns: the turns; what is said stands at the end of their feedback.
    """

    tasks: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


class Notes:
    """What a transcript tells a careful reader about an errand: what is where, what was done, whether the errand is done."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.contents: dict[str, list[str]] = {}
        self.done_to: defaultdict[str, set[str]] = defaultdict(set)
        self.held: str | None = None

    def read(self, feedback: str) -> None:
        """Read what was seen.

        Args:
            feedback: what the game said.
        """
        for on, inside, listing in _CONTENTS.findall(feedback):
            self.contents[on or inside] = _OBJECTS.findall(listing)

    def executed(self, command: str, goal: TaskGoal, feedback: str) -> str:
        """Note a command and say what is to be noticed about it.

        Args:
            command: the command.
            goal: the errand.
            feedback: what the game said after it.

        Returns:
            ``"found"``, ``"none"``, ``"again"``, ``"wrong"``, ``"done"``, or nothing.
        """
        verb, _, rest = command.partition(" ")
        place = rest.removeprefix("to ") if verb == "go" else rest
        was_known = place in self.contents
        empty_handed = self.held is None
        self.read(feedback)
        if feedback.startswith("Nothing happens"):
            return ""
        if verb == "take":
            self.held = rest.partition(" from ")[0]
            self._drop(self.held)
            return "found" if _type(self.held) == goal.object_type else "wrong"
        if verb in ("move", "put"):
            thing, _, where = rest.replace(" in/on ", " to ").partition(" to ")
            self.contents.setdefault(where, []).append(thing)
            self.held = None
            return "done" if self._delivered(goal, thing, where) else ""
        if verb in _USES:
            thing = rest.partition(" with ")[0]
            self.done_to[thing].discard({"heat": "cool", "cool": "heat"}.get(verb, ""))
            self.done_to[thing].add(verb)
            return "" if _type(thing) == goal.object_type and goal.kind == verb else "wrong"
        if verb == "use":
            holds = self.held is not None and _type(self.held) == goal.object_type
            return "done" if goal.kind == "look" and holds else "wrong"
        if empty_handed and verb in ("go", "open", "examine"):
            if any(_type(o) == goal.object_type for o in self.contents.get(place, ())):
                return "found"
            return "" if place not in self.contents else "again" if was_known else "none"
        return ""

    def _drop(self, thing: str) -> None:
        for inside in self.contents.values():
            if thing in inside:
                inside.remove(thing)

    def _delivered(self, goal: TaskGoal, thing: str, where: str) -> bool:
        if _type(thing) != goal.object_type or _type(where) != goal.receptacle_type:
            return False
        if goal.kind == "two":
            return sum(_type(o) == goal.object_type for o in self.contents[where]) >= 2
        return goal.kind == "put" or goal.kind in self.done_to[thing]


def _type(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def tell(
    game: Game,
    rng: np.random.Generator,
    n_turns: int,
    kinds: Mapping[str, float] = MappingProxyType(KINDS),
    players: Sequence[tuple[Player, float]] = PLAYERS,
) -> Told:
    """Let somebody play a game.

    Args:
        game: where.
        rng: random stream.
        n_turns: how many turns.
        kinds: kinds of episodes, and how often they occur.
        players: players, and how often they occur.
    """
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    player = players[int(rng.choice(len(players), p=[p for _, p in players]))][0]
    remarks = rng.random() < P_REMARKS
    engine = make_engine("native")
    frame = engine.reset(game)
    objects = sorted({kind_.lower() for kind_ in game.object_types.values()})
    places = sorted({kind_.lower() for kind_ in game.receptacle_types.values()} & RECEPTACLES)
    notes, told = Notes(), Told()
    line = game.task
    errand, left = (line, n_turns) if kind == "task" else (_errand(objects, places, rng), n_turns)
    if kind == "asked":
        left = int(rng.integers(0, 3))  # what nobody asked for, until somebody asks
    expert = SearchExpert(rng=rng, noise=player.noise)
    remark = ""
    for _ in range(n_turns):
        said = [f"Say: {remark}."] if remark and remarks else []
        if left <= 0 or remark == "done":
            errand, left = _errand(objects, places, rng), int(rng.integers(8, 24))
            expert = _retold(player, rng, told, errand)
            if kind == "task":
                line = errand
            elif kind == "asked":
                said.append(f"Please: {errand}")
        left -= 1
        goal = read_task(errand)
        feedback = " ".join([frame.feedback, *said])
        command = _play(player, expert, errand, goal, notes, frame.feedback, frame.admissible_commands, rng)
        told.tasks.append(line)
        told.turns.append(Turn(feedback=feedback, admissible_commands=frame.admissible_commands, command=command))
        frame = engine.step(command)
        remark = notes.executed(command, goal, frame.feedback)
    return told


def _errand(objects: Sequence[str], places: Sequence[str], rng: np.random.Generator) -> str:
    """An errand in this room. Most of them make sense; the desklamp may be missing, and the search goes on in vain."""
    template = str(rng.choice([e for e, _ in ERRANDS], p=[p for _, p in ERRANDS]))
    place = str(rng.choice(places))
    fitting = [o for o in objects if may_hold(o, place)]
    thing = str(rng.choice(fitting if fitting and "{r}" in template else objects))
    return template.format(o=thing, r=place)


def _retold(player: Player, rng: np.random.Generator, told: Told, errand: str) -> SearchExpert:
    """A searcher who remembers the transcript, as its reader may."""
    expert = SearchExpert(rng=rng, noise=player.noise)
    for turn in told.turns:
        expert.act(errand, turn.feedback, turn.admissible_commands)
        expert.executed(turn.command)
    return expert


def _play(
    player: Player,
    expert: SearchExpert,
    errand: str,
    goal: TaskGoal,
    notes: Notes,
    feedback: str,
    admissible: Sequence[str],
    rng: np.random.Generator,
) -> str:
    """What the player does."""
    if player.forgets and rng.random() < player.forgets:
        expert.reset()
    _, command = expert.act(errand, feedback, admissible)
    draw = rng.random()
    if draw < player.random:
        command = _random_command(admissible, rng)
    elif draw < player.random + player.returns:
        seen = [c for c in admissible if c.startswith("go to ") and c[6:] in notes.contents]
        command = str(rng.choice(seen)) if seen else command
    elif player.grabs and rng.random() < player.grabs:
        things = [c for c in admissible if c.startswith("take ") and not c.startswith(f"take {goal.object_type} ")]
        command = str(rng.choice(things)) if things else command
    expert.executed(command)
    return command


def _random_command(admissible: Sequence[str], rng: np.random.Generator) -> str:
    """A random command, kinds first: otherwise nearly all would be walks."""
    kinds: dict[str, list[str]] = {}
    for command in admissible:
        kinds.setdefault(command.split()[0], []).append(command)
    return str(rng.choice(kinds[str(rng.choice(sorted(kinds)))]))


def corpus(seed: int) -> Iterator[Told]:
    """Endless episodes on generated train games, deterministic by seed.

    Args:
        seed: of everything that is drawn.
    """
    wordings = [find_games("train", "generated", grammar=grammar) for grammar in ("2.1.2", "2.1.1")]
    rng = np.random.default_rng([seed, 0])
    n = 0
    while True:
        for index in rng.permutation(len(wordings[0])):
            games = wordings[int(rng.random() < P_OLDER)]
            kinds, players = (SCHOOL_KINDS, SCHOOL_PLAYERS) if n < N_SCHOOL else (KINDS, PLAYERS)
            yield tell(games[int(index)], rng, int(rng.integers(8, 31)), kinds, players)
            n += 1
