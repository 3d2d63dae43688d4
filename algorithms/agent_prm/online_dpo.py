"""Stage 3: online DPO against the process reward model, with the previous policy as reference.

For a batch of logged states: sample commands from the *current* policy, let the PRM score them, and train on the pair of the
best and the worst (paper Algorithm 1, step 3). Pairs whose scores differ by less than a margin are dropped and counted:
their order is noise.

With a table of Monte-Carlo visits the PRM is the prior and the visits are the evidence: a command tried ``n`` times with
mean return ``q`` scores ``(n * q + k * PRM) / (n + k)``. A PRM fitted to a few thousand episodes ranks the commands of one
state hardly better than chance, and a policy trained against it alone learns its mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs, sample_commands
from agentprm_gym.rewards.prm import ProcessRewardModel
from algorithms.agent_prm.targets import QTable, state_keys


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
        n_untried: states at which fewer than two of the sampled commands had been tried.
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
    n_untried: int = 0


@dataclass(slots=True)
class Evidence:
    """Monte-Carlo visits beside the PRM's score.

    Attributes:
        table: the pooled visits.
        prior_visits: how many visits the PRM's score counts for, k above.
    """

    table: QTable
    prior_visits: float


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
    responder: Responder,
    states: Sequence[tuple[Episode, Sequence[int]]],
    *,
    evidence: Evidence | None,
    successes: Sequence[tuple[Episode, int]],
    imitation_coef: float,
    learning_rate: float,
    n_updates: int,
    batch_size: int,
    turns_per_episode: int,
    n_samples: int,
    beta: float,
    margin: float,
    temperature: float,
    target_kl: float | None,
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
        responder: how the policy acts.
        states: logged episodes, each with the turns that may serve as states.
        evidence: Monte-Carlo visits to weigh in; only commands that were tried are then paired. ``None`` is the paper's way.
        successes: episodes that were won, each with the first turn to imitate.
        imitation_coef: weight of imitating their commands (rejection sampling, the other optimiser that the paper names);
            0 leaves DPO alone.
        learning_rate: peak, with a short warm-up and a linear decay.
        n_updates: optimizer updates.
        batch_size: episodes an update.
        turns_per_episode: states drawn from each.
        n_samples: commands sampled a state.
        beta: strength of the pull to the reference.
        margin: smallest difference of PRM scores (probabilities) between the two of a pair.
        temperature: of sampling.
        target_kl: stop when the KL to the reference, averaged over the last five updates, exceeds this (nats a turn); the
            PRM is only to be trusted near the policy whose rollouts it was fitted to. ``None`` never stops.
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
            order += [int(i) for i in rng.permutation(len(states))]
        drawn = [states[i] for i in order[:batch_size]]
        del order[:batch_size]
        batch = [episode for episode, _ in drawn]
        turns = [
            sorted(int(t) for t in rng.choice(list(which), min(turns_per_episode, len(which)), replace=False))
            for _, which in drawn
        ]
        with lm.active(policy, train=True):
            log_probs = episode_log_probs(responder, batch, turns)
            sampled = _sample(batch, turns, log_probs, n_samples, temperature, rng, stats)
            if not sampled:
                continue
            with torch.no_grad(), lm.active(reference):
                ref = episode_log_probs(responder, batch, turns)
            pairs = _choose_pairs(prm, batch, sampled, evidence, margin, stats)
            _record_kl(log_probs, ref, stats)
            if imitation_coef > 0 and successes:
                (imitation_coef * _imitation_loss(responder, successes, batch_size, rng)).backward()
            if pairs:
                index = {(b, t): (b, k) for b, which in enumerate(turns) for k, t in enumerate(which)}
                where = [(index[state.episode, state.turn], best, worst) for state, best, worst in pairs]
                chosen, rejected, ref_chosen, ref_rejected = (
                    torch.stack([source[b][k][best if good else worst] for (b, k), best, worst in where])
                    for source, good in ((log_probs, True), (log_probs, False), (ref, True), (ref, False))
                )
                loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta).mean()
                loss.backward()
                stats.losses.append(loss.item())
                ahead = (chosen - ref_chosen) > (rejected - ref_rejected)
                stats.accuracies.append(float(ahead.float().mean()))
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_step is not None and not on_step((update + 1) / n_updates, stats):
            break
        if target_kl is not None and len(stats.kl) >= 5 and float(np.mean(stats.kl[-5:])) > target_kl:
            break
    return stats


def _imitation_loss(
    responder: Responder, successes: Sequence[tuple[Episode, int]], n: int, rng: np.random.Generator
) -> torch.Tensor:
    """Mean negative log-probability of the commands of some won episodes, a scalar; the policy's adapter is active."""
    drawn = [successes[int(i)] for i in rng.permutation(len(successes))[:n]]
    episodes = [episode for episode, _ in drawn]
    turns = [range(first, len(episode.turns)) for episode, first in drawn]
    log_probs = episode_log_probs(responder, episodes, turns)
    picked = [
        row[episode.turns[t].admissible_commands.index(episode.turns[t].command)]
        for episode, which, rows in zip(episodes, turns, log_probs, strict=True)
        for t, row in zip(which, rows, strict=True)
    ]
    return -torch.stack(picked).mean()


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
            draws = [
                sample_commands(log_probs[b][k].detach(), rng, temperature=temperature)[0] for _ in range(n_samples)
            ]
            distinct = sorted(set(draws))
            if len(distinct) < 2:
                stats.n_same += 1
            else:
                states.append(_State(b, t, distinct))
    return states


def _choose_pairs(
    prm: ProcessRewardModel,
    batch: Sequence[Episode],
    states: Sequence[_State],
    evidence: Evidence | None,
    margin: float,
    stats: DPOStats,
) -> list[tuple[_State, int, int]]:
    """Score the samples; best against worst of each state where they differ by the margin."""
    by_episode: dict[int, list[_State]] = {}
    for state in states:
        by_episode.setdefault(state.episode, []).append(state)
    items = []
    for b, members in by_episode.items():
        candidates = [(s.turn, [batch[b].turns[s.turn].admissible_commands[i] for i in s.options]) for s in members]
        items.append((batch[b].task, batch[b].turns, candidates))
    pairs = []
    gaps, means = [], []
    for (b, members), item_scores, item in zip(by_episode.items(), prm.score(items), items, strict=True):
        keys = state_keys(batch[b].task, batch[b].turns) if evidence is not None else []
        for state, scores, (_, commands) in zip(members, item_scores, item[2], strict=True):
            means.append(float(scores.mean()))
            values = dict(zip(state.options, scores.tolist(), strict=True))
            if evidence is not None:
                visits = evidence.table.visits.get(keys[state.turn], {})
                k = evidence.prior_visits
                values = {
                    option: (visits[command].total + k * values[option]) / (visits[command].n + k)
                    for option, command in zip(state.options, commands, strict=True)
                    if command in visits
                }
                if len(values) < 2:
                    stats.n_untried += 1
                    continue
            best, worst = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
            if values[best] - values[worst] < margin:
                stats.n_close += 1
                continue
            gaps.append(values[best] - values[worst])
            pairs.append((state, best, worst))
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
