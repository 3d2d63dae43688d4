"""Process rewards by name, so that an environment's kwargs stay JSON; and what else may stand for one.

A name is registered with an entry point, ``"package.module:Class"``, which is imported at its first use. So this room does not
know the rooms above it, whose rewards load torch: :mod:`agentprm_gym.registration` registers those.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from numpy.typing import ArrayLike

from agentprm_gym.hub import is_hub
from agentprm_gym.rewards.base import ProcessReward, ScoredTurn, needs_of
from agentprm_gym.rewards.combine import AdjustedReward, EnsembleReward, Part, SumReward
from agentprm_gym.rewards.oracle import OracleAdvantageReward, OraclePotentialReward, OracleQReward
from agentprm_gym.rewards.rules import OutcomeReward, PenaltyReward, ProgressReward
from agentprm_gym.rewards.schedules import AnnealedReward

#: Makes a process reward out of keyword arguments; a class, mostly.
RewardFactory = Callable[..., ProcessReward]
#: What may stand for a process reward, see :func:`make_reward`.
RewardLike = str | ProcessReward | type[ProcessReward] | Callable[..., ArrayLike]

_ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_PART_KEYS = ("reward", "weight", "reward_kwargs", "name")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is registered under a name.

    Attributes:
        target: the factory, or where to import it from.
        behind: for names that end in a colon, what stands behind it, in words.
        file: where that is the path of a file: what the file holds, in words.
    """

    target: str | RewardFactory
    behind: str = ""
    file: str = ""


class FunctionReward:
    """A function of a batch of turns as a process reward.

    Attributes:
        name: the function's name.
    """

    def __init__(self, function: Callable[..., ArrayLike], **kwargs: Any) -> None:
        """Make a reward.

        Args:
            function: takes a sequence of :class:`ScoredTurn` and returns one number for each. Its attributes ``name``,
                ``needs`` and ``privileged``, where it has them, are the reward's.
            **kwargs: passed on to the function.
        """
        self.name = _label(function)
        for key in ("needs", "privileged"):
            if hasattr(function, key):
                setattr(self, key, getattr(function, key))
        self._function = partial(function, **kwargs) if kwargs else function

    def score(self, turns: Sequence[ScoredTurn]) -> Any:
        """Return what the function does.

        Args:
            turns: the batch.
        """
        return self._function(turns)


def register_reward(
    name: str, entry_point: str | RewardFactory, *, behind: str = "path", file: str | None = None
) -> None:
    """Make a process reward available as ``reward=name``.

    With environments in worker processes, register in a module that the workers import too, or use ``reward=
    "package.module:Class"``, which needs no registration.

    Args:
        name: a name that is not in use, without ``:``. With one ``:`` at its end it is a prefix, and what stands behind it is
            the first argument: ``reward="prm:agent.zip"`` calls the factory of ``"prm:"`` with ``"agent.zip"``.
        entry_point: the factory: a class or function that is called with ``reward_kwargs`` and returns an object with a method
            ``score(turns)``, see :class:`ProcessReward`; or where to find it, ``"package.module:Class"``, imported at first
            use.
        behind: for a prefix, what stands behind the colon, for messages.
        file: for a prefix whose rest is the path of a file: what the file holds, for the message where it does not exist.

    Raises:
        ValueError: the name is in use by another factory or holds a ``:`` elsewhere, the entry point is not written as above,
            or the class has no method ``score``.
        TypeError: ``entry_point`` is neither a string nor callable.

    Example:
        >>> class Shortness:
        ...     def score(self, turns):
        ...         return np.array([-0.01 * len(turn.turns) for turn in turns])
        >>> register_reward("shortness", Shortness)  # doctest: +SKIP
        >>> env = gym.make("ALFWorldPRM-v0", games="generated", reward="shortness")  # doctest: +SKIP
    """
    if not name or ":" in name[:-1] or name == ":":
        raise ValueError(f"a reward's name must be non-empty and hold no ':' except at its end, got {name!r}")
    if isinstance(entry_point, str):
        if not _ENTRY_POINT.fullmatch(entry_point):
            raise ValueError(f'expected an entry point "package.module:Class", got {entry_point!r}')
    elif isinstance(entry_point, type):
        _check_score(entry_point, entry_point.__name__)
    elif not callable(entry_point):
        raise TypeError(
            f'expected a class, a function or "package.module:Class" for the reward {name!r}, got '
            f"{type(entry_point).__name__}; an object needs no registration: reward=<the object>"
        )
    entry = _Entry(entry_point, behind if name.endswith(":") else "", file or "")
    if name in _COMBINED or _ENTRIES.get(name, entry) != entry:
        raise ValueError(f"the reward name {name!r} is in use already; choose another name")
    _ENTRIES[name] = entry


