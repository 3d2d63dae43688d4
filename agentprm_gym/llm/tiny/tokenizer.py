"""The tokenizer of the offline model: one token an entity, boilerplate normalised away.

It is an ordinary Hugging Face fast tokenizer (a ``tokenizer.json``), so that every tool that reads one works with it.
What is unusual happens in its normalizer and its pre-tokenizer:

* "You arrive at cabinet 1. The cabinet 1 is closed." becomes ``closed`` (the command before it names the place);
* the receptacles of a room are given once a type: "a cabinet 8, a cabinet 7, ..., and a cabinet 1" keeps only ``cabinet 8``,
  which says that there are eight of them;
* the twelve templates of a task shrink to their key words: "heat some potato and put it in fridge." is ``hot potato fridge``;
* an entity ("cabinet 8") is one token.

Words outside the vocabulary fall back to bytes, so every text has a distinct encoding; only free-text *decoding* of such
words is rough (bytes are joined with blanks), which does not matter where commands are chosen from the admissible ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: Receptacle types that a room may hold dozens of.
MANY = ("cabinet", "drawer", "shelf")
#: Entities up to this number have a token of their own ("cabinet 40" / "mug 10"); rarer ones fall back to bytes.
MAX_NUMBER_MANY, MAX_NUMBER = 40, 10

BOS, EOT, PAD = "<bos>", "<eot>", "<pad>"

#: Words of commands, observations and tasks that are no entity.
WORDS = (
    "go to", "take", "from", "move", "to", "open", "close", "use", "heat", "cool", "clean", "slice", "with",
    "examine", "inventory", "look", "help", "hot", "two", ";", ">", ":", "see", "nothing", "closed", "ok", "fail",
    "carry", "facing", "next", "special", "normal", "sliced", "cold", "commands", "put", "off",
    "task", "action", "reason", "say", "please", "again", "wrong", "found", "none", "done",
)  # fmt: skip

_ENTITY = r"[a-z]+ [0-9]+"
#: (pattern, replacement), applied in this order to lower-case text.
_RULES: tuple[tuple[str, str], ...] = (
    (r"\s+", " "),
    # --- the room, once a type (\K keeps what stands before it) ---
    (r"-= welcome to textworld, alfred! =-", " "),
    (r"you are in the middle of a room\. looking quickly around you, you see", " "),
    (r"\ba ([a-z]+) [0-9]+\K(?:,(?: and)? a \1 [0-9]+)+(?=[^.]*\. your task)", " "),
    (r"your task is to: [^.\n]*\.", " "),
    # --- acknowledgements and echoes of the command ---
    (rf"you arrive at (?:{_ENTITY}|loc [0-9]+)\.", " "),
    (rf"the {_ENTITY} is closed\.", "closed"),
    (rf"you open the {_ENTITY}\.", " "),
    (rf"the {_ENTITY} is open\. in it, you see", "see"),
    (rf"on the {_ENTITY}, you see", "see"),
    (rf"you close the {_ENTITY}\.", "ok"),
    (rf"you pick up the {_ENTITY} from the {_ENTITY}\.", "ok"),
    (rf"you (?:move|put) the {_ENTITY} (?:to|in/on) the {_ENTITY}\.", "ok"),
    (r"\b(?:in/on)\b", "to"),
    (rf"you (?:heat|cool|clean) the {_ENTITY} using the {_ENTITY}\.", "ok"),
    (rf"you turn on the {_ENTITY}\.", "ok"),
    (r"nothing happens\.", "fail"),
    (r"you are not carrying anything\.", "carry nothing"),
    (r"you are carrying:", "carry"),
    (r"you are facing the", "facing"),
    (r"next to it, you see", "next"),
    (rf"there's nothing special about {_ENTITY}\.", "special"),
    (r"available commands:.*", "commands"),
    # --- the task's key words: "hot potato fridge", "two cd safe", "look book desklamp" ---
    (r"\bheat some\b", "hot"),
    (r"\b(?:look at|examine the)\b", "look"),
    (r"\bput an? (?=(?:hot|cool|clean) )", " "),
    (r"\b(?:find|put) two\b", "two"),
    (r"\band put (?:it|them) (?:in|on)\b|\b(?:under|with) the\b", " "),
    (r"\bput (?:a|some)\b", "put"),
    (r"\btask:", ";"),
    (r"\b(?:a|an|and|the|some|in|on|this|is|it|you|your|are)\b", " "),
    (r"[,.\[\]!'\"=-]", " "),
)  # fmt: skip


def normalizer() -> normalizers.Sequence:
    """The normalizer: lower case, then the rules in order."""
    rules = [normalizers.Replace(Regex(pattern), replacement) for pattern, replacement in _RULES]
    return normalizers.Sequence([normalizers.Lowercase(), *rules])


def vocabulary(types: Sequence[str]) -> dict[str, int]:
    """Token ids: specials, bytes, words, entity types without a number, entities with one.

    Args:
        types: entity types in lower case ("cabinet", "mug", ...).
    """
    tokens = [PAD, BOS, EOT, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*WORDS, *(t for t in types if t not in WORDS)]
    for name in types:
        tokens += [f"{name} {n}" for n in range(1, (MAX_NUMBER_MANY if name in MANY else MAX_NUMBER) + 1)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer(types: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make the tokenizer for the given entity types."""
    # "ignore_merges" takes a whole piece as a token where the vocabulary has it; without merges the rest falls to bytes.
    model = models.BPE(vocab=vocabulary(types), merges=[], ignore_merges=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer()
    pieces = rf"{_ENTITY}|go to|[a-z]+|[0-9]+|[^\sa-z0-9]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.WordPiece(prefix="\0", cleanup=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOT, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def embedding_parts(vocab: dict[str, int]) -> tuple[list[int], list[int], int, int]:
    """Split the vocabulary for a factorised embedding: ``E[cabinet 8] = E_type[cabinet] + E_number[8]``.

    Returns:
        ``(type_index, number_index, n_types, n_numbers)``; the two lists have one entry per token id. A token without a
        number has number 0; "cabinet" and "cabinet 8" share a type, which is how the task's "mug" finds "mug 2".
    """
    types: dict[str, int] = {}
    type_index, number_index = [0] * len(vocab), [0] * len(vocab)
    for token, i in vocab.items():
        match = re.fullmatch(r"([a-z]+) ([0-9]+)", token)
        name, number = (match[1], int(match[2])) if match else (token, 0)
        type_index[i], number_index[i] = types.setdefault(name, len(types)), number
    return type_index, number_index, len(types), max(number_index) + 1
