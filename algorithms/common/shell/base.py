"""The SB3 shell: what every algorithm here shares with ``stable_baselines3``'s own.

Over 400 lines: the list of deviations and the documented constructor belong beside the loop; saving is in ``saves.py``.

Differences from SB3, all of them:

1. Observations and actions are text (``Dict`` of ``UnicodeText``, object arrays of ``str``).
2. A save holds adapters and heads, not the base model, which is rebuilt from its name; and no pickle.
3. ``policy`` may be an alias (``"tiny"``), a folder, a hub id, or the zip of a trained algorithm to start from.
4. ``env`` given as an id makes ``n_envs`` environments, since a language model answers many episodes at the price of
   one.
5. ``num_timesteps`` counts the turns of running episodes, not idle environments.
6. ``train/*`` is dumped in its own iteration.
7. ``set_env`` takes any number of environments: nothing is sized by it.
8. ``ep_info_buffer`` holds at least an iteration's episodes, in the order in which they were *begun*: episodes are played
   side by side, the last to finish are the longest, and a window over those would show mostly failures.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_int
from agentprm_gym.envs.workers import watched
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.aliases import ALIASES
from agentprm_gym.llm.model import BUNDLED, ModelNotFoundError, lora_settings, resolve_model
from agentprm_gym.llm.saving import SavedModel, read_save
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.ranks import ranks
from algorithms.common.acting.rollouts import PlaysElsewhere
from algorithms.common.acting.server import CANNOT_TRAIN, is_server
from algorithms.common.shell.bars import with_bar
from algorithms.common.shell.errors import DivergedError
from algorithms.common.shell.finite import check_learnt
from algorithms.common.shell.folders import saved_model
from algorithms.common.shell.logs import ONLY_TENSORBOARD, Samples, describe_run, episode_markdown, reward_settings
from algorithms.common.shell.machine import check_device, use_fast_threads
from algorithms.common.shell.settings import check_learning_rate, plain_settings, warn_of_learning_rates, with_buffers
from algorithms.common.shell.sharing import SharedAlgorithm
from algorithms.common.shell.workers import check_workers

SelfLLMAlgorithm = TypeVar("SelfLLMAlgorithm", bound="LLMAlgorithm")

#: How many games an environment without a list of games counts as having: game k is what ``reset(seed=k)`` begins.
N_SEEDS = 100_000
#: More turns than any run takes: the number that SB3 is told where an algorithm ends by itself.
NO_LIMIT = 10**12


class StopLearning(Exception):
    """Raised in an iteration where a callback ended learning; :meth:`LLMAlgorithm.learn` catches it."""


class LLMAlgorithm(SharedAlgorithm):
    """Base of the algorithms that train an :class:`LLMPolicy`; a subclass implements :meth:`_iterate`.

    Attributes:
        checkpoint_dir: folder into which :meth:`learn` writes a checkpoint after every stage or iteration, for
            :meth:`resume` to go on from; set it before the first ``learn``. ``None``: none is written.
        workers: who play the training episodes: :class:`~algorithms.RolloutWorkers` (processes) or
            :class:`~algorithms.RayWorkers` (a cluster), of this algorithm's policy, or :class:`~algorithms.ServerSampler`, for
            which a server samples; set it before ``learn``. ``None``: this process does, in its own environments. No save
            holds it.
    """

    policy: LLMPolicy
    #: Whether log-probabilities of training are compared with those of the policy that acted, as ratios are.
    compares_log_probs: ClassVar[bool] = False
    learning_rate: float  # SB3's schedules are no JSON; algorithms here have their own
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {name: LLMPolicy for name in (*BUNDLED, *ALIASES)}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "tiny",
        env: GymEnv | str | None = None,
        learning_rate: float = 3e-4,
        *,
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
            policy: alias of a bundled model, folder or hub id of a causal language model, or a zip saved by an
                algorithm, whose policy is where training starts.
            env: an environment, an SB3 ``VecEnv``, or a registered id; ``None`` only in :meth:`load`.
            learning_rate: of the policy's adapter, a number.
            n_envs: how many environments to make where ``env`` is an id.
            stats_window_size: episodes over which ``rollout/*`` is averaged.
            tensorboard_log: folder for TensorBoard, or ``None``.
            policy_kwargs: JSON-able keyword arguments of :class:`LLMPolicy`.
            verbose: 0 silent, 1 tables, 2 debug.
            seed: of every random stream.
            device: torch device; ``"auto"`` takes a GPU where there is one.
            _init_setup_model: build the policy now.

        Raises:
            ValueError: for an unknown policy (listing the aliases), no environment or one without text spaces, or a
                learning rate that is no number above 0.
        """
        learning_rate = check_learning_rate(learning_rate)
        n_envs, stats_window_size = check_int("n_envs", n_envs, 1), check_int("stats_window_size", stats_window_size, 1)
        seed = ranks().agreed_seed(None if seed is None else check_int("seed", seed, 0))
        tensorboard_log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        policy = os.fspath(policy) if isinstance(policy, os.PathLike) else policy
        policy = saved_model(policy) if isinstance(policy, str) else policy
        if is_server(policy):
            raise ValueError(CANNOT_TRAIN)
        kwargs: dict[str, Any] = plain_settings(policy_kwargs or {}, "policy_kwargs")
        self._start_from: SavedModel | None = None
        if isinstance(policy, str):
            if policy.endswith(".zip"):
                self._start_from = read_save(policy)
                kwargs.setdefault("model", self._start_from.manifest["base"]["name"])
                kwargs.setdefault("lora", lora_settings(self._start_from.adapter_configs[POLICY]))
                if "template" in self._start_from.policy_kwargs:
                    kwargs.setdefault("template", self._start_from.policy_kwargs["template"])
            elif policy != "LLMPolicy":
                kwargs.setdefault("model", policy)
        if env is None and _init_setup_model:
            raise ValueError(
                f"{type(self).__name__} needs an environment for its spaces: pass env=, for example 'ALFWorld-v0'; "
                "only load() does without one, to predict"
            )
        self.n_envs_wanted, self.seed = n_envs, seed
        env = None if env is None else self._made(env)
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            policy_kwargs=kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=check_device(device),
            support_multi_env=True,
            supported_action_spaces=(gym.spaces.Text,),
        )
        self.iteration = 0
        self.total_tokens = 0
        self.checkpoint_dir: Path | None = None
        self.workers: PlaysElsewhere | None = None
        # The state that a resumed run takes over when it learns, until then.
        self._resumed: dict[str, Any] | None = None
        self._samples = Samples()
        self._recent: Episode | None = None  # one that was played, to see whether what is learnt is finite
        # What cannot be saved is refused now, not after hours of training.
        for name, value in self._own_settings().items():
            plain_settings(value, name)
        if _init_setup_model:
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name != "LLMPolicy" and not policy_name.endswith(".zip"):
            self.check_policy_name(policy_name)
        return LLMPolicy

    @classmethod
    def check_policy_name(cls, policy_name: str) -> None:
        """Refuse a name that is no model.

        Raises:
            ValueError: listing the aliases, for a server's address, or for a broken GGUF file.
            ImportError: with the command that installs the model, where an alias's package is missing.
        """
        if is_server(policy_name):
            raise ValueError(f"{policy_name!r}: {CANNOT_TRAIN}")
        try:
            resolve_model(policy_name)
        except ModelNotFoundError as error:
            raise ValueError(
                f"Policy {policy_name!r} unknown: expected one of the aliases {sorted(cls.policy_aliases)}, a folder "
                "with a causal language model, a GGUF file, a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct', or a zip "
                "saved by an algorithm"
            ) from error

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, device=self.device, **self.policy_kwargs
        )
        self._seed_policy()
        if self._start_from is not None:
            self.policy.load_saved(self._start_from, "the policy to start from")
            self._start_from = None

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed Python, NumPy, torch, the environments and the policy's sampling."""
        super().set_random_seed(seed)
        if getattr(self, "policy", None) is not None:
            self._seed_policy()

    def _seed_policy(self) -> None:
        self.policy.rng = np.random.default_rng(self.seed)

    @property
    def logger(self) -> Any:
        """The logger; a silent one before the first ``learn``."""
        if not hasattr(self, "_logger"):
            from stable_baselines3.common.logger import Logger

            return Logger(folder=None, output_formats=[])
        return self._logger

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Set the environment to train in.

        Args:
            env: an environment, an SB3 ``VecEnv``, or a registered id. Unlike in SB3 it may have any number of
                environments: nothing here is sized by it.
            force_reset: reset it before the next ``learn``.

        Raises:
            ValueError: if its spaces are others.
        """
        env = self._wrap_env(self._made(env), self.verbose)
        self.n_envs = env.num_envs
        super().set_env(env, force_reset)

    def _made(self, env: GymEnv | str) -> GymEnv:
        """Make the environments that an id asks for.

        Raises:
            ValueError: a text space has no buffer in Stable-Baselines3's vector environments.
        """
        if isinstance(env, str):
            # Not by its id: then Stable-Baselines3 would ask for a render mode, which not every environment knows.
            make = partial(gym.make, env)
            return make_vec_env(make, n_envs=self.n_envs_wanted, seed=self.seed, wrapper_class=with_buffers)
        return with_buffers(env) if isinstance(env, gym.Env) else env

    # ------------------------------------------------------------------ learning
    def learn(
        self: SelfLLMAlgorithm,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLLMAlgorithm:
        """Train for at least ``total_timesteps`` turns.

        Args:
            total_timesteps: a lower bound; an iteration that has begun is finished. ``None`` leaves the end to the algorithm's
                own limit (``n_iterations``).
            callback: SB3 callbacks.
            log_interval: dump the logger every so many iterations.
            tb_log_name: name of the TensorBoard run, the class name by default.
            reset_num_timesteps: count from zero, in a new TensorBoard run.
            progress_bar: show SB3's progress bar of turns; without ``total_timesteps`` one of iterations.

        Raises:
            ValueError: without an environment, without any limit, or with workers of another policy.
            RuntimeError: a worker failed, or plays in other environments.
            DivergedError: a loss, a gradient or a weight is not finite any more.
            WorkerError: a worker process of the environments ended.

        After :meth:`resume`, ``total_timesteps`` is what is left and ``reset_num_timesteps=False`` goes on counting, in the
        same TensorBoard run.
        """
        if self.env is None:
            raise ValueError(
                f"{type(self).__name__}.learn() needs an environment: pass env= to the constructor or to load(), "
                "or call set_env(env)"
            )
        if total_timesteps is None:
            if getattr(self, "n_iterations", None) is None:
                raise ValueError(
                    f"{type(self).__name__}.learn() needs a limit: pass total_timesteps, a number of turns, or n_iterations to "
                    "an algorithm that has it"
                )
            total_timesteps = NO_LIMIT
            if progress_bar:
                callback, progress_bar = with_bar(callback, int(getattr(self, "n_iterations"))), False  # noqa: B009
        self._leave_files_to_main()
        if hasattr(self, "_logger") and not self._custom_logger:
            self._logger.close()  # the next one is on its way; SB3 leaves the file of this one open
        with watched(self.env):
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
            )
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            self._begin_learning()
            settings = {**self._constructor_data(), **reward_settings(self.env)}
            describe_run(self.logger, {"algorithm": type(self).__name__, **settings})
        else:
            self._go_on(resumed)
        use_fast_threads(self.lm)
        warn_of_learning_rates(self.learning_rates, int(self.lm.base.num_parameters()))
        if self.workers is not None:
            check_workers(self.workers, self.policy, self.env, compares=self.compares_log_probs)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps and self._may_continue():
            try:
                if not self._checked_iteration(callback):
                    break
            except StopLearning:
                break
            self.iteration += 1
            if log_interval and self.iteration % log_interval == 0:
                self.dump_logs()
            self._end_iteration()
        self._finish_learning()
        callback.on_training_end()
        return self

    def _leave_files_to_main(self) -> None:
        """Where several processes train together, the first writes and speaks."""
        if not ranks().is_main:
            self.tensorboard_log = self.checkpoint_dir = None
            self.verbose = 0

    def _checked_iteration(self, callback: BaseCallback) -> bool:
        """Run one iteration, and look at what it learnt; returns whether learning goes on.

        Raises:
            DivergedError: a loss, a gradient or a weight is not finite; the message says what to do.
        """
        try:
            goes_on = self._iterate(callback)
            self.check_learnt()
        except DivergedError as error:
            kept = None if self.checkpoint_dir is None else error.keep(self.checkpoint_dir)
            batch = "" if kept is None else f" The episodes of this update are in {kept}."
            raise DivergedError(
                f"{type(self).__name__} diverged in iteration {self.iteration + 1}, after {self._n_updates} updates: {error}. "
                f"Nothing of this iteration was saved, and earlier checkpoints are as they were.{batch} Train again with a "
                f"lower learning_rate (it is {self.learning_rate:g}), or look at rewards and demonstrations for extreme values",
                error.episodes,
            ) from error
        return goes_on

    def check_learnt(self) -> None:
        """Refuse what was learnt where it is not finite; see :func:`~algorithms.common.shell.finite.check_learnt`."""
        check_learnt(self, self._recent or next(iter(getattr(self, "demonstrations", None) or ()), None))

    def _iterate(self, callback: BaseCallback) -> bool:
        """Run one iteration.

        Args:
            callback: to be told of every step.

        Returns:
            Whether learning goes on.

        Raises:
            StopLearning: a callback ended learning in the middle.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement _iterate(callback): one iteration of learning")

    def _may_continue(self) -> bool:
        return True

    def _begin_learning(self) -> None:
        """Hook for what happens once before the first iteration, except in a run that is resumed."""

    def _end_iteration(self) -> None:
        """Hook for what happens after each iteration, when ``iteration`` counts it."""
        self.write_checkpoint()

    def _finish_learning(self) -> None:
        """Hook for what happens once after the last iteration."""

    def count_step(self, callback: BaseCallback, names: dict[str, Any]) -> bool:
        """Account for one vector step of a collection and tell the callback; returns False to stop.

        Args:
            callback: the callback.
            names: what :func:`~algorithms.common.acting.rollouts.collect` tells of the step.
        """
        return self._count_step(callback, names, int(names["n_running"]))

    def _count_step(self, callback: BaseCallback, names: dict[str, Any], n_running: int) -> bool:
        """Account for one vector step and tell the callback. Returns False to stop."""
        self.num_timesteps += n_running
        callback.update_locals(names)
        if not ranks().all(callback.on_step()):
            return False
        self._update_current_progress_remaining(self.num_timesteps, max(1, self._total_timesteps))
        return True

    def record_acting(self, actor: PolicyActor) -> None:
        """Log how often a policy's answers were malformed, repaired or cut short, and its transcripts shortened."""
        counts, responder = actor.counts, actor.responder
        self.total_tokens += actor.rows.decoder.n_fed
        self.logger.record("rollout/shortened_share", counts["shortened"] / max(1, counts["turns"]))
        if responder.writes_freely:
            for what in ("cut", "malformed", "repaired", "inadmissible"):
                self.logger.record(f"rollout/{what}_share", counts[what] / max(1, counts["responses"]))

    def record_episodes(self, episodes: Sequence[Episode]) -> None:
        """Keep the true returns, lengths and successes of an iteration's episodes for ``rollout/*``.

        In the order in which they were begun and all of them, even if that is more than ``stats_window_size``: the last
        to *finish* are the longest ones, among which the failures are.
        """
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        size = max(self._stats_window_size, len(episodes))
        if size != self.ep_info_buffer.maxlen:
            self.ep_info_buffer = deque(self.ep_info_buffer, maxlen=size)
            self.ep_success_buffer = deque(self.ep_success_buffer, maxlen=size)
        for episode in episodes:
            reward = sum(turn.reward for turn in episode.turns)
            self.ep_info_buffer.append({"r": reward, "l": len(episode.turns), "t": time.time()})
            self.ep_success_buffer.append(episode.success)
            self._samples.add(episode)
            self._recent = episode
        self._episode_num += len(episodes)

    def dump_logs(self) -> None:
        """Write the canonical keys (:mod:`algorithms.common.shell.logs`) and flush the logger."""
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/iterations", self.iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([e["r"] for e in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([e["l"] for e in self.ep_info_buffer]))
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed))
        self.logger.record("time/total_tokens", self.total_tokens)
        if self.workers is not None:
            self.logger.record("time/workers_replaced", self.workers.n_replaced)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        sample = self._samples.take()
        if sample is not None:
            self.logger.record("samples/episode", episode_markdown(sample), exclude=ONLY_TENSORBOARD)
        self.logger.dump(step=self.num_timesteps)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of everything that is trained, by the names of their settings."""
        return {"learning_rate": self.learning_rate}

    @property
    def venv(self) -> VecEnv:
        """The environments that are trained in."""
        assert self.env is not None, "no environment is set"
        return self.env

    def count_games(self) -> int:
        """How many games the environment lists; :data:`N_SEEDS` where it has no list, and games are seeds of ``reset``."""
        if not self.venv.has_attr("n_games"):
            return N_SEEDS
        return int(self.venv.get_attr("n_games", indices=[0])[0])

    @property
    def seed_base(self) -> int:
        """First entropy of all random streams: the seed, 0 where none was given."""
        return 0 if self.seed is None else self.seed
