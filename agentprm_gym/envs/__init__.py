"""The Gymnasium environments and how an action text is read."""

from agentprm_gym.envs.commands import ParsedResponse, parse_response

__all__ = ["ParsedResponse", "parse_response"]
