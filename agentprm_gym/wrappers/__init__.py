"""Wrappers around the environments."""

from agentprm_gym.wrappers.process_reward import ProcessRewardWrapper

__all__ = ["ProcessRewardWrapper"]
