"""``--set``: arguments of an algorithm's constructor, on the command line and in a configuration.

A dotted key is a field of a group: ``--set improve.beta=0.1`` is ``set: {improve: {beta: 0.1}}`` in YAML, and
``improve={"beta": 0.1}`` in Python. Which fields a group has is read from the constructor's signature.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import inspect
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from algorithms.common.shell.base import LLMAlgorithm

#: Arguments of constructors that have an option of their own.
_OWN_OPTIONS = {
    "policy": "--policy",
    "env": "--env",
    "demonstrations": "--demos",
    "seed": "--seed",
    "device": "--device",
    "n_envs": "--n-envs",
    "n_iterations": "--iterations",
    "tensorboard_log": "--out",
}
_NOT_SETTINGS = ("self", "args", "kwargs", "_init_setup_model")
#: Words for JSON's own that Python writes in another way.
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


class SettingsAction(argparse.Action):
    """Collects ``KEY=VALUE`` words into nested dicts, on top of what a configuration says."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add some words.

        Raises:
            ArgumentError: a word is not of the form KEY=VALUE, or its value begins as a JSON object does and is none.
        """
        settings = getattr(namespace, self.dest) or {}
        for word in values:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {word!r}")
            if value.startswith("{") and isinstance(plain_value(value), str):
                raise argparse.ArgumentError(
                    self,
                    f"{value} is no JSON: put names in double quotes, or give each field by itself, "
                    f"{option_string} {key}.NAME=VALUE",
                )
            settings = merged(settings, nested({key: value}))
        setattr(namespace, self.dest, settings)


def add_option(parser: Any, name: str, help_text: str, dest: str | None = None) -> None:
    """Add an option of ``KEY=VALUE`` words.

    Args:
        parser: where to.
        name: such as ``--set``.
        help_text: its help.
        dest: attribute of the parsed arguments; ``None``: as the name says.
    """
    how: dict[str, Any] = {} if dest is None else {"dest": dest}
    parser.add_argument(name, nargs="+", action=SettingsAction, default={}, metavar="KEY=VALUE", help=help_text, **how)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys as nested dicts; texts are read as JSON where they are JSON.

    Example:
        >>> nested({"improve.beta": "0.1", "prm": {"form": "log_prob"}})
        {'improve': {'beta': 0.1}, 'prm': {'form': 'log_prob'}}
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        value = nested(value) if isinstance(value, Mapping) else plain_value(value)
        *groups, name = str(key).split(".")
        one: dict[str, Any] = {name: value}
        for group in reversed(groups):
            one = {group: one}
        out = merged(out, one)
    return out


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, of which the second count more."""
    out = copy.deepcopy(dict(first))
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def plain_value(value: Any) -> Any:
    """A value: JSON where a text is JSON (YAML takes 1e-3 for a text), else as it is.

    Args:
        value: out of a configuration, or a word of the command line.
    """
    if not isinstance(value, str):
        return value
    if value in _PYTHON_WORDS:
        return _PYTHON_WORDS[value]
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


# ---------------------------------------------------------------------- what an algorithm takes
def check_settings(algorithm: type[LLMAlgorithm], settings: Mapping[str, Any]) -> None:
    """Refuse settings that an algorithm's constructor does not have.

    Args:
        algorithm: the algorithm.
        settings: nested settings.

    Raises:
        ValueError: a setting or a field of a group is unknown; the message lists those that are known.
    """
    known = [name for name in algorithm.constructor_names() if name not in (*_OWN_OPTIONS, *_NOT_SETTINGS)]
    groups = {name: _fields(algorithm, name) for name in known}
    for key, value in settings.items():
        if key in _OWN_OPTIONS:
            raise ValueError(f"--set: {key} has an option of its own: {_OWN_OPTIONS[key]}")
        if key not in known:
            every = [*known, *(f"{group}.{name}" for group, names in groups.items() for name in names or ())]
            raise ValueError(f"--set: {algorithm.__name__} has no setting {key!r}{_meant(key, every)}")
        names = groups[key]
        if not isinstance(value, Mapping):
            continue
        if names is None:
            raise ValueError(f"--set: {key} of {algorithm.__name__} takes a value, not fields: --set {key}=VALUE")
        for name in value:
            if names and name not in names:
                every = [f"{key}.{other}" for other in names]
                raise ValueError(
                    f"--set: {algorithm.__name__} has no setting {f'{key}.{name}'!r}{_meant(f'{key}.{name}', every)}"
                )