def reward_names() -> tuple[str, ...]:
    """Return the registered names that stand for themselves, sorted; ``"sum"``, ``"prm:<path>"`` and the like are left out."""
    return tuple(sorted(name for name in _ENTRIES if not name.endswith(":")))


def make_reward(
    reward: RewardLike, *, clip: Sequence[float] | None = None, normalize: bool = False, **kwargs: Any
) -> ProcessReward:
    """Make a process reward.

    Args:
        reward: one of

            * a registered name (:func:`reward_names`, :func:`register_reward`);
            * ``"sum"`` (see :class:`SumReward`), ``"ensemble"`` (see :class:`EnsembleReward`) or ``"annealed"`` (see
              :class:`AnnealedReward`);
            * ``"prm:<path>"`` for a process reward model saved there, ``"reference:<path>"`` for one of a reference policy,
              ``"implicit:<path>"`` for a policy's log-ratio (see :mod:`agentprm_gym.prm.rewards`), ``"judge:<base url>"`` for a
              language model on a server (see :mod:`agentprm_gym.rewards.judge`);
            * ``"package.module:Class"``, imported and then as the following;
            * a class, which is called with ``kwargs``; an object with a method ``score(turns)``; or a function that takes a
              batch of turns, and ``kwargs``, and returns one number for each turn.
        clip: ``[low, high]``: the lowest and the highest score; ``None``: any. See :class:`AdjustedReward`.
        normalize: whether scores are divided by their running standard deviation, before they are clipped.
        **kwargs: passed on to the factory.

    Returns:
        The process reward.

    Raises:
        ValueError: the name is unknown, the kwargs do not fit, or the result has no method ``score``.
        FileNotFoundError: the file that a name points to does not exist.
    """
    made = _by_name(reward, kwargs) if isinstance(reward, str) else _from_object(reward, kwargs, _label(reward))
    _check_score(made, _label(reward))
    needs_of(made)  # refuses a declaration that contradicts itself
    return made if clip is None and normalize is False else AdjustedReward(made, clip, normalize)


def _by_name(name: str, kwargs: Mapping[str, Any]) -> ProcessReward:
    kind, colon, rest = name.partition(":")
    if name in _COMBINED:
        return _call(_COMBINED[name], (), kwargs, name)
    if name in _ENTRIES and not colon:
        return _call(_target(_ENTRIES[name], name), (), kwargs, name)
    if colon and f"{kind}:" in _ENTRIES:
        entry = _ENTRIES[f"{kind}:"]
        # Before the import: a mistyped path should not wait for torch.
        if entry.file and not is_hub(rest) and not Path(rest).is_file():
            raise FileNotFoundError(
                f"no saved {entry.file} at {rest!r}: expected the zip that an algorithm's save(path) wrote"
            )
        return _call(_target(entry, name), (rest,), kwargs, name)
    if _ENTRY_POINT.fullmatch(name):
        return _from_object(_imported(name, name), kwargs, name)
    raise ValueError(f"{_choices()}, got {name!r}{_hint(name)}")


