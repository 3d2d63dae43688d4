"""Process rewards around environments: one, a vector of Gymnasium, or a vector of Stable-Baselines3; observations as one text.

``VecProcessReward`` is loaded when it is first asked for, since Stable-Baselines3 loads torch.
"""

from typing import TYPE_CHECKING, Any

from agentprm_gym.wrappers.single import ProcessRewardWrapper
from agentprm_gym.wrappers.text import TextObservationWrapper, VectorTextObservation
from agentprm_gym.wrappers.vector import VectorProcessReward

if TYPE_CHECKING:
    from agentprm_gym.wrappers.sb3 import VecProcessReward

__all__ = [
    "ProcessRewardWrapper",
    "TextObservationWrapper",
    "VecProcessReward",
    "VectorProcessReward",
    "VectorTextObservation",
]


def __getattr__(name: str) -> Any:
    """Import the wrapper of Stable-Baselines3 when it is first used.

    Raises:
        AttributeError: this package does not have the name.
    """
    if name != "VecProcessReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    from agentprm_gym.wrappers.sb3 import VecProcessReward

    return VecProcessReward
