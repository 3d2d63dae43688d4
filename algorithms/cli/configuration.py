"""Configurations: the options of a verb in a YAML file, and the options of a run that is to go on.

A value is read by the same function as on the command line (``type=`` of its option), straight into the parser's defaults.
What stands on the command line counts more.

A configuration may be somebody else's. It cannot let code run: ``trust_remote_code`` and ``trust_games`` count on the command
line only. A name of code (``package.module:Class``, a module to import), of a variable that holds a key, of a Ray cluster, of a
service that curves are sent to, or of a server on another machine counts only where the command line says it, too; but
algorithms, environments and modules of the user's own need not be said again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from algorithms.cli import output, presets
from algorithms.cli.settings import SettingsAction, merged, nested

#: A run's configuration in its folder.
FILE = "config.yaml"
#: Options that a configuration neither has nor is written with: they are about one command.
_NOT_IN_FILES = ("config", "preset", "resume", "json", "settings")
#: Settings that let files of other people run code; they are neither read from a configuration nor written into one.
GRANTS = ("trust_remote_code", "trust_games")
# A larger file is not a list of options.
_MAX_BYTES = 200_000
_MAX_DEPTH = 30
# "package.module:Name", or "module:Env-v0"; names such as "prm:model" are those of rewards, not of modules.
_CODE = re.compile(r"(?!(?:prm|reference|implicit|judge|openai):)[A-Za-z_][\w.]*:[A-Za-z_][\w.-]*")
# What a player or a judge on a server is called: it is sent texts of games, and the key.
_SERVER = re.compile(r"(?:openai|judge):(\S+)")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_OWN_IDS = frozenset(f"agentprm_gym:{name}-v0" for name in ("ALFWorld", "ALFWorldPRM", "TextWorld", "TextWorldPRM"))


@dataclass(frozen=True)
class Rules:
    """Which options of a verb a configuration holds, and which may differ when a run goes on.

    Attributes:
        verb: the verb.
        not_saved: options that say where or how, not what; a configuration is saved without them, but may have them.
        may_change: options that may differ when a run goes on.
        may_grow: options that may be larger than they were.
    """

    verb: str
    not_saved: tuple[str, ...] = ()
    may_change: tuple[str, ...] = ()
    may_grow: tuple[str, ...] = ()


def complete(
    parser: argparse.ArgumentParser, verb: argparse.ArgumentParser, words: Sequence[str], rules: Rules
) -> argparse.Namespace:
    """The options of a command line, with those of its ``--preset``, ``--config`` or ``--resume``.

    A configuration counts more than a preset, and the command line counts more than both.

    Args:
        parser: reads a command line.
        verb: the parser of the verb; its defaults are changed.
        words: the command line.
        rules: of the verb.

    Raises:
        FileNotFoundError: the file is missing, or a run was not begun in the folder.
        ValueError: the file is not a configuration, the preset is unknown, or the command line asks for another run.
    """
    args = parser.parse_args(words)
    preset = getattr(args, "preset", None)  # not every verb has presets
    if preset == presets.LIST:
        return args
    if args.resume is not None:
        return _with_resume(parser, verb, words, Path(args.resume), rules)
    values: dict[str, Any] = {} if preset is None else read_config(verb, presets.path_of(preset), words)
    if args.config is not None:
        values = merged(values, read_config(verb, Path(args.config), words))
    if values:
        verb.set_defaults(**values)
        args = parser.parse_args(words)
    return args


def read_config(verb: argparse.ArgumentParser, path: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Read a configuration.

    Args:
        verb: the parser of its verb.
        path: a YAML file, in UTF-8.
        words: the command line, which has to repeat what lets code run.

    Returns:
        Values by the options' destinations.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not a YAML mapping, an option is unknown, a value is wrong, or the file would let code run
            that the command line does not name.
    """
    from agentprm_gym.checks import check_choice

    config = read_mapping(path, "--config", "options such as 'algo: ppo'")
    options = {name: action for name, action in options_of(verb).items() if name not in _NOT_IN_FILES}
    values = {}
    for key, value in config.items():
        name = str(key).replace("-", "_")
        check_choice(f"--config: an option in {path}", name, options)
        action = options[name]
        try:
            if value is not None:
                values[action.dest] = _read(action, value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ValueError(f"--config: {path}: {name} (--{name.replace('_', '-')}): {error}") from None
    check_harmless(values, path, words)
    return values


def read_mapping(path: Path, option: str, what: str) -> dict[Any, Any]:
    """Read a YAML file of somebody, which holds a mapping.

    Args:
        path: the file, in UTF-8.
        option: where it was named, for messages.
        what: what it should hold, for messages.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is too large, not YAML, or no mapping; or it uses aliases, or is nested deeply.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file {str(path)!r}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{option}: expected {path} to be a list of options, got {path.stat().st_size:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        _check_yaml(text, path, option)
        read = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{option}: {path} is not YAML in UTF-8: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{option}: expected {path} to hold {what}, got {type(read).__name__}")
    return read


def _check_yaml(text: str, path: Path, option: str) -> None:
    """Refuse YAML that stands for more than fits into memory, or takes minutes to read.

    Raises:
        ValueError: it uses aliases, or is nested deeply.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{option}: {path} uses YAML's aliases (*name), which are not read: write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{option}: expected options in {path}, got YAML that is nested more than {_MAX_DEPTH} deep"
            )


