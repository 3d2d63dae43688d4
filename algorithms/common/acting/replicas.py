"""Rollouts by workers: what a worker is given, how it plays, and what is done when one ends.

A worker has a policy and environments of its own (:class:`Replica`). Each task has a random stream of its own, so the episodes
are those that one process plays. The policy's adapter is sent before each collection, and nothing else of the model; the base
is loaded once by each worker. A worker that ends is replaced and counted, and the tasks that it had not finished are played
again: they have the same streams, so the episodes stay the same. Who the workers are is said by ``workers.py`` (processes of
this machine) and ``ray_workers.py`` (actors of a Ray cluster).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_int
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.full_weights import is_quantized
from agentprm_gym.llm.model import lora_settings
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import OnStep, Rollout, RolloutTask, step_of, stream

#: So many workers are replaced one after the other, without an episode in between, before a collection is given up.
MAX_IN_VAIN = 3


def replica_settings(policy: LLMPolicy, device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments that make a policy like another one, spaces and the adapter's numbers aside.

    Args:
        policy: the policy.
        device: where the other one is to be: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: another process cannot make one like it.
    """
    lm, responder = policy.lm, policy.responder
    if lm.device.type != device or is_quantized(lm.base):
        where = "the CPU" if device == "cpu" else f"{device!r}"
        what = "a quantized one" if is_quantized(lm.base) else "one"
        raise ValueError(f"worker processes play on {where}: expected a policy there, got {what} on {lm.device}")
    if policy.reader is not None:
        raise ValueError("worker processes do not take a reader of your own (parse=): play in this process")
    return {
        "model": lm.name,
        "lora": lora_settings(lm.adapter_config(POLICY)),
        "template": lm.prompt.template,
        "dtype": str(lm.base.dtype).removeprefix("torch."),
        "attn_implementation": lm.base.config._attn_implementation,
        "max_context": lm.max_context,
        "action_mode": responder.mode,
        "reason": lm.prompt.reasons,
        "max_new_tokens": responder.max_new_tokens,
        "score_normalization": responder.normalization,
        "cache_tokens": policy.cache_tokens,
        "temperature": policy.temperature,
        "device": device,
    }


@dataclass(frozen=True)
class Recipe:
    """What makes a worker's policy and environments; it is sent once.

    Attributes:
        settings: keyword arguments of :class:`LLMPolicy`, see :func:`replica_settings`.
        observation_space: of the policy.
        action_space: of the policy.
        fingerprint: of the policy's base.
        make_venv: makes the environments.
        n_threads: threads of torch in the worker.
    """

    settings: Mapping[str, Any]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    fingerprint: str
    make_venv: Callable[[], VecEnv]
    n_threads: int = 1


@dataclass(frozen=True)
class Order:
    """What a collection asks of every worker.

    Attributes:
        state: the adapter's tensors.
        acting: keyword arguments of :meth:`LLMPolicy.actor`.
        policy_name: written into the episodes.
        snapshots: keep the state before each turn, where the environments can.
        check: raises an error where the environments are not those that are wanted.
    """

    state: dict[str, torch.Tensor]
    acting: dict[str, Any] = field(default_factory=dict)
    policy_name: str = ""
    snapshots: bool = False
    check: Callable[[VecEnv], None] | None = None


class Replica:
    """A worker's policy and environments."""

    def __init__(self, recipe: Recipe) -> None:
        """Load the base and make the environments.

        Args:
            recipe: how.

        Raises:
            ValueError: the base is not the one that the policy has.
        """
        torch.set_num_threads(recipe.n_threads)
        self.policy = LLMPolicy(recipe.observation_space, recipe.action_space, **recipe.settings)
        if self.policy.lm.fingerprint != recipe.fingerprint:
            name = recipe.settings["model"]
            raise ValueError(
                f"the base {name!r} is not the one that the policy has: it was changed, or is another file here"
            )
        self.venv = recipe.make_venv()
        self._is_checked = False

    def play(self, order: Order, tasks: Iterable[RolloutTask]) -> Iterator[tuple[int, Rollout, Counter[str]]]:
        """Play tasks, which may come one by one.

        Args:
            order: how.
            tasks: what to play.

        Yields:
            For each episode that finishes: the task's number, the rollout, and what the actor has counted since the order came
            (:class:`PolicyActor`; ``tokens`` are those fed to the model).
        """
        if order.check is not None and not self._is_checked:
            order.check(self.venv)
            self._is_checked = True
        lm = self.policy.lm
        lm.load_adapter_state(POLICY, order.state)
        actor = self.policy.actor(self.venv.num_envs, **order.acting)
        snapshots = order.snapshots and self.venv.has_attr("snapshot")
        with lm.merged(POLICY):
            for index, rollout in stream(actor, self.venv, tasks, policy_name=order.policy_name, snapshots=snapshots):
                yield index, rollout, Counter({**actor.counts, "tokens": actor.rows.decoder.n_fed})


