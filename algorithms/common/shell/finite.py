"""Has training diverged? Looked at after every iteration and before every checkpoint, so that no good state is lost to NaN."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.finite import not_finite
from agentprm_gym.llm.scoring import score_turns
from algorithms.common.acting.policy import POLICY
from algorithms.common.shell.errors import DivergedError

if TYPE_CHECKING:
    from algorithms.common.shell.base import LLMAlgorithm


def check_learnt(algorithm: LLMAlgorithm, episode: Episode | None) -> None:
    """Refuse what was learnt where its weights, or what the policy says with them, are not finite.

    Weights may be finite and so large that the forward pass is not, so one episode is read again: one pass an iteration.

    Args:
        algorithm: what learns.
        episode: one that it played or imitates; ``None``: only the weights are looked at.

    Raises:
        DivergedError: a weight or a log-probability is not finite.
    """
    if (found := not_finite(algorithm.get_parameters())) is not None:
        raise DivergedError(f"the weights {found} are not finite", [] if episode is None else [episode])
    if episode is None:
        return
    responder = algorithm.policy.responder
    turns = list(range(len(episode.turns)))
    if responder.mode != "generate":  # a choice among the admissible commands has no probability of another one
        turns = [t for t in turns if episode.turns[t].command in episode.turns[t].admissible_commands]
    with torch.no_grad(), algorithm.lm.active(POLICY):
        (scores,) = score_turns(responder, [episode], [turns])
    if any(math.isnan(float(score.log_prob)) for score in scores):
        raise DivergedError("the policy's log-probabilities are not numbers any more", [episode])
