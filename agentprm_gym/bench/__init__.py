"""An exact benchmark of process reward models: every command of every state, labelled by three definitions of value."""

from agentprm_gym.bench.states import LABELS, PLAYERS, BenchState, Labels

__all__ = ["LABELS", "PLAYERS", "BenchState", "Labels"]
