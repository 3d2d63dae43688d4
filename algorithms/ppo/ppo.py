"""PPO (Schulman et al., arXiv 1707.06347) over turns: a turn is an action, however many tokens it takes.

The value model is an adapter of its own over the shared base and sees the transcript up to the turn's prompt. A saved process
reward model can take its place (``critic="prm:<path>"``, see :mod:`algorithms.ppo.critic`). ``level="token"`` takes one ratio a
token of the response, all with the turn's advantage. An iteration is a number of whole episodes, not ``n_steps``. An episode
that was cut off by a step limit is bootstrapped from the value of the state in which it stood then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_bool, check_float
from agentprm_gym.llm.model import on_cpu
from agentprm_gym.llm.saving import SavedModel
from algorithms.common.learning.advantages import gae
from algorithms.common.learning.batches import own_pieces
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm
from algorithms.common.learning.value import VALUE, ValueModel
from algorithms.ppo.critic import PRM_MARK, Critic, PRMCritic, check_chooses, with_next_turn


class PPO(OnPolicyLLMAlgorithm):
    """Proximal policy optimisation with values of turns.

    Attributes:
        value: the value model; ``None`` where the critic is a process reward model.
        state_values: what tells the values, a :class:`~algorithms.ppo.critic.Critic`.

    Example:
        >>> from algorithms import PPO
        >>> model = PPO("sft.zip", "ALFWorldPRM-v0")  # doctest: +SKIP
        >>> model.learn(100_000).save("ppo")  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        n_games: int = 256,
        group_size: int = 1,
        batch_size: int = 64,
        n_epochs: int = 2,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        critic: str = "value",
        vf_coef: float = 0.5,
        clip_range_vf: float | None = None,
        gamma: float = 0.98,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        level: str = "turn",
        ent_coef: float = 0.0,
        beta: float = 0.0,
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
        """Build the policy and the critic, and take the environments.

        Args:
            policy: alias of a bundled model, folder or hub id of a causal language model, or the zip of a trained
                algorithm to start from.
            env: training environment, or its id; process rewards that it pays are learnt from, too.
            learning_rate: step size of the policy's adapter and of the value model, above 0.
            n_games: games an iteration, 1 or more.
            group_size: episodes of each game, 1 or more.
            batch_size: episodes an update, 1 or more.
            n_epochs: passes over an iteration's episodes, 1 or more.
            gae_lambda: of generalised advantage estimation, from 0 (trusts the values) to 1 (trusts the returns).
            normalize_advantage: bring an iteration's advantages to mean 0 and deviation 1.
            critic: what tells V(s): ``"value"``, an adapter with a head that is trained along; or ``"prm:<path>"``, the
                process reward model of a save, which stays as it is (:mod:`algorithms.ppo.critic`).
            vf_coef: weight of the value loss, 0 or more; only with ``critic="value"``.
            clip_range_vf: how far a value may move from the old one in an iteration, above 0; ``None``: any distance;
                only with ``critic="value"``.
            gamma: discount a turn, above 0 and at most 1.
            clip_range: how far below 1 a probability ratio counts, from 0 to 1.
            clip_range_high: how far above 1 it counts, 0 or more; ``None``: as far as below.
            level: one ratio a ``"turn"`` (the whole response) or one a ``"token"`` that was a choice.
            ent_coef: weight of the entropy of what is chosen at a turn, in nats, 0 or more.
            beta: weight of the KL divergence, in nats a turn, from the policy that training began with, 0 or more.
            target_kl: an iteration's updates end where the divergence from the policy that acted exceeds 1.5 times this
                (nats a ratio, above 0), as in SB3's PPO; ``None``: never.
            max_grad_norm: gradients of a larger norm are scaled down to it, above 0.
            micro_batch_size: episodes a forward pass, 1 or more; it changes memory and speed alone.
            n_envs: how many environments to make where ``env`` is an id, 1 or more.
            stats_window_size: episodes over which ``rollout/*`` is averaged, 1 or more.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`~algorithms.common.acting.policy.LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream, 0 or more; ``None``: runs differ.
            device: torch device; ``"auto"`` takes a GPU where one is found.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, an option has no effect with this critic, or the policy's temperature
                is 0.
        """
        self.gae_lambda = check_float("gae_lambda", gae_lambda, 0.0, 1.0)
        self.normalize_advantage = check_bool("normalize_advantage", normalize_advantage)
        self.vf_coef = check_float("vf_coef", vf_coef, 0.0)
        self.clip_range_vf = None if clip_range_vf is None else check_float("clip_range_vf", clip_range_vf, above=0.0)
        self.critic = _checked_critic(critic, vf_coef=vf_coef != 0.5, clip_range_vf=clip_range_vf is not None)
        self.value: ValueModel | None = None
        self.state_values: Critic | None = None
        self._old_values: dict[int, list[float]] = {}
        super().__init__(
            policy,
            env,
            learning_rate,
            n_games=n_games,
            group_size=group_size,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            clip_range=clip_range,
            clip_range_high=clip_range_high,
            level=level,
            ent_coef=ent_coef,
            beta=beta,
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

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.critic == "value":
            self.value = self.state_values = ValueModel(self.policy.responder)
        else:
            check_chooses(self.policy)

    def _prepare(self) -> None:
        super()._prepare()
        # Now and not when the policy is made: a loaded model predicts without its critic.
        if self.state_values is None:
            self.state_values = PRMCritic.load(self.critic.removeprefix(PRM_MARK), self.policy)

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The policy's and, where it is trained, the value model's."""
        return [*super().trained_parameters(), *(self.value.parameters() if self.value is not None else ())]

    def advantages(self, samples: Sequence[Sample]) -> None:
        """Generalised advantage estimates by the critic's values."""
        assert self.state_values is not None
        # An episode that was cut off might have gone on: the value of where it stood stands for what would have come.
        values = self.state_values.predict([with_next_turn(s.rollout) for s in samples], self.micro_batch_size)
        self._old_values = {id(s): v[: len(s.episode.turns)] for s, v in zip(samples, values, strict=True)}
        for sample, v in zip(samples, values, strict=True):
            n = len(sample.episode.turns)
            last = v[n] if sample.rollout.cut_off else 0.0
            sample.advantages = gae(sample.rollout.rewards, v[:n], self.gamma, self.gae_lambda, last)
            sample.returns = sample.advantages + np.array(v[:n])
            # What follows turns that somebody else played is not this policy's: there the critic keeps what it says.
            sample.returns[: sample.rollout.n_history] = v[: sample.rollout.n_history]
        everything = np.concatenate([s.advantages for s in samples])
        returns = np.concatenate([s.returns for s in samples])
        spread = float(returns.var())
        self.logger.record("train/explained_variance", 1 - float((everything).var()) / spread if spread > 0 else np.nan)
        if self.normalize_advantage:
            mean, deviation = float(everything.mean()), float(everything.std())
            for sample in samples:
                sample.advantages = (sample.advantages - mean) / (deviation + 1e-8)

    def extra_loss(self, batch: Sequence[Sample], n_turns: int) -> None:
        """Add gradients of the value loss."""
        if self.value is None:
            return
        with self.lm.active(VALUE, train=True):
            for piece in own_pieces(batch, self.micro_batch_size):
                (self.vf_coef * self.value_loss_sum(piece) / n_turns).backward()

    def value_loss_sum(self, batch: Sequence[Sample]) -> torch.Tensor:
        """Summed squared error of the values, a scalar; the value adapter must be active."""
        assert self.value is not None
        values = torch.cat(self.value.values([s.episode for s in batch]))  # (N,)
        target = torch.tensor(np.concatenate([s.returns for s in batch]), dtype=values.dtype, device=values.device)
        if self.clip_range_vf is not None:
            old = torch.tensor([v for s in batch for v in self._old_values[id(s)]], device=values.device)
            values = old + (values - old).clamp(-self.clip_range_vf, self.clip_range_vf)
        return (values - target).square().sum()

    # ------------------------------------------------------------------ saving
    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """``{"policy": ..., "value": ...}``, the latter with a value model only."""
        if self.value is None:
            return super().get_parameters()
        adapter = {f"adapters.{VALUE}.{k}": v for k, v in self.lm.adapter_state(VALUE).items()}
        head = {f"head.{k}": v for k, v in on_cpu(self.value.head.state_dict()).items()}
        return {**super().get_parameters(), VALUE: {**adapter, **head}}

    def _set_parameter_group(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        if name != VALUE or self.value is None:
            super()._set_parameter_group(name, state)
            return
        mark = f"adapters.{VALUE}."
        self.lm.load_adapter_state(VALUE, {k[len(mark) :]: v for k, v in state.items() if k.startswith(mark)})
        self.value.head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})

    def _to_save(self) -> SavedModel:
        saved = super()._to_save()
        if self.value is not None:
            saved.adapters[VALUE] = self.lm.adapter_state(VALUE)
            saved.adapter_configs[VALUE] = self.lm.adapter_config(VALUE)
            saved.heads[VALUE] = on_cpu(self.value.head.state_dict())
        return saved

    def _restore(self, saved: SavedModel) -> None:
        super()._restore(saved)
        if self.value is not None:
            self.lm.load_adapter_state(VALUE, saved.adapters[VALUE])
            self.value.head.load_state_dict(saved.heads[VALUE])


def _checked_critic(critic: Any, **given: bool) -> str:
    """The name of a critic.

    Args:
        critic: what was given.
        given: options of the value model, and whether each has another value than its default.

    Raises:
        ValueError: the name is unknown, or an option has no effect with this critic.
    """
    if not isinstance(critic, str) or not (critic == "value" or critic.startswith(PRM_MARK)):
        raise ValueError(f"critic must be 'value' or 'prm:<path>', got {critic!r}")
    idle = [name for name, is_set in given.items() if is_set and critic != "value"]
    if idle:
        raise ValueError(
            f"{' and '.join(idle)} have no effect with critic={critic!r}, which is not trained: leave them out"
        )
    return critic
