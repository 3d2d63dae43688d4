"""Prompt templates: how the turns of an episode are written as text, without a tokenizer.

A prompt template is a Jinja template with two macros, ``prompt(task, feedback, admissible_commands, first)`` for what the
model reads at a turn and ``response(reason, command)`` for what it answers, and perhaps a third, ``judge(task)``: what a
process reward model reads behind a response. ``{% set reader = "tolerant" %}`` names the reader of the answers that the
template asks for (:mod:`agentprm_gym.answers`).

Three templates ship with the package (``llm/templates``). ``"compact"`` is for models that know the game: the offline model
was pretrained on it. ``"full"`` is for general models, ``"react"`` for prompted baselines. A file of your own works in their
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from agentprm_gym.answers import Reader, Reading
from agentprm_gym.readers import ByMarker, make_reader

TEMPLATES = ("compact", "full", "react")

# Stand for a reason and a command while a template is taken apart; private use characters, so that no text holds them.
_REASON, _COMMAND = "\ue001", "\ue002"
# Written and read to see whether a template's reader understands its answers.
_SAMPLE = "the mug may be there", "go to shelf 1"


def template_source(template: str) -> str:
    """The text of a prompt template.

    Args:
        template: a name, the path of a ``.jinja`` file, or the text itself.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if there is no such file.
    """
    if "{%" in template:
        return template
    if template in TEMPLATES:
        return (resources.files("agentprm_gym.llm") / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    if template.endswith((".jinja", ".j2")):
        path = Path(template).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no prompt template {template}: expected one of {TEMPLATES} or a .jinja file")
        return path.read_text(encoding="utf-8")
    raise ValueError(f"prompt template must be one of {TEMPLATES} or the path of a .jinja file, got {template!r}")


@lru_cache(32)
def _macros(source: str) -> Any:
    """Compile a template; it is sandboxed and bounded, since it may come with somebody else's save."""
    # Imported here: users who only play need no templates.
    from agentprm_gym.llm.template_sandbox import compile_template

    module = compile_template(source)
    missing = [name for name in ("prompt", "response") if not hasattr(module, name)]
    if missing:
        raise ValueError(
            f"the prompt template lacks the macro {missing[0]!r}: expected prompt(task, feedback, admissible_commands, "
            "first) and response(reason, command), and perhaps judge(task)"
        )
    return module


def _render(module: Any, macro: str, *args: Any) -> str:
    from agentprm_gym.llm.template_sandbox import begin

    try:
        begin(module)
        return str(getattr(module, macro)(*args))
    except Exception as error:  # whatever a user's template does
        raise ValueError(f"the prompt template's macro {macro!r} failed ({type(error).__name__}: {error})") from error


@dataclass(slots=True)
class TextPrompt:
    """A prompt template without a tokenizer: what is said, as text. Chat servers bring their own tokenizer.

    Args:
        template: a name from :data:`TEMPLATES`, a ``.jinja`` file, or a template's text.

    Raises:
        ValueError: for an unknown or broken template.
        FileNotFoundError: if there is no such file.
    """

    template: str = "full"
    source: str = field(init=False)
    #: What a response says before its command, where no reason is given.
    lead: str = field(init=False)
    #: What it says before and after a reason; ``None`` where the template has no place for one.
    around_reason: tuple[str, str] | None = field(init=False, default=None)
    #: Reads its answers.
    reader: Reader = field(init=False, repr=False)
    _module: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the template and find what it writes around reason and command."""
        self.source = template_source(self.template)
        self._module = _macros(self.source)
        plain = self.response("", _COMMAND)
        if plain.count(_COMMAND) != 1 or not plain.endswith(_COMMAND):
            raise ValueError(
                f"the prompt template's response(reason, command) must end with the command; without a reason it gives "
                f"{plain.replace(_COMMAND, '<command>')!r}"
            )
        self.lead = plain[: -len(_COMMAND)]
        whole = self.response(_REASON, _COMMAND)
        if _REASON in whole and whole.endswith(_COMMAND):
            before, _, after = whole[: -len(_COMMAND)].partition(_REASON)
            self.around_reason = before, after
        self.reader = self._make_reader()

    def _make_reader(self) -> Reader:
        """Find the reader that the template names, and try it on an answer of the template."""
        reason, command = _SAMPLE
        answer = self.response(reason, command)
        name = str(getattr(self._module, "reader", "tolerant"))
        # A template may come with somebody else's save, so it may not name code.
        reader = make_reader(name, may_import=False)
        if reader(answer).command != command and not hasattr(self._module, "reader") and self.has_marker:
            reader = ByMarker(self.lead.strip(), self.around_reason[0].strip() if self.around_reason else "")
        if (got := reader(answer).command) != command:
            raise ValueError(
                f"the prompt template writes {answer!r}, in which its reader {name!r} finds the command {got!r}: name another "
                "reader in the template, {% set reader = '...' %}, by a name or a regular expression with the groups 'reason' "
                "and 'command'"
            )
        return reader

    def prompt(self, task: str, feedback: str, admissible_commands: Sequence[str], first: bool) -> str:
        """What the model is told at a turn."""
        return _render(self._module, "prompt", task, feedback, list(admissible_commands), first)

    def response(self, reason: str, command: str) -> str:
        """A well-formed response."""
        return _render(self._module, "response", reason, command)

    def judge(self, task: str) -> str:
        """What a process reward model reads behind a response; empty where the template says nothing about it."""
        return _render(self._module, "judge", task) if hasattr(self._module, "judge") else ""

    @property
    def has_marker(self) -> bool:
        """Whether a well-formed response says where its command stands (``ACTION:``)."""
        return bool(self.lead.strip())

    def read(self, text: str, admissible_commands: Sequence[str] = (), reader: Reader | None = None) -> Reading:
        """Read a response that was written freely.

        Args:
            text: the response.
            admissible_commands: the commands that are possible now; empty where they are not known.
            reader: reads it; ``None``: the template's own reader.
        """
        return (reader or self.reader)(text, admissible_commands)

    def is_malformed(self, reading: Reading) -> bool:
        """Whether a response names no command, or lacks the marker that the template asks for."""
        return not reading.command or (self.has_marker and not reading.is_marked)
