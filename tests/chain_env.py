"""A chain with known Q: three rooms, in each of which one command leads on and the other ends the game."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.engines.base import Frame
from agentprm_gym.envs.base import GameCard, TextGameEnv
from agentprm_gym.episodes import Episode

ON, BACK = "go to shelf 1", "go to drawer 1"
N_ROOMS = 3


class ChainEnv(TextGameEnv):
    """``ON`` three times wins; ``BACK`` loses at once. There is one transcript to each room, so states are rooms."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self._room, self._lost = 0, False

    @property
    def n_games(self) -> int:
        return 1

    def game_index(self, game: int | str) -> int:
        if game not in (0, "chain"):
            raise ValueError(f"no game {game!r}")
        return 0

    def subgoals(self) -> tuple[int, int]:
        return self._room, N_ROOMS

    def _load(self, index: int, annotation: int | None) -> tuple[GameCard, Frame]:
        self._room, self._lost = 0, False
        return GameCard(0, "chain", "train", "chain", "go on.", "toy"), self._view()

    def _apply(self, command: str) -> tuple[Frame, float, bool]:
        self._lost = command != ON
        self._room += not self._lost
        won = self._room == N_ROOMS
        return self._view(), float(won), won or self._lost

    def _save(self) -> object:
        return self._room, self._lost

    def _restore(self, state: object) -> None:
        assert isinstance(state, tuple)
        self._room, self._lost = state

    def _view(self) -> Frame:
        said = "You lose." if self._lost else f"You are at cabinet {self._room + 1}."
        return Frame(said, (BACK, ON), self._room == N_ROOMS)


def make_chain(n_envs: int = 8) -> VecEnv:
    return make_vec_env(ChainEnv, n_envs=n_envs, seed=0)


def walk() -> Episode:
    """The episode that wins."""
    env: Any = ChainEnv()
    env.reset(options={"game": 0})
    for _ in range(N_ROOMS):
        env.step(ON)
    episode: Episode = env.episode(policy="expert")
    return episode
