"""From what an agent says to what the game is told."""

from __future__ import annotations

import re
from typing import NamedTuple

_ACTION_LINE = re.compile(r"^[ \t]*ACTION[ \t]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_REASON_MARK = re.compile(r"^\s*REASON[ \t]*:", re.IGNORECASE)


class ParsedResponse(NamedTuple):
    """A response taken apart.

    Attributes:
        reason: What stood before the command, without a leading ``REASON:``; may be empty.
        command: What the game is told.
    """

    reason: str
    command: str


def parse_response(response: str) -> ParsedResponse:
    r"""Read reason and command from a bare command or a whole LLM response.

    The command is the rest of the first line that begins with ``ACTION:`` (in any case); the first,
    because a model that does not stop in time goes on to invent turns of its own. What stands
    before that line is the reason, what comes after it is dropped. A text without such a line is a
    bare command as a whole. Both parts lose the white space around them; nothing else is repaired.

    Args:
        response: Any text.

    Returns:
        Reason and command.

    Example:
        >>> parse_response("REASON: eggs are in the fridge\nACTION: go to fridge 1")
        ParsedResponse(reason='eggs are in the fridge', command='go to fridge 1')
        >>> parse_response("  look ")
        ParsedResponse(reason='', command='look')
    """
    # Most are bare commands: looking for a colon is quicker than the search that needs one.
    match = _ACTION_LINE.search(response) if ":" in response else None
    if match is None:
        return ParsedResponse("", response.strip())
    reason = _REASON_MARK.sub("", response[: match.start()], count=1)
    return ParsedResponse(reason.strip(), match.group(1).strip())
