"""Stage 3: a policy is improved against a process reward model, with the previous policy as reference.

A contextual bandit over logged states: sample commands from the *current* policy, let the PRM score them, and move the policy
(paper Algorithm 1, step 3). Four ways to move it:

- ``"online_dpo"``: towards the best sample and away from the worst, by the DPO loss (Rafailov et al., arXiv 2305.18290) or
  IPO's (Azar et al., arXiv 2310.12036). Pairs whose scores differ by less than a margin are dropped and counted: their order is
  noise.
- ``"rejection"``: imitate the best sample, best-of-N; where all are equally good within the margin, none.
- ``"grpo"``: the policy gradient with scores compared within the state (Shao et al., arXiv 2402.03300); samples are fresh, so
  ratios are 1. Scores are not brought to unit size unless asked for: where a state's scores differ by nothing but noise, that
  would learn the noise. In logits its aim is ``pi(a|s) ~ reference(a|s) * exp(logit Q(s, a) / beta)``, the paper's objective.
- ``"mpo"``: nothing is sampled. The paper's objective, scores minus ``beta`` times the KL divergence to the reference, has an
  optimum in closed form over the admissible commands, ``pi(a|s) ~ reference(a|s) * exp(score(s, a) / beta)``, and the policy is
  fitted to it by cross-entropy (maximum a posteriori policy optimisation, Abdolmaleki et al., arXiv 1806.06920). The PRM must
  score every admissible command: with the ``"log_prob"`` form one pass does; with ``"scalar"`` it costs a branch for each.

``"rejection"`` and ``"grpo"`` hold to the reference by ``beta`` times the exact KL divergence over the admissible commands;
DPO's ``beta`` does that by itself.

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

from agentprm_gym.checks import check_choice
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.models import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs, sample_commands
from agentprm_gym.rewards.prm import ProcessRewardModel
from algorithms.common.visits import QTable, state_keys

OPTIMIZERS = ("online_dpo", "rejection", "grpo", "mpo")
LOSSES = ("dpo", "ipo")
SCORE_SCALES = ("probability", "logit")


@dataclass(frozen=True, slots=True)
class ImprovementSettings:
    """How a policy is improved.

    Attributes:
        optimizer: one of :data:`OPTIMIZERS`.
        loss: of ``"online_dpo"``: one of :data:`LOSSES`.
        learning_rate: peak, with a short warm-up and a linear decay.
        n_updates: optimizer updates.
        batch_size: episodes an update.
        turns_per_episode: states drawn from each.
        n_samples: commands sampled a state.
        beta: strength of the pull to the reference.
        margin: smallest difference of scores between the best and the worst, for a state to be learnt from.
        score_scale: what scores are compared as: ``"probability"``, Q, or its ``"logit"``. Where chances are small, differences
            of Q are tiny though one command may double them.
        normalize_scores: of ``"grpo"``: bring a state's scores to deviation 1.
        imitation_coef: weight of imitating episodes beside it; 0: none.
        temperature: of sampling.
        target_kl: stop when the KL to the reference, averaged over the last five updates, exceeds this (nats a turn); the
            PRM is only to be trusted near the policy whose rollouts it was fitted to. ``None`` never stops.
        max_grad_norm: gradient clipping.
    """

    optimizer: str = "online_dpo"
    loss: str = "dpo"
    learning_rate: float = 1e-3
    n_updates: int = 80
    batch_size: int = 16
    turns_per_episode: int = 4
    n_samples: int = 8
    beta: float = 0.2
    margin: float = 0.15
    score_scale: str = "probability"
    normalize_scores: bool = False
    imitation_coef: float = 0.0
    temperature: float = 1.0
    target_kl: float | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: for values out of range.
        """
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("score_scale", self.score_scale, SCORE_SCALES)
        if self.n_samples < 2:
            raise ValueError(f"n_samples must be 2 or more, got {self.n_samples}: one command compares with nothing")


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


def ipo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """``([(log pi - log ref)(chosen) - (log pi - log ref)(rejected)] - 1 / (2 beta)) ** 2``, one a pair, shape (N,)."""
    return (((chosen - ref_chosen) - (rejected - ref_rejected)) - 1 / (2 * beta)) ** 2


