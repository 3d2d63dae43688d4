"""What all text game environments share: spaces, transcript, choice of games, snapshots."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from agentprm_gym.engines.base import Frame
from agentprm_gym.envs.hooks import GameHooks
from agentprm_gym.envs.records import RESET_OPTIONS, EnvState, GameCard, Observation, Step, checked_options
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.games.names import BadGameError
from agentprm_gym.observations import MAX_COMMANDS, MAX_FEEDBACK, MAX_TASK, join_commands
from agentprm_gym.plain_text import plain
from agentprm_gym.readers import ParseFunction, make_reader
from agentprm_gym.spaces import UnicodeText

__all__ = ["RESET_OPTIONS", "EnvState", "GameCard", "Observation", "Step", "TextGameEnv"]

_MAX_ACTION = 16_384


class TextGameEnv(gym.Env[Observation, str], GameHooks):
    """Base of the text game environments; a subclass fills in the hooks: what a game is and what a command does.

    This class keeps the contract that the environments' tables promise: the observation and action spaces, reading an
    action, the seeded shuffle that visits every game once per pass, the options of ``reset``, the queue of tasks, the
    running transcript, snapshots and rendering.
    """

    # Gymnasium declares it without ClassVar.
    metadata = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012
    #: Whether rollouts may send the reason along with the command, as ``REASON:`` and ``ACTION:``, for process rewards to read.
    reads_responses = True

    def __init__(
        self, render_mode: str | None = None, on_bad_game: str = "raise", parse: str | ParseFunction = "tolerant"
    ) -> None:
        """Make an environment.

        Args:
            render_mode: ``None``, ``"ansi"`` or ``"human"``.
            on_bad_game: ``"raise"``, or ``"skip"`` to draw the next playable game instead.
            parse: How actions are read: a name, a regular expression, or a function; see
                :func:`agentprm_gym.readers.make_reader`.

        Raises:
            ValueError: ``on_bad_game`` has another value, or ``parse`` is not known.
        """
        if on_bad_game not in ("raise", "skip"):
            raise ValueError(f"on_bad_game must be 'raise' or 'skip', got {on_bad_game!r}")
        self._read_answer = make_reader(parse)
        # Another reader may not find the command there; it gets commands, which every reader takes as they are.
        self.reads_responses = parse in ("tolerant", "strict")
        self.render_mode = render_mode
        texts: dict[str, spaces.Space[Any]] = {
            "task": UnicodeText(MAX_TASK),
            "feedback": UnicodeText(MAX_FEEDBACK),
            "admissible_commands": UnicodeText(MAX_COMMANDS),
        }
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(texts))
        self.action_space = UnicodeText(_MAX_ACTION)
        self._skip_bad_games = on_bad_game == "skip"
        self._bad_games: set[int] = set()
        self._order: list[int] = []  # the games that are left in this pass, the next one last
        self._queue: deque[dict[str, Any]] = deque()
        self._card: GameCard | None = None
        self._frame = Frame("", (), False)
        self._turns: list[Turn] = []
        self._unread: list[tuple[Frame, str, str, str, bool, float]] = []  # made into turns when they are asked for
        self._done = True

    # Gymnasium's interface ----------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the shuffle of the games and begins a new pass.
            options: ``{"game": index | id | path}`` names a game; ``"annotation"`` beside it is the index of a person's
                wording of the task, where a game has several. ``{"snapshot": state}`` continues from a point that
                :meth:`snapshot` returned, as an episode with a fresh step limit. Without options, or with empty ones,
                the next task of the queue begins (see :meth:`queue_tasks`); without a queue, the next game of a shuffle
                that visits every game once per pass.

        Returns:
            Observation and info.

        Raises:
            ValueError: An option or a game is not known, or no game of the split can be played.
            BadGameError: The game cannot be played, and it was named or ``on_bad_game="raise"``.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._order.clear()
        if options:
            self._start(checked_options(options))
        elif not self._start_queued():
            self._start_drawn()
        if self.render_mode == "human":
            print(self._text(), flush=True)
        return self._observation(), self._info()

    def step(self, action: str) -> Step:
        """Execute an action; any string is legal.

        Args:
            action: A bare command, or a whole response that ``parse`` can read: by default one with a line
                ``ACTION: <command>`` (:mod:`agentprm_gym.answers` lists the other forms). An admissible command is always
                read as itself.

        Returns:
            Observation, reward, terminated, truncated (always False here), info.

        Raises:
            TypeError: ``action`` is not a string.
            ResetNeeded: No episode is running.
        """
        if not isinstance(action, str):
            raise TypeError(
                f"expected the action as a str, got {type(action).__name__}; "
                "pass the command itself, for example env.step('look')"
            )
        if self._done:
            raise ResetNeeded("no episode is running: call env.reset() before env.step()")
        before = self._frame
        # Most are bare commands, which need no reader.
        response = str(action)  # NumPy's strings are a class of their own
        reason, command, is_repaired = "", response, False
        is_admissible = response in before.admissible_commands
        if not is_admissible:
            reason, command, _, is_repaired = self._read_answer(response, before.admissible_commands)
            is_admissible = command in before.admissible_commands
        self._frame, reward, terminated = self._apply(command)
        self._unread.append((before, reason, command, response, is_admissible, reward))
        self._done = terminated
        if self.render_mode == "human":
            print(self._text(), flush=True)
        info = self._info()
        info |= {"command": command, "reason": reason, "is_admissible": is_admissible, "is_repaired": is_repaired}
        # On every step: a wrapper counts the step limit, and only the value of the last step is read.
        info["is_success"] = info["won"]
        return self._observation(), reward, terminated, False, info

    def render(self) -> str | None:
        """Return the last command and feedback as text in the mode ``"ansi"``, else ``None``."""
        return self._text() if self.render_mode == "ansi" else None

    # Beyond Gymnasium ---------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether an episode has begun that the game has not ended."""
        return not self._done

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of the running episode so far, including those before a restored point."""
        return tuple(self._transcript())

    def queue_tasks(self, tasks: Sequence[Mapping[str, Any]], *, replace: bool = False) -> int:
        """Queue tasks for the next resets without options, one task for each reset.

        It tells a vectorised environment, which resets itself without options, which game comes next. With
        ``on_bad_game="skip"`` a queued game that cannot be played is skipped.

        Args:
            tasks: Options of ``reset``, for example ``[{"game": 3}, {"snapshot": state}]``.
            replace: Whether to drop the tasks that were queued before.

        Returns:
            How many tasks are queued now.

        Raises:
            ValueError: A task holds an unknown option or game. Then no task is queued.
        """
        checked = self.checked_tasks(tasks)
        if replace:
            self._queue.clear()
        self._queue.extend(checked)
        return len(self._queue)

    def checked_tasks(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return copies of tasks with their games as indices.

        Args:
            tasks: As :meth:`queue_tasks` takes them.

        Raises:
            ValueError: A task holds an unknown option or game.
        """
        checked = []
        for task in tasks:
            options = checked_options(task)
            if "game" in options:
                options["game"] = self.game_index(options["game"])
            checked.append(options)
        return checked

    def snapshot(self) -> EnvState:
        """Return this point of the episode, for :meth:`restore`.

        The state also holds the transcript, for what is computed from it. It does not hold the count of the step limit,
        which belongs to a wrapper, nor the order of the next games.

        Returns:
            An opaque, immutable state. It can be pickled, also for another environment with the same games.

        Raises:
            ResetNeeded: The environment was not reset before.
        """
        card, turns = self._require_card(), self.turns
        return EnvState(
            card.game_id, card.index, self._frame, turns, self._done, self._save(), card.annotation, card.grammar
        )

    def restore(self, state: EnvState) -> tuple[Observation, dict[str, Any]]:
        """Go to a point of an episode, in this environment or in another one with the same games.

        Args:
            state: What :meth:`snapshot` returned.

        Returns:
            Observation and info of that point.

        Raises:
            TypeError: ``state`` is not a snapshot.
            ValueError: Its game is not among this environment's games, or has another wording there.
        """
        if not isinstance(state, EnvState):
            raise TypeError(f"expected what snapshot() returned, got {type(state).__name__}")
        card = self._card
        if card is None or (card.game_id, card.annotation) != (state.game_id, state.annotation):
            index = self.game_index(state.game_id)
            # As in _start: a load that fails must not leave half of two games.
            self._card, self._done = None, True
            card, _ = self._load(index, state.annotation)
        if card.grammar != state.grammar:
            raise ValueError(
                f"expected a snapshot in the wording {card.grammar!r}, got one in {state.grammar!r}: make both "
                "environments with the same grammar"
            )
        self._restore(state.engine)
        self._card = card
        self._frame, self._turns, self._unread, self._done = state.frame, list(state.turns), [], state.done
        return self._observation(), self._info()

    def look_ahead(self, sequences: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...], bool]]:
        """Try sequences of commands from here, then return to this point. Privileged: a player cannot do this.

        Args:
            sequences: Commands to execute one after the other; commands after a win are not executed.

        Returns:
            For each sequence: the last feedback, the commands that were admissible then, and whether the task was done.

        Raises:
            ResetNeeded: The environment was not reset before.
        """
        self._require_card()
        state, out = self._save(), []
        for sequence in sequences:
            frame, done = self._frame, False
            for command in sequence:
                frame, _, done = self._apply(command)
                if done:
                    break
            out.append((frame.feedback, tuple(frame.admissible_commands), frame.won))
            self._restore(state)
        return out

    def episode(self, *, policy: str = "", seed: int | None = None, truncated: bool | None = None) -> Episode:
        """Return the episode that is running, or has just ended, as a record.

        Args:
            policy: The name of the policy that acted.
            seed: The seed to record.
            truncated: Whether the episode was cut off; by default, whether the game has not ended.

        Raises:
            ResetNeeded: The environment was not reset before.
        """
        card = self._require_card()
        return Episode(
            game_id=card.game_id,
            split=card.split,
            task_type=card.task_type,
            task=card.task,
            success=self._frame.won,
            truncated=not self._done if truncated is None else truncated,
            policy=policy,
            seed=seed,
            turns=list(self.turns),
        )

    # Inside -------------------------------------------------------------------------------------

    def _start(self, options: dict[str, Any]) -> None:
        if "snapshot" in options:
            self.restore(options["snapshot"])
            return
        # Forget the old game first: a load that fails must not leave half of two games.
        self._card, self._done = None, True
        index = self.game_index(options["game"])
        self._card, self._frame = self._load(index, self._choose_annotation(index, options.get("annotation")))
        self._turns, self._unread = [], []
        self._done = False

    def _start_queued(self) -> bool:
        while self._queue:
            if self._try_start(self._queue.popleft()):
                return True
        return False

    def _start_drawn(self) -> None:
        failed: set[int] = set()
        while len(failed) < self.n_games:
            if not self._order:
                self._order = self.np_random.permutation(self.n_games).tolist()
            index = self._order.pop()
            if self._try_start({"game": index}):
                return
            failed.add(index)
        raise ValueError(
            f"none of the {self.n_games} games can be played; make the environment with on_bad_game='raise' to see why"
        )

    def _try_start(self, options: dict[str, Any]) -> bool:
        try:
            self._start(options)
        except BadGameError as error:
            if not self._skip_bad_games:
                raise
            if not self._bad_games:
                warnings.warn(
                    f'skipping games that cannot be played, the first: {error}; info["n_bad_games"] counts them',
                    UserWarning,
                    stacklevel=4,
                )
            game = options["game"] if "game" in options else options["snapshot"].game_id
            self._bad_games.add(self.game_index(game))
            return False
        return True

    def _transcript(self) -> list[Turn]:
        """Return the turns. They are made here and not in ``step``, since many users never ask for them."""
        for before, reason, command, response, is_admissible, reward in self._unread:
            turn = Turn(
                feedback=before.feedback,
                admissible_commands=before.admissible_commands,
                reason=reason,
                command=command,
                response=response,
                is_admissible=is_admissible,
                reward=reward,
            )
            self._turns.append(turn)
        self._unread.clear()
        return self._turns

    def _require_card(self) -> GameCard:
        if self._card is None:
            raise ResetNeeded("no game is loaded: call env.reset() first")
        return self._card

    def _observation(self) -> Observation:
        return {
            "task": self._require_card().task,
            "feedback": self._frame.feedback,
            "admissible_commands": join_commands(self._frame.admissible_commands),
        }

    def _info(self) -> dict[str, Any]:
        card = self._require_card()
        info: dict[str, Any] = {
            "game_id": card.game_id,
            "split": card.split,
            "task_type": card.task_type,
            "game_source": card.source,
            "won": bool(self._frame.won),
        }
        if card.path is not None:
            info["extra.gamefile"] = card.path
        if card.annotation is not None:
            info["annotation"] = card.annotation
        if self._skip_bad_games:
            info["n_bad_games"] = len(self._bad_games)
        return info

    def _text(self) -> str:
        turns = self._transcript()
        said = f"> {turns[-1].command}\n" if turns else ""
        return plain(said + self._frame.feedback.strip("\n"))
