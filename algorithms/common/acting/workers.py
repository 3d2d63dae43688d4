"""Rollouts by several processes, each with a policy and environments of its own.

Threads do not help a small model: its matrices are too small to share, and threads that wait for each other burn the cores.
Processes need nothing of each other while they play. Each task has a random stream of its own, so the episodes are those that
one process plays. A policy's adapter is sent before each collection; the base is loaded once by each process.

Processes are spawned, not forked: torch does not survive a fork in all states. So a script that uses them needs
``if __name__ == "__main__":``, as with any module that spawns.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_int
from agentprm_gym.episodes import Episode
from agentprm_gym.llm.adapter_set import is_quantized
from agentprm_gym.llm.model import lora_settings
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import Rollout, RolloutTask, stream

#: Seconds that a process gets to end by itself.
_PATIENCE = 5.0


def replica_settings(policy: LLMPolicy) -> dict[str, Any]:
    """Keyword arguments that make a policy like another one, spaces and the adapter's numbers aside.

    Args:
        policy: the policy.

    Raises:
        ValueError: another process cannot make one like it.
    """
    lm, responder = policy.lm, policy.responder
    if lm.device.type != "cpu" or is_quantized(lm.base):
        raise ValueError(f"worker processes play on the CPU: expected a policy there, got one on {lm.device}")
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
    }


class RolloutWorkers:
    """Processes that play tasks with a policy.

    Attributes:
        counts: what the actors counted in the last collection, see :class:`PolicyActor`.

    Example:
        >>> make = partial(make_eval_env, n_envs=32)  # doctest: +SKIP
        >>> with RolloutWorkers(model.policy, make, n_workers=2) as workers:  # doctest: +SKIP
        ...     rollouts = workers.collect([RolloutTask({"game": g}, (0, g)) for g in range(100)])
    """

    def __init__(self, policy: LLMPolicy, make_venv: Callable[[], VecEnv], n_workers: int = 2) -> None:
        """Start the processes.

        Args:
            policy: on a CPU. Its adapter is read again at each collection, its other settings are read now.
            make_venv: makes a process's environments; a function of a module, or a ``functools.partial`` of one.
            n_workers: how many processes, 1 or more. More than there are cores gain nothing.

        Raises:
            ValueError: the number is below 1, or another process cannot make such a policy.
        """
        self.policy = policy
        self.counts: Counter[str] = Counter()
        settings = replica_settings(policy)
        spawn = get_context("spawn")
        self._links: list[Connection] = []
        self._processes = []
        for _ in range(check_int("n_workers", n_workers, 1)):
            here, there = spawn.Pipe()
            process = spawn.Process(
                target=_work,
                args=(there, settings, policy.observation_space, policy.action_space, policy.lm.fingerprint, make_venv),
                daemon=True,
            )
            process.start()
            there.close()
            self._links.append(here)
            self._processes.append(process)

    def collect(
        self,
        tasks: Sequence[RolloutTask],
        *,
        temperature: float | None = None,
        n_candidates: int = 1,
        policy_name: str = "",
        snapshots: bool = False,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Rollout]:
        """Play every task once with the policy as it is now.

        Args:
            tasks: what to play.
            temperature: of the policy, 0 (greedy) or more; ``None``: its own.
            n_candidates: as for :meth:`LLMPolicy.actor`.
            policy_name: written into the episodes.
            snapshots: keep the state before each turn, where the environments can.
            on_episode: called with each finished episode.

        Returns:
            The rollouts in the order of the tasks.

        Raises:
            RuntimeError: a process failed; the message holds its error. The processes are ended.
        """
        how = {"temperature": temperature, "n_candidates": n_candidates}
        given = {"policy_name": policy_name, "snapshots": snapshots}
        state = self.policy.lm.adapter_state(POLICY)
        out: list[Rollout | None] = [None] * len(tasks)
        n = len(self._links)
        busy: list[Connection] = []
        self.counts = Counter()
        try:
            for i, link in enumerate(self._links):
                if tasks[i::n]:
                    # Tasks in turns: neighbours, such as the episodes of one game, take about equally long.
                    with suppress(
                        BrokenPipeError, ConnectionResetError
                    ):  # it has failed, and what it said of it is read below
                        link.send((state, tasks[i::n], how, given))
                    busy.append(link)
            while busy:
                for ready in wait(busy):
                    link = next(x for x in busy if x is ready)
                    kind, content = link.recv()
                    if kind == "error":
                        raise RuntimeError(f"a worker process failed while it played:\n{content}")
                    if kind == "episode":
                        index, rollout = content
                        out[self._links.index(link) + index * n] = rollout
                        if on_episode is not None:
                            on_episode(rollout.episode)
                    else:
                        self.counts += content
                        busy.remove(link)
        except (EOFError, ConnectionResetError) as error:
            self.close()
            raise RuntimeError(
                "a worker process ended before it had played its tasks: it may have run out of memory, or the script that "
                'spawns it has no `if __name__ == "__main__":`'
            ) from error
        except BaseException:
            self.close()  # what is on its way would be taken for the next collection's
            raise
        return [rollout for rollout in out if rollout is not None]

    def close(self) -> None:
        """End the processes."""
        for link in self._links:
            with suppress(OSError):  # it has ended
                link.send(None)
            link.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.terminate()
        self._links, self._processes = [], []

    def __enter__(self) -> Self:
        """The processes run until the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the processes."""
        self.close()


def _work(
    link: Connection,
    settings: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    fingerprint: str,
    make_venv: Callable[[], VecEnv],
) -> None:
    """What a process does: play what it is sent until it is sent nothing."""
    torch.set_num_threads(1)
    try:
        policy = LLMPolicy(observation_space, action_space, **settings)
        if policy.lm.fingerprint != fingerprint:
            raise ValueError(f"the base {settings['model']!r} is not the one that the policy has: it was changed since")
        venv = make_venv()
        while (order := link.recv()) is not None:
            state, tasks, how, given = order
            policy.lm.load_adapter_state(POLICY, state)
            actor = policy.actor(venv.num_envs, **how)
            given["snapshots"] = given["snapshots"] and venv.has_attr("snapshot")
            with policy.lm.merged(POLICY):
                for index, rollout in stream(actor, venv, tasks, **given):
                    link.send(("episode", (index, rollout)))
            link.send(("done", actor.counts))
    except EOFError:
        pass  # the other side has ended
    except BaseException:
        link.send(("error", traceback.format_exc()))
