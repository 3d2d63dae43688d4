"""What the benchmark is made of: states, all commands of each, and the labels of these commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentprm_gym.episodes import Turn

#: The kinds of labels; see ``docs/bench.md`` for their formulas.
LABELS = ("oracle", "fair", "on_policy")
#: Who played the episodes that the states are from.
PLAYERS = ("expert", "sft", "better", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The value of every command of a state, by one definition.

    Attributes:
        values: one for each of the state's A commands, in their order, in [0, 1].
        stderr: standard error of each, 0 or more; ``None`` where the values are exact.
        n: number of rollouts or worlds behind each value; 0 where the values are exact.
    """

    values: tuple[float, ...]
    stderr: tuple[float, ...] | None = None
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchState:
    """A state with all its commands.

    Attributes:
        state_id: name of the state, unique in its panel.
        game_id: the game.
        split: the split of the game.
        task_type: one of the six task types.
        player: one of :data:`PLAYERS`.
        task: the task in words.
        history: the T turns so far, T of 1 or more. The last one is the turn to be decided: it has the feedback and the
            admissible commands that the player sees now, and its command is empty.
        steps_to_go: for each command the number of commands of a shortest way to win behind it, with full knowledge of the
            game; 0 where the command wins, ``None`` in a dead end.
        labels: by kind, one of :data:`LABELS`.
    """

    state_id: str
    game_id: str
    split: str
    task_type: str
    player: str
    task: str
    history: tuple[Turn, ...]
    steps_to_go: tuple[int | None, ...] = ()
    labels: dict[str, Labels] = field(default_factory=dict)

    @property
    def commands(self) -> tuple[str, ...]:
        """The A commands that are possible in this state, in the environment's order."""
        return tuple(self.history[-1].admissible_commands)

    @property
    def turn(self) -> int:
        """Number of turns before this state."""
        return len(self.history) - 1

    @property
    def dead_end(self) -> tuple[bool, ...]:
        """For each command whether the game cannot be won any more behind it."""
        return tuple(steps is None for steps in self.steps_to_go)

    def played(self) -> Sequence[str]:
        """The commands that led from the first observation of the game to this state."""
        return [turn.command for turn in self.history[:-1]]
