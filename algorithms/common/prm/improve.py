"""Stage 3 of Algorithm 1: ``pi_i = argmax_pi E_{s~D, a~pi}[Q(s, a)] - beta KL(pi || pi_{i-1})``.

A contextual bandit over logged states: commands are sampled from the *current* policy, the PRM scores them, and an objective
(:mod:`algorithms.common.prm.objectives`, one file each) moves the policy. The environment is not stepped.

A policy that gives reasons writes whole responses there, where the objective compares two
(:mod:`algorithms.common.prm.responses`); with the other objectives commands compete behind the reason that was logged.

Where Monte-Carlo visits are given as evidence, the PRM is the prior: a command tried ``n`` times with mean return ``q`` scores
``(n * q + k * PRM) / (n + k)``, and only commands that were tried are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.scoring import sample_commands, score_turns
from algorithms.common.acting.ranks import ranks
from algorithms.common.learning.batches import shared_pieces
from algorithms.common.learning.optim import MAX_GRAD_NORM, Updater, warm_up_and_decay
from algorithms.common.prm.bandit import Bandit, ImproveStats, Piece, Place, UpdateSums, pass_over
from algorithms.common.prm.objectives import SAMPLED, Choice, closed_form_losses, imitate, imitation, pair_accuracy
from algorithms.common.prm.options import ImproveOptions
from algorithms.common.prm.responses import PAIRED, compare_responses


@dataclass(frozen=True)
class ImproveStage(ImproveOptions):
    """Stage 3 with its options; ``improve=`` takes one, or a dict of its fields."""

    def __call__(
        self,
        bandit: Bandit,
        states: Sequence[tuple[Episode, Sequence[int]]],
        successes: Sequence[tuple[Episode, int]] = (),
        *,
        learning_rate: float,
        micro_batch_size: int,
        rng: np.random.Generator,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> ImproveStats:
        """Improve the policy.

        Args:
            bandit: the policy, its reference, and what scores commands.
            states: logged episodes, each with the turns that may serve as states.
            successes: episodes to imitate, each with the first turn to imitate.
            learning_rate: peak, with a short warm-up and a linear decay to 0.
            micro_batch_size: episodes a forward pass; it changes memory and speed alone.
            rng: random stream.
            on_progress: called after each update with the share that is done.
        """
        stats, order = ImproveStats(), list[int]()
        parameters = bandit.lm.adapter_parameters(bandit.policy)
        updater = Updater(lambda: parameters, learning_rate, MAX_GRAD_NORM)
        if self.objective == "imitation":
            states = [(episode, range(first, len(episode.turns))) for episode, first in successes]
        whole = self.objective in PAIRED and bandit.responder.writes_freely
        compare = partial(compare_responses, self) if whole else self._compare_commands
        for update in range(self.n_updates):
            warm_up_and_decay(updater.optimizer, learning_rate, update, self.n_updates)
            batch = self._draw(states, order, rng)
            here = compare(bandit, batch, micro_batch_size, rng, stats).of_all_processes()
            if here.loss:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad /= len(here.loss)
            with bandit.lm.active(bandit.policy, train=True):
                if self.imitation_coef > 0 and successes and self.objective != "imitation":
                    drawn = [successes[int(i)] for i in rng.permutation(len(successes))[: self.batch_size]]
                    imitate(bandit.responder, drawn, self.imitation_coef, micro_batch_size)
                updater.step(batch, sum(here.loss))
            here.enter(stats)
            on_progress((update + 1) / self.n_updates)
            if self.target_kl is not None and len(stats.kl) >= 5 and float(np.mean(stats.kl[-5:])) > self.target_kl:
                break
        return stats.of_all_processes()

    def _draw(
        self, states: Sequence[tuple[Episode, Sequence[int]]], order: list[int], rng: np.random.Generator
    ) -> list[Piece]:
        """The next batch of states: episodes in shuffled order, some turns of each, episodes of equal length side by side."""
        if len(order) < self.batch_size:
            order += [int(i) for i in rng.permutation(len(states))]
        drawn = [states[i] for i in order[: self.batch_size]]
        del order[: self.batch_size]
        whole = self.objective == "imitation"
        n_turns = [len(which) if whole else min(self.turns_per_episode, len(which)) for _, which in drawn]
        batch = [
            Piece(episode, sorted(int(t) for t in rng.choice(list(which), n, replace=False)))
            for (episode, which), n in zip(drawn, n_turns, strict=True)
        ]
        # Pieces of a forward pass are of similar length, so that little of it is padding.
        return sorted(batch, key=lambda piece: piece.turns[-1])

    def _compare_commands(
        self,
        bandit: Bandit,
        batch: Sequence[Piece],
        micro_batch_size: int,
        rng: np.random.Generator,
        stats: ImproveStats,
    ) -> UpdateSums:
        """Add the gradients of the objective about commands, summed over the states of a batch."""
        here, parts, crew = UpdateSums(), shared_pieces(batch, micro_batch_size), ranks()
        bandit.ask_reference_and_prm(
            list(crew.mine(parts)), all_commands=self.objective == "closed_form", prm=self.objective != "imitation"
        )
        with bandit.lm.active(bandit.policy, train=True):
            for i, part in enumerate(parts):
                if i % crew.size != crew.rank:
                    pass_over(part, self.n_samples if self.objective in SAMPLED else 0, rng)
                    continue
                here.learn(self._losses(bandit, part, rng, stats, here))
                for piece in part:
                    piece.log_probs = ()  # and the graph behind them
        return here

    def _losses(
        self, bandit: Bandit, part: Sequence[Piece], rng: np.random.Generator, stats: ImproveStats, here: UpdateSums
    ) -> list[torch.Tensor]:
        """The objective at each state of a forward pass, scalars; the policy is active."""
        scored = score_turns(bandit.responder, [x.episode for x in part], [x.turns for x in part])
        for piece, scores in zip(part, scored, strict=True):
            piece.log_probs = [score.commands for score in scores if score.commands is not None]
        if self.objective == "imitation":
            losses = [
                loss for x, scores in zip(part, scored, strict=True) for loss in imitation(x.episode, x.turns, scores)
            ]
        else:
            for piece in part:
                piece.temper(self.temperature)
            if self.objective == "closed_form":
                losses = closed_form_losses(self, bandit, part, stats, here)
            else:
                choices = self._scored(bandit, part, self._sample(part, rng, stats), stats, here)
                losses = SAMPLED[self.objective](choices, self.beta) if choices else []
                if choices and self.objective in PAIRED:
                    here.accuracy += pair_accuracy(choices)
        here.kl += [kl for piece in part for kl in piece.divergences()]
        return losses

    def _sample(self, part: Sequence[Piece], rng: np.random.Generator, stats: ImproveStats) -> list[Place]:
        """Commands sampled from the current policy at every state; states where one command was drawn only are dropped."""
        places = []
        for b, piece in enumerate(part):
            for k, t in enumerate(piece.turns):
                stats.n_states += 1
                row, counts = piece.log_probs[k].detach(), dict[int, int]()
                for _ in range(self.n_samples):
                    drawn = sample_commands(row, rng)[0]
                    counts[drawn] = counts.get(drawn, 0) + 1
                if len(counts) < 2:
                    stats.n_same += 1
                else:
                    places.append(Place(b, t, k, dict(sorted(counts.items()))))
        return places

    def _scored(
        self, bandit: Bandit, part: Sequence[Piece], places: Sequence[Place], stats: ImproveStats, here: UpdateSums
    ) -> list[Choice]:
        """The samples with their scores, where these differ by the margin."""
        choices = []
        for place, q in bandit.q_of_samples(part, places):
            piece = part[place.piece]
            scores = dict(zip(place.counts, q.tolist(), strict=True))
            commands = piece.episode.turns[place.turn].admissible_commands
            scores = bandit.worth(self, piece.episode, place.turn, scores, commands, stats, here)
            if scores:
                row, reference = piece.log_probs[place.row], piece.reference[place.row]
                choices.append(Choice(row, reference, place.counts, scores))
        return choices
