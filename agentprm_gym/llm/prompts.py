"""Prompts as tokens: a prompt template within the tokenizer's chat template, where it has one.

``llm/text_prompts.py`` says what a prompt template is. Prompts and responses are rendered turn by turn, so a transcript only
ever grows at its end. Where the tokenizer has a chat template, they become its user and assistant messages.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentprm_gym.answers import Reader, Reading
from agentprm_gym.episodes import ResponseTokens, Turn
from agentprm_gym.llm.text_prompts import TEMPLATES, TextPrompt, template_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TEMPLATES", "ChatPieces", "PromptFormat", "TextPrompt", "template_source"]

#: How many prompts and commands keep their tokens before these are forgotten or no longer kept.
_MANY_PROMPTS, _MANY_COMMANDS = 20_000, 200_000
# Chat templates that write the date get the same one every day: a transcript must not change over night. It is a macro,
# since transformers gives templates its own functions only.
_DATE = datetime.datetime(2025, 1, 1)
_NO_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{c}', '{_DATE.strftime('%' + c)}')" for c in "aAbBdeHIjmMpSyYFT")
    + " }}{% endmacro +%}"
)
#: What to do where a tokenizer's chat template does not suit.
_OTHER_TEMPLATE = (
    "expected one that writes each message and a special or end-of-sequence token behind an answer: mend it in the model's "
    "folder, or delete it there to do without one"
)


@dataclass(frozen=True, slots=True)
class ChatPieces:
    """The strings that a chat template puts around messages, found by rendering a conversation of markers.

    Some templates trim messages, drop what an assistant thought in earlier turns, or write today's date. With them, a
    transcript that is rendered as a whole would change before its end. Pieces that are found once do not.

    Attributes:
        first: the text before the first user message, a system message included.
        between: the text from a user message to the assistant's.
        after: the text from the end of an assistant message to the next user message.
    """

    first: str
    between: str
    after: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatPieces | None:
        """Find the pieces of a tokenizer's chat template.

        Args:
            tokenizer: the tokenizer.

        Returns:
            The pieces; ``None`` where the tokenizer has no chat template.

        Raises:
            ValueError: if the template fails on a conversation of user and assistant turns, or does not write every
                message.
        """
        if not tokenizer.chat_template:
            return None
        name = tokenizer.name_or_path
        marks = ["\u2983A\u2984", "\u2983B\u2984", "\u2983C\u2984", "\u2983D\u2984"]
        roles = ["user", "assistant", "user", "assistant"]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        date = _DATE.strftime("%d %b %Y")
        try:
            template = _NO_CLOCK + tokenizer.get_chat_template()
            text = str(
                tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, date_string=date)
            )
        except Exception as error:  # whatever a model's template does
            raise ValueError(
                f"{name!r}: the tokenizer's chat template fails on a conversation of user and assistant messages in turn "
                f"({type(error).__name__}: {error}); {_OTHER_TEMPLATE}"
            ) from error
        parts: list[str] = []
        for role, mark in zip(roles, marks, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise ValueError(
                    f"{name!r}: the tokenizer's chat template leaves out or changes the text of message {len(parts) + 1} "
                    f"({role}) of four; {_OTHER_TEMPLATE}"
                )
            parts.append(before)
        return cls(first=parts[0], between=parts[1], after=parts[2])


@dataclass(slots=True)
class PromptFormat:
    """Writes turns as tokens.

    Attributes:
        tokenizer: the model's tokenizer.
        template: a name from :data:`TEMPLATES`, a ``.jinja`` file, or a template's text.
        reasons: whether responses are written with their reasons, where they have one.

    Raises:
        ValueError: for an unknown or broken template, one without room for reasons where they are wanted, a tokenizer
            without an end-of-sequence token, or one whose chat template fails or does not end answers.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = "full"
    reasons: bool = False
    source: str = field(init=False)
    #: Tokens of a response before its command, where no reason is given.
    lead: list[int] = field(init=False)
    #: Tokens before and after a reason; the command comes next.
    reason_open: list[int] = field(init=False, default_factory=list)
    reason_close: list[int] = field(init=False, default_factory=list)
    _text: TextPrompt = field(init=False, repr=False)
    _chat: ChatPieces | None = field(init=False, default=None)
    _cache: dict[str, list[int]] = field(init=False, default_factory=dict, repr=False)
    _prompts: dict[tuple[str, str, tuple[str, ...], bool], list[int]] = field(
        init=False, default_factory=dict, repr=False
    )
    _eot: list[int] = field(init=False)
    _after: list[int] = field(init=False, default_factory=list)
    _gap: str = field(init=False)
    _controls: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the template, and split it and the tokenizer's chat format into tokens."""
        self._text = TextPrompt(self.template)
        self.source = self._text.source
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"{self.tokenizer.name_or_path!r}: the tokenizer has no eos_token to end a response with; set one"
            )
        added = self.tokenizer.added_tokens_decoder.values()
        names = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        names = {name for name in names if len(name.strip()) > 1}
        self._controls = re.compile(
            "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"
        )
        if self.template != "compact":
            self._chat = ChatPieces.of(self.tokenizer)
        if self._chat is None:
            self._eot = [int(self.tokenizer.eos_token_id)]
        else:
            self._split_end(self._chat.after)
        self._split_response()

    def _split_end(self, after: str) -> None:
        """Find the token that ends a turn in a chat: the first special or end-of-sequence token behind an answer.

        What the template writes before it, such as a blank, stands there in every response, too.
        """
        tokens = self._encode(after)
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        end = next((i for i, token in enumerate(tokens) if token in special), None)
        if end is None:
            raise ValueError(
                f"{self.tokenizer.name_or_path!r}: the tokenizer's chat template writes {after!r} behind an answer, which "
                f"holds no special or end-of-sequence token, so nothing says where an answer ends; {_OTHER_TEMPLATE}"
            )
        self._eot, self._after = tokens[: end + 1], tokens[end + 1 :]

    def _split_response(self) -> None:
        """Encode what the template writes around reason and command."""
        lead = self._text.lead
        # A blank belongs to the word behind it, as tokenizers see it. Where nothing stands before, there is none.
        self._gap = " " if lead.endswith(" ") else ""
        self.lead = self._encode(lead.removesuffix(" "))
        if self._text.around_reason is not None:
            before, after = self._text.around_reason
            self.reason_open = self._encode(before.removesuffix(" "))
            self.reason_close = self._encode(after.removesuffix(" "))
        elif self.reasons:
            raise ValueError(f"the prompt template {self.template[:40]!r} has no place for a reason: use 'full'")

    @property
    def end_of_turn(self) -> int:
        """The token that ends a response."""
        return self._eot[-1]

    @property
    def has_marker(self) -> bool:
        """Whether a well-formed response says where its command stands (``ACTION:``)."""
        return bool(self.lead)

    def _encode(self, text: str) -> list[int]:
        # Chat templates write the beginning-of-sequence token themselves: special tokens are never added here.
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.truncation is None and backend.padding is None:
            # The same without the wrapper, which takes several times as long as the tokenizer.
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _plain(self, text: str) -> str:
        """A text of a game, or of whoever answers, in which no control token is read: ``<eot>`` becomes ``< eot>``.

        Otherwise what a game says could end a turn, or speak in another role.
        """
        while self._controls.search(text):
            text = self._controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    def prompt_text(self, task: str, feedback: str, admissible_commands: Sequence[str], first: bool) -> str:
        """What the model is told at a turn, without the chat template around it."""
        return self._text.prompt(task, feedback, admissible_commands, first)

    def response_text(self, reason: str, command: str) -> str:
        """A well-formed response."""
        return self._text.response(reason, command)

    def prompt_ids(self, task: str, feedback: str, admissible_commands: Sequence[str], first: bool) -> list[int]:
        """Tokens of one turn's prompt, which end where the response begins.

        Args:
            task: the task.
            feedback: what the game said.
            admissible_commands: the commands that the game would understand.
            first: whether it is the first turn of an episode.

        Returns:
            Token ids. The list is shared with later calls: do not change it.
        """
        # States recur: episodes of a group begin alike, and agents go where they were before.
        key = (task, feedback, tuple(admissible_commands), first)
        ids = self._prompts.get(key)
        if ids is None:
            if len(self._prompts) >= _MANY_PROMPTS:
                self._prompts.clear()
            ids = self._prompts[key] = self._encode_prompt(task, feedback, admissible_commands, first)
        return ids

    def _encode_prompt(self, task: str, feedback: str, admissible_commands: Sequence[str], first: bool) -> list[int]:
        commands = [self._plain(command) for command in admissible_commands]
        body = self.prompt_text(self._plain(task), self._plain(feedback), commands, first)
        if self._chat is not None:
            after = [] if first else self._after
            return after + self._encode((self._chat.first if first else "") + body + self._chat.between)
        bos = [int(self.tokenizer.bos_token_id)] if first and self.tokenizer.bos_token_id is not None else []
        gap = "" if first or self.template == "compact" else "\n\n"
        return bos + self._encode(gap + body)

    def judge_ids(self, task: str) -> list[int]:
        """Tokens after a response; a process reward model reads its score at the end of them.

        Without any, it reads at the end-of-turn token. The compact template repeats the task here, as it does before every
        command: a small model judges a command far better when the task stands right before the place where it must answer.

        Args:
            task: the task.
        """
        # No command begins with this character, so the two kinds of keys cannot meet.
        key = "\x00" + task
        ids = self._cache.get(key)
        if ids is None:
            ids = self._cache[key] = self._encode(self._text.judge(self._plain(task)))
        return ids

    def command_ids(self, command: str) -> list[int]:
        """Tokens of a command with the end-of-turn token, as they follow :attr:`lead` or :attr:`reason_close`."""
        ids = self._cache.get(command)
        if ids is None:
            ids = self._encode(self._gap + self._plain(command)) + self._eot
            if len(self._cache) < _MANY_COMMANDS:
                self._cache[command] = ids
        return ids

    def response_ids(self, command: str) -> list[int]:
        """Tokens of a whole response without a reason."""
        return self.lead + self.command_ids(command)

    def response_tokens(self, turn: Turn, *, free: bool | None = None) -> ResponseTokens:
        """The tokens of a turn's response: those that were sampled, where they are known, else those of the text.

        The transcript holds the command that was executed. It also holds the reason, where this format shows reasons and the
        response has one.

        Args:
            turn: the turn.
            free: whether the response counts as written freely as a whole (True) or as a command that was chosen (False).
                Sampled tokens of the other kind are not used. ``None`` takes both kinds.
        """
        tokens = turn.tokens
        if tokens is not None and free in (None, tokens.command_start is None):
            return tokens
        if self.reasons and turn.reason:
            reason = self._encode(" " + self._plain(" ".join(turn.reason.split())))
            tokens = self.with_reason(reason, turn.command, stopped=True)
        else:
            n = len(self.lead)
            tokens = ResponseTokens((*self.lead, *self.command_ids(turn.command)), n, n, n, False)
        return ResponseTokens(tokens.ids, 0, len(tokens.ids), None, True) if free else tokens

    def with_reason(self, reason: Sequence[int], command: str, *, stopped: bool) -> ResponseTokens:
        """The tokens of a response with a reason.

        Args:
            reason: tokens of the reason.
            command: the command behind it.
            stopped: whether the model ended the reason itself, in place of a limit.
        """
        first = len(self.reason_open)
        head = (*self.reason_open, *reason, *self.reason_close)
        return ResponseTokens((*head, *self.command_ids(command)), first, first + len(reason), len(head), stopped)

    def generated(self, ids: Sequence[int], *, stopped: bool) -> ResponseTokens:
        """The tokens of a response that was written freely.

        Args:
            ids: what was written.
            stopped: whether the model ended it itself. Where it was cut off, the end-of-turn token is added.
        """
        whole = tuple(ids) if stopped else (*ids, self.end_of_turn)
        return ResponseTokens(whole, 0, len(ids), None, stopped)

    def written(self, ids: Sequence[int]) -> str:
        """The text of a freely written response, without the token that ends it."""
        end = len(ids) - 1 if ids and ids[-1] == self.end_of_turn else len(ids)
        return str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()

    def read(self, text: str, admissible_commands: Sequence[str] = (), reader: Reader | None = None) -> Reading:
        """Read a freely written response; see :meth:`TextPrompt.read`."""
        return self._text.read(text, admissible_commands, reader)

    def is_malformed(self, reading: Reading) -> bool:
        """Whether a response is malformed; see :meth:`TextPrompt.is_malformed`."""
        return self._text.is_malformed(reading)
