"""Options of the policy improvement, and stages made from dicts of options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from agentprm_gym.checks import check_fields
from algorithms.common.prm.objectives import OBJECTIVES, SAMPLED

Stage = TypeVar("Stage")

#: Where the PRM of an iteration starts.
INITS = ("policy", "base", "previous")

#: Options that only some objectives read, and those that read them.
READ_BY = {
    "n_samples": tuple(SAMPLED),
    "temperature": tuple(SAMPLED),
    **dict.fromkeys(
        ("turns_per_episode", "beta", "margin", "score_scale", "imitation_coef"), (*SAMPLED, "closed_form")
    ),
}


@dataclass(frozen=True)
class ImproveOptions:
    """Options of stage 3, :class:`~algorithms.common.prm.improve.ImproveStage`.

    Attributes:
        objective: one of :data:`~algorithms.common.prm.objectives.OBJECTIVES`.
        n_updates: optimizer updates an iteration.
        batch_size: episodes an update draws its states from.
        turns_per_episode: states drawn from each.
        n_samples: commands sampled a state, 2 or more; of a policy that gives reasons, responses that it writes there.
        temperature: of sampling, above 0; the objective is about the policy as it is sampled, ``softmax(log pi / T)``.
        beta: strength of the pull to the previous policy, above 0.
        margin: smallest gap between the best and the worst score of a state that is learnt from; 0 takes every pair.
        score_scale: scores are compared as ``"probability"``, Q in [0, 1], or as its ``"logit"``.
        target_kl: end an iteration's updates where the KL to the previous policy, averaged over five updates, exceeds this
            (nats a turn): the PRM is only to be trusted near the policy whose rollouts it was fitted to. ``None`` never does.
        imitation_coef: weight of imitating good episodes beside the objective, 0 or more.
    """

    objective: str = "online_dpo"
    n_updates: int = 80
    batch_size: int = 16
    turns_per_episode: int = 4
    n_samples: int = 8
    temperature: float = 1.0
    beta: float = 0.2
    margin: float = 0.15
    score_scale: str = "probability"
    target_kl: float | None = None
    imitation_coef: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that have no effect with the others."""
        check_fields(
            "improve",
            self,
            choices={"objective": OBJECTIVES, "score_scale": ("probability", "logit")},
            ints={"n_updates": 1, "batch_size": 1, "turns_per_episode": 1, "n_samples": 2},
            floats={"margin": 0.0, "imitation_coef": 0.0},
            positive=("temperature", "beta", "target_kl"),
        )
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in self.without_effect() and value != option.default:
                what = f"improve.{option.name}={value!r} has no effect with objective={self.objective!r}"
                raise ValueError(f"{what} and the other options: leave it out")

    def without_effect(self) -> set[str]:
        """Options that the others make meaningless."""
        return {name for name, readers in READ_BY.items() if self.objective not in readers}


def make_stage(cls: type[Stage], given: Stage | Mapping[str, Any] | None, name: str) -> Stage:
    """The options of a stage.

    Args:
        cls: dataclass of the stage.
        given: an instance, a mapping of its fields, or ``None`` for the defaults.
        name: the argument's name, for the error.

    Raises:
        ValueError: a field is unknown, or a value is refused by the stage.
    """
    if given is None:
        return cls()
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a {cls.__name__} or a mapping of its fields, got {type(given).__name__}")
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name} has no option {key!r}; choose from {', '.join(known)}{hint}")
    return cls(**given)
