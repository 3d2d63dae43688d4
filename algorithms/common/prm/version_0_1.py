"""Options of saves of version 0.1, which had them all on one level."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from algorithms.common.prm.options import READ_BY

#: Where the options of version 0.1 are now: group and name, ``None`` for options that are gone.
_MOVED: dict[str, tuple[str, str]] = {
    **{
        name: ("rollout", name)
        for name in ("n_games", "n_repeats", "n_trunks", "n_branch_states", "n_branch_candidates", "n_other_games")
    },
    "temperature": ("rollout", "temperature"),
    **{f"prm_{name}": ("prm", name) for name in ("learning_rate", "n_epochs", "batch_size", "init", "form")},
    **{
        name: ("prm", name)
        for name in (
            *("read_reasons", "discount", "reward_range", "rank_coef", "count_weight", "aggregate"),
            *("stop_gradient", "logit_clip"),
        )
    },
    "optimizer": ("improve", "objective"),
    **{
        name: ("improve", name)
        for name in (
            *(
                "n_updates",
                "batch_size",
                "turns_per_episode",
                "n_samples",
                "beta",
                "margin",
                "score_scale",
                "target_kl",
            ),
            *("imitation_coef", "prior_visits", "n_imitated_per_game", "n_searched", "search_best_of"),
            *("imitate", "imitation_quantile"),
        )
    },
}
#: Options of version 0.1 that are gone, with their defaults.
_GONE: dict[str, Any] = {
    "n_branch_repeats": 1,
    "branch_horizon": 12,
    "rank_loss": "bradley_terry",
    "rank_margin": 0.0,
    "prm_kwargs": None,
    "normalize_scores": False,
    "value_coef": 0.0,
    "gae_lambda": 0.9,
    "n_epochs": 1,
    "clip_range": 0.2,
    "clip_range_high": None,
    "level": "turn",
    "ent_coef": 0.0,
    "max_grad_norm": 1.0,
}
_OBJECTIVES = {"grpo": "policy_gradient", "mpo": "closed_form"}
#: What InversePRM had on the first level and has not any more: it reads no outcomes.
_OUTCOMES = ("n_validation_games", "on_divergence", "max_divergence")


def current_settings(settings: Mapping[str, Any], algorithm: str, path: str) -> dict[str, Any]:
    """Constructor arguments of a save, those of version 0.1 in today's groups.

    Args:
        settings: arguments as they were saved.
        algorithm: name of the class.
        path: of the save, for messages.

    Raises:
        ValueError: the policy was improved by PPO, which is an algorithm of its own now.
    """
    if "rollout" in settings:
        return dict(settings)
    if settings.get("optimizer") == "ppo":
        raise ValueError(
            f'{path} was saved by {algorithm} with optimizer="ppo" of version 0.1, which is gone: start PPO from its policy '
            '(PPO("save.zip", env)); PPO(critic="prm:<zip>") takes a PRM as its critic'
        )
    out: dict[str, Any] = {"rollout": {}, "prm": {}, "improve": {}}
    lost = []
    for key, value in settings.items():
        if key in _MOVED:
            group, name = _MOVED[key]
            out[group][name] = value
        elif key in _GONE:
            lost += [] if value == _GONE[key] else [f"{key}={value!r}"]
        elif key != "loss" and not (algorithm == "InversePRM" and key in _OUTCOMES):
            out[key] = value
    objective = out["improve"].get("objective", "online_dpo")
    if objective == "online_dpo" and settings.get("loss") == "ipo":
        objective = "online_ipo"
    if algorithm == "AgentPRM":
        out["prm"].setdefault("form", "scalar")  # what its saves have that do not say
    improve = out["improve"]
    improve["objective"] = objective = _OBJECTIVES.get(objective, objective)
    # Version 0.1 kept options without effect; now they are refused.
    idle = {name for name, readers in READ_BY.items() if objective not in readers}
    idle |= {"prior_visits"} if objective == "imitation" else set()
    idle |= set() if improve.get("n_searched") else {"search_best_of"}
    if not improve.get("imitation_coef", 1.0) and objective != "imitation":
        idle |= {"n_imitated_per_game", "imitate", "imitation_quantile"}
    out["improve"] = {name: value for name, value in improve.items() if name not in idle}
    if lost:
        warnings.warn(
            f"{path} was trained with options that are gone ({', '.join(lost)}): training goes on without them",
            stacklevel=2,
        )
    return out
