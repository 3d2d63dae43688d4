"""The ALFWorld environment: household tasks in text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentprm_gym.checks import check_bool
from agentprm_gym.engines import make_engine
from agentprm_gym.engines.base import Frame
from agentprm_gym.engines.native import NativeEngine
from agentprm_gym.envs.base import GameCard, TextGameEnv
from agentprm_gym.experts.planner import Planner
from agentprm_gym.games import BadGameError, DataNotFoundError, Game, GameList, UnsupportedGameError, find_games
from agentprm_gym.games.human_goals import ANNOTATIONS_FILE, human_tasks
from agentprm_gym.readers import ParseFunction

_GOAL_TEXTS = ("template", "human")


class ALFWorldEnv(TextGameEnv):
    """Do a household task in a simulated home, by text: find things, change them, put them away.

    | item        | value                                                                       |
    |-------------|-----------------------------------------------------------------------------|
    | observation | Dict of UnicodeText: ``task``, ``feedback`` (what the game says),           |
    |             | ``admissible_commands`` (one a line, sorted as TextWorld sorts them)        |
    | action      | UnicodeText, any string: a bare command, or a whole response with a line    |
    |             | ``ACTION: <command>``; the text before this line is the reason. The option  |
    |             | ``parse`` says how it is read                                               |
    | unknown     | "Nothing happens.", the state is unchanged and a step is spent; never an    |
    | command     | exception                                                                   |
    | reward      | 1.0 on the winning step, else 0.0                                           |
    | terminated  | the task is done                                                            |
    | truncated   | never here; gym.make adds TimeLimit(max_episode_steps), 30 by default       |
    | reset       | ``options={"game": index or id or path}``, ``{"snapshot": state}``; without |
    |             | options the queue (``queue_tasks``), then a seeded shuffle that visits      |
    |             | every game once per pass                                                    |
    | info        | game_id, split, task_type, game_source, won; after a step also command,     |
    |             | reason, is_admissible, is_repaired (whether the command had to be repaired) |
    |             | and is_success (whether the task is done, on each step; SB3 reads it on the |
    |             | last one); extra.gamefile, the path of the game's file as ALFWorld's own    |
    |             | wrappers have it, where the game has a file; n_bad_games with               |
    |             | on_bad_game="skip"; annotation (its index) with goal_text="human"           |
    | render      | "ansi": render() returns the last exchange; "human": it is printed          |
    | same bytes  | for the same seed, options and actions                                      |

    Beyond Gymnasium: ``snapshot()``, ``restore(state)``, ``queue_tasks(tasks)``, ``turns``, ``episode()``, the list ``games``,
    and the privileged ``subgoals()``, ``cost_to_go()``, ``action_costs()``.

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
        goal_text: str = "template",
        generator_kwargs: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        parse: str | ParseFunction = "tolerant",
        trust_games: bool = False,
        subset: Mapping[str, int] | None = None,
    ) -> None:
        """Make an environment.

        Args:
            split: ``"train"``, ``"valid_train"`` (only in official data), ``"valid_seen"`` or ``"valid_unseen"``.
            games: ``"auto"`` (real games where some are found, else generated ones), ``"alfworld"``, ``"generated"``, or
                a folder of games.
            task_types: Play only games of these types; default all six.
            engine: ``"native"``, or ``"textworld"`` for the stock stack, which is exact but slow.
            on_bad_game: ``"raise"``, or ``"skip"``: draw the next playable game, warn once, and count the bad games.
            render_mode: ``None``, ``"ansi"`` or ``"human"``.
            goal_text: ``"template"``, the game's own task sentence, or ``"human"``, what people wrote: an annotation from
                the ``traj_data.json`` beside the game's file, with a full stop at its end, as ALFWorld says it. The
                environment's seeded random stream draws one at every reset, or ``options={"game": 0, "annotation": 1}``
                names it. ``games[i].task`` keeps the template's sentence, which the experts read.
            generator_kwargs: What generated games are like, for example ``{"rooms": ["kitchen"],
                "n_receptacles": [4, 8], "n_objects": 10, "seed": 1, "n_games": 500}``; see
                :func:`agentprm_gym.games.find_games` for the keys. Only generated games can have them.
            grammar: The wording of texts and commands: ``"2.1.1"`` says ``put mug 1 in/on shelf 2`` and ``You arrive at
                loc 5.``, as papers of 2020 to 2024 do; ``"2.1.2"`` says ``move mug 1 to shelf 2`` and ``You arrive at
                shelf 2.``; ``None`` keeps each game's own. :mod:`agentprm_gym.games.wording` lists the differences.
            parse: How actions are read: ``"tolerant"``, ``"strict"``, ``"exact"``, a name that
                :func:`agentprm_gym.register_reader` knows, a regular expression with a group ``(?P<command>...)``, or a
                function; see :func:`agentprm_gym.readers.make_reader`.
            trust_games: Whether ``engine="textworld"`` plays games whose grammar holds Python code. This code then runs, so
                it is for games of people you trust. The native engine runs no code of games.
            subset: A part of the split, to hold games out: ``{"every": 10, "leave_out": 0}`` leaves every tenth game out, and
                ``{"every": 10, "keep": 0}`` takes those alone.

        Raises:
            ValueError: A split, task type, engine, ``on_bad_game``, ``goal_text``, grammar, ``parse``, or key of
                ``generator_kwargs`` or ``subset`` is not known; the message lists the choices.
            FileNotFoundError: The games or annotations were not found; the message says where they are looked for and
                how to get them.
        """
        super().__init__(render_mode, on_bad_game, parse)
        self.games: GameList = find_games(
            split,
            games,
            task_types,
            on_bad_game=on_bad_game,
            generator_kwargs=generator_kwargs,
            grammar=grammar,
            subset=subset,
        )
        if not len(self.games):
            raise ValueError(
                f"no games in split {split!r} of {os.fspath(games)!r} with task types "
                f"{task_types!r}; "
                "leave out task_types to see what there is"
            )
        if goal_text not in _GOAL_TEXTS:
            raise ValueError(f"unknown goal_text {goal_text!r}: choose from {', '.join(_GOAL_TEXTS)}")
        if goal_text == "human" and self.games.source == "generated":
            raise DataNotFoundError(
                'goal_text="human" needs the official games, which have their annotators\' words beside them '
                f"({ANNOTATIONS_FILE}), and these games are generated: set ALFWORLD_DATA to where the official ones "
                'are, or run `alfworld-download` to get them; goal_text="template" needs no data'
            )
        self._goal_text = goal_text
        self._engine = make_engine(engine, trust_games=check_bool("trust_games", trust_games))
        # Where the stock engine plays, a native engine replays the commands to answer privileged questions.
        self._shadow = None if isinstance(self._engine, NativeEngine) else NativeEngine()
        self._game: Game | None = None
        self._planner: Planner | None = None

    @property
    def n_games(self) -> int:
        """The number of games to choose from."""
        return len(self.games)

    def game_index(self, game: int | str) -> int:
        """Return the index of a game named by index, id or path.

        Raises:
            ValueError: The environment does not have this game.
        """
        return self.games.index(game)

    def subgoals(self) -> tuple[int, int]:
        """Return how many subgoals of the task are done now, and how many it has.

        Privileged: it reads the true state, which a player does not see. Both numbers are equal exactly when the game is
        won. With ``engine="textworld"`` a native engine replays the episode's commands, in some microseconds each.

        Raises:
            ResetNeeded: The environment was not reset before.
            BadGameError: Only the stock engine plays this game.
        """
        return self._informant("subgoals are").subgoals()

    def cost_to_go(self) -> float:
        """Return the least number of commands that do the task from here; step limits do not matter.

        Privileged, as :meth:`subgoals` is. A :class:`agentprm_gym.experts.Planner` computes it, which the environment keeps
        for its game.

        Returns:
            0.0 where the task is done; ``math.inf`` where it can no longer be done.

        Raises:
            ResetNeeded: The environment was not reset before.
            BadGameError: Only the stock engine plays this game.
        """
        state = self._informant("shortest plan is").snapshot()
        return self._plans().cost_to_go(state)

    def action_costs(self, commands: Iterable[str] | None = None) -> dict[str, float]:
        """Return the cost of each command: 1 and the cost to go after it. The best commands cost what the state costs.

        Args:
            commands: Bare commands, admissible or not; by default all admissible ones.

        Raises:
            ResetNeeded: The environment was not reset before.
            BadGameError: Only the stock engine plays this game.
        """
        state = self._informant("shortest plan is").snapshot()
        return self._plans().action_costs(state, commands)

    def _plans(self) -> Planner:
        assert self._game is not None
        if self._planner is None or self._planner.game is not self._game:
            self._planner = Planner(self._game)
        return self._planner

    def _informant(self, what: str) -> NativeEngine:
        """Return a native engine in the present state, which can answer privileged questions."""
        self._require_card()
        if isinstance(self._engine, NativeEngine):
            return self._engine
        assert self._shadow is not None and self._game is not None
        try:
            self._shadow.reset(self._game)
        except UnsupportedGameError as error:
            raise BadGameError(f"{error.where}: its {what} unknown, for {error.what}") from None
        for turn in self.turns:
            self._shadow.step(turn.command)
        return self._shadow

    def close(self) -> None:
        """Release the engine; a second call does nothing."""
        self._engine.close()

    def _load(self, index: int, annotation: int | None) -> tuple[GameCard, Frame]:
        game = self._find_game(index)
        if annotation is not None:
            game = game.with_task(human_tasks(game)[annotation])
            # The same object where it is equal: engines keep what they computed for it.
            game = self._game if self._game is not None and self._game == game else game
        frame = self._engine.reset(game)
        self._game = game
        card = GameCard(
            index=index,
            game_id=game.game_id,
            split=game.split,
            task_type=game.task_type,
            task=game.task,
            source=self.games.source,
            annotation=annotation,
            path=game.path,
            grammar=game.grammar,
        )
        return card, frame

    def _find_game(self, index: int) -> Game:
        return self.games[index] if isinstance(self._engine, NativeEngine) else self.games.unread(index)

    def _choose_annotation(self, index: int, wanted: int | None) -> int | None:
        if self._goal_text != "human":
            if wanted is not None:
                raise ValueError(f"options={{'annotation': {wanted}}} needs an environment with goal_text='human'")
            return None
        n = len(human_tasks(self._find_game(index)))
        if wanted is None:
            return int(self.np_random.integers(n))
        if not 0 <= wanted < n:
            raise ValueError(f"no annotation {wanted} of {self.games.game_ids[index]}: expected 0 to {n - 1}")
        return wanted

    def _apply(self, command: str) -> tuple[Frame, float, bool]:
        frame = self._engine.step(command)
        return frame, float(frame.won), bool(frame.won)

    def _save(self) -> object:
        return self._engine.snapshot()

    def _restore(self, state: object) -> None:
        self._engine.restore(state)
