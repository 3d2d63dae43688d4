"""What a game may hold at most, so that its texts fit the environments' observations whatever a player does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agentprm_gym.games.names import BadGameError
from agentprm_gym.observations import MAX_COMMANDS, MAX_FEEDBACK, MAX_TASK

#: Characters of a game's problem. Official ones have at most about 90,000.
MAX_PROBLEM = 1_000_000
#: Entities that a problem declares: places, receptacles, objects and types. Official ones have at most about 500.
MAX_DECLARED = 5_000

# The words around a name in a sentence or in a command, and the sentences around a list.
_AROUND, _SENTENCES = 24, 1_000
# No name in a game's problem holds these: the stock engine reads some of them as a format or as code, and a terminal others.
_ODD = re.compile(r"[{}\[\]#|\"'\\<>`\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def check_problem(problem: str, where: str) -> None:
    """Refuse a problem that is far larger than one room, or whose names hold signs that others read as more than a name.

    Args:
        problem: The text of the PDDL problem.
        where: Path or id, for errors.

    Raises:
        BadGameError: It is too long, or holds an odd sign.
    """
    if len(problem) > MAX_PROBLEM:
        raise BadGameError(f"{where}: expected a problem of at most {MAX_PROBLEM:,} characters, got {len(problem):,}")
    found = _ODD.search(re.sub(r";[^\n]*", "", problem))
    if found is not None:
        raise BadGameError(f"{where}: expected plain names in the problem, got the sign {found[0]!r} in it")


def check_declared(n: int, where: str) -> None:
    """Refuse a problem with far more entities than a home has.

    Args:
        n: How many names are declared.
        where: Path or id, for errors.

    Raises:
        BadGameError: There are too many.
    """
    if n > MAX_DECLARED:
        raise BadGameError(f"{where}: expected at most {MAX_DECLARED:,} entities and types, got {n:,}")


def check_task_length(task: str, where: str) -> None:
    """Refuse a task that does not fit an observation.

    Args:
        task: The task in words.
        where: Path or id, for errors.

    Raises:
        BadGameError: It is too long.
    """
    if len(task) > MAX_TASK:
        raise BadGameError(f"{where}: expected a task of at most {MAX_TASK:,} characters, got {len(task):,}")


def check_texts(entities: Mapping[str, Any], task: str, where: str) -> None:
    """Refuse a game whose longest possible feedback or list of commands does not fit an observation.

    The bounds are generous: as if every object were in one place, and every command possible there.

    Args:
        entities: The tables of a game; see :func:`agentprm_gym.games.facts.read_entities`.
        task: The task in words.
        where: Path or id, for errors.

    Raises:
        BadGameError: A text could become too long.
    """
    receptacles = entities["receptacles"]
    objects = {
        *entities["object_types"],
        *entities["locations"],
        *(o for os in entities["contents"].values() for o in os),
    }
    objects |= {o for os in entities["inside"].values() for o in os}
    r_letters = sum(len(r) + _AROUND for r in receptacles)
    o_letters = sum(len(o) + _AROUND for o in objects)
    feedback = _SENTENCES + len(task) + r_letters + o_letters
    if feedback > MAX_FEEDBACK:
        raise BadGameError(
            f"{where}: {len(receptacles):,} receptacles and {len(objects):,} objects give texts of up to {feedback:,} "
            f"characters, expected at most {MAX_FEEDBACK:,}"
        )
    # An object is in the receptacles of the start, in the one that it was put into, and may be sliced where it lies.
    longest = max(map(len, receptacles), default=0)
    n_places: dict[str, int] = {}
    for os in entities["contents"].values():
        for o in os:
            n_places[o] = n_places.get(o, 0) + 1
    commands = sum((len(o) + longest + _AROUND) * (n_places.get(o, 0) + 2) for o in objects)
    held = max(map(len, objects), default=0)
    commands += sum(2 * (len(r) + _AROUND) + 4 * (len(r) + held + _AROUND) for r in receptacles)
    if commands > MAX_COMMANDS:
        raise BadGameError(
            f"{where}: {len(receptacles):,} receptacles and {len(objects):,} objects give lists of commands of up to "
            f"{commands:,} characters, expected at most {MAX_COMMANDS:,}"
        )
