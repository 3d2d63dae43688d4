"""AgentPRM (Choudhury, arXiv 2502.10325, section 2): roll out, fit a process reward model, improve the policy, iterate.

| formula (section 2, Algorithm 1) | code |
|---|---|
| the loop over i = 1..K, and which pi_i is kept | :meth:`AgentPRM._iterate` |
| stage 1: D = rollouts of pi_{i-1}, each game several times | :class:`algorithms.agent_prm.rollout.RolloutStage` |
| Q-hat(s, a) = mean over visits of sum_{k>=t} gamma^(k-t) r_k | :func:`algorithms.agent_prm.targets.monte_carlo_targets` |
| stage 2: Q = argmin of the soft BCE(Q(s, a), Q-hat(s, a)) | :func:`algorithms.agent_prm.fit.prm_loss` |
| stage 3: pi_i = argmax E_{s~D, a~pi}[Q] - beta KL(pi, pi_{i-1}) | :class:`algorithms.common.prm.improve.ImproveStage` |
| online DPO: -log sigmoid(beta [ratio(best) - ratio(worst)]) | :func:`algorithms.common.prm.objectives.online_dpo.dpo_loss` |
| BoN(pi, Q): the best of N draws by Q | :meth:`AgentPRM.best_of_n` |

:meth:`AgentPRM.paper` is the paper's recipe; :mod:`algorithms.agent_prm` lists how the defaults differ from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Episode
from algorithms.agent_prm.fit import FitStage
from algorithms.agent_prm.improve import AgentImproveStage
from algorithms.agent_prm.labels import Labels
from algorithms.agent_prm.options import PAPER
from algorithms.agent_prm.report import report_fit
from algorithms.agent_prm.rollout import Experience, RolloutStage
from algorithms.agent_prm.targets import label_episodes
from algorithms.common.acting.policy import POLICY
from algorithms.common.prm.algorithm import PRMAlgorithm
from algorithms.common.prm.bandit import REFERENCE
from algorithms.common.prm.guard import Guard
from algorithms.common.prm.options import make_stage
from algorithms.common.prm.play import Play
from algorithms.common.prm.stages import Stages
from algorithms.common.prm.validation import split_games, validate


class AgentPRM(PRMAlgorithm[Experience]):
    """Process reward model from the policy's own rollouts, policy improved against it, repeated.

    Example:
        >>> from algorithms import AgentPRM
        >>> model = AgentPRM("sft.zip", "ALFWorld-v0", n_iterations=2, improve={"beta": 0.1})  # doctest: +SKIP
        >>> model.learn().save("agentprm")  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 1e-3,
        n_iterations: int | None = None,
        gamma: float = 0.95,
        rollout: RolloutStage | Mapping[str, Any] | None = None,
        prm: FitStage | Mapping[str, Any] | None = None,
        improve: AgentImproveStage | Mapping[str, Any] | None = None,
        ema_decay: float = 0.7,
        n_validation_games: int = 100,
        on_divergence: str = "warn",
        max_divergence: float = 0.25,
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
        """Build the policy, the process reward model and the stages.

        Args:
            policy: where to start; usually the zip of an :class:`SFT` model.
            env: training environment.
            learning_rate: of the policy's adapter in stage 3; the PRM's is ``prm.learning_rate``.
            n_iterations: K, stop after this many; ``None`` leaves it to ``learn(total_timesteps)``.
            gamma: discount a turn, in (0, 1].
            rollout: options of stage 1, see :class:`RolloutStage`; an instance, or a dict of its fields.
            prm: options of stage 2, see :class:`FitStage`.
            improve: options of stage 3, see :class:`AgentImproveStage`.
            ema_decay: of the means over iterations (:class:`~algorithms.common.prm.averages.Averages`), in [0, 0.99]; 0: none.
            n_validation_games: train games held out to choose the kept iteration by; a quarter of all at most, 0: none.
            on_divergence: what is done when an improvement lifts the PRM's score further above true success than it was:
                ``"warn"``, ``"stop"`` or ``"refit"``, see :class:`~algorithms.common.prm.guard.Guard`.
            max_divergence: how far, a share in [0, 1].
            micro_batch_size: episodes a forward pass of training; it changes memory and speed alone.
            n_envs: how many environments to make where ``env`` is an id.
            stats_window_size: episodes over which ``rollout/*`` is averaged.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: keyword arguments of :class:`LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream.
            device: torch device; ``"auto"`` takes a GPU where one is found.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: a value is out of range, an option is unknown or has no effect, or the policy writes freely.
        """
        self.rollout = make_stage(RolloutStage, rollout, "rollout")
        self.fit = make_stage(FitStage, prm, "prm")
        self.improve: AgentImproveStage = make_stage(AgentImproveStage, improve, "improve")
        self.guard = Guard(on_divergence, max_divergence)
        self.on_divergence, self.max_divergence = on_divergence, max_divergence
        check_float("gamma", gamma, 0.0, 1.0, above=0.0)
        self.n_validation_games = check_int("n_validation_games", n_validation_games, 0)
        self.stages = Stages(self, Experience.write, Experience.read, keeps_past=self.fit.aggregate)
        self._past: dict[int, Experience] = {}
        self.labels = Labels(self)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_iterations=n_iterations,
            gamma=gamma,
            ema_decay=ema_decay,
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

    @classmethod
    def paper(cls, policy: str = "tiny", env: GymEnv | str | None = None, **kwargs: Any) -> AgentPRM:
        """AgentPRM with the paper's recipe (section 2, and its released configuration).

        128 games with 16 repeats at temperature 0.3, no branches; a scalar head on a fresh adapter, soft cross-entropy alone;
        online DPO with two samples a state at temperature 0.7, every pair, beta 0.03, the previous policy as the anchor; three
        iterations, no means over them. :meth:`best_of_n` draws the 16 of its tables. Learning rates are this class's: the
        paper's are for full fine-tuning of 3 B parameters.

        Args:
            policy: where to start.
            env: training environment.
            kwargs: other arguments; ``rollout``, ``prm`` and ``improve`` are dicts that change single options.
        """
        options = {name: {**group, **kwargs.pop(name, {})} for name, group in PAPER.items()}
        return cls(policy, env, **{"n_iterations": 3, "ema_decay": 0.0, **options, **kwargs})

    # ------------------------------------------------------------------ Algorithm 1
    def _iterate(self, callback: BaseCallback) -> bool:
        """One iteration of Algorithm 1. A resumed run skips the stages that its checkpoint holds."""
        stages, play = self.stages, Play(self, callback, self.rollout.temperature)
        train, held_out = split_games(self.count_games(), self.n_validation_games)
        if self.iteration == 0 and stages.begin("validate"):
            self._validate(held_out)
            self.logger.dump(self.num_timesteps)  # the starting point of the curves
            stages.end()
        if stages.begin("roll out"):  # 1: D = rollouts of pi_{i-1}
            callback.on_rollout_start()  # which sees the mean policy
            self.averages.go_on()
            stages.end(self.rollout(play, train, self.streams, self.horizon()))
            callback.on_rollout_end()
        if stages.begin("fit"):  # 2: Q = argmin BCE(Q(s, a), Q-hat(s, a))
            self._fit_prm(stages.gathered)
            stages.end()
        if self.improve.n_searched and stages.begin("search"):
            found = self.improve.search(play, train, self.streams)
            self.logger.record("rollout/search_success_rate", float(np.mean([r.episode.success for r in found])))
            stages.end(replace(stages.gathered, searched=found))
        if stages.begin("improve"):  # 3: pi_i = argmax E[Q] - beta KL(pi || pi_{i-1})
            self._improve(stages.gathered)
            stages.end()
        episodes = self._validate(held_out)  # which pi_i is kept
        return self.guard(self, stages.gathered.episodes, episodes, lambda: self._refit(play, held_out))

    def _validate(self, games: Sequence[int]) -> list[Episode]:
        return validate(self, games, self.streams, self.rollout.temperature)

    def _fit_prm(self, experience: Experience) -> None:
        """Fit a PRM to the targets, of this iteration's experience or of all; report on games that it was not fitted to."""
        if self.fit.aggregate:
            self._past[self.iteration] = experience
            experience = Experience.joined(list(self._past.values()))
        self.labels.prepare(experience)
        table = self.fit.targets(experience, self.gamma)
        labelled = label_episodes(experience.episodes, table)
        order = self.streams.rng("held-out games").permutation(len(experience.games))
        unseen = {experience.games[int(i)] for i in order[: len(order) // 10]}
        held_out = [e for e in labelled if e.episode.game_id in unseen]
        data = [e for e in labelled if e.episode.game_id not in unseen] or labelled
        self.begin_prm()
        losses = self.fit(
            self.prm,
            data,
            micro_batch_size=self.micro_batch_size,
            rng=self.streams.rng("fit"),
            on_progress=lambda share: self.on_progress("fit PRM", share),
        )
        self.averages.enter_prm()
        if self.iteration == 0:
            self.best.keep_prm(self)  # the starting policy was validated before it had a PRM; this one is fitted to it
        report_fit(self, experience, table, data, held_out, losses)

    def _improve(self, experience: Experience) -> None:
        """Move the policy at logged states, and imitate what was won."""
        self.labels.prepare(experience)
        states, evidence = self.improve.states(experience, lambda: self.fit.targets(experience, self.gamma))
        self.improve_policy(states, self.improve.won(experience), evidence)

    def _refit(self, play: Play, held_out: Sequence[int]) -> None:
        """Where the policy has learnt the PRM's mistakes: fit the PRM also to what it plays now, and improve again."""
        experience, rng = self.stages.gathered, self.streams.rng("diverged")
        chosen = [str(game) for game in rng.choice(experience.games, max(1, len(experience.trunks) // 4))]
        index = {game: int(self.venv.env_method("game_index", game, indices=[0])[0]) for game in set(chosen)}
        tasks = self.streams.tasks("diverged episodes", [index[game] for game in chosen])
        more = play(tasks, "roll out the diverged policy", snapshots=True, record=False)
        self.lm.copy_adapter(REFERENCE, POLICY)
        experience = replace(experience, trunks=[*more, *experience.trunks])
        if self.fit.aggregate:
            self.stages.change(experience)  # later iterations fit to it, also those of a resumed run
        self._fit_prm(experience)
        self._improve(experience)
        self._validate(held_out)

    def _running_state(self) -> dict[str, Any]:
        return {**super()._running_state(), **self.labels.state()}

    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        """Take over what past iterations played, where the PRM is fitted to that, too."""
        super()._restore_running_state(state)
        self._past = dict(self.stages.past()) if self.fit.aggregate else {}
        self.labels.restore(state)
