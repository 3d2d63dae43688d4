"""A toy environment, on which every policy and algorithm can be trained to its end in a test."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm_gym.engines.base import Frame
from agentprm_gym.envs.base import GameCard, TextGameEnv
from agentprm_gym.readers import ParseFunction

# Words of the household games, which a policy that was made for those games has in its vocabulary.
DEFAULT_WORDS = ("apple", "bowl", "bread", "candle", "egg", "knife", "mug", "potato")


class TextIdentityEnv(TextGameEnv):
    """Say the word that is shown.

    | item        | value                                                                       |
    |-------------|-----------------------------------------------------------------------------|
    | observation | as in ALFWorld-v0: ``task``, ``feedback`` (holds the word),                 |
    |             | ``admissible_commands`` (all words, one a line, sorted)                     |
    | action      | UnicodeText, any string; read as in ALFWorld-v0                             |
    | reward      | ``1 / n_turns`` for the right word, else 0.0: an episode's best sum is 1.0  |
    | terminated  | after ``n_turns`` turns                                                     |
    | truncated   | never here                                                                  |
    | info        | as in ALFWorld-v0; won and is_success: every word so far was right, and     |
    |             | all turns are done                                                          |
    | games       | one for each word that an episode can begin with; later words follow in     |
    |             | the order of the list                                                       |

    The defaults of the algorithms are set for household games. These settings take about ten seconds on one core (9 s of
    processor time, measured):

        GRPO("tiny", "TextIdentity-v0", learning_rate=3e-3, n_games=16, batch_size=16, target_kl=0.05).learn(5_000)

    They are not reliable. They were chosen on seeds 0 to 2; on seeds 10 to 19 the bundled model says the right word with a
    probability of 0.90 on average, 0.75 to 1.00. On four of these seeds it is sure of all eight words. On the others one or
    two words were not learnt: where all draws of a game are equally wrong, GRPO has nothing to compare.
    """

    def __init__(
        self,
        words: Sequence[str] = DEFAULT_WORDS,
        n_turns: int = 1,
        render_mode: str | None = None,
        parse: str | ParseFunction = "tolerant",
    ) -> None:
        """Make an environment.

        Args:
            words: The words: two or more different ones, without white space.
            n_turns: The number of turns in an episode, 1 or more.
            render_mode: ``None``, ``"ansi"`` or ``"human"``.
            parse: How actions are read, as in ALFWorld-v0.

        Raises:
            ValueError: There are fewer than two different words, a word holds white space, or ``n_turns`` is below 1.
        """
        super().__init__(render_mode, parse=parse)
        self._words = tuple(words)
        if len(set(self._words)) < 2 or len(set(self._words)) != len(self._words):
            raise ValueError(f"words must be two or more different words, got {list(words)!r}")
        if any(not word or word.split() != [word] for word in self._words):
            raise ValueError(f"words must hold no white space, got {list(words)!r}")
        if n_turns < 1:
            raise ValueError(f"n_turns must be at least 1, got {n_turns}")
        self._n_turns = n_turns
        self._commands = tuple(sorted(self._words))
        self._start_index = 0
        self._n_said = 0
        self._n_right = 0

    @property
    def n_games(self) -> int:
        """The number of words that an episode can begin with."""
        return len(self._words)

    def game_index(self, game: int | str) -> int:
        """Return the index of a game named by index, word or game id.

        Raises:
            ValueError: The environment does not have this game.
        """
        if isinstance(game, str):
            word = game.removeprefix("echo/")
            if word in self._words:
                return self._words.index(word)
        elif 0 <= game < len(self._words):
            return int(game)
        raise ValueError(
            f"no game {game!r}: expected one of {', '.join(self._words)}, or an index below {len(self._words)}"
        )

    def subgoals(self) -> tuple[int, int]:
        """Return how many words were right so far, and how many an episode has."""
        self._require_card()
        return self._n_right, self._n_turns

    def _load(self, index: int, annotation: int | None) -> tuple[GameCard, Frame]:
        self._start_index, self._n_said, self._n_right = index, 0, 0
        word = self._words[index]
        card = GameCard(index, f"echo/{word}", "train", "text_identity", "say the word that you see.", "toy")
        return card, self._view()

    def _apply(self, command: str) -> tuple[Frame, float, bool]:
        right = command == self._word()
        self._n_said += 1
        self._n_right += right
        return self._view(), right / self._n_turns, self._n_said == self._n_turns

    def _save(self) -> object:
        return self._start_index, self._n_said, self._n_right

    def _restore(self, state: object) -> None:
        assert isinstance(state, tuple)
        self._start_index, self._n_said, self._n_right = state

    def _word(self) -> str:
        return self._words[(self._start_index + self._n_said) % len(self._words)]

    def _view(self) -> Frame:
        if self._n_said == self._n_turns:
            won = self._n_right == self._n_turns
            return Frame("That was it." if won else "That was not it.", self._commands, won)
        return Frame(f"You see {self._word()}.", self._commands, False)
