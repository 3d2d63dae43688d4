"""Algorithms that train LLM policies, with Stable-Baselines3's learn / predict / save / load.

Everything that a user needs is imported from here. Names are loaded when they are first used, so that
``import algorithms`` does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algorithms.agent_prm import AgentPRM as AgentPRM
    from algorithms.common.acting.planning.world_model import WorldModel as WorldModel
    from algorithms.common.acting.ranks import join as join
    from algorithms.common.acting.ray_workers import RayWorkers as RayWorkers
    from algorithms.common.acting.sampler import ServerSampler as ServerSampler
    from algorithms.common.acting.workers import RolloutWorkers as RolloutWorkers
    from algorithms.common.learning.on_policy import OnPolicyLLMAlgorithm as OnPolicyLLMAlgorithm
    from algorithms.common.measure.eval_callback import GamesEvalCallback as GamesEvalCallback
    from algorithms.common.measure.evaluation import by_task_type as by_task_type
    from algorithms.common.measure.evaluation import evaluate as evaluate
    from algorithms.common.measure.evaluation import make_eval_env as make_eval_env
    from algorithms.common.measure.evaluation import paired_difference as paired_difference
    from algorithms.common.shell.base import LLMAlgorithm as LLMAlgorithm
    from algorithms.common.shell.load import load_actor as load_actor
    from algorithms.common.shell.load import load_policy as load_policy
    from algorithms.common.shell.log_services import LogTo as LogTo
    from algorithms.gigpo import GiGPO as GiGPO
    from algorithms.grpo import GRPO as GRPO
    from algorithms.inverse_prm import InversePRM as InversePRM
    from algorithms.online_dpo import OnlineDPO as OnlineDPO
    from algorithms.ppo import PPO as PPO
    from algorithms.registry import register_algorithm as register_algorithm
    from algorithms.reinforce import REINFORCE as REINFORCE
    from algorithms.rft import RFT as RFT
    from algorithms.rloo import RLOO as RLOO
    from algorithms.sft import SFT as SFT

#: Where each name is defined.
_MODULES = {
    "AgentPRM": "algorithms.agent_prm",
    "GRPO": "algorithms.grpo",
    "GamesEvalCallback": "algorithms.common.measure.eval_callback",
    "GiGPO": "algorithms.gigpo",
    "InversePRM": "algorithms.inverse_prm",
    "LLMAlgorithm": "algorithms.common.shell.base",
    "LogTo": "algorithms.common.shell.log_services",
    "OnPolicyLLMAlgorithm": "algorithms.common.learning.on_policy",
    "OnlineDPO": "algorithms.online_dpo",
    "PPO": "algorithms.ppo",
    "REINFORCE": "algorithms.reinforce",
    "RFT": "algorithms.rft",
    "RLOO": "algorithms.rloo",
    "RayWorkers": "algorithms.common.acting.ray_workers",
    "RolloutWorkers": "algorithms.common.acting.workers",
    "SFT": "algorithms.sft",
    "ServerSampler": "algorithms.common.acting.sampler",
    "WorldModel": "algorithms.common.acting.planning.world_model",
    "by_task_type": "algorithms.common.measure.evaluation",
    "evaluate": "algorithms.common.measure.evaluation",
    "join": "algorithms.common.acting.ranks",
    "load_actor": "algorithms.common.shell.load",
    "load_policy": "algorithms.common.shell.load",
    "make_eval_env": "algorithms.common.measure.evaluation",
    "paired_difference": "algorithms.common.measure.evaluation",
    "register_algorithm": "algorithms.registry",
}

__all__ = [
    "GRPO",
    "PPO",
    "REINFORCE",
    "RFT",
    "RLOO",
    "SFT",
    "AgentPRM",
    "GamesEvalCallback",
    "GiGPO",
    "InversePRM",
    "LLMAlgorithm",
    "LogTo",
    "OnPolicyLLMAlgorithm",
    "OnlineDPO",
    "RayWorkers",
    "RolloutWorkers",
    "ServerSampler",
    "WorldModel",
    "by_task_type",
    "evaluate",
    "join",
    "load_actor",
    "load_policy",
    "make_eval_env",
    "paired_difference",
    "register_algorithm",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used.

    Raises:
        AttributeError: this package does not have the name; the message lists those that it has.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'algorithms' has no attribute {name!r}; it has: {', '.join(sorted(_MODULES))}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted([*globals(), *_MODULES])
