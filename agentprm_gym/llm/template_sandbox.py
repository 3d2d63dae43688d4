"""Running a prompt template of somebody else: it cannot reach Python, and it comes to an end, in little time and memory.

Jinja's sandbox keeps a template away from Python's inside. It does not bound loops, powers and texts that double. Here a
template may use a part of Jinja only: no powers, products and remainders, no blocks that capture text, some filters and
methods, macros that do not call themselves. While it runs, the turns of its loops and its calls are counted, and texts have a
greatest length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Characters of a template; the bundled ones have at most 1,500.
MAX_SOURCE = 64_000
#: Turns of all loops and calls of one text, and characters of a text. An observation has at most 83,000 characters.
MAX_STEPS, MAX_LETTERS = 50_000, 400_000

_FORBIDDEN = (
    *(nodes.Pow, nodes.Mul, nodes.Mod, nodes.FloorDiv, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock),
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block),
)
# Filters and methods whose result is hardly longer than what they are given.
_FILTERS = frozenset(
    "abs capitalize count d default e escape first float forceescape int items join last length list lower max min reject "
    "rejectattr reverse round safe select selectattr sort string striptags title trim truncate unique upper "
    "wordcount replace map".split()
)
_METHODS = frozenset(
    "capitalize count endswith find get isalpha isdigit islower isnumeric isupper items keys lower lstrip partition "
    "removeprefix removesuffix rfind rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values "
    "append replace join".split()
)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts what a template does."""

    steps = letters = 0

    def say(self, value: Any) -> Any:
        """Count the letters of what a text says."""
        self.add(len(value) if isinstance(value, (str, list, tuple, dict)) else 1)
        return value

    def add(self, n_letters: int) -> None:
        """Count letters.

        Raises:
            SecurityError: there were too many.
        """
        self.letters += n_letters
        if self.letters > 2 * MAX_LETTERS:
            raise SecurityError(f"a text is longer than {MAX_LETTERS:,}")

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As Jinja does; but texts have a few methods only."""
        if isinstance(obj, str) and attribute not in _METHODS and not attribute.startswith("_"):
            raise SecurityError(f"texts have no method {attribute!r} in a prompt template")
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As Jinja does; but texts have a few methods only."""
        if isinstance(obj, str) and isinstance(argument, str):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def count(self) -> None:
        """Count a turn of a loop, or a call.

        Raises:
            SecurityError: there were too many.
        """
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} turns of loops and calls")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.count()
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if name not in _METHODS:
                raise SecurityError(f"texts have no method {name!r} in a prompt template")
            if name == "replace":
                return _replaced(owner, *args)
            if name == "join":
                return _joined(args[0], owner)
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def counted(self, values: Iterable[Any], n_letters: int) -> Iterator[Any]:
        """Yield what a loop goes through, and count; its body says so many letters of its own."""
        for value in values:
            self.count()
            self.add(n_letters)
            yield value


