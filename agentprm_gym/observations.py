"""The texts of an observation: their keys, and the admissible commands as one text, one command a line."""

from __future__ import annotations

from collections.abc import Sequence

#: The keys of every observation.
KEYS = ("task", "feedback", "admissible_commands")
#: The greatest lengths, in characters. A long feedback of the official games has about 1,000, a long list of commands 4,000.
MAX_TASK, MAX_FEEDBACK, MAX_COMMANDS = 1024, 16_384, 65_536


def join_commands(commands: Sequence[str]) -> str:
    r"""Write admissible commands as an observation holds them.

    Args:
        commands: the commands, in the environment's order.

    Example:
        >>> join_commands(["go to fridge 1", "look"])
        'go to fridge 1\nlook'
    """
    return "\n".join(commands)


def split_commands(text: str) -> tuple[str, ...]:
    r"""Read admissible commands out of an observation.

    Args:
        text: ``observation["admissible_commands"]``; empty where it lists none.

    Example:
        >>> split_commands("go to fridge 1\nlook")
        ('go to fridge 1', 'look')
    """
    return tuple(text.split("\n")) if text else ()
