"""Imitation: raise the log-probability of the commands of good episodes, ``L = -log pi(a|s)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from algorithms.common.learning.batches import own_pieces


def played(episode: Episode, turn: int) -> int:
    """Index of the executed command among the admissible ones.

    Raises:
        ValueError: it is not admissible, so a policy over the admissible commands cannot imitate it.
    """
    done = episode.turns[turn]
    try:
        return list(done.admissible_commands).index(done.command)
    except ValueError:
        raise ValueError(
            f"cannot imitate {done.command!r} (turn {turn} of {episode.game_id}): it is not among the admissible commands"
        ) from None


def imitation(episode: Episode, turns: Sequence[int], log_probs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The loss at each turn, scalars.

    Args:
        episode: the episode to imitate.
        turns: which of its turns.
        log_probs: for each of these (n_commands,) log pi(a|s), with gradients.
    """
    return [-row[played(episode, t)] for t, row in zip(turns, log_probs, strict=True)]


def imitate(
    responder: Responder,
    drawn: Sequence[tuple[Episode, int]],
    coef: float,
    micro_batch_size: int,
) -> None:
    """Add gradients of ``coef`` times the mean loss over the commands of some episodes; the policy is active.

    Args:
        responder: how the policy acts.
        drawn: episodes, each with the first turn to imitate.
        coef: weight, above 0.
        micro_batch_size: episodes a forward pass.
    """
    drawn = sorted(drawn, key=lambda x: len(x[0].turns))
    n = sum(len(episode.turns) - first for episode, first in drawn)
    for part in own_pieces(drawn, micro_batch_size):
        turns = [range(first, len(episode.turns)) for episode, first in part]
        log_probs = episode_log_probs(responder, [episode for episode, _ in part], turns)
        picked = [
            row[played(episode, t)]
            for (episode, _), which, rows in zip(part, turns, log_probs, strict=True)
            for t, row in zip(which, rows, strict=True)
        ]
        (-coef * torch.stack(picked).sum() / n).backward()
