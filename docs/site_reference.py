"""Pages of the site about environments and algorithms, written from their docstrings when the site is built.

The code is read, not imported: building the site needs neither torch nor the package. Which environments and algorithms there
are is read from the tables that register them, so a new one has a page without a change here.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: The folder of the pages on the site.
FOLDER = "reference"
#: Base classes that one inherits from, and where each is defined.
_BASES = {
    "environments": ("agentprm_gym.envs.base:TextGameEnv", "agentprm_gym.envs.vector:TextVectorEnv"),
    "algorithms": (
        "algorithms.common.shell.base:LLMAlgorithm",
        "algorithms.common.learning.on_policy:OnPolicyLLMAlgorithm",
    ),
}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):\s*$")
_ENTRY = re.compile(r"^(\*{0,2}\w+)(?: \([^)]*\))?:\s*(.*)$", re.DOTALL)
_ROLE = re.compile(r":\w+:`(~?)([\w.]+(?:\([^)]*\))?)`")


# ---------------------------------------------------------------------- reading code
@dataclass(frozen=True, slots=True)
class Found:
    """A class in the code.

    Attributes:
        module: the module that defines it.
        node: its definition.
    """

    module: str
    node: ast.ClassDef


class Code:
    """The modules of a repository, parsed when first asked for."""

    def __init__(self, root: Path) -> None:
        """Look into a folder.

        Args:
            root: the repository.
        """
        self.root = root
        self._trees: dict[str, ast.Module] = {}

    def path(self, module: str) -> Path:
        """The file of a module.

        Raises:
            FileNotFoundError: the repository does not have it.
        """
        base = self.root.joinpath(*module.split("."))
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
        raise FileNotFoundError(f"no module {module!r} in {self.root}: expected {base}.py")

    def tree(self, module: str) -> ast.Module:
        """A module's syntax tree."""
        if module not in self._trees:
            self._trees[module] = ast.parse(self.path(module).read_text(encoding="utf-8"))
        return self._trees[module]

    def constant(self, module: str, name: str) -> object:
        """The value of a literal that a module assigns to a name.

        Raises:
            KeyError: the module does not assign to it.
        """
        for node in self.tree(module).body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
        raise KeyError(f"{module} has no constant {name}")

    def find(self, module: str, name: str) -> Found | None:
        """The class that a name stands for in a module, through imports; ``None`` where others define it."""
        for node in ast.walk(self.tree(module)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return Found(module, node)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if (alias.asname or alias.name) == name and node.module.split(".")[0] in (
                        "agentprm_gym",
                        "algorithms",
                    ):
                        return self.find(node.module, alias.name)
        return None

    def bases(self, found: Found) -> list[Found]:
        """The bases of a class that this repository defines, in order."""
        names = [base.value if isinstance(base, ast.Subscript) else base for base in found.node.bases]
        here = [self.find(found.module, name.id) for name in names if isinstance(name, ast.Name)]
        return [base for base in here if base is not None]

    def lineage(self, found: Found) -> list[Found]:
        """A class and all its bases of this repository, each once, the nearest first."""
        line, queue = [], [found]
        while queue:
            one = queue.pop(0)
            if one.node not in [other.node for other in line]:
                line.append(one)
                queue += self.bases(one)
        return line


# ---------------------------------------------------------------------- docstrings
@dataclass(slots=True)
class Docstring:
    """A docstring in Google's style.

    Attributes:
        prose: what stands before the first section.
        sections: name of a section -> its text, without indentation.
    """

    prose: str
    sections: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, node: ast.AST) -> Docstring:
        """Read the docstring of a module, class or function."""
        lines, sections = (ast.get_docstring(node) or "").splitlines(), dict[str, list[str]]()  # type: ignore[arg-type]
        name = ""
        for line in lines:
            if found := _SECTION.match(line):
                name = found[1].removesuffix("s") if found[1] == "Examples" else found[1]
            sections.setdefault(name, []).extend([] if found else [line])
        texts = {key: textwrap.dedent("\n".join(value)).strip("\n") for key, value in sections.items()}
        return cls(texts.pop("", ""), texts)

    def entries(self, section: str) -> dict[str, str]:
        """A section's names and what is said of each, on one line."""
        items: list[list[str]] = []
        for line in self.sections.get(section, "").splitlines():
            if line and not line.startswith(" "):
                items.append([line])
            elif items:
                items[-1].append(line.strip())
        found = (_ENTRY.match(" ".join(item).strip()) for item in items)
        return {entry[1].lstrip("*"): entry[2] for entry in found if entry is not None}


