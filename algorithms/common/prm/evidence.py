"""Monte-Carlo visits beside the PRM's score, where both exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from agentprm_gym.episodes import Episode


class Visited(Protocol):
    """Visits of one (state, command): their number, and the sum of their returns."""

    total: float
    n: int


class Evidence:
    """Weighs visits against the PRM: a command tried n times with mean return q scores ``(n * q + k * PRM) / (n + k)``."""

    def __init__(self, tried: Callable[[Episode], Sequence[Mapping[str, Visited]]], prior_visits: float) -> None:
        """Weigh visits.

        Args:
            tried: tells for each turn of an episode the visits of the commands that were tried in its state.
            prior_visits: how many visits the PRM's score counts for, k above; 0 or more.
        """
        self._tried, self.prior_visits = tried, prior_visits
        self._known: dict[int, tuple[Episode, Sequence[Mapping[str, Visited]]]] = {}

    def _visits(self, episode: Episode, turn: int) -> Mapping[str, Visited]:
        if id(episode) not in self._known:
            self._known[id(episode)] = (episode, self._tried(episode))  # with the episode, so that its id stays its own
        return self._known[id(episode)][1][turn]

    def weigh(
        self, episode: Episode, turn: int, scores: Mapping[int, float], commands: Sequence[str]
    ) -> dict[int, float]:
        """Scores of those options whose commands were tried.

        Args:
            episode: the episode.
            turn: index of the state in it.
            scores: the PRM's, by the options' indices.
            commands: the command of each option.
        """
        visits, k = self._visits(episode, turn), self.prior_visits
        return {
            option: (visits[commands[option]].total + k * score) / (visits[commands[option]].n + k)
            for option, score in scores.items()
            if commands[option] in visits
        }

    def weigh_all(self, episode: Episode, turn: int, q: torch.Tensor) -> torch.Tensor:
        """Scores of all admissible commands, (n_commands,); those that were not tried keep the PRM's."""
        visits, k, out = self._visits(episode, turn), self.prior_visits, q.clone()
        for i, command in enumerate(episode.turns[turn].admissible_commands):
            if command in visits:
                out[i] = (visits[command].total + k * q[i]) / (visits[command].n + k)
        return out
