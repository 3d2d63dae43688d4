"""Transcripts: how an episode is written for a language model.

A transcript is a list of segments, prompt and response by turns, and each turn only appends: what was said stays as it
is, so that a prefix cache holds. The history holds the commands that were really executed.

Two templates ship with the package. ``"compact"`` is for models that know the game (the offline model was pretrained on
it): feedback, the task as a reminder, ``>``. ``"full"`` is for general models: instructions once, then for each turn
the feedback and the admissible commands; where the tokenizer has a chat template, segments become its user and
assistant messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("compact", "full")

_INSTRUCTIONS = (
    "You are an agent in a text game about a household. Your task is to: {task}\n"
    "Each turn you read what happened and the admissible commands, and answer with one of these commands, copied "
    "verbatim.\n"
    '"Nothing happens." means that a command was not understood. '
    "Search where the object is likely to be; do not search a place twice."
)


@dataclass(frozen=True, slots=True)
class ChatPieces:
    """The strings that a chat template puts around messages, found by rendering a conversation of markers.

    Attributes:
        first: before the first user message (system text and all).
        between: from a user message to the assistant's.
        after: from the end of an assistant message to the next user message.
    """

    first: str
    between: str
    after: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatPieces | None:
        """Read the pieces off a tokenizer's chat template; ``None`` where it has none or cannot be split."""
        if not tokenizer.chat_template:
            return None
        marks = ["\u2983A\u2984", "\u2983B\u2984", "\u2983C\u2984", "\u2983D\u2984"]
        roles = ["user", "assistant", "user", "assistant"]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        parts: list[str] = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                return None
            parts.append(before)
        return cls(first=parts[0], between=parts[1], after=parts[2])


@dataclass(slots=True)
class PromptFormat:
    """Writes turns as token segments.

    Args:
        tokenizer: the model's tokenizer.
        template: ``"compact"`` or ``"full"``.

    Raises:
        ValueError: for an unknown template or a tokenizer without an end-of-sequence token.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = "full"
    _chat: ChatPieces | None = field(init=False, default=None)
    _response_cache: dict[str, list[int]] = field(init=False, default_factory=dict)
    _eot: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Check the template and read the tokenizer's chat format."""
        if self.template not in TEMPLATES:
            raise ValueError(f"prompt template must be one of {TEMPLATES}, got {self.template!r}")
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"{self.tokenizer.name_or_path!r}: the tokenizer has no eos_token to end a response with; set one"
            )
        if self.template == "full":
            self._chat = ChatPieces.of(self.tokenizer)
        # In a chat, what ends an assistant's message is part of the template ("<|eot_id|>"): its first token ends
        # a turn.
        end = self._encode(self._chat.after)[:1] if self._chat and self._chat.after else []
        self._eot = end or [int(self.tokenizer.eos_token_id)]

    @property
    def end_of_turn(self) -> int:
        """The token that ends a response."""
        return self._eot[0]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt_ids(self, task: str, feedback: str, admissible_commands: Sequence[str], first: bool) -> list[int]:
        """Tokens of one turn's prompt segment, ending where the response begins."""
        if self.template == "compact":
            bos = [int(self.tokenizer.bos_token_id)] if first and self.tokenizer.bos_token_id is not None else []
            return bos + self._encode(f"{feedback}\nTask: {task}\n>")
        commands = "\n".join(admissible_commands)
        body = f"{feedback.strip()}\n\nAdmissible commands:\n{commands}\n"
        if first:
            body = _INSTRUCTIONS.format(task=task) + "\n\n" + body
        if self._chat is None:
            bos = [int(self.tokenizer.bos_token_id)] if first and self.tokenizer.bos_token_id is not None else []
            return bos + self._encode(("" if first else "\n\n") + body + "\nACTION:")
        after = self._encode(self._chat.after)[1:] if not first else []
        return after + self._encode((self._chat.first if first else "") + body + self._chat.between + "ACTION:")

    def judge_ids(self, task: str) -> list[int]:
        """Tokens after a response at whose end a process reward model reads its score; empty: at the end-of-turn token.

        The compact template repeats the task, as it does before every command: a small model judges a command far better
        when what was asked for stands right before the place where it must answer.
        """
        if self.template != "compact":
            return []
        return self._cached(f"\nTask: {task}\n>")

    def response_ids(self, command: str) -> list[int]:
        """Tokens of a response that is a bare command, with the end-of-turn token. Shape (n,)."""
        ids = self._response_cache.get(command)
        if ids is None:
            ids = self._encode(command if self.template == "compact" else " " + command) + self._eot
            if len(self._response_cache) < 200_000:
                self._response_cache[command] = ids
        return ids

    def _cached(self, text: str) -> list[int]:
        """Tokens of a text that recurs; the key cannot be a command's, which has no line break."""
        ids = self._response_cache.get(text)
        if ids is None:
            ids = self._response_cache[text] = self._encode(text)
        return ids