def markdown(text: str) -> str:
    """A docstring's prose as Markdown: roles and double backticks become code."""
    text = _ROLE.sub(lambda found: f"`{found[2].rsplit('.', 1)[-1] if found[1] else found[2]}`", text)
    # What a docstring shows as a literal block is code here, too.
    text = re.sub(r"::\n(?=\n)", ":\n", text)
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)


def _cell(text: str) -> str:
    """Text in a table: a pipe outside of code would end the cell."""
    parts = re.split(r"(`[^`]*`)", markdown(" ".join(text.split())))
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def _example(text: str) -> str:
    """An example as a block of code."""
    shown = re.sub(r"  # doctest: [^\n]*", "", text)
    return f"```pycon\n{shown}\n```"


# ---------------------------------------------------------------------- pages
def _arguments(function: ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each argument that a user may give."""
    args = function.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    for arg, default in pairs:
        if arg.arg not in ("self", "cls") and not arg.arg.startswith("_"):
            kind = "" if arg.annotation is None else f"`{ast.unparse(arg.annotation)}`"
            yield arg.arg, kind, "" if default is None else f"`{ast.unparse(default)}`"


def _methods(found: Found) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in found.node.body if isinstance(node, ast.FunctionDef)}


def _is_property(function: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list)


def _constructors(code: Code, found: Found) -> Iterator[tuple[Found, ast.FunctionDef]]:
    """The constructor of a class; where it hands arguments on, those that take them, too."""
    for one in code.lineage(found):
        function = _methods(one).get("__init__")
        if function is not None:
            yield one, function
            if function.args.kwarg is None:
                return


def _constructor(code: Code, found: Found) -> list[str]:
    """Sections about the arguments of a class, and about options in groups."""
    out: list[str] = []
    groups: dict[str, Found] = {}
    for one, function in _constructors(code, found):
        said = Docstring.of(function)
        meanings = said.entries("Args")
        rows = [
            (f"`{name}`", kind, default, _cell(meanings.get(name, ""))) for name, kind, default in _arguments(function)
        ]
        title = "Arguments" if one.node is found.node else f"Arguments of {one.node.name}"
        if rows:
            out += [f"## {title}", _table(("argument", "type", "default", "meaning"), rows)]
        if "Raises" in said.sections:
            out.append(_raises(said))
        for name, kind, _ in _arguments(function):
            for word in re.findall(r"\w+Stage\b", kind):
                stage = code.find(one.module, word)
                if stage is not None:
                    groups[name] = stage
    for name, stage in groups.items():
        out += [f"## Options of `{name}=`", _fields(code, stage)]
    return out


def _fields(code: Code, stage: Found) -> str:
    """Fields of a dataclass, those of its bases first."""
    rows: dict[str, tuple[str, ...]] = {}
    meanings: dict[str, str] = {}
    for one in reversed(code.lineage(stage)):
        meanings |= Docstring.of(one.node).entries("Attributes")
        for node in one.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                name = node.target.id
                if "ClassVar" not in (kind := ast.unparse(node.annotation)):
                    rows[name] = (f"`{name}`", f"`{kind}`", f"`{ast.unparse(node.value)}`")
    return _table(
        ("option", "type", "default", "meaning"), [(*row, _cell(meanings.get(name, ""))) for name, row in rows.items()]
    )


def _raises(said: Docstring) -> str:
    return "\n".join(
        ["**Raises**", "", *(f"- `{name}`: {_cell(text)}" for name, text in said.entries("Raises").items())]
    )


def _method(function: ast.FunctionDef) -> list[str]:
    """What a method does, takes and returns."""
    said = Docstring.of(function)
    arguments = list(_arguments(function))
    called = "" if _is_property(function) else f"({', '.join(name for name, _, _ in arguments)})"
    out = [f"### `{function.name}{called}`", markdown(said.prose)]
    meanings = said.entries("Args")
    rows = [(f"`{name}`", kind, default, _cell(meanings.get(name, ""))) for name, kind, default in arguments]
    if rows:
        out.append(_table(("argument", "type", "default", "meaning"), rows))
    for section in ("Returns", "Yields"):
        if section in said.sections:
            out.append(f"**{section}** {markdown(said.sections[section])}")
    if "Raises" in said.sections:
        out.append(_raises(said))
    if "Example" in said.sections:
        out.append(_example(said.sections["Example"]))
    return out


def class_page(code: Code, where: str, title: str, intro: list[str]) -> str:
    """A page about a class.

    Args:
        code: where to look.
        where: ``"package.module:Class"``.
        title: the heading.
        intro: paragraphs that stand first.

    Returns:
        Markdown.

    Raises:
        ValueError: the code has no such class.
    """
    module, _, name = where.partition(":")
    found = code.find(module, name)
    if found is None:
        raise ValueError(f"no class {name!r} in {module}: the table that registers it names another one")
    said = Docstring.of(found.node)
    source = code.path(found.module).relative_to(code.root).as_posix()
    out = [f"# {title}", *intro, f"Class `{name}` of `{source}`.", markdown(said.prose)]
    if "Example" in said.sections:
        out.append(_example(said.sections["Example"]))
    if not module.startswith("agentprm_gym"):
        told = Docstring.of(code.tree(found.module))
        out += ["## How it works", markdown(told.prose)]
    out += _constructor(code, found)
    if attributes := said.entries("Attributes"):
        rows = [(f"`{key}`", _cell(text)) for key, text in attributes.items()]
        out += ["## Attributes", _table(("attribute", "what it is"), rows)]
    own = {key: function for key, function in _methods(found).items() if not key.startswith("_")}
    if own:
        out += ["## Methods", *(line for function in own.values() for line in _method(function))]
    bases = [one.node.name for one in code.lineage(found)[1:]]
    if bases:
        out.append(f"Bases in this package, whose methods it has, too: {', '.join(f'`{base}`' for base in bases)}.")
    return "\n\n".join(part for part in out if part) + "\n"


def pages(root: Path) -> dict[str, dict[str, str]]:
    """All pages.

    Args:
        root: the repository.

    Returns:
        ``"Environments"`` and ``"Algorithms"`` -> title of a page -> its Markdown.
    """
    code = Code(root)
    environments: dict[str, str] = {}
    ids = code.constant("agentprm_gym.envs.registration", "_IDS")
    assert isinstance(ids, Mapping)
    for env_id, (entry, vector, limit, kwargs) in ids.items():
        defaults = "".join(f", {key}={value!r}" for key, value in kwargs.items())
        made = [
            f'`gym.make("{env_id}"{defaults})`, at most {limit} turns an episode; `gym.make_vec("{env_id}", num_envs=N)` makes '
            f"many of them, of class `{vector.rpartition(':')[2]}`. Guide: [games](../../docs/games.md)."
        ]
        environments[env_id] = class_page(code, entry, env_id, made)
    algorithms: dict[str, str] = {}
    built_in = code.constant("algorithms.registry", "BUILT_IN")
    assert isinstance(built_in, Mapping)
    for short, where in built_in.items():
        name = where.rpartition(":")[2]
        use = f"`from algorithms import {name}`, or `agentprm train --algo {short}`."
        algorithms[name] = class_page(code, where, name, [f"{use} Guide: [algorithms](../../docs/algorithms.md)."])
    for kind, pages_of in (("environments", environments), ("algorithms", algorithms)):
        for where in _BASES[kind]:
            name = where.rpartition(":")[2]
            pages_of[name] = class_page(code, where, name, ["A base class, for classes of your own."])
    return {"Environments": environments, "Algorithms": algorithms}
