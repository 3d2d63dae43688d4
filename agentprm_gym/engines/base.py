"""What an engine is: it runs one game by text."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from agentprm_gym.games.game import Game

NOTHING_HAPPENS = "Nothing happens."


class Frame(NamedTuple):
    """What a player gets after a command.

    Attributes:
        feedback: What the game says.
        admissible_commands: What may be done now, sorted.
        won: Whether the goal holds in the current state; it may cease to.
    """

    feedback: str
    admissible_commands: tuple[str, ...]
    won: bool


class Engine(Protocol):
    """Runs games, one at a time."""

    def reset(self, game: Game) -> Frame:
        """Start a game; its first feedback is the welcome, the room and the task."""

    def step(self, command: str) -> Frame:
        """Execute any string.

        White space around it does not matter, case does. What is no admissible command says
        "Nothing happens." and changes nothing.
        """

    def snapshot(self) -> object:
        """Return the current state: opaque, immutable, picklable."""

    def restore(self, snapshot: object) -> Frame:
        """Go to a state of the loaded game that `snapshot` returned; the feedback is empty.

        Raises:
            ValueError: It is no snapshot of the loaded game.
        """

    def close(self) -> None:
        """Release what is held; closing twice is fine, and `reset` opens it again."""
