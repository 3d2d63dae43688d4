"""AgentPRM: process reward models for LLM agents (Choudhury, arXiv 2502.10325)."""

from algorithms.agent_prm.agent_prm import AgentPRM

__all__ = ["AgentPRM"]
