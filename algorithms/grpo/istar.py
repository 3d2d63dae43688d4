"""iStar (arXiv 2509.19199), and the loss of PRIME (arXiv 2502.01456): a process reward model trained beside the policy.

The process reward model is a second policy phi. Its reward is a log-ratio, so no value is learnt (Yuan et al., arXiv
2412.01981)::

    r(s, a)   = beta sum over tokens of [log pi_phi - log pi_old]
    S(tau)    = sum over the turns of tau of [log pi_phi - log pi_old]
    A_t       = A_episode + step_coef * A_step,    A_step = r less the mean over the turns of the game's episodes
    loss      "dpo" (iStar):  -log sigmoid(beta [S(won) - S(lost)])      over won and lost episodes of one game
              "bce" (PRIME):  cross-entropy of sigmoid(beta S) to the outcome

phi begins as the policy and is moved after an iteration's rewards were taken, so that they do not know its own outcomes. In the
first iteration they are 0. It takes as many updates as the policy, of the same size: a phi that lagged behind would pay for
going back to where the policy was. Of PRIME only the loss is here: it also estimates advantages by leave-one-out and filters
prompts. An outcome above 0 counts as won.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_choice, check_float
from agentprm_gym.llm.saving import SavedModel
from agentprm_gym.llm.scoring import score_turns
from algorithms.common.acting.policy import POLICY
from algorithms.common.learning.advantages import Floats, by_group, group_advantages
from algorithms.common.learning.batches import own_pieces, pieces
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.optim import Updater
from algorithms.grpo.grpo import GRPO

#: Name of the adapter of phi.
IMPLICIT = "implicit"
LOSSES = ("dpo", "bce")


class IStar(GRPO):
    """GRPO with step rewards by an implicit process reward model; ``agentprm train --algo algorithms.grpo:IStar``."""

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 24,
        group_size: int = 8,
        batch_size: int = 16,
        n_epochs: int = 1,
        normalize: str = "batch",
        step_coef: float = 1.0,
        implicit_loss: str = "dpo",
        implicit_beta: float = 0.05,
        implicit_learning_rate: float | None = None,
        gamma: float = 0.98,
        clip_range: float = 0.2,
        target_kl: float | None = None,
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
            policy: see :class:`GRPO`, as for all that is not explained here.
            env: training environment, or its id.
            learning_rate: step size of the policy's adapter, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, 2 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's episodes, 1 or more.
            normalize: divide advantages by the standard deviation of the ``"group"``, of the ``"batch"``, or by nothing
                (``"none"``); both parts by their own.
            step_coef: weight of the step advantages, 0 or more; 0 is GRPO.
            implicit_loss: of the process reward model, ``"dpo"`` or ``"bce"``.
            implicit_beta: beta above, above 0; the papers' is 0.05.
            implicit_learning_rate: step size of the process reward model's adapter, above 0; ``None``: the policy's, as in the
                papers.
            gamma: discount a turn, above 0 and at most 1.
            clip_range: how far from 1 a probability ratio counts, from 0 to 1.
            target_kl: an iteration's updates end where the divergence exceeds 1.5 times this; ``None``: never.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: episodes a forward pass, 1 or more.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, or the policy's temperature is 0.
        """
        check_choice("implicit_loss", implicit_loss, LOSSES)
        self.step_coef, self.implicit_loss = check_float("step_coef", step_coef, 0.0), implicit_loss
        self.implicit_beta = check_float("implicit_beta", implicit_beta, above=0.0)
        if implicit_learning_rate is not None:
            check_float("implicit_learning_rate", implicit_learning_rate, above=0.0)
        self.implicit_learning_rate = implicit_learning_rate
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            normalize=normalize,
            gamma=gamma,
            clip_range=clip_range,
            target_kl=target_kl,
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
        self.implicit_updater = Updater(
            lambda: self.lm.adapter_parameters(IMPLICIT),
            self.learning_rate if implicit_learning_rate is None else implicit_learning_rate,
            self.max_grad_norm,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.lm.copy_adapter(POLICY, IMPLICIT)

    def advantages(self, samples: Sequence[Sample]) -> None:
        """``A_episode + step_coef * A_step``; then the process reward model is moved."""
        super().advantages(samples)
        old = self._log_probs(samples, POLICY)
        new = self._log_probs(samples, IMPLICIT)
        ratios = [n - o for n, o in zip(new, old, strict=True)]
        steps = np.concatenate([self.implicit_beta * r for r in ratios])  # of all turns
        groups = [s.group for s in samples for _ in s.episode.turns]
        self.logger.record("prm/step_reward_spread", float(steps.std()))
        if np.abs(steps).max() > 1e-6:  # else it is rounding, which a standard deviation would blow up
            relative = group_advantages(steps.tolist(), groups, normalize=self.normalize)
            start = 0
            for sample in samples:
                n = len(sample.episode.turns)
                sample.advantages = sample.advantages + self.step_coef * relative[start : start + n]
                start += n
        self.logger.record("prm/loss", self._fit(samples, old))

    def _fit(self, samples: Sequence[Sample], old: Sequence[Floats]) -> float:
        """Move the process reward model: minibatches of whole games, as large and as often as the policy's.

        Args:
            samples: the iteration's.
            old: log-probability of each turn's response under the policy that acted, (T,) for each sample.

        Returns:
            The mean loss of the minibatches.
        """
        games, rng, losses = list(by_group([s.group for s in samples]).values()), self._order(), list[float]()
        for _ in range(self.n_epochs):
            batch: list[int] = []
            order = rng.permutation(len(games))
            for place, game in enumerate(order):
                batch += games[int(game)]
                if len(batch) < self.batch_size and place + 1 < len(order):
                    continue
                some = [samples[i] for i in batch]
                told = zip(self._log_probs(some, IMPLICIT), batch, strict=True)
                sums = np.array([(row - old[i]).sum() for row, i in told])
                won = np.array([sum(s.rollout.rewards) > 0 for s in some])
                loss, slopes = implicit_loss(sums, won, [s.group for s in some], self.implicit_beta, self.implicit_loss)
                losses.append(loss)
                self._move(some, slopes)
                batch = []
        return float(np.mean(losses))

    @torch.no_grad()
    def _log_probs(self, samples: Sequence[Sample], adapter: str) -> list[Floats]:
        """Log-probability of each turn's response under an adapter, (T,) for each sample."""
        out: list[Floats] = []
        with self.lm.active(adapter):
            for part in pieces(samples, self.micro_batch_size):
                out += [np.array([float(x) for x in row]) for row in self._summed(part)]
        return out

    def _summed(self, part: Sequence[Sample]) -> list[list[torch.Tensor]]:
        rows = score_turns(self.policy.responder, [s.episode for s in part], temperature=self.policy.temperature)
        return [[score.choices.sum() for score in row] for row in rows]

    def _move(self, samples: Sequence[Sample], slopes: Floats) -> None:
        """One step down the loss, by its slope in each episode's sum of log-probabilities."""
        useful = [(s, float(g)) for s, g in zip(samples, slopes, strict=True) if g != 0]
        if not useful:
            return
        with self.lm.active(IMPLICIT, train=True):
            for part in own_pieces(useful, self.micro_batch_size):
                sums = [torch.stack(row).sum() for row in self._summed([s for s, _ in part])]
                torch.stack([g * x for (_, g), x in zip(part, sums, strict=True)]).sum().backward()
        self.implicit_updater.step([s for s, _ in useful])

    # ------------------------------------------------------------------ saves and checkpoints
    def _running_state(self) -> dict[str, Any]:
        return {**super()._running_state(), "implicit_optimizer": self.implicit_updater.state()}

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        super()._restore_running_state(state)
        self.implicit_updater.load_state(state["implicit_optimizer"])

    def _to_save(self) -> SavedModel:
        saved = super()._to_save()
        saved.adapters[IMPLICIT] = self.lm.adapter_state(IMPLICIT)
        saved.adapter_configs[IMPLICIT] = self.lm.adapter_config(IMPLICIT)
        return saved

    def _restore(self, saved: SavedModel) -> None:
        super()._restore(saved)
        self.lm.load_adapter_state(IMPLICIT, saved.adapters[IMPLICIT])


def implicit_loss(
    sums: Floats, won: np.ndarray[Any, Any], groups: Sequence[Any], beta: float, how: str
) -> tuple[float, Floats]:
    """The loss of an implicit process reward model, and its slopes.

    Args:
        sums: (N,) ``S`` of the episodes.
        won: (N,) whether each was won.
        groups: (N,) which game each is of.
        beta: above 0.
        how: ``"dpo"``: mean over the pairs of a won and a lost episode of one game; ``"bce"``: mean over episodes.

    Returns:
        The loss (0 without pairs), and its (N,) derivatives with respect to ``sums``.
    """
    slopes = np.zeros(len(sums))
    if how == "bce":
        z = beta * sums
        loss = np.logaddexp(0, z) - won * z
        slopes += beta * (_sigmoid(z) - won) / len(sums)
        return float(loss.mean()), slopes
    pairs = [(w, x) for members in by_group(groups).values() for w in members if won[w] for x in members if not won[x]]
    total = 0.0
    for w, x in pairs:
        margin = beta * (sums[w] - sums[x])
        total += float(np.logaddexp(0, -margin)) / len(pairs)
        slope = beta * float(_sigmoid(-margin)) / len(pairs)
        slopes[w], slopes[x] = slopes[w] - slope, slopes[x] + slope
    return total, slopes


def _sigmoid(z: Any) -> Any:
    return np.exp(-np.logaddexp(0, -z))
