"""TextWorld's text grammar, to the letter, with each text parsed only once.

At every step the stock code parses, with a grammar of grammars, the template of every command. Here a text is parsed when it
is first met. See :mod:`agentprm_gym.engines.textworld_cache` for what else is kept.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen
from textworld.logic import Rule, Signature

#: Names that mean something else where the stock code evaluates an expression.
STOCK_LOCALS = frozenset({"self", "context", "value"})
#: Most symbols and characters of one text; a text of an official game takes some hundred symbols. A grammar may double a text
#: in every rule.
MAX_STEPS, MAX_LETTERS = 50_000, 1_000_000
#: Stands for any facts that an expression may have read.
ANYTHING = Signature("anything", ())

Context = dict[str, Any]

# Parsing, once per text. The results are shared and must not be altered; stock code alters copies. -----------------------


@lru_cache(4096)
def parse_symbols(text: str) -> tuple[Any, ...]:
    """Parse a text with symbols, such as a command's template."""
    return tuple(textgen._parse_and_convert(text, rule_name="symbols"))


@lru_cache(1024)
def _query(text: str) -> Any:
    """Parse a condition on facts."""
    return Rule.parse_conjunctive_query(text)


@lru_cache(1024)
def _expression(text: str) -> tuple[CodeType, frozenset[str]] | None:
    """Compile a Python expression and name its variables; ``None`` where it may do more than read and join them."""
    text = text.lstrip(" \t")  # as `eval` does
    try:
        tree = ast.parse(text, "<string>", "eval")
        code = compile(tree, "<string>", "eval")
    except (SyntaxError, ValueError):
        return None
    harmless = (ast.Expression, ast.Name, ast.Load, ast.Attribute, ast.Constant, ast.BinOp, ast.Add, ast.BoolOp, ast.Or)
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    if names & STOCK_LOCALS or not all(isinstance(node, harmless) for node in ast.walk(tree)):
        return None
    return code, names


@lru_cache(64)
def parse_grammar(text: str) -> tuple[dict[str, Any], Grammar]:
    """Parse a game's grammar into actions by name, and rules."""
    model = pddl_logic._PARSER.parse(text, rule_name="pddlStart")
    actions, grammar = _Converter().walk(model)
    return actions, grammar


class _Converter(pddl_logic._ModelConverter):
    """Makes our grammar where TextWorld makes its own."""

    def walk_PddlDocumentNode(self, node: Any) -> tuple[dict[str, Any], Grammar]:
        actions: dict[str, Any] = {}
        rules: dict[str, Any] = {}
        for part in node.parts:
            if isinstance(part, pddl_logic.model.ActionTypeNode):
                action = self.walk(part)
                actions[action.name.lower()] = action
                lines = (line for line in action.grammar.split("\n") if not line.lstrip().startswith("#"))
                rules.update(json.loads("\n".join(lines)))
            elif isinstance(part, pddl_logic.model.ActionGrammarNode):
                rules.update(json.loads(self._unescape_block(part.code)))
        return actions, Grammar.parse(json.dumps(rules))


# Text ----------------------------------------------------------------------------------------------------------------------


class Grammar(textgen.ContextSensitiveGrammar):
    """A grammar that alters neither symbols nor contexts, so it need not copy them: they are passed on in pairs."""

    @classmethod
    def parse(cls, text: str) -> Grammar:
        """Make a grammar of JSON: rules by symbol."""
        grammar = cls()
        for name, rules in json.loads(text).items():
            for rule in rules:
                symbols, weight, condition = (
                    parse_symbols(rule["rhs"]),
                    rule.get("weight", 1),
                    rule.get("condition", ""),
                )
                grammar.add_rule(textgen.ProductionRule(lhs=name, rhs=symbols, weight=weight, condition=condition))
        return grammar

    def derive(self, start: str, context: Context) -> str:
        """Return the text of `start` in a context.

        Raises:
            RuntimeError: The text is far longer than that of any game. It is no ``ValueError``, which TextWorld takes for a
                command that does nothing.
        """
        stack = [(symbol, context) for symbol in reversed(parse_symbols(start))]
        derived: list[str] = []
        n_steps = n_letters = 0
        while stack:
            symbol, context = stack.pop()
            n_steps += 1
            if n_steps > MAX_STEPS or len(stack) > MAX_STEPS or n_letters > MAX_LETTERS:
                raise RuntimeError(
                    f"the text of {start[:80]!r} does not end; its grammar may be made to fill the memory"
                )
            if isinstance(symbol, (textgen.TerminalSymbol, textgen.EvalSymbol)):
                is_text = isinstance(symbol, textgen.TerminalSymbol)
                derived.append(str(symbol.symbol if is_text else _evaluate(symbol, context)))
                n_letters += len(derived[-1])
            elif isinstance(symbol, textgen.NonterminalSymbol):
                stack += reversed([(s, context) for s in self._rule(symbol, context).rhs])
            elif isinstance(symbol, textgen.ConditionalSymbol):
                stack += reversed(_instances(symbol, context))
            elif isinstance(symbol, textgen.ListSymbol):
                items = textgen.display_list(_instances(symbol.symbol, context), context)
                # TextWorld puts its symbols for separators between ours.
                stack += reversed([item if isinstance(item, tuple) else (item, context) for item in items])
            else:
                raise NotImplementedError(f"Unknown symbol: {type(symbol)}")
        return "".join(derived)

    def _rule(self, symbol: Any, context: Context) -> Any:
        """Return the first rule that applies; all are tried, since a broken later rule must raise its error."""
        rules = self._rules.get(str(symbol))
        if not rules:
            raise textgen.CSGUnknownSymbolError(symbol)
        applicable = [rule for rule in rules if not rule.condition or _holds(rule.condition, context)]
        return applicable[0]


def _assignments(query: str, context: Context) -> Iterator[Mapping[Any, Any]]:
    return context["state"].all_assignments(_query(query), context["mapping"])  # type: ignore[no-any-return]


def _holds(query: str, context: Context) -> bool:
    return any(True for _ in _assignments(query, context))


def _instances(symbol: Any, context: Context) -> list[tuple[Any, Context]]:
    """Return a conditional symbol's expression, with a context for each way in which its condition holds."""
    if not symbol.given:
        return [(symbol.expression, context)]
    entities = context["entity_infos"]
    instances = []
    for mapping in _assignments(symbol.given, context):
        variables = {**context["variables"], **{ph.name: entities[var.name] for ph, var in mapping.items()}}
        mapping = {**context["mapping"], **mapping}
        instances.append((symbol.expression, {**context, "variables": variables, "mapping": mapping}))
    return instances


def _evaluate(symbol: Any, context: Context) -> Any:
    """Return the value of a Python expression on entities, such as `o.name`."""
    variables = context["variables"]
    compiled = _expression(symbol.expression)
    if compiled is None or not compiled[1] <= variables.keys():
        context["state"].read.add(ANYTHING)
        # As TextWorld does it, with the names that its method has: from Python 3.13 on, it does not see the variables itself.
        names = {**variables, "self": textgen.EvalSymbol(symbol.expression, context), "context": context}
        return eval(symbol.expression, vars(textgen), names)
    return eval(compiled[0], {}, variables)
