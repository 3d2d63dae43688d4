"""The bandit of stage 3: logged states as arms, the policy that chooses, its reference, and the PRM that scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.ranks import ranks
from algorithms.common.prm.evidence import Evidence
from algorithms.common.prm.objectives.choice import Choice, kl_to_reference
from algorithms.common.prm.options import ImproveOptions

#: Name of the adapter with the previous policy, the anchor of an improvement.
REFERENCE = "reference"


@dataclass(slots=True)
class Piece:
    """An episode of a batch, and those of its turns that serve as states.

    Attributes:
        episode: the episode.
        turns: indices of the states, ascending.
        log_probs: of each state (n_commands,), the policy's, with gradients.
        reference: of each state (n_commands,), the reference's.
        logits: of each state (n_commands,), the PRM's; ``None`` where it only reads the commands that are sampled.
        seed: of the responses that are written there, see :mod:`algorithms.common.prm.responses`.
    """

    episode: Episode
    turns: list[int]
    log_probs: Sequence[torch.Tensor] = ()
    reference: Sequence[torch.Tensor] = ()
    logits: Sequence[torch.Tensor] | None = None
    seed: tuple[int, ...] = ()

    def temper(self, temperature: float) -> None:
        """Make both distributions those that are sampled from at a temperature."""
        if temperature != 1:
            self.log_probs, self.reference = (
                [torch.log_softmax(row / temperature, 0) for row in rows] for rows in (self.log_probs, self.reference)
            )

    @torch.no_grad()
    def divergences(self) -> list[float]:
        """KL(policy || reference) at each state, in nats."""
        return [float(kl_to_reference(Choice(p, q))) for p, q in zip(self.log_probs, self.reference, strict=True)]


@dataclass(slots=True)
class Place:
    """A state at which different commands were drawn.

    Attributes:
        piece: index of its episode in the forward pass.
        turn: index of the turn in the episode.
        row: index of the turn among the piece's turns.
        counts: how often each admissible command, by its index, was drawn.
    """

    piece: int
    turn: int
    row: int
    counts: Mapping[int, int]


@dataclass(slots=True)
class Bandit:
    """Everything that improvement asks.

    Attributes:
        lm: the language model.
        policy: name of the adapter to train.
        reference: name of the previous policy's adapter.
        responder: how the policy acts.
        prm: scores commands.
        evidence: Monte-Carlo visits to weigh in; ``None`` leaves the ranking to the PRM, as in the paper.
        cache_tokens: tokens that each cache may hold where responses are written and judged; ``None``: no limit.
    """

    lm: LanguageModel
    policy: str
    reference: str
    responder: Responder
    prm: ProcessRewardModel
    evidence: Evidence | None = None
    cache_tokens: int | None = None

    @torch.no_grad()
    def ask_reference_and_prm(self, parts: Sequence[Sequence[Piece]], *, prm: bool, all_commands: bool) -> None:
        """Ask the reference, and the PRM where it scores all commands in one pass; small bases with the adapter folded in.

        Args:
            parts: the pieces of each forward pass.
            prm: whether the PRM is asked at all.
            all_commands: whether scores of all admissible commands are needed, whatever that costs.
        """
        with self.lm.merged(self.reference):
            for part in parts:
                rows_of = episode_log_probs(self.responder, [x.episode for x in part], [x.turns for x in part])
                for piece, rows in zip(part, rows_of, strict=True):
                    piece.reference = rows
        if prm and (all_commands or self.prm.form == "log_prob"):
            with self.lm.merged(self.prm.adapter):
                for part in parts:
                    scored = self.prm.score_all([x.episode for x in part], [x.turns for x in part])
                    for piece, logits in zip(part, scored, strict=True):
                        piece.logits = logits

    def q_of_all(self, piece: Piece) -> list[torch.Tensor]:
        """Q in (0, 1) of every admissible command at each state of a piece, (n_commands,) each, evidence weighed in."""
        assert piece.logits is not None
        rows = [torch.sigmoid(logits) for logits in piece.logits]
        if self.evidence is None:
            return rows
        return [self.evidence.weigh_all(piece.episode, t, q) for t, q in zip(piece.turns, rows, strict=True)]

    def q_of_samples(self, part: Sequence[Piece], places: Sequence[Place]) -> Iterator[tuple[Place, torch.Tensor]]:
        """Q in (0, 1) of what was drawn: each place, with (n_distinct,) in the order of its ``counts``."""
        by_piece: dict[int, list[Place]] = {}
        for place in places:
            by_piece.setdefault(place.piece, []).append(place)
        if all(piece.logits is not None for piece in part):
            for b, members in by_piece.items():
                logits = part[b].logits or ()
                yield from ((s, torch.sigmoid(logits[s.row][list(s.counts)]).cpu()) for s in members)
            return
        items = []
        for b, members in by_piece.items():
            e = part[b].episode
            wanted = [(s.turn, [e.turns[s.turn].admissible_commands[i] for i in s.counts]) for s in members]
            items.append((e.task, e.turns, wanted))
        if items:
            for members, scores in zip(by_piece.values(), self.prm.score(items), strict=True):
                yield from zip(members, scores, strict=True)

    def worth(
        self,
        options: ImproveOptions,
        episode: Episode,
        turn: int,
        q: Mapping[int, float],
        commands: Sequence[str],
        stats: ImproveStats,
        here: UpdateSums,
    ) -> dict[int, float]:
        """What was drawn at a state is worth, evidence weighed in; empty where nothing is to be learnt from it.

        Args:
            options: of the improvement.
            episode: the episode.
            turn: index of the state in it.
            q: the PRM's scores in (0, 1), by the indices of what was drawn.
            commands: the command of each index.
            stats: what happened is counted there,
            here: and there, for this update.
        """
        here.score.append(float(np.mean(list(q.values()))))
        scores = dict(q) if self.evidence is None else self.evidence.weigh(episode, turn, q, commands)
        if len(scores) < 2:
            stats.n_untried += 1
            return {}
        if options.score_scale == "logit":
            scores = {option: logit(score) for option, score in scores.items()}
        gap = max(scores.values()) - min(scores.values())
        if gap < options.margin:
            stats.n_close += 1
            return {}
        here.gap.append(gap)
        stats.n_pairs += 1
        return scores


def logit(q: float) -> float:
    """The logit of a score in [0, 1], which is kept 1e-6 away from both ends."""
    q = min(max(q, 1e-6), 1 - 1e-6)
    return float(np.log(q / (1 - q)))


def pass_over(part: Sequence[Piece], n_samples: int, rng: np.random.Generator) -> None:
    """Use up the random numbers of pieces that another process computes, so that all go on with the same stream."""
    for piece in part:
        for t in piece.turns:
            for _ in range(n_samples):
                rng.gumbel(size=len(piece.episode.turns[t].admissible_commands))


@dataclass(slots=True)
class ImproveStats:
    """What happened while the policy was improved; one number an update in each series.

    Attributes:
        losses: mean loss of the states.
        accuracies: share of pairs in which the policy prefers the chosen command more than the reference does.
        kl: KL(policy || reference) at the batch's states, in nats a turn.
        gaps: mean gap between the best and the worst score of the states that are learnt from.
        scores: mean score of what the policy samples.
        n_states: states looked at.
        n_pairs: states learnt from.
        n_same: states at which one command only was drawn.
        n_close: states dropped for a gap under the margin.
        n_untried: states at which fewer than two of the drawn commands had been tried.
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

    def of_all_processes(self) -> ImproveStats:
        """The same with the states of all processes counted that train together; the series are of all already."""
        names = ("n_states", "n_pairs", "n_same", "n_close", "n_untried")
        counts = ranks().totals([getattr(self, name) for name in names])
        changed: dict[str, Any] = {name: int(n) for name, n in zip(names, counts, strict=True)}
        return replace(self, **changed)


@dataclass(slots=True)
class UpdateSums:
    """What the states of one update, or for ``score`` its samples, gave."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)

    def learn(self, losses: Sequence[torch.Tensor]) -> None:
        """Add the gradients of a forward pass with these losses, scalars."""
        if losses:
            stacked = torch.stack(list(losses))  # (n_states,)
            stacked.sum().backward()
            self.loss += stacked.tolist()

    def of_all_processes(self) -> UpdateSums:
        """What all processes that train together found in this update."""
        found = ranks().gather((self.loss, self.accuracy, self.kl, self.gap, self.score))
        return UpdateSums(*([x for some in lists for x in some] for lists in zip(*found, strict=True)))

    def enter(self, stats: ImproveStats) -> None:
        """Add the means to the series; an empty list adds nothing."""
        for values, series in (
            (self.loss, stats.losses),
            (self.accuracy, stats.accuracies),
            (self.kl, stats.kl),
            (self.gap, stats.gaps),
            (self.score, stats.scores),
        ):
            if values:
                series.append(float(np.mean(values)))