class Workers(ABC):
    """Workers that play tasks with a policy; a subclass says who they are.

    Attributes:
        policy: whose adapter is sent before each collection.
        counts: what the actors counted in the last collection, see :class:`PolicyActor`, and ``tokens``. What a worker did
            before it ended counts, and so does what is played again.
        n_replaced: how many workers ended and were replaced since the beginning.
        check: called by each worker with its environments before it plays first; it raises an error where they are not those
            that are wanted. A function of a module, or a ``functools.partial`` of one.
    """

    def __init__(
        self, policy: LLMPolicy, make_venv: Callable[[], VecEnv], n_workers: int, device: str, n_threads: int
    ) -> None:
        """Note how a worker is made.

        Args:
            policy: its adapter is read again at each collection, its other settings are read now.
            make_venv: makes a worker's environments.
            n_workers: how many workers, 1 or more.
            device: where they play: ``"cpu"`` or ``"cuda"``.
            n_threads: threads of torch in each.

        Raises:
            ValueError: the number is below 1, or a worker cannot make such a policy.
        """
        self.policy = policy
        self.n_workers = check_int("n_workers", n_workers, 1)
        self.counts: Counter[str] = Counter()
        self.n_replaced = 0
        self.check: Callable[[VecEnv], None] | None = None
        self._in_vain = 0
        self._latest: dict[object, Counter[str]] = {}
        self._recipe = Recipe(
            replica_settings(policy, device),
            policy.observation_space,
            policy.action_space,
            policy.lm.fingerprint,
            make_venv,
            n_threads,
        )

    def collect_for(
        self,
        actor: PolicyActor,
        tasks: Sequence[RolloutTask],
        *,
        policy_name: str = "",
        snapshots: bool = False,
        on_step: OnStep | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Rollout] | None:
        """Play every task once, in place of an actor of this process.

        Args:
            actor: of :attr:`policy`; the workers' play as it does, and what they counted is added to its counts.
            tasks: what to play.
            policy_name: written into the episodes.
            snapshots: keep the state before each turn, where the environments can.
            on_step: called after each *episode*, as SB3's callbacks are after a step: ``n_running`` is how many turns were
                played, and there are neither infos nor rewards. Returning False ends the collection.
            on_episode: called with each finished episode.

        Returns:
            The rollouts in the order of the tasks; ``None`` if ``on_step`` ended the collection.

        Raises:
            RuntimeError: as :meth:`collect`.
        """
        stopped = False

        def on_rollout(rollout: Rollout) -> bool:
            nonlocal stopped
            stopped = on_step is not None and not on_step(step_of(rollout))
            return not stopped

        rollouts = self.collect(
            tasks,
            temperature=actor.temperature,
            n_candidates=actor.n_candidates,
            policy_name=policy_name,
            snapshots=snapshots,
            on_episode=on_episode,
            on_rollout=on_rollout,
        )
        for what, count in self.counts.items():
            if what == "tokens":
                actor.rows.decoder.n_fed += count
            else:
                actor.counts[what] += count
        return None if stopped else rollouts

    def collect(
        self,
        tasks: Sequence[RolloutTask],
        *,
        temperature: float | None = None,
        n_candidates: int = 1,
        policy_name: str = "",
        snapshots: bool = False,
        on_episode: Callable[[Episode], None] | None = None,
        on_rollout: Callable[[Rollout], bool] | None = None,
    ) -> list[Rollout]:
        """Play every task once with the policy as it is now.

        Args:
            tasks: what to play.
            temperature: of the policy, 0 (greedy) or more; ``None``: its own.
            n_candidates: as for :meth:`LLMPolicy.actor`.
            policy_name: written into the episodes.
            snapshots: keep the state before each turn, where the environments can.
            on_episode: called with each finished episode.
            on_rollout: called with each rollout as it finishes; returning False ends the collection, and what was played so
                far is returned.

        Returns:
            The rollouts in the order of the tasks.

        Raises:
            RuntimeError: a worker failed (the message holds its error), or workers end again and again. The workers are
                ended; the next collection begins with new ones.
        """
        how = {"temperature": temperature, "n_candidates": n_candidates}
        order = Order(self.policy.lm.adapter_state(POLICY), how, policy_name, snapshots, self.check)
        out: list[Rollout | None] = [None] * len(tasks)
        self._latest, self._in_vain = {}, 0
        try:
            for index, rollout in self._play(order, tasks, out):
                out[index], self._in_vain = rollout, 0
                if on_episode is not None:
                    on_episode(rollout.episode)
                if on_rollout is not None and not on_rollout(rollout):
                    self.close()
                    break
        except BaseException:
            self.close()  # what is on its way would be taken for the next collection's
            raise
        self.counts = sum(self._latest.values(), Counter())
        return [rollout for rollout in out if rollout is not None]

    @abstractmethod
    def _play(
        self, order: Order, tasks: Sequence[RolloutTask], done: Sequence[Rollout | None]
    ) -> Iterator[tuple[int, Rollout]]:
        """Let the workers play; yields numbers of tasks and their rollouts, each once.

        Args:
            order: how.
            tasks: what to play.
            done: what was yielded so far, by the number of the task.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def _has_ended(self, who: str) -> None:
        """Count a worker that ended and is to be replaced.

        Args:
            who: which one, and how it ended.

        Raises:
            RuntimeError: workers end again and again, so that no episode is finished.
        """
        self._in_vain += 1
        if self._in_vain > MAX_IN_VAIN:
            raise RuntimeError(
                f"{who}, and {MAX_IN_VAIN} workers that ended before it were replaced without an episode in between. They may "
                "run out of memory (use fewer workers, or fewer environments in each), or they cannot start: a script that "
                'uses worker processes needs `if __name__ == "__main__":`'
            )
        self.n_replaced += 1

    def __enter__(self) -> Self:
        """The workers are there until the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()
