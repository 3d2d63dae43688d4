"""The names of splits and task types, and the errors about a game."""

from __future__ import annotations

#: The splits of the official layout. ``valid_train`` holds games in the rooms of ``train``; few papers use it.
SPLITS = ("train", "valid_train", "valid_seen", "valid_unseen")
#: The splits that generated games have.
GENERATED_SPLITS = ("train", "valid_seen", "valid_unseen")
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


class BadGameError(ValueError):
    """A game cannot be played; the message holds its path or id, and what is wrong."""


class UnsupportedGameError(BadGameError):
    """A game may be sound, but only the stock engine knows how to play it."""

    def __init__(self, where: str, what: str) -> None:
        """Make the error.

        Args:
            where: Path or id of the game.
            what: What the native engine does not support, as a clause.
        """
        super().__init__(
            f'{where}: {what}; engine="textworld" plays it, unless its grammar holds code: look at the file first, or ask who '
            "made it"
        )
        self.where, self.what = where, what

    def __reduce__(self) -> tuple[type[UnsupportedGameError], tuple[str, str]]:
        """Pickle the arguments: worker processes send their errors to the parent process."""
        return (UnsupportedGameError, (self.where, self.what))
