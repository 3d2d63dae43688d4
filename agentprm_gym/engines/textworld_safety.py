"""What the stock stack may be given: TextWorld evaluates the expressions of a game's grammar as Python.

The rules, for games of unknown makers:

- a known grammar is played (its task line is checked in :mod:`agentprm_gym.games.recognise`);
- of any other grammar only ``{name}``, ``{name.attribute}`` and the expressions of the known grammars are evaluated, whatever
  stands around them; a grammar with another expression is refused;
- a grammar whose rules lead back to themselves is refused;
- names in the problem and in the domain hold no braces, since commands are made with ``str.format``.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from textworld.envs.pddl import textgen

from agentprm_gym.engines.textworld_grammar import STOCK_LOCALS, parse_grammar, parse_symbols
from agentprm_gym.games.limits import check_problem
from agentprm_gym.games.names import BadGameError
from agentprm_gym.games.recognise import MAX_GRAMMAR, grammar_release, read_task

# What describes an entity.
_ATTRIBUTES = r"(?:id|type|name|noun|adj|desc|room_type|definite|indefinite)"
_NAME = r"[a-z][a-z0-9]*"
_HARMLESS = re.compile(
    rf"(?P<name>{_NAME})(?:\.{_ATTRIBUTES})?"
    # Of the known grammars, for any entity.
    rf"|(?P<listed>{_NAME})\.indefinite \+ ' ' \+ (?P=listed)\.name"
    rf"|(?P<called>{_NAME})\.name or (?P=called)\.id"
)
#: Most symbols that a grammar's rules may hold in all; the known ones have about 200.
_MAX_SYMBOLS = 20_000


def check_data(data: Mapping[str, Any], where: str, *, cached: bool) -> None:
    """Refuse a game that would run code, or never end, in the stock stack.

    Args:
        data: What the stack is about to load.
        where: Path or id, for errors.
        cached: Whether our own derivation of texts is used, which is bounded; TextWorld's own is not, so it gets known
            grammars only.

    Raises:
        BadGameError: The game is refused; the message says why and what to do.
    """
    grammar, domain, problem = (data.get(key) for key in ("grammar", "pddl_domain", "pddl_problem"))
    if not isinstance(grammar, str) or not isinstance(domain, str) or not isinstance(problem, str):
        raise BadGameError(f"{where}: expected texts under 'grammar', 'pddl_domain' and 'pddl_problem'")
    read_task(grammar, where)
    check_problem(problem, where)
    if re.search(r"[{}]", re.sub(r";[^\n]*", "", domain)):
        raise BadGameError(f"{where}: expected plain names in the domain, got a brace in it")
    if grammar_release(grammar) is not None:
        return
    if not cached:
        raise _refusal(where, "its grammar is not a known one, and without caches texts are not bounded")
    if len(grammar) > MAX_GRAMMAR:
        raise _refusal(where, f"its grammar has {len(grammar):,} characters")
    actions, parsed = parse_grammar(grammar)
    rules = {name: [rule.rhs for rule in options] for name, options in parsed._rules.items()}
    starts = [text for action in actions.values() for text in (action.template, action.feedback_rule)]
    every = [*(rhs for options in rules.values() for rhs in options), *map(parse_symbols, starts)]
    if sum(map(len, every)) > _MAX_SYMBOLS:
        raise _refusal(where, "its grammar has too many symbols")
    for symbols in every:
        for symbol in _inside(symbols):
            if isinstance(symbol, textgen.EvalSymbol) and not is_harmless(symbol.expression):
                raise _refusal(
                    where, f"its grammar holds the expression {symbol.expression[:120]!r}, which is Python code"
                )
    loop = _loop({name: _named(options) for name, options in rules.items()})
    if loop is not None:
        raise _refusal(where, f"the rule #{loop[:80]}# of its grammar leads back to itself")


def is_harmless(expression: str) -> bool:
    """Whether an expression of a grammar only says what an entity is called.

    Args:
        expression: What stands between braces, for example ``"o.name"``.
    """
    found = _HARMLESS.fullmatch(expression.strip(" \t"))
    if found is None:
        return False
    name = found["name"] or found["listed"] or found["called"]
    # Where no entity has the name, TextWorld takes what its own code has under it.
    return name not in STOCK_LOCALS and not hasattr(textgen, name) and not hasattr(builtins, name)


def _refusal(where: str, what: str) -> BadGameError:
    return BadGameError(
        f"{where}: {what}; such a game may run code on this machine, so it is played only with trust_games=True "
        "(--trust-games): use that for games of people you trust"
    )


def _inside(symbols: Iterable[Any]) -> Iterator[Any]:
    """Yield symbols and those inside of them."""
    for symbol in symbols:
        yield symbol
        if isinstance(symbol, textgen.ListSymbol):
            yield from _inside([symbol.symbol])
        elif isinstance(symbol, textgen.ConditionalSymbol):
            yield from _inside([symbol.expression])


def _named(options: Iterable[Iterable[Any]]) -> list[str]:
    """Return the rules that a rule names, those of lists included."""
    names = []
    for symbols in options:
        for symbol in _inside(symbols):
            if isinstance(symbol, textgen.NonterminalSymbol):
                names.append(str(symbol))
            elif isinstance(symbol, textgen.ListSymbol):
                names += ["list_empty", "list_separator", "list_last_separator"]
    return names


def _loop(edges: Mapping[str, list[str]]) -> str | None:
    """Return a rule that leads back to itself, if there is one."""
    done: set[str] = set()
    for start in edges:
        path: list[tuple[str, Iterator[str]]] = [(start, iter(edges[start]))]
        on_path = {start}
        while path:
            name, rest = path[-1]
            following = next((n for n in rest if n in edges and n not in done), None)
            if following is None:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif following in on_path:
                return following
            else:
                on_path.add(following)
                path.append((following, iter(edges[following])))
    return None