def _from_object(thing: Any, kwargs: Mapping[str, Any], label: str) -> ProcessReward:
    if isinstance(thing, type):
        _check_score(thing, label)
        return _call(thing, (), kwargs, label)
    if callable(getattr(thing, "score", None)):
        if kwargs:
            raise ValueError(f"the reward {label!r} is made already and takes no reward_kwargs, got {dict(kwargs)!r}")
        return cast("ProcessReward", thing)
    if callable(thing):
        return FunctionReward(thing, **kwargs)
    raise ValueError(f"{_choices()}, a class, an object with a method score(turns), or a function; got {thing!r}")


def _call(factory: RewardFactory, args: tuple[str, ...], kwargs: Mapping[str, Any], name: str) -> ProcessReward:
    try:
        return factory(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"reward_kwargs {dict(kwargs)!r} do not fit reward {name!r}: {error}") from error


def _target(entry: _Entry, name: str) -> RewardFactory:
    return _imported(entry.target, name) if isinstance(entry.target, str) else entry.target


def _imported(entry_point: str, name: str) -> Any:
    module, _, path = entry_point.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one
        raise ValueError(
            f"the reward {name!r} cannot be imported: no module {error.name!r} on Python's path. {_choices()}, or "
            f'"package.module:Class"{_hint(name)}'
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the reward {name!r} cannot be imported: {module!r} has no {path!r}")
        found = getattr(found, part)
    return found


def _check_score(thing: Any, label: str) -> None:
    if not callable(getattr(thing, "score", None)):
        raise ValueError(
            f"the reward {label!r} has no method score(turns): expected one that takes a list of ScoredTurn and returns an "
            "array with one number for each"
        )


def _label(reward: RewardLike) -> str:
    """What messages call a reward."""
    if isinstance(reward, str):
        return reward
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))


def _choices() -> str:
    names = ", ".join(map(repr, reward_names()))
    patterns = [f"{name}<{entry.behind}>" for name, entry in _ENTRIES.items() if name.endswith(":")]
    return f"reward must be one of {names} or {', '.join(map(repr, [*patterns, *_COMBINED]))}"


def _hint(name: str) -> str:
    kind, colon, rest = name.partition(":")
    close = difflib.get_close_matches(kind + colon, [*_ENTRIES, *_COMBINED], n=1)
    return f": did you mean {close[0] + rest!r}?" if close else ""


def _sum(parts: Sequence[Mapping[str, Any]]) -> ProcessReward:
    return SumReward(_parts(parts, "sum"))


def _ensemble(parts: Sequence[Mapping[str, Any]], pessimism: float = 0.0) -> ProcessReward:
    return EnsembleReward(_parts(parts, "ensemble"), pessimism)


def _annealed(part: Mapping[str, Any], **schedule: Any) -> ProcessReward:
    (made,) = _parts([part], "annealed reward")
    return AnnealedReward(made.reward, **schedule)


def _parts(parts: Sequence[Mapping[str, Any]], whole: str) -> list[Part]:
    """Make the parts of what is made of more."""
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not all(isinstance(p, Mapping) for p in parts):
        example = '{"reward": "progress"}'
        raise ValueError(f"the parts of a {whole} must be a list of dicts such as {example}, got {parts!r}")
    made = []
    for i, part in enumerate(parts):
        unknown = sorted(set(part) - set(_PART_KEYS))
        if unknown or "reward" not in part:
            raise ValueError(
                f'part {i} of the {whole} must have "reward" and no other keys than {_PART_KEYS}, got {part!r}'
            )
        try:
            reward = make_reward(part["reward"], **part.get("reward_kwargs", {}))
        except ValueError as error:
            raise ValueError(f"part {i} of the {whole}: {error}") from error
        made.append(Part(part.get("name", _label(part["reward"])), reward, part.get("weight", 1.0)))
    return made


_ENTRIES: dict[str, _Entry] = {
    "oracle_advantage": _Entry(OracleAdvantageReward),
    "oracle_potential": _Entry(OraclePotentialReward),
    "oracle_q": _Entry(OracleQReward),
    "outcome": _Entry(OutcomeReward),
    "penalty": _Entry(PenaltyReward),
    "progress": _Entry(ProgressReward),
}
_COMBINED: dict[str, RewardFactory] = {"sum": _sum, "ensemble": _ensemble, "annealed": _annealed}
