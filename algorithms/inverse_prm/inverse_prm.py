"""InversePRM (Choudhury, arXiv 2502.10325, section 3): process rewards from demonstrations alone.

No outcome reward is read: neither to fit the model, nor to improve the policy, nor to choose what is kept.

| formula (section 3) | code |
|---|---|
| the loop, learners of all iterations aggregated | :meth:`InversePRM._iterate` |
| r(s, a) = Q(s, a) - gamma Q(s', a') with a' ~ pi_{i-1} | :func:`algorithms.inverse_prm.fit.implied_rewards` |
| Q_i tells the expert's transitions from the learners' | :func:`algorithms.inverse_prm.fit.fit_inverse_prm` |
| pi_i = argmax E[Q_i] - beta KL(pi, pi_{i-1}) | :class:`algorithms.common.prm.improve.ImproveStage` |

Differences from the paper and its released code:

1. The next command ``a'`` is drawn from the *current* policy on both sides, at the state that the transition leads to. The
   released code does so for the expert alone, and pairs most answers with the wrong state.
2. Both sides weigh the same, and so does each game of a side, however long its episodes are. The learner plays the games of the
   demonstrations, where the environment has them, so that the game does not tell the sides apart.
3. The model does not read reasons (``prm.read_reasons``): an expert's and a learner's differ in style.
4. The last turn of an episode that the step limit cut off is left out: what would have come is not known.
5. The next state's value may be a constant in the fit (``prm.stop_gradient``): a chain of three rooms then comes out right in a
   tenth of the time. By default it is not: a learner's step then pushes down what it did and, at the next state, up what it
   would do, so that what says nothing about the two sides cancels over an episode.
6. Each update of the model is half the expert's, however few demonstrations there are.
7. Beside moving at single states against Q, the policy imitates (``improve.imitation_coef``; 0 leaves the paper's method):
   those of its own episodes that the process reward takes for the expert's, the demonstrations, or both
   (``improve.imitate``). Over a whole episode the implied rewards tell good play from bad far better than Q tells the commands
   of one state.
8. The last policy is kept. Choosing by success would be reading outcomes.

``gamma=0`` is a one-step discriminator as in GAIL (Ho & Ermon, arXiv 1606.03476), for comparison.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agentprm_gym.checks import check_choice, check_fields, check_float
from agentprm_gym.episodes import Episode, check_learnable, read_episodes, unlearnable_turns, write_episodes
from algorithms.common.acting.exploration import check_prompts_only
from algorithms.common.acting.policy import POLICY
from algorithms.common.prm.algorithm import PRMAlgorithm
from algorithms.common.prm.improve import ImproveStage
from algorithms.common.prm.options import make_stage
from algorithms.common.prm.play import Play
from algorithms.common.prm.stages import Stages
from algorithms.common.prm.validation import split_games
from algorithms.common.shell.checkpoints import EPISODES
from algorithms.inverse_prm.fit import (
    InverseFitStage,
    Trajectory,
    answers_of,
    balance,
    expert_likeness,
    fit_inverse_prm,
)

#: What may be imitated beside the process reward.
IMITATED = ("learners", "demonstrations", "both")


@dataclass(frozen=True)
class InverseRolloutStage:
    """Options of the rollouts; ``rollout=`` takes one, or a dict of its fields.

    Attributes:
        n_games: games of the demonstrations that are rolled out an iteration, at most.
        n_repeats: episodes of each.
        n_other_games: games beyond those that are played once each an iteration. The process reward is not fitted to these, or
            it would tell the expert by the game; the policy is improved at their states, too, and imitates what is like the
            expert there. None are played where the environment lacks games of the demonstrations.
        temperature: of the policy while it plays, and of its answers ``a'``; 0 (greedy) or more.
    """

    n_games: int = 100
    n_repeats: int = 3
    n_other_games: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"n_games": 1, "n_repeats": 1, "n_other_games": 0}
        check_fields("rollout", self, ints=least, floats={"temperature": 0.0})


@dataclass(frozen=True)
class InverseImproveStage(ImproveStage):
    """Options of the policy improvement, with other defaults than :class:`~algorithms.common.prm.improve.ImproveStage`'s.

    Attributes:
        imitate: what is imitated beside the process reward, with weight ``imitation_coef``: of the ``"learners"`` those
            episodes of this iteration whose mean implied reward is like the expert's; the ``"demonstrations"``; or ``"both"``.
        imitation_quantile: of the demonstrations' mean implied rewards, in [0, 1]; a learner's episode with no less is like the
            expert's.
    """

    objective: str = "policy_gradient"
    n_updates: int = 40
    turns_per_episode: int = 32
    n_samples: int = 6
    beta: float = 0.1
    margin: float = 0.0
    score_scale: str = "logit"
    imitate: str = "learners"
    imitation_quantile: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that have no effect with the others."""
        super().__post_init__()
        check_choice("improve.imitate", self.imitate, IMITATED)
        check_float("improve.imitation_quantile", self.imitation_quantile, 0.0, 1.0)

    @property
    def imitates(self) -> bool:
        """Whether anything is imitated."""
        return self.objective == "imitation" or self.imitation_coef > 0

    def without_effect(self) -> set[str]:
        """Options that the others make meaningless."""
        return super().without_effect() | (set() if self.imitates else {"imitate", "imitation_quantile"})


