"""Online DPO on outcomes, without a process reward model: pairs of commands that were tried in the same state.

Several episodes of a game pass through the same states, early ones above all. Where different commands were tried there, the
one that led to the better mean return is preferred to the one that led to the worst (Rafailov et al., arXiv 2305.18290, for the
loss; Guo et al., arXiv 2402.04792, for sampling pairs from the current policy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float
from agentprm_gym.llm.scoring import episode_log_probs
from agentprm_gym.states import state_keys
from algorithms.agent_prm.targets import QTable
from algorithms.common.acting.planning.situations import PolicyPrior
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.ranks import ranks
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.batches import minibatches, own_pieces
from algorithms.common.learning.clipped import REFERENCE
from algorithms.common.learning.grouped import GroupedLLMAlgorithm, Played, check_group_size
from algorithms.common.prm.objectives.online_dpo import dpo_loss
from algorithms.common.prm.objectives.smoothed_dpo import smoothed_dpo_loss
from algorithms.online_dpo.trees import TreeStage

#: Random stream of the trees of an iteration.
TREES = 5


@dataclass(slots=True)
class Pair:
    """Two commands at one turn of an episode.

    Attributes:
        played: the rollout.
        turn: which turn.
        chosen: index of the better command among the admissible ones.
        rejected: index of the worse one.
        epsilon: share of the label that is smoothed away, in [0, 0.5].
    """

    played: Played
    turn: int
    chosen: int
    rejected: int
    epsilon: float = 0.0


class OnlineDPO(GroupedLLMAlgorithm):
    """Direct preference optimisation against the policy of the iteration's beginning, on pairs ranked by outcome."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 60,
        group_size: int = 8,
        batch_size: int = 16,
        n_epochs: int = 4,
        margin: float = 0.15,
        gamma: float = 0.98,
        beta: float = 0.2,
        tree: TreeStage | Mapping[str, Any] | None = None,
        max_grad_norm: float = 1.0,
        micro_batch_size: int = 16,
        n_envs: int = 64,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        """Build the policy and take the environments.

        Args:
            policy: alias of a bundled model, folder or hub id of a causal language model, or the zip of a trained
                algorithm to start from; commands must be chosen, not written freely.
            env: training environment, or its id.
            learning_rate: step size of the policy's adapter, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, which are compared with each other, 2 or more.
            batch_size: pairs an update, 1 or more.
            n_epochs: passes over an iteration's pairs, 1 or more.
            margin: smallest difference of mean returns within a pair, 0 or more.
            gamma: discount a turn, above 0 and at most 1.
            beta: DPO's pull to the policy of the iteration's beginning, above 0.
            tree: pairs come from tree searches in place of outcomes, see
                :class:`~algorithms.online_dpo.trees.TreeStage`; a dict of its fields. ``None``: from outcomes. Steps of the
                trees are not counted as timesteps, ``train/tree_steps`` has them; ``margin`` is not used then.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: pairs a forward pass, 1 or more; it changes memory and speed alone.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device; ``"auto"`` takes a GPU where one is found.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, or the policy has no distribution over commands
                (``action_mode="generate"``), or its temperature is 0.
        """
        check_group_size(group_size)
        self.gamma = check_float("gamma", gamma, most=1.0, above=0.0)
        self.beta = check_float("beta", beta, above=0.0)
        self.margin = check_float("margin", margin, 0.0)
        self.tree = TreeStage.of(tree)
        #: Trees begin in states of the episodes.
        self.needs_snapshots = self.tree is not None
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            max_grad_norm=max_grad_norm,
            micro_batch_size=micro_batch_size,
            n_envs=n_envs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.policy.responder.mode == "generate":
            raise ValueError(
                'OnlineDPO compares admissible commands, of which action_mode="generate" has no distribution: use '
                '"constrained", with "reason": True where the policy is to think'
            )
        if self.policy.temperature == 0:
            raise ValueError(
                "OnlineDPO compares commands that were sampled in the same state: expected a policy with a temperature "
                "above 0, got 0 (greedy), which never tries two"
            )

    def pairs(self, played: Sequence[Played]) -> list[Pair]:
        """Best against worst command of every state where several were tried; each state once."""
        table = QTable(self.gamma)
        table.add([one.episode for one in played], [one.rollout.n_history for one in played])
        out: list[Pair] = []
        seen: set[Any] = set()
        for one in played:
            for t, key in enumerate(state_keys(one.episode.task, one.episode.turns)):
                visits = table.visits.get(key, {})
                if key in seen or len(visits) < 2:
                    continue
                seen.add(key)
                means = {command: visit.total / visit.n for command, visit in visits.items()}
                best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
                options = list(one.episode.turns[t].admissible_commands)
                if means[best] - means[worst] >= self.margin and best in options and worst in options:
                    out.append(Pair(one, t, options.index(best), options.index(worst)))
        return out

    def tree_pairs(self, tree: TreeStage, played: Sequence[Played]) -> list[Pair]:
        """The pairs of tree searches at states of the episodes."""
        prior = PolicyPrior(self.policy.responder, POLICY)
        rng = np.random.default_rng([self.seed_base, self.iteration, TREES])
        with self.lm.merged(POLICY):
            found, calls = tree(prior, self.venv, played, self.policy.temperature, rng)
        self.logger.record("train/tree_steps", calls["steps"])
        out = []
        for pair in found:
            episode, options = pair.situation.episode(pair.chosen), list(pair.situation.admissible_commands)
            one = Played(Rollout(episode, [], len(pair.situation.turns)), 0)
            chosen, rejected = options.index(pair.chosen), options.index(pair.rejected)
            out.append(Pair(one, len(pair.situation.turns), chosen, rejected, pair.epsilon))
        return out

    def learn_from(self, played: Sequence[Played]) -> None:
        """Prefer the better command of each pair, with the policy as it was when it played as the reference."""
        self.lm.copy_adapter(POLICY, REFERENCE)
        pairs = self.pairs(played) if self.tree is None else self.tree_pairs(self.tree, played)
        self.logger.record("train/n_pairs", len(pairs))
        rng = self._order()
        losses = []
        for _ in range(self.n_epochs):
            for batch in minibatches(pairs, self.batch_size, rng):
                losses.append(
                    ranks().total(
                        sum(self.add_gradients(piece, len(batch)) for piece in own_pieces(batch, self.micro_batch_size))
                    )
                )
                self.updater.step([pair.played for pair in batch], losses[-1])
                self._n_updates += 1
        self.logger.record("train/loss", float(np.mean(losses)) if losses else float("nan"))
        self.logger.record("train/n_updates", self._n_updates)

    def add_gradients(self, batch: Sequence[Pair], n: int) -> float:
        """Add the gradients of the DPO loss of a part of a minibatch.

        Args:
            batch: the part.
            n: pairs in the whole minibatch.

        Returns:
            The part's summand of the loss.
        """
        episodes = [pair.played.episode for pair in batch]
        turns = [[pair.turn] for pair in batch]
        with torch.no_grad(), self.lm.active(REFERENCE):
            ref = [row[0] for row in episode_log_probs(self.policy.responder, episodes, turns)]
        with self.lm.active(POLICY, train=True):
            new = [row[0] for row in episode_log_probs(self.policy.responder, episodes, turns)]
            chosen, rejected, ref_chosen, ref_rejected = (
                torch.stack([source[i][pair.chosen if good else pair.rejected] for i, pair in enumerate(batch)])  # (B,)
                for source, good in ((new, True), (new, False), (ref, True), (ref, False))
            )
            if self.tree is None:
                loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, self.beta).sum() / n
            else:
                epsilon = torch.tensor([pair.epsilon for pair in batch], dtype=chosen.dtype, device=chosen.device)
                loss = smoothed_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, self.beta, epsilon).sum() / n
            loss.backward()
        return float(loss.detach())

    @classmethod
    def _current_settings(cls, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
        # Saves of version 0.1 hold options about ratios, which had no effect.
        settings = super()._current_settings(settings, path)
        return {name: value for name, value in settings.items() if name in cls.constructor_names()}
