"""V(s) of a policy, fitted to all that it played: what TD and GAE targets, and shaping with a reference policy, look up.

Formula: soft binary cross-entropy of ``V(s) = sigmoid(head)`` to the return-to-go of every visit of ``s``, as the paper's value
model is fitted (Choudhury, arXiv 2502.10325, section 4.2 and its released code). It has the units of the targets: ``V`` and
``Q-hat`` are both expected discounted returns in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.states import state_keys
from algorithms.agent_prm.targets import turn_returns
from algorithms.common.acting.ranks import ranks
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.batches import minibatches, own_pieces
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater, warm_up_and_decay
from algorithms.common.learning.value import VALUE, ValueModel

#: V by state key, see :func:`agentprm_gym.states.state_keys`.
Values = Mapping[bytes, float]


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """How a value model is fitted.

    Attributes:
        learning_rate: peak, with a short warm-up and a linear decay to 0.
        batch_size: episodes an update.
        n_epochs: passes over the episodes.
        micro_batch_size: episodes a forward pass; it changes memory and speed alone.
    """

    learning_rate: float
    batch_size: int
    n_epochs: int
    micro_batch_size: int


@dataclass(frozen=True, slots=True)
class Transition:
    """One turn with what came before and after it.

    Attributes:
        state: key of the state before the turn.
        command: what was done.
        reward: what the task paid for it.
        after: key of the state after the turn; ``None`` where the episode was over, by the game or by the step limit. Its value
            is 0 then: a game that is not won within the limit is lost, as the Monte-Carlo targets count it.
    """

    state: bytes
    command: str
    reward: float
    after: bytes | None


def transitions(rollout: Rollout, *, n: int | None = None) -> list[Transition]:
    """The turns that a rollout played itself, its history left out.

    Args:
        rollout: what was played.
        n: only the first so many; ``None``: all.
    """
    episode, start = rollout.episode, rollout.n_history
    keys: list[bytes | None] = [*state_keys(episode.task, episode.turns), None]
    stop = len(episode.turns) if n is None else min(start + n, len(episode.turns))
    out = []
    for t in range(start, stop):
        before, turn = keys[t], episode.turns[t]
        assert before is not None
        out.append(Transition(before, turn.command, float(turn.reward), keys[t + 1]))
    return out


def fit_value(
    responder: Responder,
    played: Sequence[tuple[Episode, int]],
    gamma: float,
    options: ValueOptions,
    rng: np.random.Generator,
    start: str,
) -> ValueModel:
    """Fit V to returns.

    Args:
        responder: the policy's way to act; transcripts are read as it reads them.
        played: episodes, each with the first turn whose return is one of the policy's.
        gamma: discount a turn, in (0, 1].
        options: how it is fitted.
        rng: shuffles.
        start: the adapter that the value model's adapter begins as.

    Returns:
        The value model; its values are logits.

    Raises:
        ValueError: an outcome lies outside [0, 1], or there is nothing to fit to.
    """
    data = [(e, first) for e, first in played if first < len(e.turns)]
    if not data:
        raise ValueError("no episode to fit the value model to: roll out more episodes")
    responder.lm.copy_adapter(start, VALUE)
    model = ValueModel(responder, VALUE)
    updater = Updater(model.parameters, options.learning_rate, MAX_GRAD_NORM)
    n_updates, done = -(-len(data) // options.batch_size) * options.n_epochs, 0
    with responder.lm.active(VALUE, train=True):
        for batch in (b for _ in range(options.n_epochs) for b in minibatches(data, options.batch_size, rng)):
            warm_up_and_decay(updater.optimizer, options.learning_rate, done, n_updates)
            n_turns, total = sum(len(e.turns) - first for e, first in batch), 0.0
            for part in own_pieces(sorted(batch, key=lambda pair: len(pair[0].turns)), options.micro_batch_size):
                loss = _loss(model, part, gamma) / n_turns
                loss.backward()
                total += loss.item()
            updater.step([e for e, _ in batch], ranks().total(total))
            done += 1
    return model


def _loss(model: ValueModel, part: Sequence[tuple[Episode, int]], gamma: float) -> torch.Tensor:
    """The cross-entropy, summed over turns."""
    rows = []
    for (episode, first), logits in zip(part, model.values([e for e, _ in part]), strict=True):
        returns = turn_returns(episode, gamma)[first:]
        if not ((returns >= -1e-6) & (returns <= 1 + 1e-6)).all():
            raise ValueError(
                f"a return of {episode.game_id} is {float(returns.max()):.3f}, which is outside [0, 1]; a value model expects "
                "an outcome reward in [0, 1]"
            )
        wanted = torch.tensor(returns, dtype=torch.float32, device=logits.device).clamp(0, 1)
        rows.append(functional.binary_cross_entropy_with_logits(logits[first:], wanted, reduction="sum"))
    return torch.stack(rows).sum()


@torch.no_grad()
def predict_values(model: ValueModel, episodes: Sequence[Episode], micro_batch_size: int) -> dict[bytes, float]:
    """V in (0, 1) of every state of some episodes, by its key.

    Args:
        model: the value model.
        episodes: the episodes.
        micro_batch_size: episodes a forward pass.
    """
    out: dict[bytes, float] = {}
    for episode, logits in zip(episodes, _all(model, episodes, micro_batch_size), strict=True):
        for key, logit in zip(state_keys(episode.task, episode.turns), logits, strict=True):
            out.setdefault(key, 1 / (1 + float(np.exp(-logit))))
    return out


def _all(model: ValueModel, episodes: Sequence[Episode], micro_batch_size: int) -> Iterator[list[float]]:
    """Logits in the order of the episodes, computed with those of similar length side by side."""
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].turns))
    logits = model.predict([episodes[i] for i in order], micro_batch_size)
    by_index = dict(zip(order, logits, strict=True))
    return (by_index[i] for i in range(len(episodes)))
