"""Algorithms that train LLM policies, with Stable-Baselines3's learn / predict / save / load."""

from algorithms.agent_prm import AgentPRM
from algorithms.sft import SFT

__all__ = ["SFT", "AgentPRM"]