def compile_template(source: str) -> Any:
    """Compile a prompt template.

    Args:
        source: its text.

    Returns:
        Its macros and variables, as attributes. :func:`begin` has to be called before each use.

    Raises:
        ValueError: it cannot be read, is too long, or uses a part of Jinja that it may not use.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the prompt template has {len(source):,} characters, expected at most {MAX_SOURCE:,}")
    sandbox = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False)
    sandbox.filters = {name: made for name, made in sandbox.filters.items() if name in _FILTERS}
    sandbox.filters |= {"_counted": sandbox.counted, "_said": sandbox.say, "_text": _concatenated, "_sum": _added}
    sandbox.filters |= {"replace": _replaced, "join": _joined}
    sandbox.globals = {"range": sandbox.globals["range"]}
    try:
        tree = sandbox.parse(source)
        _check(tree)
        _transform(tree, sandbox)
        code = sandbox.compile(tree)
        module = jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None)).module
    except (
        jinja2.TemplateError,
        RecursionError,
        MemoryError,
        OverflowError,
        ArithmeticError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"the prompt template cannot be read: {error}") from error
    module.__dict__["_sandbox"] = sandbox
    return module


def begin(module: Any) -> None:
    """Count from zero again, for the next text of a template."""
    sandbox = module.__dict__["_sandbox"]
    sandbox.steps = sandbox.letters = 0


def _check(tree: nodes.Template) -> None:
    """Refuse the parts of Jinja that make texts without end.

    Raises:
        SecurityError: the template uses one.
    """
    for node in tree.find_all(nodes.Node):
        if isinstance(node, _FORBIDDEN):
            raise SecurityError(f"line {node.lineno}: {type(node).__name__} is not allowed in a prompt template")
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise SecurityError(f"line {node.lineno}: the filter {node.name!r} is not allowed in a prompt template")
        if isinstance(node, nodes.For) and node.recursive:
            raise SecurityError(f"line {node.lineno}: loops that call themselves are not allowed in a prompt template")
    macros = {
        macro.name: {call.node.name for call in macro.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
        for macro in tree.find_all(nodes.Macro)
    }
    for name in macros:
        reached, new = set[str](), {name}
        while new:
            reached |= new
            new = {called for one in new for called in macros.get(one, ())} - reached
            if any(name in macros.get(one, ()) for one in reached):
                raise SecurityError(f"the macro {name!r} calls itself, which is not allowed in a prompt template")


def _transform(tree: nodes.Template, sandbox: _Sandbox) -> None:
    """Count the turns of loops, and bound the texts that are put together."""
    for loop in list(tree.find_all(nodes.For)):
        n_letters = nodes.Const(sum(len(data.data) for data in loop.find_all(nodes.TemplateData)), lineno=loop.lineno)
        loop.iter = nodes.Filter(loop.iter, "_counted", [n_letters], [], None, None, lineno=loop.lineno)
    for said in list(tree.find_all(nodes.Output)):
        said.nodes = [
            one
            if isinstance(one, nodes.TemplateData)
            else nodes.Filter(one, "_said", [], [], None, None, lineno=one.lineno)
            for one in said.nodes
        ]
    _replace_sums(tree)
    tree.set_environment(sandbox)


def _replace_sums(node: nodes.Node) -> None:
    for key, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, key, _with_bound(value))
        elif isinstance(value, list):
            value[:] = [_with_bound(one) if isinstance(one, nodes.Node) else one for one in value]


def _with_bound(node: nodes.Node) -> nodes.Node:
    _replace_sums(node)
    if isinstance(node, nodes.Concat):
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_text", [], [], None, None, lineno=node.lineno)
    if isinstance(node, nodes.Add):
        return nodes.Filter(node.left, "_sum", [node.right], [], None, None, lineno=node.lineno)
    return node


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)) and len(value) > MAX_LETTERS:
        raise SecurityError(f"a text or list is longer than {MAX_LETTERS:,}")
    return value


def _concatenated(parts: list[Any]) -> str:
    return str(_bounded("".join(map(str, parts))))


def _added(left: Any, right: Any) -> Any:
    return _bounded(left + right)


def _replaced(value: Any, old: str, new: str, count: int = -1) -> str:
    text = str(value)
    n = text.count(str(old)) if count is None or count < 0 else min(count, text.count(str(old)))
    if len(text) + n * len(str(new)) > MAX_LETTERS:
        raise SecurityError(f"a text is longer than {MAX_LETTERS:,}")
    return text.replace(str(old), str(new), n)


def _joined(value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise SecurityError("join takes no attribute in a prompt template")
    parts: list[str] = []
    n = 0
    for part in value:
        parts.append(str(part))
        n += len(parts[-1]) + len(d)
        if n > MAX_LETTERS:
            raise SecurityError(f"a text is longer than {MAX_LETTERS:,}")
    return str(d).join(parts)
