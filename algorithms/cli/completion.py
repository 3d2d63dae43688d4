"""``agentprm completion``: a script that lets the shell complete verbs, options and their values.

The script is written from the parsers, so that it knows every option. It needs no package and starts no Python when Tab is
pressed; after an update it is made again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.console import Console

from agentprm_gym.games import TASK_TYPES
from agentprm_gym.llm.aliases import ALIASES
from agentprm_gym.rewards import reward_names
from algorithms import registry
from algorithms.cli import arguments, presets

SHELLS = ("bash", "zsh", "fish")
_MODELS = ("tiny", *ALIASES)
#: Values of options that take more than a list of choices, by the options' names; files are completed, too.
_VALUES: Mapping[str, tuple[str, ...]] = {
    "--algo": tuple(registry.BUILT_IN),
    "--device": ("auto", "cpu", "cuda", "mps"),
    "--games": ("auto", "alfworld", "generated"),
    "--policy": _MODELS,
    "--preset": (*presets.names(), presets.LIST),
    "--reward": reward_names(),
    "--task-types": tuple(TASK_TYPES),
    "--template": ("compact", "full", "react"),
}


class Option(NamedTuple):
    """An option of a verb.

    Attributes:
        names: as they are typed.
        help: one line.
        values: what it can be; empty for any, and for switches.
        takes: how many words: 0, 1, or 2 for any number.
    """

    names: tuple[str, ...]
    help: str
    values: tuple[str, ...]
    takes: int


class Verb(NamedTuple):
    """A verb.

    Attributes:
        name: as it is typed.
        help: one line.
        options: its options.
        words: what may stand without an option, where that is a choice.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = arguments.add_verb(
        verbs,
        "completion",
        help="print a script that lets the shell complete commands",
        description='Print a script for the shell. bash: eval "$(agentprm completion bash)" in ~/.bashrc; zsh: the same with '
        "zsh in ~/.zshrc; fish: agentprm completion fish > ~/.config/fish/completions/agentprm.fish.",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the script."""
    from algorithms.cli.main import build_parser

    parser, choices = build_parser()
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in group._choices_actions}
    found = [_verb(name, helps[name], verb) for name, verb in choices.items()]
    sys.stdout.write(script(args.shell, found))
    return 0


def script(shell: str, verbs: list[Verb]) -> str:
    """The script for a shell.

    Args:
        shell: one of :data:`SHELLS`.
        verbs: the verbs.
    """
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(verbs))
    bash = "".join(f"{line}\n" for line in _bash(verbs))
    zsh = "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"
    return (zsh if shell == "zsh" else "") + bash


def _verb(name: str, help: str, parser: argparse.ArgumentParser) -> Verb:
    options: list[Option] = []
    words: list[str] = []
    for action in parser._actions:
        values = tuple(map(str, action.choices or ()))
        if not action.option_strings:
            words += values or (_MODELS if action.dest in ("model", "save", "what") and action.choices is None else ())
            continue
        known = next((_VALUES[option] for option in action.option_strings if option in _VALUES), ())
        takes = 0 if action.nargs == 0 else 1 if action.nargs is None else 2
        options.append(Option(tuple(action.option_strings), _line(action.help), values or known, takes))
    return Verb(name, _line(help), tuple(options), tuple(words))


def _line(text: str | None) -> str:
    """The beginning of a help text."""
    words = (text or "").replace("%%", "%").replace("%(prog)s", "agentprm").split()
    line = " ".join(words).split("; ")[0]
    return line if len(line) <= 72 else line[:69].rsplit(" ", 1)[0] + " ..."


def _bash(verbs: list[Verb]) -> Iterator[str]:
    names = " ".join(verb.name for verb in verbs)
    yield "# Completion of agentprm, made by: agentprm completion"
    yield "_agentprm() {"
    yield '    local cur="${COMP_WORDS[COMP_CWORD]}" verb="" option="" options="" values="" i'
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield '        if [[ "${COMP_WORDS[i]}" != -* ]]; then verb="${COMP_WORDS[i]}"; break; fi'
    yield "    done"
    yield "    for ((i = COMP_CWORD - 1; i > 0; i--)); do"
    yield '        if [[ "${COMP_WORDS[i]}" == --* ]]; then option="${COMP_WORDS[i]}"; break; fi'
    yield "    done"
    yield "    local distance=$((COMP_CWORD - i))"
    yield '    case "$verb" in'
    yield f"        '') options='--help --version --debug' values={shlex.quote(names)} ;;"
    for verb in verbs:
        options = " ".join(name for option in verb.options for name in option.names if name.startswith("--"))
        yield f"        {verb.name}) options={shlex.quote(options)} values={shlex.quote(' '.join(verb.words))}"
        cases = [option for option in verb.options if option.takes]
        if cases:
            yield '            case "$option" in'
            for option in cases:
                names = "|".join(name for name in option.names if name.startswith("--"))
                words = shlex.quote(" ".join(option.values))
                near = "" if option.takes == 2 else "((distance == 1)) && "
                yield f"                {names}) {near}values={words} ;;"
            yield "            esac"
        yield "            ;;"
    yield "    esac"
    yield '    if [[ "$cur" == -* ]]; then values="$options"; fi'
    yield '    COMPREPLY=($(compgen -W "$values" -- "$cur"))'
    yield "}"
    # Where nothing of this fits, the shell completes files.
    yield "complete -o default -F _agentprm agentprm"


def _fish(verbs: list[Verb]) -> Iterator[str]:
    yield "# Completion of agentprm, made by: agentprm completion fish"
    for name, help in (("help", "show help"), ("version", "show the version"), ("debug", "show where an error is")):
        yield f"complete -c agentprm -n __fish_use_subcommand -l {name} -d {_fish_quote(help)}"
    for verb in verbs:
        yield f"complete -c agentprm -n __fish_use_subcommand -f -a {verb.name} -d {_fish_quote(verb.help)}"
    for verb in verbs:
        begin = f"complete -c agentprm -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            yield f"{begin} -a {_fish_quote(' '.join(verb.words))}"
        for option in verb.options:
            names = " ".join(f"-l {name[2:]}" for name in option.names if name.startswith("--"))
            takes = (
                "" if not option.takes else f" -r -a {_fish_quote(' '.join(option.values))}" if option.values else " -r"
            )
            yield f"{begin} {names}{takes} -d {_fish_quote(option.help)}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
