"""Stage 2 of InversePRM: a process reward model that tells the expert's transitions from the learners'.

The model is Q. What is classified is the reward that it implies, ``Q(s, a) - gamma * Q(s', a')`` with ``a'`` drawn from the
current policy at ``s'`` (section 3: the telescoping identity), so that one network is discriminator and critic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from agentprm_gym.checks import check_fields
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import Responder, episode_log_probs, sample_commands
from agentprm_gym.prm.model import FORMS, ProcessRewardModel
from algorithms.common.acting.ranks import ranks
from algorithms.common.learning.batches import own_pieces, pieces
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater, warm_up_and_decay
from algorithms.common.prm.options import INITS


@dataclass(frozen=True)
class InverseFitStage:
    """Options of the fit; ``prm=`` takes one, or a dict of its fields.

    Attributes:
        form: ``"log_prob"``, or ``"scalar"``, the paper's head; see :mod:`agentprm_gym.prm.model`.
        learning_rate: peak for the PRM's adapter and head, above 0; a short warm-up, then a linear decay to 0.
        n_epochs: passes over the trajectories.
        batch_size: trajectories an update, half of them the expert's.
        init: where each iteration's PRM starts: its adapter as the ``"policy"``'s or as the ``"base"`` (fresh), with a fresh
            head; or all of it as the ``"previous"`` iteration left it.
        read_reasons: whether the PRM reads the reasons before commands.
        stop_gradient: treat the next state's value as a constant. Otherwise what the policy would do next is pushed up where a
            learner came from and down where the expert did, against what is learnt of it there.
        logit_clip: values are held within plus and minus this, above 0; ``None``: no limit.
    """

    form: str = "log_prob"
    learning_rate: float = 1e-3
    n_epochs: int = 2
    batch_size: int = 8
    init: str = "policy"
    read_reasons: bool = False
    stop_gradient: bool = False
    logit_clip: float | None = 10.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(
            "prm",
            self,
            choices={"form": FORMS, "init": INITS},
            ints={"n_epochs": 1, "batch_size": 1},
            positive=("learning_rate", "logit_clip"),
        )


@dataclass(slots=True)
class Trajectory:
    """An episode with what the current policy would do at each of its turns.

    Attributes:
        episode: the expert's, or a learner's.
        is_expert: whether the episode is the expert's.
        ended: whether the game ended with its last turn; where it was cut off, what comes next is not known, and the
            last turn is left out.
        answers: (T,) the current policy's command at each turn.
        weight: of each of its transitions.
    """

    episode: Episode
    is_expert: bool
    ended: bool
    answers: list[str]
    weight: float = 1.0

    @property
    def n_transitions(self) -> int:
        """How many transitions are told apart."""
        return len(self.episode.turns) - (not self.ended)


@dataclass(slots=True)
class InverseReport:
    """How a fit went.

    Attributes:
        loss: mean of the last epoch.
        accuracy: share of transitions on the right side, experts and learners alike, of the last epoch; 0.5 is chance.
        expert_reward: mean implied reward of the expert's transitions.
        learner_reward: of the learners'.
    """

    loss: float
    accuracy: float
    expert_reward: float
    learner_reward: float


@torch.no_grad()
def answers_of(
    responder: Responder,
    episodes: Sequence[Episode],
    *,
    temperature: float,
    rng: np.random.Generator,
    micro_batch_size: int,
) -> list[list[str]]:
    """What the policy whose adapter is active would do at every turn, one draw each; aligned by construction."""
    out = []
    for part in pieces(episodes, micro_batch_size):
        for episode, rows in zip(part, episode_log_probs(responder, part), strict=True):
            drawn = [sample_commands(row, rng, temperature=temperature)[0] for row in rows]
            out.append([turn.admissible_commands[i] for turn, i in zip(episode.turns, drawn, strict=True)])
    return out


def balance(trajectories: Sequence[Trajectory]) -> None:
    """Give both sides half of the weight, each game of a side as much as another, and each transition of a game."""
    for side in (True, False):
        by_game: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            if trajectory.is_expert == side and trajectory.n_transitions:
                by_game[trajectory.episode.game_id].append(trajectory)
        for members in by_game.values():
            n = sum(trajectory.n_transitions for trajectory in members)
            for trajectory in members:
                trajectory.weight = 0.5 / (len(by_game) * n)


def implied_rewards(
    prm: ProcessRewardModel,
    batch: Sequence[Trajectory],
    *,
    gamma: float,
    stop_gradient: bool = False,
    clip: float | None = None,
) -> list[torch.Tensor]:
    """``Q(s, a) - gamma * Q(s', a')`` of every transition, ``Q(s, a)`` where the game ended; the PRM's adapter is active.

    Args:
        prm: gives Q, as logits.
        batch: trajectories.
        gamma: discount; 0 is a one-step discriminator (GAIL's).
        stop_gradient: treat ``Q(s', a')`` as a constant.
        clip: hold Q within ``[-clip, clip]``.

    Returns:
        For each trajectory (n_transitions,).
    """
    items = []
    for trajectory in batch:
        candidates = []
        for t, turn in enumerate(trajectory.episode.turns):
            wanted = [turn.command] if t < trajectory.n_transitions else []
            if gamma > 0 and t > 0:
                wanted.append(trajectory.answers[t])
            if wanted:
                candidates.append((t, list(dict.fromkeys(wanted))))
        items.append((trajectory.episode.task, trajectory.episode.turns, candidates))
    out = []
    for trajectory, (_, _, candidates), rows in zip(batch, items, prm.logits(items), strict=True):
        q = {
            (t, c): z
            for (t, commands), row in zip(candidates, rows, strict=True)
            for c, z in zip(commands, row, strict=True)
        }
        if clip is not None:
            q = {key: z.clamp(-clip, clip) for key, z in q.items()}
        turns = trajectory.episode.turns
        rewards = []
        for t in range(trajectory.n_transitions):
            reward = q[t, turns[t].command]
            if gamma > 0 and t + 1 < len(turns):
                following = q[t + 1, trajectory.answers[t + 1]]
                reward = reward - gamma * (following.detach() if stop_gradient else following)
            rewards.append(reward)
        out.append(torch.stack(rewards) if rewards else torch.zeros(0))
    return out


@torch.no_grad()
def expert_likeness(
    prm: ProcessRewardModel,
    trajectories: Sequence[Trajectory],
    *,
    gamma: float,
    clip: float | None = None,
    micro_batch_size: int = 16,
) -> list[float]:
    """How much like the expert's each episode is: its mean implied reward; activates the PRM's adapter.

    An episode's last turn is left out, unless there is no other. There alone the reward depends on whether the game ended or
    was cut off, which in many games is whether it was won.

    Args:
        prm: gives Q, as logits.
        trajectories: ``is_expert`` and ``ended`` are not looked at.
        gamma: see :func:`implied_rewards`.
        clip: see :func:`implied_rewards`.
        micro_batch_size: trajectories a forward pass.

    Returns:
        For each trajectory a logit, above 0 where it rather is the expert's.
    """
    out: list[float] = []
    with prm.lm.active(prm.adapter):
        for some in pieces(trajectories, micro_batch_size):
            part = [replace(t, ended=len(t.episode.turns) == 1) for t in some]
            out += [float(row.mean()) for row in implied_rewards(prm, part, gamma=gamma, clip=clip)]
    return out


def fit_inverse_prm(
    prm: ProcessRewardModel,
    trajectories: Sequence[Trajectory],
    options: InverseFitStage,
    *,
    gamma: float,
    micro_batch_size: int,
    rng: np.random.Generator,
    on_progress: Callable[[float], None] = lambda share: None,
) -> InverseReport:
    """Train the adapter and the head by the binary cross-entropy of the implied reward, 1 for the expert's transitions.

    Args:
        prm: the process reward model.
        trajectories: of both sides, with their weights.
        options: how.
        gamma: discount a turn, in [0, 1]; see :func:`implied_rewards`.
        micro_batch_size: trajectories a forward pass; it changes memory and speed alone.
        rng: shuffles.
        on_progress: called after each update with the share that is done.

    Raises:
        ValueError: a side has no transitions.
    """
    data = [t for t in trajectories if t.n_transitions]
    for side, whose in ((True, "expert's"), (False, "learner's")):
        if not any(t.is_expert == side for t in data):
            raise ValueError(f"no transition of the {whose} to fit the process reward model on")
    updater = Updater(prm.parameters, options.learning_rate, MAX_GRAD_NORM, prm.rates())
    batches = [b for _ in range(options.n_epochs) for b in two_sided_batches(data, options.batch_size, rng)]
    seen: list[dict[str, float]] = []
    with prm.lm.active(prm.adapter, train=True, dropout=True):
        for done, batch in enumerate(batches):
            warm_up_and_decay(updater.optimizer, options.learning_rate, done, len(batches))
            # Half of an update is the expert's, whatever was drawn.
            sides = {
                side: sum(t.weight * t.n_transitions for t in batch if t.is_expert == side) for side in (True, False)
            }
            batch.sort(key=lambda t: len(t.episode.turns))  # of similar length in a forward pass: little is padding
            sums = {"loss": 0.0, "right": 0.0, "expert": 0.0, "learner": 0.0}
            for part in own_pieces(batch, micro_batch_size):
                rewards = implied_rewards(
                    prm, part, gamma=gamma, stop_gradient=options.stop_gradient, clip=options.logit_clip
                )
                losses = []
                for trajectory, row in zip(part, rewards, strict=True):
                    weight = 0.5 * trajectory.weight / sides[trajectory.is_expert]
                    target = torch.full_like(row, float(trajectory.is_expert))  # (n_transitions,)
                    losses.append(weight * functional.binary_cross_entropy_with_logits(row, target, reduction="sum"))
                    sums["right"] += weight * int(((row > 0) == trajectory.is_expert).sum())
                    sums["expert" if trajectory.is_expert else "learner"] += 2 * weight * float(row.detach().sum())
                loss = torch.stack(losses).sum()
                loss.backward()
                sums["loss"] += loss.item()
            sums = dict(zip(sums, ranks().totals(list(sums.values())), strict=True))
            updater.step(batch, sums["loss"])
            seen.append(sums)
            on_progress((done + 1) / len(batches))
    last = seen[-(len(batches) // options.n_epochs) :]
    means = {name: float(np.mean([sums[name] for sums in last])) for name in last[0]}
    return InverseReport(means["loss"], means["right"], means["expert"], means["learner"])


def two_sided_batches(data: Sequence[Trajectory], size: int, rng: np.random.Generator) -> list[list[Trajectory]]:
    """Shuffled minibatches of which one half is the expert's; the smaller side is gone through more than once.

    With few demonstrations most minibatches would otherwise hold none, and push everything down.
    """
    sides = [[t for t in data if t.is_expert == side] for side in (True, False)]
    half = max(1, size // 2)
    n_batches = max(-(-len(side) // half) for side in sides)
    orders = []
    for side in sides:
        n = min(half, len(side))
        rounds = -(-n_batches * n // len(side))
        order = [side[int(i)] for _ in range(rounds) for i in rng.permutation(len(side))]
        orders.append([order[i * n : (i + 1) * n] for i in range(n_batches)])
    return [[*expert, *learner] for expert, learner in zip(*orders, strict=True)]