def check_harmless(values: Mapping[str, Any], path: Path, words: Sequence[str]) -> None:
    """Refuse a configuration that lets code run, or sends a key or data to others, without the command line.

    Args:
        values: what the file holds, by the options' destinations.
        path: the file.
        words: the command line.

    Raises:
        ValueError: it does; the message says what to write on the command line.
    """
    granted = next(_grants(values), None)
    if granted is not None:
        how = "--trust-games" if granted == "trust_games" else f"--set policy_kwargs.{granted}=true"
        raise ValueError(
            f"--config: {path} says {granted}, which lets files of other people run code on this machine: take it out of the "
            f"file, and write {how} on the command line if you trust them"
        )
    for option, name in _named(values, path.parent):
        # The name of a service is a short word, which a path may hold.
        said = (
            name in words or f"{option}={name}" in words if option == "--log" else any(name in word for word in words)
        )
        if not said:
            raise ValueError(
                f"--config: {path} names {name!r} ({option}), which would run code, or send a key or data to others: if you "
                f"trust the file, say it on the command line, too: {option} {name}"
            )


def _grants(value: Any) -> Iterator[str]:
    """Yield the settings in a configuration that let code run."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in GRANTS and inner not in (None, False):
                yield str(key)
            yield from _grants(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _grants(inner)


def _named(values: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield option and name of the code and of the secrets in a configuration that the command line has to name, too.

    An algorithm, an environment or a module of the user's own need not be named again when a run goes on. They are imported,
    and what is imported is the user's, unless it comes along with the configuration. Python's own modules are not meant.
    """
    for key, value in values.items():
        option = "--import" if key == "modules" else "--set" if key == "settings" else f"--{key.replace('_', '-')}"
        if key == "api_key_env":
            names = [str(value)]
        elif key == "ray":  # a cluster can let code run here, as this command does there
            names = [] if value == "local" else [str(value)]
        elif key == "log":
            names = [str(name) for name in value]
        elif key == "modules":
            names = [str(name) for name in value if _is_foreign(str(name), folder)]
        else:
            names = [text for text in _texts(value) if _CODE.fullmatch(text) and text not in _OWN_IDS]
            names = [name for name in names if key not in ("algo", "env") or _is_foreign(name, folder)]
            names += [text for text in _texts(value) if _is_elsewhere(text)]
        yield from ((option, name) for name in names)


def _is_elsewhere(text: str) -> bool:
    """Whether a text is the name of a server on another machine."""
    found = _SERVER.fullmatch(text)
    if found is None:
        return False
    try:
        return urlsplit(found[1].partition("@")[2] or found[1]).hostname not in _THIS_MACHINE
    except ValueError:  # an address that nobody can read is not this machine's
        return True


def _is_foreign(name: str, folder: Path) -> bool:
    """Whether a module is Python's own, or would be found in the folder of the configuration."""
    top = name.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    places = [place / found for place in (folder, Path.cwd()) for found in (top, f"{top}.py")]
    return any(place.exists() and place.resolve().is_relative_to(folder.resolve()) for place in places)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for one in inner:
        yield from _texts(one)


