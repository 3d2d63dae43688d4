"""Checks of arguments that several modules make."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse what is none of the known choices.

    Args:
        name: What the argument is called.
        value: What was given.
        known: What there is.

    Raises:
        ValueError: It is none of them; the message lists them, and says which one may have been meant.

    Example:
        >>> check_choice("loss", "dpo", ("dpo", "ipo"))
        >>> check_choice("loss", "dopo", ("dpo", "ipo"))
        Traceback (most recent call last):
        ValueError: loss must be one of 'dpo', 'ipo', got 'dopo': did you mean 'dpo'?
    """
    if isinstance(value, str) and value in known:
        return
    close = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
    hint = f": did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")
