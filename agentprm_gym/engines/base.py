"""What an engine is: it runs one game by text."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from agentprm_gym.games.game import Game


class Frame(NamedTuple):
    """What a player gets after a command.

    Attributes:
        feedback: what the game says.
        admissible_commands: what may be done now, sorted.
        won: whether the goal holds in the current state.
    """

    feedback: str
    admissible_commands: tuple[str, ...]
    won: bool


class Engine(Protocol):
    """Runs games, one at a time."""

    def reset(self, game: Game) -> Frame:
        """Start a game."""

    def step(self, command: str) -> Frame:
        """Execute any string; what is no admissible command says "Nothing happens." and changes nothing."""

    def snapshot(self) -> object:
        """The current state, opaque and picklable."""

    def restore(self, snapshot: object) -> Frame:
        """Go to a state of the loaded game that :meth:`snapshot` returned; the feedback is empty."""

    def close(self) -> None:
        """Release what is held; closing twice is fine."""
