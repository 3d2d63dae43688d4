"""Stage 3: online DPO against the process reward model, with the previous policy as reference.

For a batch of logged states: sample commands from the *current* policy, let the PRM score them, and train on the pair of the
best and the worst (paper Algorithm 1, step 3). Pairs whose scores differ by less than a margin are dropped and counted:
their order is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.scoring import TrieCache, episode_log_probs, sample_commands
from agentprm_gym.rewards.prm import ProcessRewardModel


@dataclass(slots=True)
class DPOStats:
    """What happened while the policy was trained.

    Attributes:
        losses: loss of each update.
        accuracies: share of pairs each update in which the policy prefers the chosen one more than the reference does.
        kl: KL(policy || reference) at the batch's states, each update, in nats a turn.
        gaps: mean PRM gap of the pairs used.
        scores: mean PRM score of what the policy samples.
        n_states: states looked at.
        n_pairs: pairs trained on.
        n_same: states that gave one command only.
        n_close: pairs dropped for a gap under the margin.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    n_states: int = 0
    n_pairs: int = 0
    n_same: int = 0
    n_close: int = 0


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """``-log sigmoid(beta * [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)])``, one a pair, shape (N,)."""
    return -functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


@dataclass(slots=True)
class _State:
    episode: int
    turn: int
    options: list[int]


def train_online_dpo(
    lm: LanguageModel,
    policy: str,
    reference: str,
    prm: ProcessRewardModel,
    tries: TrieCache,
    episodes: Sequence[Episode],
    *,
    learning_rate: float,
    n_updates: int,
    batch_size: int,
    turns_per_episode: int,
    n_samples: int,
    beta: float,
    margin: float,
    temperature: float,
    max_grad_norm: float,
    rng: np.random.Generator,
    on_step: Callable[[float, DPOStats], bool] | None = None,
) -> DPOStats:
    """Improve a policy adapter.

    Args:
        lm: the language model.
        policy: adapter to train.
        reference: adapter of the previous policy.
        prm: scores commands.
        tries: trie cache of the prompt format.
        episodes: logged episodes; their turns are the states.
        learning_rate: peak, with a short warm-up and a linear decay.
        n_updates: optimizer updates.
        batch_size: episodes an update.
        turns_per_episode: states drawn from each.
        n_samples: commands sampled a state.
        beta: strength of the pull to the reference.
        margin: smallest difference of PRM scores (probabilities) between the two of a pair.
        temperature: of sampling.
        max_grad_norm: gradient clipping.
        rng: random stream.
        on_step: called after each update with the share done; returning False ends training.

    Returns:
        Statistics.
    """
    stats = DPOStats()
    parameters = lm.adapter_parameters(policy)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    order: list[int] = []
    for update in range(n_updates):
        scale = min(1.0, (update + 1) / 10) * (1 - update / n_updates)
        optimizer.param_groups[0]["lr"] = learning_rate * scale
        if len(order) < batch_size:
            order += [int(i) for i in rng.permutation(len(episodes))]
        batch = [episodes[i] for i in order[:batch_size]]
        del order[:batch_size]
        turns = [
            sorted(int(t) for t in rng.choice(len(e.turns), min(turns_per_episode, len(e.turns)), replace=False))
            for e in batch
        ]
        with lm.active(policy, train=True):
            log_probs = episode_log_probs(lm, tries, batch, turns)
            states = _sample(batch, turns, log_probs, n_samples, temperature, rng, stats)
            if not states:
                continue
            with torch.no_grad(), lm.active(reference):
                ref = episode_log_probs(lm, tries, batch, turns)
            pairs = _choose_pairs(prm, batch, turns, states, margin, stats)
            _record_kl(log_probs, ref, stats)
            if pairs:
                index = {(b, t): (b, k) for b, which in enumerate(turns) for k, t in enumerate(which)}
                where = [(index[state.episode, state.turn], best, worst) for state, best, worst in pairs]
                chosen, rejected, ref_chosen, ref_rejected = (
                    torch.stack([source[b][k][best if good else worst] for (b, k), best, worst in where])
                    for source, good in ((log_probs, True), (log_probs, False), (ref, True), (ref, False))
                )
                loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                stats.losses.append(loss.item())
                ahead = (chosen - ref_chosen) > (rejected - ref_rejected)
                stats.accuracies.append(float(ahead.float().mean()))
        if on_step is not None and not on_step((update + 1) / n_updates, stats):
            break
    return stats


def _sample(
    batch: Sequence[Episode],
    turns: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[torch.Tensor]],
    n_samples: int,
    temperature: float,
    rng: np.random.Generator,
    stats: DPOStats,
) -> list[_State]:
    """Distinct commands sampled from the current policy at every state; states with a single one are dropped."""
    states = []
    for b, which in enumerate(turns):
        for k, t in enumerate(which):
            stats.n_states += 1
            draws = [sample_commands(log_probs[b][k].detach(), rng, temperature=temperature)[0] for _ in range(n_samples)]
            distinct = sorted(set(draws))
            if len(distinct) < 2:
                stats.n_same += 1
            else:
                states.append(_State(b, t, distinct))
    return states


def _choose_pairs(
    prm: ProcessRewardModel,
    batch: Sequence[Episode],
    turns: Sequence[Sequence[int]],
    states: Sequence[_State],
    margin: float,
    stats: DPOStats,
) -> list[tuple[_State, int, int]]:
    """Score the samples; best against worst of each state where they differ by the margin."""
    by_episode: dict[int, list[_State]] = {}
    for state in states:
        by_episode.setdefault(state.episode, []).append(state)
    items = []
    for b, members in by_episode.items():
        candidates = [
            (s.turn, [batch[b].turns[s.turn].admissible_commands[i] for i in s.options]) for s in members
        ]
        items.append((batch[b].task, batch[b].turns, candidates))
    pairs = []
    gaps, means = [], []
    for members, item_scores in zip(by_episode.values(), prm.score(items), strict=True):
        for state, scores in zip(members, item_scores, strict=True):
            best, worst = int(scores.argmax()), int(scores.argmin())
            gap = float(scores[best] - scores[worst])
            means.append(float(scores.mean()))
            if gap < margin:
                stats.n_close += 1
                continue
            gaps.append(gap)
            pairs.append((state, state.options[best], state.options[worst]))
    stats.n_pairs += len(pairs)
    if gaps:
        stats.gaps.append(float(np.mean(gaps)))
    stats.scores.append(float(np.mean(means)))
    return pairs


@torch.no_grad()
def _record_kl(
    log_probs: Sequence[Sequence[torch.Tensor]], ref: Sequence[Sequence[torch.Tensor]], stats: DPOStats
) -> None:
    values = [
        float((p.exp() * (p - q)).sum()) for a, b in zip(log_probs, ref, strict=True) for p, q in zip(a, b, strict=True)
    ]
    stats.kl.append(float(np.mean(values)))