class InversePRM(PRMAlgorithm[list[Episode]]):
    """Process reward model from demonstrations and the learners' own rollouts, policy improved against it, repeated.

    Example:
        >>> from algorithms import InversePRM
        >>> model = InversePRM("sft.zip", "ALFWorld-v0", demonstrations="demos.jsonl.gz", n_iterations=2)  # doctest: +SKIP
        >>> model.learn().save("inverseprm")  # doctest: +SKIP
    """

    fit: InverseFitStage

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 1e-3,
        demonstrations: Sequence[Episode] | str | os.PathLike[str] | None = None,
        n_iterations: int | None = None,
        gamma: float = 0.95,
        rollout: InverseRolloutStage | Mapping[str, Any] | None = None,
        prm: InverseFitStage | Mapping[str, Any] | None = None,
        improve: InverseImproveStage | Mapping[str, Any] | None = None,
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
            policy: where to start; usually the zip of an :class:`SFT` model on the same demonstrations.
            env: training environment; its rewards are not read.
            learning_rate: of the policy's adapter; the PRM's is ``prm.learning_rate``.
            demonstrations: episodes, or a file of them; needed to learn, not to predict.
            n_iterations: stop after this many; ``None`` leaves it to ``learn(total_timesteps)``.
            gamma: discount a turn, in [0, 1]; 0 is a one-step discriminator.
            rollout: options of the rollouts, see :class:`InverseRolloutStage`; an instance, or a dict of its fields.
            prm: options of the fit, see :class:`~algorithms.inverse_prm.fit.InverseFitStage`.
            improve: options of the policy improvement, see :class:`InverseImproveStage`.
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
        self.rollout = make_stage(InverseRolloutStage, rollout, "rollout")
        self.fit = make_stage(InverseFitStage, prm, "prm")
        self.improve: InverseImproveStage = make_stage(InverseImproveStage, improve, "improve")
        if isinstance(demonstrations, (str, os.PathLike)):
            demonstrations = list(read_episodes(demonstrations))
        self.demonstrations = demonstrations
        self._learnable: list[Episode] | None = None
        self.stages = Stages(self, _write, _read, keeps_past=True)
        # Rollouts of each learner so far, with whether the game ended by itself.
        self._learners: list[tuple[Episode, bool]] = []
        super().__init__(
            policy,
            env,
            learning_rate,
            n_iterations=n_iterations,
            gamma=gamma,
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
        check_prompts_only(self.policy.explore, type(self).__name__)

    # ------------------------------------------------------------------ the loop
    def _iterate(self, callback: BaseCallback) -> bool:
        """One iteration of section 3. A resumed run skips the stages that its checkpoint holds."""
        stages, play, demos = self.stages, Play(self, callback, self.rollout.temperature), self._demonstrations()
        if stages.begin("roll out"):  # the learner pi_{i-1} plays
            callback.on_rollout_start()
            stages.end(self._roll_out(play, demos))
            callback.on_rollout_end()
        if stages.begin("fit"):  # Q_i tells the expert's transitions from those of all learners so far
            self._fit_prm(stages.gathered, demos)
            stages.end()
        if stages.begin("improve"):  # pi_i = argmax E[Q_i] - beta KL(pi || pi_{i-1})
            states = [(e, range(len(e.turns))) for e in (*stages.gathered, *demos)]
            self.improve_policy(states, [(e, 0) for e in self._imitated(stages.gathered, demos)])
            stages.end()
        return True

    def _demonstrations(self) -> list[Episode]:
        if not self.demonstrations:
            raise ValueError(
                "InversePRM learns from demonstrations: pass demonstrations=, episodes or a file of them ('agentprm demos' "
                "writes one)"
            )
        if self._learnable is None:
            check_learnable(self.demonstrations, "demonstrations")
            # A chain of transitions breaks where a command was not admissible: such an episode is left out as a whole.
            self._learnable = [e for e in self.demonstrations if not unlearnable_turns(e)]
            if not self._learnable:
                raise ValueError(
                    "each demonstration has a turn whose command was not admissible: none can be learnt from"
                )
        return self._learnable

    # ------------------------------------------------------------------ roll out
    def _roll_out(self, play: Play, demos: Sequence[Episode]) -> list[Episode]:
        """Let the current policy play the games of the demonstrations, or any where the environment does not have those."""
        games, _ = split_games(self.count_games(), 0)
        rng = self.streams.rng("roll out")
        known = self._games_of(demos)
        pool = known or games
        chosen = rng.choice(pool, min(self.rollout.n_games, len(pool)), replace=False)
        self.logger.record("rollout/games_of_demonstrations", len(known))
        others = sorted(set(games) - set(known)) if known else []
        beyond = rng.choice(others, min(self.rollout.n_other_games, len(others)), replace=False)
        tasks = self.streams.tasks("episodes", [*np.repeat(chosen, self.rollout.n_repeats), *beyond])
        return [rollout.episode for rollout in play(tasks, "roll out")]

    def _games_of(self, demos: Sequence[Episode]) -> list[int]:
        """Indices of the demonstrations' games; none where the environment does not have all of them."""
        try:
            ids = {e.game_id for e in demos}
            return sorted({int(self.venv.env_method("game_index", game, indices=[0])[0]) for game in ids})
        except (ValueError, AttributeError):
            return []

    # ------------------------------------------------------------------ fit the PRM
    def _fit_prm(self, gathered: Sequence[Episode], demos: Sequence[Episode]) -> None:
        """Fit a PRM that tells the demonstrations from what all learners so far did."""
        self._learners += self._with_endings(self._comparable(gathered, demos))
        both = [(e, True, True) for e in demos] + [(e, False, ended) for e, ended in self._learners]
        data = self._answered(both, self.streams.rng("answers"))
        balance(data)
        self.begin_prm()
        report = fit_inverse_prm(
            self.prm,
            data,
            self.fit,
            gamma=self.gamma,
            micro_batch_size=self.micro_batch_size,
            rng=self.streams.rng("fit"),
            on_progress=lambda share: self.on_progress("fit PRM", share),
        )
        self.logger.record("prm/loss", report.loss)
        self.logger.record("prm/accuracy", report.accuracy)
        self.logger.record("prm/expert_reward", report.expert_reward)
        self.logger.record("prm/learner_reward", report.learner_reward)
        self.record_opinion(gathered)

    def _comparable(self, gathered: Sequence[Episode], demos: Sequence[Episode]) -> list[Episode]:
        """Episodes of the demonstrations' games; all, where no others were played on purpose."""
        if not self.rollout.n_other_games or not self._games_of(demos):
            return list(gathered)
        games = {e.game_id for e in demos}
        return [e for e in gathered if e.game_id in games]

    def _answered(self, episodes: Sequence[tuple[Episode, bool, bool]], rng: np.random.Generator) -> list[Trajectory]:
        """Episodes (each with whether it is the expert's, and whether it ended) with the policy's answers ``a'``."""
        if not self.fit.read_reasons:
            # Nor are answers given after the expert's reasons, which all but say what the expert did.
            episodes = [(e.bare(), is_expert, ended) for e, is_expert, ended in episodes]
        with self.lm.active(POLICY):
            answers = answers_of(
                self.policy.responder,
                [e for e, _, _ in episodes],
                temperature=self.rollout.temperature,
                rng=rng,
                micro_batch_size=self.micro_batch_size,
            )
        return [Trajectory(*whose, drawn) for whose, drawn in zip(episodes, answers, strict=True)]

    def _with_endings(self, episodes: Sequence[Episode]) -> list[tuple[Episode, bool]]:
        """Episodes with whether the game ended by itself."""
        horizon = self.horizon()
        # An episode as long as the limit counts as cut off. Whether it was won just then is an outcome.
        return [(e, horizon is None or len(e.turns) < horizon) for e in episodes]

    # ------------------------------------------------------------------ improve the policy
    def _imitated(self, gathered: Sequence[Episode], demos: Sequence[Episode]) -> list[Episode]:
        """Episodes to imitate."""
        chosen: list[Episode] = []
        if self.improve.imitates:
            chosen += demos if self.improve.imitate != "learners" else []
            chosen += self._like_the_experts(gathered, demos) if self.improve.imitate != "demonstrations" else []
        return chosen

    def _like_the_experts(self, gathered: Sequence[Episode], demos: Sequence[Episode]) -> list[Episode]:
        """Those of the learner's episodes that the process reward takes for the expert's; how they ended is not looked at."""
        likeness = expert_likeness(
            self.prm,
            self._answered([(e, False, False) for e in (*demos, *gathered)], self.streams.rng("likeness")),
            gamma=self.gamma,
            clip=self.fit.logit_clip,
            micro_batch_size=self.micro_batch_size,
        )
        enough = np.quantile(likeness[: len(demos)], self.improve.imitation_quantile)
        chosen = [e for e, x in zip(gathered, likeness[len(demos) :], strict=True) if x >= enough]
        self.logger.record("prm/share_like_expert", len(chosen) / len(gathered))
        # To be looked at only: nothing is decided by it.
        won = float(np.mean([e.success for e in chosen])) if chosen else float("nan")
        self.logger.record("prm/success_like_expert", won)
        return chosen

    # ------------------------------------------------------------------ resuming
    def _restore_running_state(self, state: Mapping[str, Any]) -> None:
        """Take over the learners of past iterations, too."""
        super()._restore_running_state(state)
        self._learners = []
        for _, gathered in self.stages.past():
            self._learners += self._with_endings(self._comparable(gathered, self._demonstrations()))


def _write(folder: Path, gathered: list[Episode]) -> None:
    write_episodes(folder / EPISODES, gathered)


def _read(folder: Path) -> list[Episode]:
    return list(read_episodes(folder / EPISODES))