def _meant(key: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown setting."""
    # A setting may be named without its group.
    inside = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    close = inside[:1] or difflib.get_close_matches(key, known, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ";"
    return f"{hint} Choose from {', '.join(sorted(known))}"


def _fields(algorithm: type[LLMAlgorithm], name: str) -> tuple[str, ...] | None:
    """Fields of a setting that is a group: of its dataclass; empty where any are allowed; ``None`` where it is not a group."""
    if name == "policy_kwargs":
        from algorithms.common.acting.policy import LLMPolicy

        given = ("self", "observation_space", "action_space", "lr_schedule", "device")
        return tuple(key for key in inspect.signature(LLMPolicy.__init__).parameters if key not in given)
    kinds = _kinds(_annotation(algorithm, name))
    stages = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
    if stages:
        return tuple(field.name for field in fields(stages[0]) if field.init)
    if any(isinstance(kind, type) and issubclass(kind, Mapping) for kind in kinds):
        return ()
    return None


def _annotation(algorithm: type[LLMAlgorithm], name: str) -> Any:
    """The annotation of a constructor's argument, wherever in the class hierarchy it is taken."""
    for cls in algorithm.__mro__:
        init = vars(cls).get("__init__")
        if init is not None and name in inspect.signature(init).parameters:
            # This one alone: others may hold names that are imported for type checkers only.
            alone = SimpleNamespace(__annotations__={name: init.__annotations__.get(name)})
            try:
                return typing.get_type_hints(alone, init.__globals__)[name]
            except (NameError, TypeError):
                return None
    return None


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without their arguments."""
    origin = typing.get_origin(annotation)
    if origin is None:
        return [annotation]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [origin]
    return [kind for one in typing.get_args(annotation) for kind in _kinds(one)]


# ---------------------------------------------------------------------- all settings
class Setting(NamedTuple):
    """A setting of an algorithm.

    Attributes:
        name: as in ``--set``.
        default: its default; ``None`` where it has none, too.
        about: what its docstring says.
    """

    name: str
    default: Any
    about: str


def list_settings(algorithm: type[LLMAlgorithm]) -> list[Setting]:
    """Every setting that ``--set`` takes, with its default and what is said of it.

    Args:
        algorithm: the algorithm.
    """
    found: list[Setting] = []
    for name in algorithm.constructor_names():
        if name in (*_OWN_OPTIONS, *_NOT_SETTINGS):
            continue
        default, about = _of_argument(algorithm, name)
        stages = [
            kind for kind in _kinds(_annotation(algorithm, name)) if isinstance(kind, type) and is_dataclass(kind)
        ]
        if name == "policy_kwargs":
            from algorithms.common.acting.policy import LLMPolicy

            for inner in _fields(algorithm, name) or ():
                found.append(Setting(f"{name}.{inner}", *_of_argument(LLMPolicy, inner)))
        elif stages:
            told = {key: text for cls in reversed(stages[0].__mro__) for key, text in _documented(cls).items()}
            for one in fields(stages[0]):
                if one.init:
                    value = None if one.default is MISSING else one.default
                    found.append(Setting(f"{name}.{one.name}", value, told.get(one.name, "")))
        else:
            found.append(Setting(name, default, about))
    return found


def _of_argument(cls: type[Any], name: str) -> tuple[Any, str]:
    """Default of a constructor's argument and what is said of it, wherever in the class hierarchy it is taken."""
    default: Any = None
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        parameters = {} if init is None else inspect.signature(init).parameters
        if name in parameters:
            default = parameters[name].default
            if about := _documented(init).get(name):
                return (None if default is inspect.Parameter.empty else default), about
    return (None if default is inspect.Parameter.empty else default), ""


def _documented(thing: Any) -> dict[str, str]:
    """What a docstring in Google's style says of arguments or attributes, each on one line."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    found: dict[str, str] = {}
    inside, name = False, ""
    for line in lines:
        if line and not line.startswith(" "):
            inside = line.strip() in ("Args:", "Attributes:")
        elif inside and (match := re.match(r"    (\w+): (.*)", line)):
            name = match[1]
            found[name] = match[2]
        elif inside and name and line.startswith("      "):
            found[name] += " " + line.strip()
    return found
