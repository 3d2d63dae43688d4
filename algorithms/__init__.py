"""Algorithms that train LLM policies, with Stable-Baselines3's learn / predict / save / load."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algorithms.agent_prm import AgentPRM as AgentPRM
    from algorithms.gigpo import GiGPO as GiGPO
    from algorithms.grpo import GRPO as GRPO
    from algorithms.inverse_prm import InversePRM as InversePRM
    from algorithms.online_dpo import OnlineDPO as OnlineDPO
    from algorithms.ppo import PPO as PPO
    from algorithms.reinforce import REINFORCE as REINFORCE
    from algorithms.rft import RFT as RFT
    from algorithms.rloo import RLOO as RLOO
    from algorithms.sft import SFT as SFT

# Where each is defined; imported when first asked for, so that `agentprm games` does not wait for torch.
_MODULES = {
    "AgentPRM": "algorithms.agent_prm",
    "GRPO": "algorithms.grpo",
    "GiGPO": "algorithms.gigpo",
    "InversePRM": "algorithms.inverse_prm",
    "OnlineDPO": "algorithms.online_dpo",
    "PPO": "algorithms.ppo",
    "REINFORCE": "algorithms.reinforce",
    "RFT": "algorithms.rft",
    "RLOO": "algorithms.rloo",
    "SFT": "algorithms.sft",
}

__all__ = ["GRPO", "PPO", "REINFORCE", "RFT", "RLOO", "SFT", "AgentPRM", "GiGPO", "InversePRM", "OnlineDPO"]


def __getattr__(name: str) -> Any:
    """Import an algorithm.

    Raises:
        AttributeError: there is none of that name.
    """
    if name not in _MODULES:
        raise AttributeError(
            f"module 'algorithms' has no attribute {name!r}; algorithms: {', '.join(sorted(_MODULES))}"
        )
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted([*globals(), *_MODULES])
