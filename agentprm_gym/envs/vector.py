"""Many text game environments as one Gymnasium ``VectorEnv``, in one process and without wrappers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index, itemgetter
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agentprm_gym.envs.alfworld import ALFWorldEnv
from agentprm_gym.envs.base import RESET_OPTIONS, EnvState, Observation, Step, TextGameEnv
from agentprm_gym.envs.identity import TextIdentityEnv

Observations = dict[str, tuple[str, ...]]


class TextVectorEnv(VectorEnv[Observations, Sequence[str], NDArray[Any]]):
    """What ``SyncVectorEnv`` over ``gym.make`` does, string for string and mask for mask, but faster.

    ``gym.make_vec(id, num_envs=N)`` makes one. The environments are held without wrappers, the step
    limit is counted here, and infos are batched a key at a time. Differences from ``SyncVectorEnv``:

    - ``options`` may say something else to each environment, and is left as it was;
    - a batch of the wrong length or with something else than strings is refused before any
      environment has moved;
    - stepping an ended episode with ``autoreset_mode="Disabled"`` raises ``ResetNeeded``.

    | item        | value                                                                       |
    |-------------|-----------------------------------------------------------------------------|
    | observation | dict of tuples of ``str``, one per environment                              |
    | action      | any sequence of ``num_envs`` strings                                        |
    | seed        | an int (environment ``i`` gets ``seed + i``), a list with an int or None    |
    |             | for each, or None                                                           |
    | options     | as of one environment, for all: ``{"game": 3}``; where the value is a list, |
    |             | one for each, None where there is none: ``{"game": [3, None, "<id>"]}``.    |
    |             | ``"reset_mask"``, a bool array: only these are reset                        |
    | info        | arrays, each with its mask: ``info["won"]``, ``info["_won"]``; with         |
    |             | "SameStep" also ``final_obs`` and ``final_info``                            |

    Beyond Gymnasium: ``queue_tasks(tasks_per_env)``, ``snapshot(i)``, ``restore(i, state)``; the list
    ``envs`` and, as in ``SyncVectorEnv``, ``call``, ``get_attr`` and ``set_attr``.

    Args:
        num_envs: How many.
        max_episode_steps: The step limit; None for none. ``gym.make_vec`` passes the id's.
        autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``, or Gymnasium's enum.
        **kwargs: What one environment takes.

    Raises:
        ValueError: ``num_envs`` or ``max_episode_steps`` is not positive, the mode is unknown, or an
            environment's own reason.

    Example:
        >>> import gymnasium as gym, agentprm_gym
        >>> envs = gym.make_vec("ALFWorld-v0", num_envs=2, games="generated")
        >>> observations, infos = envs.reset(seed=0, options={"game": [0, 1]})
        >>> observations, rewards, terminations, truncations, infos = envs.step(["inventory", "dance"])
        >>> observations["feedback"]
        ('You are not carrying anything.', 'Nothing happens.')
        >>> infos["is_admissible"]
        array([ True, False])
    """

    env_class: ClassVar[type[TextGameEnv]]

    envs: Sequence[TextGameEnv] = ()  # so that closing works where making them failed

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.num_envs = num_envs
        self.envs = [self.env_class(**kwargs) for _ in range(num_envs)]
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._keys = tuple(cast("spaces.Dict", first.observation_space).spaces)
        self._limit = float("inf") if max_episode_steps is None else max_episode_steps
        self._rows: list[Observation] = []  # each environment's last observation; none before the first reset
        self._n_steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    # Gymnasium's interface ----------------------------------------------------------------------

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The environments' random generators."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The environments' seeds."""
        return self.get_attr("np_random_seed")

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in all environments, or in those of ``options["reset_mask"]``.

        Args:
            seed: See the class.
            options: See the class.

        Returns:
            All observations, and the infos of those that were reset.

        Raises:
            ValueError: Seeds, options or mask are not one for each environment, or an environment's
                own reason.
            TypeError: The mask is no array of bool.
            ResetNeeded: A mask at the first reset left some out.
        """
        seeds = self._seeds(seed)
        options = dict(options or {})
        chosen: Sequence[int] = range(self.num_envs)
        if "reset_mask" in options:
            chosen = self._masked(options.pop("reset_mask"))
        tasks = self._options_of_each(options)
        if not self._rows and len(chosen) < self.num_envs:
            raise ResetNeeded("reset all environments once before a reset with a reset_mask")
        infos: list[dict[str, Any] | None] = [None] * self.num_envs
        rows = self._rows or [{}] * self.num_envs
        for i in chosen:
            rows[i], infos[i] = self.envs[i].reset(seed=seeds[i], options=tasks[i])
            self._n_steps[i], self._ended[i] = 0, False
        self._rows = rows
        return self._observations(), self._batched(infos)

    def step(
        self, actions: Sequence[str]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step all environments; which have ended is reset as ``autoreset_mode`` says.

        Args:
            actions: One string for each; that of an environment which resets itself in this step is
                ignored.

        Returns:
            Observations, rewards, terminations, truncations, infos.

        Raises:
            ValueError: Not as many actions as environments.
            TypeError: An action is no string.
            ResetNeeded: There was no reset yet, or an episode is over and nobody reset it.
        """
        n, resetting = self.num_envs, self._resetting()
        running = [i for i in range(n) if i not in resetting] if resetting else range(n)
        self._check_actions(actions, running)
        rewards, terminated, truncated = [0.0] * n, [False] * n, [False] * n
        rows = self._rows
        infos: list[dict[str, Any] | None] = [None] * n
        for i, step in zip(running, self._play(running, actions), strict=True):
            rows[i], rewards[i], terminated[i], truncated[i], infos[i] = step
        self._n_steps += 1
        for i in resetting:
            self._restart(i, infos)
        terminations, truncations = np.array(terminated), np.array(truncated)
        truncations |= self._n_steps >= self._limit
        self._ended = terminations | truncations
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            final = self._finish(infos)
        return self._observations(), np.array(rewards), terminations, truncations, {**final, **self._batched(infos)}

    def render(self) -> tuple[Any, ...]:
        """Return what each environment's ``render`` does: texts in the mode ``"ansi"``."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment, or read an attribute, by name."""
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(item(*args, **kwargs) if callable(item) else item for item in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment.

        Args:
            name: Which.
            values: A list or tuple holds a value for each; anything else is everyone's.

        Raises:
            ValueError: A list of the wrong length.
        """
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        self._check_length("values", values)
        for env, value in zip(self.envs, values, strict=True):
            env.set_wrapper_attr(name, value)

    # Beyond Gymnasium ---------------------------------------------------------------------------

    def queue_tasks(
        self, tasks_per_env: Sequence[Sequence[Mapping[str, Any]]], *, replace: bool = False
    ) -> tuple[int, ...]:
        """Say what each environment's next resets without options shall start with.

        Args:
            tasks_per_env: A list of ``reset`` options for each environment, an empty one where there
                is nothing to add: ``[[{"game": 3}, {"game": 4}], []]``.
            replace: Drop what was queued before.

        Returns:
            How many tasks each has queued now.

        Raises:
            ValueError: Not one list for each environment, or a task holds an unknown option or game;
                nothing is queued then.
        """
        self._check_length("tasks_per_env", tasks_per_env)
        # All before any: a list that is refused must not leave half of the queues filled.
        checked = [env.checked_tasks(tasks) for env, tasks in zip(self.envs, tasks_per_env, strict=True)]
        return tuple(env.queue_tasks(tasks, replace=replace) for env, tasks in zip(self.envs, checked, strict=True))

    def snapshot(self, i: int) -> EnvState:
        """Return the point at which an environment's episode is; see ``TextGameEnv.snapshot``."""
        return self.envs[i].snapshot()

    def restore(self, i: int, state: EnvState) -> tuple[Observation, dict[str, Any]]:
        """Go to a point of an episode in one environment, with a fresh step limit; the others stay.

        Where the old episode was over, the reset that was due is dropped.

        Args:
            i: Which environment.
            state: What :meth:`snapshot` returned, of any environment on the same games.

        Returns:
            Observation and info of that point, of this one environment.

        Raises:
            TypeError: ``state`` is no snapshot.
            ValueError: Its game is not among the games.
            ResetNeeded: There was no reset yet.
        """
        self._require_reset()
        self._rows[i], info = self.envs[i].restore(state)
        self._n_steps[i], self._ended[i] = 0, state.done
        return dict(self._rows[i]), info

    # Inside -------------------------------------------------------------------------------------

    def _play(self, indices: Sequence[int], actions: Sequence[str]) -> Sequence[Step]:
        """Step some environments; a subclass does more to all of their results at once."""
        return [self.envs[i].step(actions[i]) for i in indices]

    def _resetting(self) -> Sequence[int]:
        """Return which environments reset themselves in place of stepping."""
        self._require_reset()
        ended: list[int] = np.flatnonzero(self._ended).tolist()
        if not ended or self.autoreset_mode is AutoresetMode.SAME_STEP:
            return ()
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of the environments {ended} are over and autoreset is disabled: call "
                "reset(options={'reset_mask': terminations | truncations}) before the next step"
            )
        return ended

    def _restart(self, i: int, infos: list[dict[str, Any] | None]) -> None:
        self._rows[i], infos[i] = self.envs[i].reset()
        self._n_steps[i] = 0

    def _finish(self, infos: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Reset what has ended; return its last observations and infos as entries of the step's info."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_infos: list[dict[str, Any] | None] = [None] * self.num_envs
        for i in np.flatnonzero(self._ended).tolist():
            final_obs[i], final_infos[i] = self._rows[i], infos[i]
            self._restart(i, infos)
        return {
            "final_obs": final_obs,
            "_final_obs": self._ended.copy(),
            "final_info": self._batched(final_infos),
            "_final_info": self._ended.copy(),
        }

    def _observations(self) -> Observations:
        return {key: tuple([row[key] for row in self._rows]) for key in self._keys}

    def _batched(self, infos: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        """Return what ``VectorEnv._add_info`` makes of the infos one by one, at a fraction of its time."""
        rows: Sequence[dict[str, Any]] = [info or {} for info in infos]
        merged: dict[str, Any] = {}
        for row in reversed(rows):  # so that the first environment's value decides the type, as there
            merged.update(row)
        batch: dict[str, Any] = {}
        for key, value in merged.items():
            kind = type(value)
            if kind not in _EMPTY:
                for i, row in enumerate(rows):
                    if key in row:
                        self._add_info(batch, {key: row[key]}, i)
                continue
            try:
                column = list(map(itemgetter(key), rows))
                mask = np.ones(self.num_envs, dtype=np.bool_)
            except KeyError:
                column = [row.get(key, _EMPTY[kind]) for row in rows]
                mask = np.array([key in row for row in rows])
            batch[key], batch[f"_{key}"] = np.array(column, dtype=object if kind is str else kind), mask
        return batch

    # Checks -------------------------------------------------------------------------------------

    def _require_reset(self) -> None:
        if not self._rows:
            raise ResetNeeded("no episode is running: call reset() first")

    def _check_length(self, what: str, values: Any) -> None:
        if len(values) != self.num_envs:
            raise ValueError(
                f"{what} must hold one entry for each of the {self.num_envs} environments, got {len(values)}"
            )

    def _check_actions(self, actions: Sequence[str], running: Sequence[int]) -> None:
        if isinstance(actions, str) or not hasattr(actions, "__getitem__"):
            raise TypeError(
                f"expected a sequence of {self.num_envs} strings, one for each environment, got "
                f"{type(actions).__name__}; for example envs.step(['look'] * envs.num_envs)"
            )
        self._check_length("actions", actions)
        for i in running:
            if not isinstance(actions[i], str):
                raise TypeError(f"expected the actions as str, got {type(actions[i]).__name__} for environment {i}")

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        self._check_length("seed", seed)
        return [None if one is None else index(one) for one in seed]

    def _masked(self, mask: NDArray[np.bool_]) -> Sequence[int]:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a numpy array of bool, got {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must have shape ({self.num_envs},) and at least one True, got {mask!r}"
            )
        chosen: list[int] = np.flatnonzero(mask).tolist()
        return chosen

    def _options_of_each(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for key, value in options.items():
            if isinstance(value, np.ndarray):
                value = value.tolist()
            # An unknown key is refused by the environment.
            one_each = key in RESET_OPTIONS and isinstance(value, (list, tuple))
            if one_each:
                self._check_length(f"options[{key!r}]", value)
            for i, own in enumerate(each):
                if not one_each:
                    own[key] = value
                elif value[i] is not None:
                    own[key] = value[i]
        return each


class ALFWorldVectorEnv(TextVectorEnv):
    """``ALFWorld-v0`` as a vector environment; see :class:`TextVectorEnv` and :class:`ALFWorldEnv`."""

    env_class = ALFWorldEnv


class TextIdentityVectorEnv(TextVectorEnv):
    """``TextIdentity-v0`` as a vector environment; see :class:`TextVectorEnv` and :class:`TextIdentityEnv`."""

    env_class = TextIdentityEnv


# What Gymnasium puts where an environment has no such entry, by the type of the entry.
_EMPTY: Mapping[type, Any] = {str: None, bool: False, int: 0, float: 0.0}


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        choices = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {choices}, got {mode!r}") from None