def without_grants(value: Any) -> Any:
    """Nested settings without those that only a command line may make.

    Args:
        value: a value of an option.
    """
    if isinstance(value, Mapping):
        kept = {key: without_grants(inner) for key, inner in value.items() if key not in GRANTS}
        return {key: inner for key, inner in kept.items() if inner != {} or value[key] == {}}
    return value


def options_of(verb: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a verb by their names in a configuration."""
    actions = [action for action in verb._actions if action.option_strings and action.dest != "help"]
    return {action.option_strings[0].lstrip("-").replace("-", "_"): action for action in actions}


def _read(action: argparse.Action, value: Any) -> Any:
    """Read the value of one option.

    Raises:
        ValueError: the value is not of the option's kind.
        ArgumentTypeError: the option's reader refuses it.
    """
    if isinstance(action, SettingsAction):
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping such as {{gamma: 0.9, improve: {{beta: 0.1}}}}, got {value!r}")
        return nested(value)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}")
        return value
    if action.nargs is None:
        return _read_one(action, value)
    items = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        raise ValueError(f"expected {action.nargs} values, got {value!r}")
    return [_read_one(action, item) for item in items]


def _read_one(action: argparse.Action, value: Any) -> Any:
    """Read one word of an option, with the option's own reader."""
    if isinstance(value, (bool, list)):
        raise ValueError(f"expected one value, got {value!r}")
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    reader: Any = action.type or str
    read = reader(text)
    if action.choices is not None and read not in action.choices:
        raise ValueError(f"expected one of {', '.join(map(str, action.choices))}, got {value!r}")
    return read


# ---------------------------------------------------------------------- going on
def _with_resume(
    parser: argparse.ArgumentParser, verb: argparse.ArgumentParser, words: Sequence[str], folder: Path, rules: Rules
) -> argparse.Namespace:
    """The options of a run that is to go on: those that it was begun with, and what the command line changes."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume: expected {path}, which 'agentprm {rules.verb}' writes when it begins; this file is missing"
        )
    verb.set_defaults(**read_config(verb, path, words), out=folder)
    begun, args = parser.parse_args([rules.verb]), parser.parse_args(list(words))
    for name in ("config", "preset", "overwrite"):
        if getattr(args, name, None):
            raise ValueError(f"--resume goes on with what {path} describes: leave out --{name}")
    if getattr(args, "model", None) is not None:
        args.policy, args.model = args.model, None
    for name, action in options_of(verb).items():
        if name in (*rules.may_change, *_NOT_IN_FILES):
            continue
        if name in GRANTS:
            continue
        before, now = (without_grants(getattr(told, action.dest)) for told in (begun, args))
        # An option that the algorithm does not have is refused with the others, later.
        if before == now or (name in rules.may_grow and (before is None or now > before)):
            continue
        option = "--" + name.replace("_", "-")
        hint = "; it may be larger, not smaller" if name in rules.may_grow else ""
        raise ValueError(
            f"--resume: {folder} was begun with {option} {before}, not {now}{hint}. Leave {option} out, or begin another run "
            "in another --out"
        )
    return args


def write_config(
    verb: argparse.ArgumentParser, folder: Path, args: argparse.Namespace, rules: Rules, **other: Any
) -> None:
    """Write what ``--config`` takes to run this again, and ``--resume`` to go on.

    Args:
        verb: the parser of the verb.
        folder: where to.
        args: the options.
        rules: of the verb.
        other: values by destination that differ from ``args``.
    """
    import yaml

    values = {**vars(args), **other}
    options = {name: without_grants(values.get(action.dest)) for name, action in options_of(verb).items()}
    left_out = (*GRANTS, *rules.not_saved, *_NOT_IN_FILES, "out", "overwrite")
    # A 0 is an answer: --temperature 0 is another evaluation than the default.
    config = {
        name: value
        for name, value in options.items()
        if name not in left_out and value is not False and value not in (None, {}, [])
    }
    config = {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}
    output.write_text(folder / FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
