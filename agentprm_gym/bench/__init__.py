"""An exact benchmark of process reward models: every command of every state, labelled by three definitions of value."""

from agentprm_gym.bench.metrics import METRICS, PanelMetrics
from agentprm_gym.bench.panel import Panel, PanelError, read_panel, write_panel
from agentprm_gym.bench.ranker import Ranker, RankerError, score_panel
from agentprm_gym.bench.sharing import push_panel, save_panel
from agentprm_gym.bench.states import LABELS, PLAYERS, BenchState, Labels

__all__ = [
    "LABELS",
    "METRICS",
    "PLAYERS",
    "BenchState",
    "Labels",
    "Panel",
    "PanelError",
    "PanelMetrics",
    "Ranker",
    "RankerError",
    "push_panel",
    "read_panel",
    "save_panel",
    "score_panel",
    "write_panel",
]