@dataclass(slots=True)
class _State:
    """A state at which different commands were drawn.

    Attributes:
        episode: index in the batch.
        turn: which turn of it.
        place: which of the batch's turns of the episode that is.
        counts: how often each admissible command was drawn.
        scores: what those are worth that are known to be worth something.
    """

    episode: int
    turn: int
    place: int
    counts: dict[int, int]
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The command with the highest score."""
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def worst(self) -> int:
        """The one with the lowest."""
        return min(self.scores, key=self.scores.__getitem__)


def improve_policy(
    lm: LanguageModel,
    policy: str,
    reference: str,
    prm: ProcessRewardModel,
    responder: Responder,
    states: Sequence[tuple[Episode, Sequence[int]]],
    settings: ImprovementSettings,
    *,
    rng: np.random.Generator,
    evidence: Evidence | None = None,
    successes: Sequence[tuple[Episode, int]] = (),
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
        settings: how.
        rng: random stream.
        evidence: Monte-Carlo visits to weigh in; only commands that were tried are then compared. ``None`` is the paper's way.
        successes: episodes to imitate, each with the first turn to imitate; ``settings.imitation_coef`` is the weight.
        on_step: called after each update with the share done; returning False ends training.

    Returns:
        Statistics.
    """
    stats = DPOStats()
    parameters = lm.adapter_parameters(policy)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    order: list[int] = []
    n_updates = settings.n_updates
    for update in range(n_updates):
        scale = min(1.0, (update + 1) / 10) * (1 - update / n_updates)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * scale
        if len(order) < settings.batch_size:
            order += [int(i) for i in rng.permutation(len(states))]
        drawn = [states[i] for i in order[: settings.batch_size]]
        del order[: settings.batch_size]
        batch = [episode for episode, _ in drawn]
        turns = [
            sorted(int(t) for t in rng.choice(list(which), min(settings.turns_per_episode, len(which)), replace=False))
            for _, which in drawn
        ]
        with lm.active(policy, train=True):
            log_probs = episode_log_probs(responder, batch, turns)
            with torch.no_grad(), lm.active(reference):
                ref = episode_log_probs(responder, batch, turns)
            useful: list[_State] = []
            loss = None
            if settings.optimizer == "mpo":
                loss = _mpo_loss(prm, batch, turns, log_probs, ref, evidence, settings, stats)
            else:
                sampled = _sample(batch, turns, log_probs, settings, rng, stats)
                useful = _score(prm, batch, sampled, evidence, settings, stats) if sampled else []
                loss = _loss(useful, log_probs, ref, settings, stats) if useful else None
            _record_kl(log_probs, ref, stats)
            if settings.imitation_coef > 0 and successes:
                imitation = _imitation_loss(responder, successes, settings.batch_size, rng)
                (settings.imitation_coef * imitation).backward()
            if loss is not None:
                loss.backward()
                stats.losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_step is not None and not on_step((update + 1) / n_updates, stats):
            break
        target_kl = settings.target_kl
        if target_kl is not None and len(stats.kl) >= 5 and float(np.mean(stats.kl[-5:])) > target_kl:
            break
    return stats


def _loss(
    states: Sequence[_State],
    log_probs: Sequence[Sequence[torch.Tensor]],
    ref: Sequence[Sequence[torch.Tensor]],
    settings: ImprovementSettings,
    stats: DPOStats,
) -> torch.Tensor:
    """What is minimised, a scalar."""
    now = [log_probs[s.episode][s.place] for s in states]  # (n_commands,) each
    before = [ref[s.episode][s.place] for s in states]
    if settings.optimizer == "online_dpo":
        chosen, rejected, ref_chosen, ref_rejected = (
            torch.stack([row[s.best if good else s.worst] for s, row in zip(states, rows, strict=True)])
            for rows, good in ((now, True), (now, False), (before, True), (before, False))
        )
        ahead = (chosen - ref_chosen) > (rejected - ref_rejected)
        stats.accuracies.append(float(ahead.float().mean()))
        pairwise = dpo_loss if settings.loss == "dpo" else ipo_loss
        return pairwise(chosen, rejected, ref_chosen, ref_rejected, settings.beta).mean()
    if settings.optimizer == "rejection":
        gains = torch.stack([row[s.best] for s, row in zip(states, now, strict=True)])
    else:
        normalize = settings.normalize_scores
        gains = torch.stack([_advantage_gain(s, row, normalize) for s, row in zip(states, now, strict=True)])
    kl = torch.stack([(p.exp() * (p - q)).sum() for p, q in zip(now, before, strict=True)])
    return (settings.beta * kl - gains).mean()


