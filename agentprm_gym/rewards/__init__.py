"""Process rewards: what they are, those that need no model, and their names.

The learned ones are in :mod:`agentprm_gym.prm.rewards`, the judge is in :mod:`agentprm_gym.rewards.judge`. Both are made by
name, see :func:`make_reward`.
"""

from agentprm_gym.rewards.base import (
    FACTS,
    ProcessReward,
    ScoredTurn,
    checked,
    name_of,
    needs_of,
    score_infos,
    scored,
)
from agentprm_gym.rewards.combine import AdjustedReward, EnsembleReward, Part, SumReward
from agentprm_gym.rewards.credit import CREDITS, turn_credit
from agentprm_gym.rewards.oracle import OracleAdvantageReward, OraclePotentialReward, OracleQReward
from agentprm_gym.rewards.provers import best_of_k, best_of_k_advantage
from agentprm_gym.rewards.ranking import EPISODE_SCORES, episode_score, rank_episodes
from agentprm_gym.rewards.registry import FunctionReward, RewardLike, make_reward, register_reward, reward_names
from agentprm_gym.rewards.rules import OutcomeReward, PenaltyReward, ProgressReward
from agentprm_gym.rewards.schedules import AnnealedReward

__all__ = [
    "CREDITS",
    "EPISODE_SCORES",
    "FACTS",
    "AdjustedReward",
    "AnnealedReward",
    "EnsembleReward",
    "FunctionReward",
    "OracleAdvantageReward",
    "OraclePotentialReward",
    "OracleQReward",
    "OutcomeReward",
    "Part",
    "PenaltyReward",
    "ProcessReward",
    "ProgressReward",
    "RewardLike",
    "ScoredTurn",
    "SumReward",
    "best_of_k",
    "best_of_k_advantage",
    "checked",
    "episode_score",
    "make_reward",
    "name_of",
    "needs_of",
    "rank_episodes",
    "register_reward",
    "reward_names",
    "score_infos",
    "scored",
    "turn_credit",
]
