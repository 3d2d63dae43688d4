"""The rows of an episode file: which keys they have, of which types, and texts that can be written again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from agentprm_gym.plain_text import whole

Types = Mapping[str, tuple[type, ...]]
TURN_TYPES: Types = {
    "feedback": (str,),
    "admissible_commands": (list, tuple),
    "reason": (str,),
    "command": (str,),
    "response": (str,),
    "is_admissible": (bool,),
    "reward": (float, int),
    "candidates": (list, type(None)),
    "log_prob": (float, int, type(None)),
}
EPISODE_TYPES: Types = {
    "game_id": (str,),
    "split": (str,),
    "task_type": (str,),
    "task": (str,),
    "success": (bool,),
    "truncated": (bool,),
    "policy": (str,),
    "seed": (int, type(None)),
    "turns": (list, tuple),
}


def known_values(row: Mapping[str, Any], types: Types, required: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of a row that are known, checked.

    Args:
        row: The row.
        types: The types that each key may have.
        required: Keys that must be there.

    Raises:
        ValueError: A key is missing, its value has the wrong type, or a number is not finite.
    """
    missing = [key for key in required if key not in row]
    if missing:
        raise ValueError(f"missing {', '.join(map(repr, missing))}")
    values = {key: row[key] for key in types if key in row}
    for key, value in values.items():
        if not isinstance(value, types[key]):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types[key])
            raise ValueError(f"{key!r} must be {names}, got {type(value).__name__}")
        if float in types[key] and isinstance(value, (float, int)) and not abs(value) <= sys.float_info.max:
            raise ValueError(f"{key!r} must be a finite number, got {str(value)[:40]}")
    if not all(isinstance(one, Mapping) for one in values.get("candidates") or ()):
        raise ValueError("'candidates' must be a list of objects")
    return values


def whole_row(value: Any) -> Any:
    """Replace the halves of characters in a row, which JSON can say and UTF-8 cannot."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [whole_row(one) for one in value]
    return {whole(key): whole_row(one) for key, one in value.items()} if isinstance(value, dict) else value
