"""Wrappers around the environments."""

from agentprm_gym.wrappers.process_reward import ProcessRewardWrapper
from agentprm_gym.wrappers.vector_process_reward import VectorProcessReward

__all__ = ["ProcessRewardWrapper", "VectorProcessReward"]
