"""Process rewards: what they are, the rule-based ones, and their names."""

from agentprm_gym.rewards.base import ProcessReward, ScoredTurn, checked
from agentprm_gym.rewards.registry import make_reward, register_reward, reward_names
from agentprm_gym.rewards.rules import OutcomeReward, ProgressReward

__all__ = [
    "OutcomeReward",
    "ProcessReward",
    "ProgressReward",
    "ScoredTurn",
    "checked",
    "make_reward",
    "register_reward",
    "reward_names",
]
