"""States as plain texts, for models of other tools."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm_gym.episodes import Turn


def transcript_text(task: str, history: Sequence[Turn]) -> str:
    """A transcript as a plain text: the task, and each turn's feedback and command.

    Args:
        task: the task in words.
        history: the turns; the last one is to be decided.

    Example:
        >>> turns = [Turn(feedback="A room.", admissible_commands=["look"], command="look")]
        >>> print(transcript_text("find it.", [*turns, Turn(feedback="Still.", admissible_commands=["look"], command="")]))
        Your task is to: find it.
        <BLANKLINE>
        A room.
        > look
        Still.
    """
    lines = [f"Your task is to: {task}", ""]
    for turn in history[:-1]:
        lines += [turn.feedback.strip(), f"> {turn.command}"]
    return "\n".join([*lines, history[-1].feedback.strip()])


def step_text(turn: Turn, command: str) -> str:
    """A step of a stepwise model: what the game said, on one line, and the command.

    Args:
        turn: the turn.
        command: the command.
    """
    return f"{' '.join(turn.feedback.split())} > {command}"
