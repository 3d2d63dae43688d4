"""The ALFWorld environment: household tasks in text."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agentprm_gym.engines import make_engine
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.envs.base import GameCard, TextGameEnv
from agentprm_gym.games.game import Game
from agentprm_gym.games.listing import GameList, find_games


class ALFWorldEnv(TextGameEnv):
    """Do a household task in a simulated home, by text: find things, change them, put them away.

    | item        | value                                                                       |
    |-------------|-----------------------------------------------------------------------------|
    | observation | Dict of UnicodeText: ``task``, ``feedback`` (what the game says),           |
    |             | ``admissible_commands`` (one a line, sorted as TextWorld sorts them)        |
    | action      | UnicodeText, any string: a bare command, or a whole response with a line    |
    |             | ``ACTION: <command>``, where what stands before is the reason               |
    | no such     | "Nothing happens.", the state is unchanged and a step is spent; never an    |
    | command     | exception                                                                   |
    | reward      | 1.0 on the winning step, else 0.0                                           |
    | terminated  | the task is done                                                            |
    | truncated   | never here; gym.make adds TimeLimit(max_episode_steps), 30 by default       |
    | reset       | ``options={"game": index or id or path}``, ``{"snapshot": state}``; without |
    |             | options the queue (``queue_tasks``), then a seeded shuffle that visits      |
    |             | every game once per pass                                                    |
    | info        | game_id, split, task_type, game_source, won; after a step also command,     |
    |             | reason, is_admissible and is_success (each step says whether the task is    |
    |             | done; SB3 reads it on the last); n_bad_games with on_bad_game="skip"        |
    | render      | "ansi": render() returns the last exchange; "human": it is printed          |
    | same bytes  | for the same seed, options and actions                                      |

    Beyond Gymnasium: ``snapshot()``, ``restore(state)``, ``queue_tasks(tasks)``, ``turns``,
    ``episode()``, ``subgoals()`` and the list ``games``.

    Args:
        split: ``"train"``, ``"valid_seen"`` or ``"valid_unseen"``.
        games: ``"auto"`` (real games where there are some, else generated ones), ``"alfworld"``,
            ``"generated"``, or a folder of games.
        task_types: Only games of these types; default all six.
        engine: ``"native"``, or ``"textworld"`` for the stock stack, exact but slow.
        on_bad_game: ``"raise"``, or ``"skip"``: draw the next playable game, warn once, count.
        render_mode: None, ``"ansi"`` or ``"human"``.

    Raises:
        ValueError: An unknown split, task type, engine or ``on_bad_game``; the message lists the
            choices.
        FileNotFoundError: No games there; the message says where they are looked for and how to
            get them.

    Example:
        >>> import gymnasium as gym, agentprm_gym
        >>> env = gym.make("ALFWorld-v0", games="generated")
        >>> observation, info = env.reset(seed=0, options={"game": 0})
        >>> observation, reward, terminated, truncated, info = env.step("dance")
        >>> observation["feedback"], info["is_admissible"]
        ('Nothing happens.', False)
    """

    def __init__(
        self,
        split: str = "train",
        games: str | os.PathLike[str] = "auto",
        task_types: Sequence[str] | None = None,
        engine: str = "native",
        on_bad_game: str = "raise",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode, on_bad_game)
        self.games: GameList = find_games(split, games, task_types, on_bad_game=on_bad_game)
        if not len(self.games):
            raise ValueError(
                f"no games in split {split!r} of {os.fspath(games)!r} with task types "
                f"{task_types!r}; "
                "leave out task_types to see what there is"
            )
        self._engine = make_engine(engine)
        # Where the stock engine plays, a native one follows along to know the subgoals.
        self._shadow = None if isinstance(self._engine, NativeEngine) else NativeEngine()
        self._game: Game | None = None

    @property
    def n_games(self) -> int:
        """How many games there are to choose from."""
        return len(self.games)

    def game_index(self, game: int | str) -> int:
        """Return the index of a game named by index, id or path.

        Raises:
            ValueError: There is no such game.
        """
        return self.games.index(game)

    def subgoals(self) -> tuple[int, int]:
        """Return how many subgoals of the task are done now, and how many there are.

        Privileged: it reads the true state, which a player does not see. Both are equal exactly
        when the game is won. With ``engine="textworld"`` the episode's commands are replayed on a
        native engine, at some microseconds a command.

        Raises:
            ResetNeeded: There was no reset yet.
        """
        self._require_card()
        if isinstance(self._engine, NativeEngine):
            return self._engine.subgoals()
        assert self._shadow is not None and self._game is not None
        self._shadow.reset(self._game)
        for turn in self._turns:
            self._shadow.step(turn.command)
        return self._shadow.subgoals()

    def close(self) -> None:
        """Release the engine; closing twice is fine."""
        self._engine.close()

    def _load(self, index: int) -> tuple[GameCard, Frame]:
        game = self.games[index]
        frame = self._engine.reset(game)
        self._game = game
        card = GameCard(index, game.game_id, game.split, game.task_type, game.task, self.games.source)
        return card, frame

    def _apply(self, command: str) -> tuple[Frame, float, bool]:
        frame = self._engine.step(command)
        return frame, float(frame.won), bool(frame.won)

    def _save(self) -> object:
        return self._engine.snapshot()

    def _restore(self, state: object) -> None:
        self._engine.restore(state)