def _mpo_loss(
    prm: ProcessRewardModel,
    batch: Sequence[Episode],
    turns: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[torch.Tensor]],
    ref: Sequence[Sequence[torch.Tensor]],
    evidence: Evidence | None,
    settings: ImprovementSettings,
    stats: DPOStats,
) -> torch.Tensor | None:
    """Mean cross-entropy to the optimum of the regularised objective, a scalar; ``None`` where no state's scores differ."""
    losses, gaps, means = [], [], []
    for episode, which, now, before, logits in zip(
        batch, turns, log_probs, ref, prm.score_all(batch, turns), strict=True
    ):
        keys = state_keys(episode.task, episode.turns) if evidence is not None else []
        for t, new, old, row in zip(which, now, before, logits, strict=True):
            stats.n_states += 1
            q = torch.sigmoid(row)  # (n_commands,)
            if evidence is not None:
                visits, k = evidence.table.visits.get(keys[t], {}), evidence.prior_visits
                for i, command in enumerate(episode.turns[t].admissible_commands):
                    if command in visits:
                        q[i] = (visits[command].total + k * q[i]) / (visits[command].n + k)
            scores = torch.logit(q, eps=1e-6) if settings.score_scale == "logit" else q
            means.append(float((new.detach().exp() * q).sum()))
            gap = float(scores.max() - scores.min())
            if gap < settings.margin:
                stats.n_close += 1
                continue
            gaps.append(gap)
            losses.append(-(torch.softmax(old + scores / settings.beta, 0) * new).sum())
    stats.n_pairs += len(losses)
    if not losses:
        return None
    stats.scores.append(float(np.mean(means)))
    stats.gaps.append(float(np.mean(gaps)))
    return torch.stack(losses).mean()


def _advantage_gain(state: _State, log_probs: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Mean over a state's samples of advantage (score less the mean score) times log-probability, a scalar."""
    options = list(state.scores)
    weights = np.array([state.counts[o] for o in options], dtype=np.float64)
    weights /= weights.sum()
    scores = np.array([state.scores[o] for o in options])
    advantages = scores - float(weights @ scores)
    if normalize:
        advantages /= float(np.sqrt(weights @ advantages**2)) + 1e-4
    factors = torch.as_tensor(weights * advantages, dtype=log_probs.dtype, device=log_probs.device)
    return (factors * log_probs[options]).sum()


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
    settings: ImprovementSettings,
    rng: np.random.Generator,
    stats: DPOStats,
) -> list[_State]:
    """Commands sampled from the current policy at every state; states with a single one are dropped."""
    states = []
    for b, which in enumerate(turns):
        for k, t in enumerate(which):
            stats.n_states += 1
            row = log_probs[b][k].detach()
            counts: dict[int, int] = {}
            for _ in range(settings.n_samples):
                drawn = sample_commands(row, rng, temperature=settings.temperature)[0]
                counts[drawn] = counts.get(drawn, 0) + 1
            if len(counts) < 2:
                stats.n_same += 1
            else:
                states.append(_State(b, t, k, dict(sorted(counts.items()))))
    return states


def _score(
    prm: ProcessRewardModel,
    batch: Sequence[Episode],
    states: Sequence[_State],
    evidence: Evidence | None,
    settings: ImprovementSettings,
    stats: DPOStats,
) -> list[_State]:
    """Score the samples; returns the states at which they differ by the margin."""
    by_episode: dict[int, list[_State]] = {}
    for state in states:
        by_episode.setdefault(state.episode, []).append(state)
    items = []
    for b, members in by_episode.items():
        candidates = [(s.turn, [batch[b].turns[s.turn].admissible_commands[i] for i in s.counts]) for s in members]
        items.append((batch[b].task, batch[b].turns, candidates))
    useful, gaps, means = [], [], []
    for (b, members), item_scores, item in zip(by_episode.items(), prm.score(items), items, strict=True):
        keys = state_keys(batch[b].task, batch[b].turns) if evidence is not None else []
        for state, scores, (_, commands) in zip(members, item_scores, item[2], strict=True):
            means.append(float(scores.mean()))
            state.scores = dict(zip(state.counts, scores.tolist(), strict=True))
            if evidence is not None:
                visits = evidence.table.visits.get(keys[state.turn], {})
                k = evidence.prior_visits
                state.scores = {
                    option: (visits[command].total + k * state.scores[option]) / (visits[command].n + k)
                    for option, command in zip(state.counts, commands, strict=True)
                    if command in visits
                }
                if len(state.scores) < 2:
                    stats.n_untried += 1
                    continue
            if settings.score_scale == "logit":
                state.scores = {option: _logit(score) for option, score in state.scores.items()}
            gap = state.scores[state.best] - state.scores[state.worst]
            if gap < settings.margin:
                stats.n_close += 1
                continue
            gaps.append(gap)
            useful.append(state)
    stats.n_pairs += len(useful)
    if gaps:
        stats.gaps.append(float(np.mean(gaps)))
    stats.scores.append(float(np.mean(means)))
    return useful


def _logit(q: float) -> float:
    q = min(max(q, 1e-6), 1 - 1e-6)
    return float(np.log(q / (1 - q)))


@torch.no_grad()
def _record_kl(
    log_probs: Sequence[Sequence[torch.Tensor]], ref: Sequence[Sequence[torch.Tensor]], stats: DPOStats
) -> None:
    values = [
        float((p.exp() * (p - q)).sum()) for a, b in zip(log_probs, ref, strict=True) for p, q in zip(a, b, strict=True)
    ]
    if values:  # states to compare commands at may be none, where there is still something to imitate
        stats.kl.append(float(np.mean(values)))
