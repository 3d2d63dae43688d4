"""The interface of an engine, which runs one game by text."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from agentprm_gym.games.game import Game
from agentprm_gym.games.names import BadGameError
from agentprm_gym.observations import MAX_COMMANDS, MAX_FEEDBACK
from agentprm_gym.plain_text import whole

NOTHING_HAPPENS = "Nothing happens."


class Frame(NamedTuple):
    """What a player gets after a command.

    Attributes:
        feedback: What the game says.
        admissible_commands: The commands that are possible now, sorted.
        won: Whether the goal holds in the current state. A later command can undo that.
    """

    feedback: str
    admissible_commands: tuple[str, ...]
    won: bool


def whole_frame(frame: Frame, where: str) -> Frame:
    """Return a frame of somebody else's interpreter as an observation can hold it.

    Args:
        frame: What the interpreter says; its texts may hold halves of characters.
        where: Path or id of the game, for errors.

    Raises:
        BadGameError: A text is longer than observations are, or a command has several lines.
    """
    feedback, commands = whole(frame.feedback), tuple(map(whole, frame.admissible_commands))
    broken = next((command for command in commands if "\n" in command or "\r" in command), None)
    if broken is not None:
        raise BadGameError(f"{where}: expected commands of one line each, got {broken[:80]!r}")
    letters = sum(map(len, commands)) + len(commands)
    for what, n, most in (("a feedback", len(feedback), MAX_FEEDBACK), ("a list of commands", letters, MAX_COMMANDS)):
        if n > most:
            raise BadGameError(f"{where}: expected {what} of at most {most:,} characters, got {n:,}")
    return Frame(feedback, commands, frame.won)


class Engine(Protocol):
    """Runs games, one at a time, each in its own wording (``Game.grammar``, ``Game.in_grammar``)."""

    def reset(self, game: Game) -> Frame:
        """Start a game; its first feedback is the welcome, the room and the task."""

    def step(self, command: str) -> Frame:
        """Execute any string.

        White space around it does not matter, case does. After a string that is not an admissible command, the feedback
        is "Nothing happens." and the state is unchanged.
        """

    def snapshot(self) -> object:
        """Return the current state: an opaque, immutable, picklable object."""

    def restore(self, snapshot: object) -> Frame:
        """Go to a state of the loaded game that ``snapshot`` returned; the feedback of the frame is empty.

        Args:
            snapshot: The state.

        Raises:
            ValueError: It is not a snapshot of the loaded game.
        """

    def close(self) -> None:
        """Release resources. A second call does nothing, and ``reset`` opens the engine again."""
