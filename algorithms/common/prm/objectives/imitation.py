"""Imitation: raise the log-probability of the responses of good episodes, ``L = -log pi(a|s)``, reasons included."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder, TurnScore, score_turns
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


def imitation(episode: Episode, turns: Sequence[int], scores: Sequence[TurnScore]) -> list[torch.Tensor]:
    """The loss at each turn, scalars.

    Args:
        episode: the episode to imitate.
        turns: which of its turns.
        scores: for each of these what the policy thinks of it, with gradients.
    """
    losses = []
    for t, score in zip(turns, scores, strict=True):
        assert score.commands is not None
        losses.append(-(score.free.sum() + score.commands[played(episode, t)]))
    return losses


def imitate(
    responder: Responder,
    drawn: Sequence[tuple[Episode, int]],
    coef: float,
    micro_batch_size: int,
) -> None:
    """Add gradients of ``coef`` times the mean loss over the turns of some episodes; the policy is active.

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
        scored = score_turns(responder, [episode for episode, _ in part], turns)
        losses = [
            loss
            for (episode, _), which, scores in zip(part, turns, scored, strict=True)
            for loss in imitation(episode, which, scores)
        ]
        (coef * torch.stack(losses).sum() / n).backward()
