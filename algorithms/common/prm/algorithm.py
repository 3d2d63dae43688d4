"""What AgentPRM and InversePRM share: a process reward model beside the policy, its stages, and what a save holds of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import DEFAULT_LORA
from agentprm_gym.llm.saving import SavedModel
from agentprm_gym.prm.model import PRM, ProcessRewardModel
from algorithms.common.acting.policy import POLICY
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.acting.search import POLICY_WEIGHT, BestOfNActor
from algorithms.common.measure.figures import record_curve, record_planner
from algorithms.common.measure.planner import planner_report
from algorithms.common.measure.samples import candidates_markdown
from algorithms.common.prm.averages import Averages
from algorithms.common.prm.bandit import REFERENCE, Bandit, ImproveStats
from algorithms.common.prm.evidence import Evidence
from algorithms.common.prm.guard import opinion
from algorithms.common.prm.improve import ImproveStage
from algorithms.common.prm.play import Streams
from algorithms.common.prm.stages import Gathered, Stages
from algorithms.common.prm.validation import BestPolicy
from algorithms.common.prm.version_0_1 import current_settings
from algorithms.common.shell.base import LLMAlgorithm
from algorithms.common.shell.checkpoints import iteration_path
from algorithms.common.shell.errors import DivergedError
from algorithms.common.shell.logs import ONLY_TENSORBOARD

#: How the parameters of the head begin in :meth:`PRMAlgorithm.get_parameters`.
_HEAD_MARK = "head."


class PRMAlgorithm(LLMAlgorithm, Generic[Gathered]):
    """A policy, a process reward model on the same base, and the stages that train them; a subclass holds the loop.

    Attributes:
        prm: the process reward model.
        stages: which stages of the running iteration are done.
        averages: means of the PRM's and the policy's weights over the iterations.
        best: the policy that is kept by what it won of the validation games.
        improve: options and code of the policy improvement.
        on_stage: called with a stage's name and the share of it that is done; for progress displays.
    """

    setting_attributes: ClassVar[dict[str, str]] = {**LLMAlgorithm.setting_attributes, "prm": "fit"}
    rollout: Any
    fit: Any
    improve: ImproveStage
    stages: Stages[Gathered]
    prm: ProcessRewardModel

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float,
        *,
        n_iterations: int | None,
        gamma: float,
        micro_batch_size: int,
        ema_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Build the policy and the process reward model; see the subclasses for the arguments."""
        self.n_iterations = None if n_iterations is None else check_int("n_iterations", n_iterations, 1)
        self.gamma = check_float("gamma", gamma, 0.0, 1.0)
        self.micro_batch_size = check_int("micro_batch_size", micro_batch_size, 1)
        self.ema_decay = check_float("ema_decay", ema_decay, 0.0, 0.99)
        self.averages = Averages(self, self.ema_decay)
        self.best = BestPolicy()
        self.on_stage: Callable[[str, float], None] | None = None
        super().__init__(policy, env, learning_rate, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.policy.responder.mode == "generate":
            raise ValueError(
                f'{type(self).__name__} compares admissible commands, of which action_mode="generate" has no distribution: use '
                '"constrained", with "reason": True where the policy is to think'
            )
        lora = self.policy_kwargs.get("lora", DEFAULT_LORA)
        self.prm = ProcessRewardModel(self.lm, PRM, lora, form=self.fit.form, read_reasons=self.fit.read_reasons)
        self.lm.copy_adapter(POLICY, REFERENCE)
        self.policy.temperature = self.rollout.temperature

    # ------------------------------------------------------------------ helpers of the loop
    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of everything that is trained, by the names of their settings."""
        return {**super().learning_rates, "prm.learning_rate": float(self.fit.learning_rate)}

    @property
    def streams(self) -> Streams:
        """The random streams of this iteration."""
        return Streams(self.seed_base, self.iteration)

    def on_progress(self, stage: str, share: float) -> None:
        """Tell :attr:`on_stage` that a share of a stage is done."""
        if self.on_stage is not None:
            self.on_stage(stage, share)

    def horizon(self) -> int | None:
        """Step limit of an episode; ``None`` where the environment does not tell one."""
        spec = self.venv.get_attr("spec", indices=[0])[0]
        return None if spec is None else spec.max_episode_steps

    def begin_prm(self) -> None:
        """Put the PRM's adapter and head where an iteration's fit begins (``prm.init``)."""
        if self.fit.init == "previous" and self.iteration > 0:
            return
        if self.fit.init != "base":
            self.lm.copy_adapter(POLICY, PRM)
        else:
            self.lm.remove_adapter(PRM)
            self.lm.add_adapter(PRM, self.policy_kwargs.get("lora", DEFAULT_LORA))
        self.prm.reset_head()

    def improve_policy(
        self,
        states: Sequence[tuple[Episode, Sequence[int]]],
        successes: Sequence[tuple[Episode, int]] = (),
        evidence: Evidence | None = None,
    ) -> None:
        """Improve the policy against the PRM, with the policy as it is now as the anchor, and log how that went.

        Args:
            states: logged episodes, each with the turns that may serve as states.
            successes: episodes to imitate, each with the first turn to imitate.
            evidence: Monte-Carlo visits to weigh in; ``None`` leaves the ranking to the PRM.
        """
        self.lm.copy_adapter(POLICY, REFERENCE)
        stats = self.improve(
            Bandit(self.lm, POLICY, REFERENCE, self.policy.responder, self.prm, evidence, self.policy.cache_tokens),
            states,
            successes,
            learning_rate=float(self.learning_rate),
            micro_batch_size=self.micro_batch_size,
            rng=self.streams.rng("improve"),
            on_progress=lambda share: self.on_progress("improve policy", share),
        )
        self.averages.enter_policy()
        self._n_updates += len(stats.losses)
        self._record_improvement(stats)

    def _record_improvement(self, stats: ImproveStats) -> None:
        last = slice(-20, None)
        series = {"loss": stats.losses, "accuracy": stats.accuracies, "kl": stats.kl, "gap": stats.gaps}
        for key, values in (series | {"prm_score": stats.scores}).items():
            self.logger.record(f"train/{key}", float(np.mean(values[last])) if values else float("nan"))
        if stats.losses:
            record_curve(self.logger, "train/loss_curve", stats.losses, "loss of the policy improvement")
        self.logger.record("train/n_pairs", stats.n_pairs)
        self.logger.record("train/share_same_command", stats.n_same / max(1, stats.n_states))
        self.logger.record("train/share_untried", stats.n_untried / max(1, stats.n_states))
        self.logger.record("train/share_under_margin", stats.n_close / max(1, stats.n_states))

    def record_planner(self, rollouts: Sequence[Rollout]) -> None:
        """Log how the PRM compares with the planner's exact Q, where a planner knows the games.

        Args:
            rollouts: with snapshots, of games that the PRM was not fitted to.
        """
        report = planner_report(
            self.prm,
            self.venv,
            rollouts,
            gamma=self.gamma,
            rng=self.streams.rng("planner"),
            responder=self.policy.responder,
            batch_size=self.micro_batch_size,
        )
        record_planner(self.logger, report)

    def record_opinion(self, episodes: Sequence[Episode]) -> None:
        """Log how the PRM's scores of what was done compare with success, and some turns with scores to read.

        ``prm/repeats_1`` and on are what it adds to the logit of a command that was executed once, twice, ... before.
        """
        score, success = opinion(self.prm, episodes, self.micro_batch_size)
        self.logger.record("prm/score_mean", score)
        self.logger.record("prm/gap", score - success)
        for n, value in enumerate(self.prm.repeats(), start=1):
            self.logger.record(f"prm/repeats_{n}", value)
        sample = candidates_markdown(self.prm, self.policy.responder, episodes, self.streams.rng("samples"))
        if sample:
            self.logger.record("samples/candidates", sample, exclude=ONLY_TENSORBOARD)

    # ------------------------------------------------------------------ the shell around the loop
    def check_learnt(self) -> None:
        """Refuse what was learnt where the policy or the process reward model is not finite."""
        super().check_learnt()
        if self._recent is not None and not np.isfinite(opinion(self.prm, [self._recent], 1)[0]):
            raise DivergedError("the scores of the process reward model are not numbers any more", [self._recent])

    def _may_continue(self) -> bool:
        return self.n_iterations is None or self.iteration < self.n_iterations

    def _begin_learning(self) -> None:
        self.stages.begin_iteration()
        self.averages.forget()

    def _end_iteration(self) -> None:
        """Keep the iteration's model, and a checkpoint."""
        if self.checkpoint_dir is not None:
            self.save(iteration_path(self.checkpoint_dir, self.iteration))
        self.stages.end_iteration()

    def _finish_learning(self) -> None:
        """Put the policy in place that is kept by what it won of the validation games."""
        self.best.take(self)

    def _running_state(self) -> dict[str, Any]:
        state = {**super()._running_state(), **self.best.state(), **self.stages.state()}
        return {**state, "averages": self.averages.state()}

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        super()._restore_running_state(state)
        self.best.restore(dict(state))
        if "averages" in state:  # not in checkpoints up to version 0.2
            self.averages.restore(state["averages"])
        self.stages.restore(dict(state))

    @property
    def stages_done(self) -> list[str]:
        """Names of the stages of the running iteration that are over."""
        return self.stages.done

    @property
    def best_success(self) -> float:
        """Success of the policy that is kept on the validation games; below 0 before the first validation."""
        return self.best.success

    @property
    def best_iteration(self) -> int:
        """After how many iterations the policy that is kept was reached; 0 is the starting point."""
        return self.best.iteration

    # ------------------------------------------------------------------ acting and saving
    def best_of_n(
        self, n_rows: int, n: int = 16, *, temperature: float | None = None, policy_weight: float = POLICY_WEIGHT
    ) -> BestOfNActor:
        """BoN(pi, Q): at each turn n commands are drawn from the policy and the PRM's favourite is executed (section 2).

        Args:
            n_rows: how many episodes run at once.
            n: draws a turn; the paper's tables have 16.
            temperature: of the draws; the policy's own where ``None``.
            policy_weight: what the policy's log-probability counts beside Q, 0 in the paper; see
                :class:`~algorithms.common.acting.search.BestOfNActor`; 0 as in the paper.
        """
        chosen = self.policy.temperature if temperature is None else temperature
        policy = self.policy.actor(n_rows, temperature=chosen)
        return BestOfNActor(policy, self.prm, n_rows, n, self.policy.cache_tokens, policy_weight)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """``{"policy": ..., "prm": ...}``: the policy's adapter; the PRM's adapter and head."""
        prm = {f"adapters.{PRM}.{k}": v for k, v in self.lm.adapter_state(PRM).items()}
        head = {_HEAD_MARK + k: v for k, v in self.prm.heads_state()[PRM].items()}
        return {**super().get_parameters(), "prm": {**prm, **head}}

    def _set_parameter_group(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        if name != "prm":
            super()._set_parameter_group(name, state)
            return
        mark = f"adapters.{PRM}."
        self.lm.load_adapter_state(PRM, {k[len(mark) :]: v for k, v in state.items() if k.startswith(mark)})
        head = {k[len(_HEAD_MARK) :]: v for k, v in state.items() if k.startswith(_HEAD_MARK)}
        self.prm.load_heads_state({PRM: head})

    def _to_save(self) -> SavedModel:
        saved = super()._to_save()
        saved.adapters[PRM] = self.lm.adapter_state(PRM)
        saved.adapter_configs[PRM] = self.lm.adapter_config(PRM)
        saved.heads |= self.prm.heads_state()
        return saved

    def _restore(self, saved: SavedModel) -> None:
        super()._restore(saved)
        self.lm.load_adapter_state(PRM, saved.adapters[PRM])
        self.prm.load_heads_state(saved.heads)

    @classmethod
    def _current_settings(cls, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
        return current_settings(settings, cls.__name__, path)
