"""Experts that solve games: the searching expert, the planner, and their demonstrations."""

from agentprm_gym.experts.demos import EXPERTS, demonstrate, demonstrations
from agentprm_gym.experts.planner import Planner, PlannerExpert, discounted
from agentprm_gym.experts.search import SearchExpert

__all__ = ["EXPERTS", "Planner", "PlannerExpert", "SearchExpert", "demonstrate", "demonstrations", "discounted"]
