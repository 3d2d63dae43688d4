"""Stage 3 of a policy that gives reasons: whole responses compete.

At each logged state the current policy writes several responses, each with a reason of its own. The PRM judges what it reads of
them, and the log-probability of all that was written and chosen is learnt from, as in the paper. To compare commands behind the
reason that was logged would leave the reasons as they are, and a reason all but names the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.scoring import Responder, score_turns
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.requests import Request
from algorithms.common.acting.search import PRMRows
from algorithms.common.learning.batches import own_pieces, pieces
from algorithms.common.prm.bandit import Bandit, ImproveStats, Piece, UpdateSums
from algorithms.common.prm.objectives import SAMPLED, Choice, Scored, pair_accuracy
from algorithms.common.prm.options import ImproveOptions

#: Objectives that compare two responses. The others are about a distribution over the admissible commands.
PAIRED = ("online_dpo", "online_ipo")


@dataclass(slots=True)
class Contest(Scored):
    """A state, and responses that the current policy wrote there.

    Attributes:
        piece: its episode in the batch.
        turn: index of the turn in the episode.
        written: the different responses in the order in which they were first drawn, each as a turn in the place of the logged
            one. So the first of them is a draw from the policy.
        q: what the PRM says of each, in (0, 1).
        scores: what those that are compared are worth, by their indices.
        reference: (n_read,) log-probabilities under the previous policy, in nats; see :attr:`read`.
    """

    piece: Piece
    turn: int
    written: list[Turn]
    q: list[float] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    reference: torch.Tensor | None = None

    @property
    def commands(self) -> list[str]:
        """The command of each response."""
        return [turn.command for turn in self.written]

    @property
    def read(self) -> list[int]:
        """The responses whose log-probabilities are needed: the best, the worst, and the one that was written first."""
        return list(dict.fromkeys((self.best, self.worst, 0)))

    def episodes(self) -> list[Episode]:
        """The episode up to the state, with each response of :attr:`read` at its end."""
        e = self.piece.episode
        return [replace(e, turns=[*e.turns[: self.turn], self.written[i]]) for i in self.read]

    def choice(self, log_probs: torch.Tensor) -> Choice:
        """The contest as the objectives see it.

        Args:
            log_probs: (n_read,) the policy's log-probabilities of the responses of :attr:`read`, with gradients.
        """
        assert self.reference is not None
        scores = {k: self.scores[i] for k, i in enumerate(self.read[:2])}
        return Choice(log_probs, self.reference, dict.fromkeys(scores, 1), scores)

    def divergence(self, log_probs: torch.Tensor) -> float:
        """KL(policy || reference) in nats, estimated from one response: without bias, and noisy."""
        assert self.reference is not None
        k = self.read.index(0)
        return float(log_probs[k].detach() - self.reference[k])


def compare_responses(
    options: ImproveOptions,
    bandit: Bandit,
    batch: Sequence[Piece],
    micro_batch_size: int,
    rng: np.random.Generator,
    stats: ImproveStats,
) -> UpdateSums:
    """Add the gradients of the objective about whole responses, summed over the states of a batch.

    Args:
        options: of the improvement; the objective is one of :data:`PAIRED`.
        bandit: the policy, its reference, and what scores responses.
        batch: the states.
        micro_batch_size: episodes a forward pass.
        rng: random stream.
        stats: what happened is counted there.
    """
    here, seed, contests = UpdateSums(), int(rng.integers(2**63)), list[Contest]()
    for number, piece in enumerate(batch):
        piece.seed = (seed, number)
    for part in own_pieces(batch, micro_batch_size):
        for contest in hold_contests(bandit, part, options.n_samples, options.temperature):
            stats.n_states += 1
            if not contest.q:
                stats.n_same += 1
                continue
            q, episode = dict(enumerate(contest.q)), contest.piece.episode
            contest.scores = bandit.worth(options, episode, contest.turn, q, contest.commands, stats, here)
            if contest.scores:
                contests.append(contest)
    ask_reference(bandit, contests, micro_batch_size, options.temperature)
    with bandit.lm.active(bandit.policy, train=True):
        for some in in_passes(contests, micro_batch_size):
            rows = list(log_probs_of(bandit.responder, some, options.temperature))
            choices = [contest.choice(row) for contest, row in zip(some, rows, strict=True)]
            here.kl += [contest.divergence(row) for contest, row in zip(some, rows, strict=True)]
            here.accuracy += pair_accuracy(choices)
            here.learn(SAMPLED[options.objective](choices, options.beta))
    return here


@torch.no_grad()
def hold_contests(bandit: Bandit, part: Sequence[Piece], n: int, temperature: float) -> list[Contest]:
    """Let the policy write at every state of a forward pass, and the PRM judge.

    Args:
        bandit: the policy and the PRM.
        part: the pieces, with their :attr:`~algorithms.common.prm.bandit.Piece.seed`.
        n: responses a state, 2 or more.
        temperature: at which they are written, above 0.

    Returns:
        A contest for each state, in order; where all responses were the same, its ``q`` is empty.
    """
    states = [(piece, t) for piece in part for t in piece.turns]
    requests = [
        Request(
            row,
            piece.episode.task,
            piece.episode.turns[t].feedback,
            piece.episode.turns[t].admissible_commands,
            np.random.default_rng([*piece.seed, t]),
        )
        for row, (piece, t) in enumerate(states)
    ]
    actor = PolicyActor(
        bandit.responder, bandit.policy, len(requests), temperature=temperature, cache_tokens=bandit.cache_tokens
    )
    for request, (piece, t) in zip(requests, states, strict=True):
        actor.start(request.row, request.task, piece.episode.turns[:t])
    with bandit.lm.merged(bandit.policy):
        drawn = actor.sample(requests, n)
    contests = []
    for request, (piece, t), answers in zip(requests, states, drawn, strict=True):
        different: dict[tuple[str, str], Turn] = {}
        for answer in answers:
            different.setdefault((answer.command, answer.response), answer.turn(request))
        contests.append(Contest(piece, t, list(different.values())))
    _judge(bandit, [(r, c) for r, c in zip(requests, contests, strict=True) if len(c.written) > 1])
    return contests


def _judge(bandit: Bandit, asked: Sequence[tuple[Request, Contest]]) -> None:
    if not asked:
        return
    rows, prm = PRMRows(bandit.prm, len(asked), bandit.cache_tokens), bandit.prm
    for request, contest in asked:
        rows.start(request.row, request.task, contest.piece.episode.turns[: contest.turn])
    requests = [request for request, _ in asked]
    rows.read(requests)
    with bandit.lm.merged(prm.adapter):
        scored = rows.score_replies(requests, [[prm.reply_of(turn) for turn in c.written] for _, c in asked])
    for (_, contest), q in zip(asked, scored, strict=True):
        contest.q = q


def log_probs_of(responder: Responder, contests: Sequence[Contest], temperature: float) -> Iterator[torch.Tensor]:
    """Log-probabilities, under the adapter that is active, of the responses that contests need: (n_read,) of each."""
    episodes = [contest.episodes() for contest in contests]
    flat = [episode for some in episodes for episode in some]
    scored = score_turns(responder, flat, [[len(e.turns) - 1] for e in flat], temperature=temperature)
    rows = iter(scored)
    for some in episodes:
        yield torch.stack([next(rows)[0].log_prob for _ in some])


@torch.no_grad()
def ask_reference(bandit: Bandit, contests: Sequence[Contest], micro_batch_size: int, temperature: float) -> None:
    """Let contests know what the previous policy thinks of their responses."""
    with bandit.lm.merged(bandit.reference):
        for some in in_passes(contests, micro_batch_size):
            for contest, row in zip(some, log_probs_of(bandit.responder, some, temperature), strict=True):
                contest.reference = row


def in_passes(contests: Sequence[Contest], micro_batch_size: int) -> Iterator[Sequence[Contest]]:
    """Contests of one forward pass each: with three responses each, about as many episodes as the others have in a pass."""
    return pieces(contests, max(1, micro_batch_size // 3))
