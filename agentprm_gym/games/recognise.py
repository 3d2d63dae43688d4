"""Recognising a game: its domain and grammar by their content, and the task line, the one line in which grammars differ."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache

from agentprm_gym.games.names import BadGameError, UnsupportedGameError

# A larger grammar is not a known one (these have 13 kB), so it is not even searched.
MAX_GRAMMAR = 100_000

_SINKS, _SINK_BASINS = frozenset({"SinkBasin", "Sink"}), frozenset({"SinkBasin"})
# First 16 hex digits of the SHA-256 of the known domains: the receptacle types that clean, and the release.
_KNOWN_DOMAINS = {
    "fd12e1f2896effe5": (_SINKS, "2.1.2"),  # the official games
    "3c0b24a49f36292e": (_SINK_BASINS, "2.1.2"),  # the alfworld package
    "3396929f4cc3693c": (_SINKS, "2.1.1"),  # the official games before
    "502d719a8f2b1d9a": (_SINK_BASINS, "2.1.1"),  # the alfworld package up to 0.3.5
}
# The same of the known grammars, with the task line blanked: the release.
_KNOWN_GRAMMARS = {
    "5f205218f62a04aa": "2.1.2",
    "722a3aa11deb43d6": "2.1.2",
    "100917d5750d83ff": "2.1.1",
}

_TASK_LINE = "Your task is to: "
_TASK = re.compile(rf"{_TASK_LINE}((?:[^\"\\]|\\.)*)\"")
_STRING_OR_SPACE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|\s+")
# TextWorld's grammar gives these a meaning: it would evaluate what stands between braces as Python.
_MEANINGFUL = re.compile(r"[{}\[\]#|]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def recognise(domain: str, grammar: str, where: str) -> tuple[str, frozenset[str]]:
    """Return a game's release and the receptacle types that clean, by the hashes of its domain and grammar.

    Args:
        domain: The text of the PDDL domain.
        grammar: The text of the grammar.
        where: Path or id, for errors.

    Raises:
        UnsupportedGameError: One of the two is not known, or they are of different releases.
    """
    sink_types, release = _KNOWN_DOMAINS.get(domain_digest(domain), (None, ""))
    if sink_types is None:
        raise UnsupportedGameError(where, "its domain is not one that the native engine knows")
    of_grammar = grammar_release(grammar)
    if of_grammar is None:
        raise UnsupportedGameError(where, "its grammar is not one that the native engine knows")
    if of_grammar != release:
        raise UnsupportedGameError(where, f"its domain is of release {release} and its grammar of release {of_grammar}")
    return release, sink_types


def grammar_release(grammar: str) -> str | None:
    """Return the release of a known grammar, whatever its task; ``None`` for any other grammar.

    Args:
        grammar: The text of the grammar.
    """
    if len(grammar) > MAX_GRAMMAR:
        return None
    line = task_line(grammar)
    if line is not None:
        grammar = f'{grammar[: line.start()]}{_TASK_LINE}"{grammar[line.end() :]}'
    return _KNOWN_GRAMMARS.get(grammar_digest(grammar))


def task_line(grammar: str) -> re.Match[str] | None:
    """Return the task line of a grammar, whose group 1 is the task as JSON has it; ``None`` where there is none."""
    # Only the first is tried. A search that goes on behind it takes a minute where the words stand there thousands of times.
    begin = grammar.find(_TASK_LINE)
    return None if begin < 0 else _TASK.match(grammar, begin)


def read_task(grammar: str, where: str) -> str:
    """Return the task that a grammar states.

    Args:
        grammar: The text of the grammar.
        where: Path or id, for errors.

    Raises:
        BadGameError: There is no task line, it is not a JSON text, or :func:`check_task` refuses it.
    """
    line = task_line(grammar) if len(grammar) <= MAX_GRAMMAR else None
    if line is None:
        raise BadGameError(f"{where}: expected a grammar with a line 'Your task is to: ...'")
    task = unescaped(line[1])
    if task is None:
        raise BadGameError(f"{where}: expected the task line to hold a JSON text, got {line[1][:80]!r}")
    check_task(task, where)
    return task


def check_task(task: str, where: str) -> None:
    """Refuse a task that TextWorld's grammar would read as more than a text, or that no file can hold.

    Args:
        task: The task in words.
        where: Path or id, for errors.

    Raises:
        BadGameError: It holds one of ``{}[]#|``, or half of a character.
    """
    found = _MEANINGFUL.search(task) or _SURROGATE.search(task)
    if found is not None:
        raise BadGameError(
            f"{where}: expected a task in plain words, got {found[0]!r} in {task[:80]!r}: a task may hold none of "
            "{}[]#|, which the stock grammar evaluates, and no halves of characters; do not play this game unless you "
            "know who made it"
        )


def unescaped(text: str) -> str | None:
    """Return what a JSON string says; ``None`` where the text is not a JSON string."""
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return None


def _digest(text: str) -> str:
    # JSON may hold a lone surrogate, which UTF-8 cannot encode.
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


@lru_cache(16)
def domain_digest(domain: str) -> str:
    """Hash a domain; comments, case and white space do not matter."""
    words = " ".join(re.sub(r";[^\n]*", "", domain).lower().split())
    return _digest(re.sub(r" ?([()]) ?", r"\1", words))


@lru_cache(16)
def grammar_digest(blank_grammar: str) -> str:
    """Hash a grammar whose task line was blanked; white space outside its texts does not matter."""
    # Triple quotes enclose JSON, whose own strings are the texts.
    unquoted = blank_grammar.replace('"""', "'''")
    return _digest(_STRING_OR_SPACE.sub(lambda found: "" if found[0].isspace() else found[0], unquoted))
