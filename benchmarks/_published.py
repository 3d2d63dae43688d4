"""Published results on ALFWorld that stand beside ours, each with what it was measured under.

None was measured here, and none under our protocol. They are copied from the papers, or from tables of later papers that quote
them, and they are comparable with each other only where model, step limit and action mode are the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A published row.

    Attributes:
        method: its name.
        model: what was trained or prompted.
        seen: success on ``valid_seen`` in percent; ``None`` where it is not known.
        unseen: success on ``valid_unseen`` in percent; ``None`` where it is not known.
        conditions: a key of :data:`CONDITIONS`.
        source: where the number stands.
    """

    method: str
    model: str
    seen: float | None
    unseen: float | None
    conditions: str
    source: str


#: How the numbers of a block were measured.
CONDITIONS = {
    "agentprm": "all 134 unseen games once, one run; full fine-tuning; the command list is in the prompt, reason and command "
    "are written freely; step limit 30 in the paper, 20 in its released configuration",
    "verl-agent": "128 games drawn, 3 seeds, 50 turns; the last two turns as history; the command list is in the prompt, "
    "thought and command are written freely",
    "eto": "40 turns; ReAct format, no command list",
    "prompted": "zero-shot, 30 turns, the command list is in the prompt; 134 unseen games, one run",
}

_PAPER = "arXiv 2502.10325, Table 1"
_QUOTED = "as quoted by later papers"
PUBLISHED = (
    Published("SFT (pi_0)", "Llama-3.2-3B", None, 64.9, "agentprm", _PAPER),
    Published("best-of-16 (pi_0, Q_0)", "Llama-3.2-3B", None, 67.9, "agentprm", _PAPER),
    Published("AgentPRM, iteration 1", "Llama-3.2-3B", None, 73.9, "agentprm", _PAPER),
    Published("best-of-16 (pi_1, Q_0)", "Llama-3.2-3B", None, 84.3, "agentprm", _PAPER),
    Published("AgentPRM, iteration 2", "Llama-3.2-3B", None, 85.8, "agentprm", _PAPER),
    Published("best-of-16 (pi_2, Q_1)", "Llama-3.2-3B", None, 88.8, "agentprm", _PAPER),
    Published("AgentPRM, iteration 3", "Llama-3.2-3B", None, 88.1, "agentprm", _PAPER),
    Published("best-of-16 (pi_3, Q_2)", "Llama-3.2-3B", None, 91.0, "agentprm", _PAPER),
    Published("PPO", "Qwen2.5-1.5B", 54.4, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("RLOO", "Qwen2.5-1.5B", 69.7, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("GRPO", "Qwen2.5-1.5B", 72.8, 70.1, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("GiGPO", "Qwen2.5-1.5B", 86.7, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("PPO", "Qwen2.5-7B", 80.4, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("RLOO", "Qwen2.5-7B", 75.5, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("GRPO", "Qwen2.5-7B", 77.6, None, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("GiGPO", "Qwen2.5-7B", 90.8, 90.2, "verl-agent", f"arXiv 2505.10978, {_QUOTED}"),
    Published("HGPO", "Qwen2.5-7B", 96.0, 94.9, "verl-agent", "arXiv 2602.22817"),
    Published("SFT", "Llama-2-7B", 60.0, 67.2, "eto", f"arXiv 2403.02502, {_QUOTED}"),
    Published("ETO", "Llama-2-7B", 68.6, 72.4, "eto", f"arXiv 2403.02502, {_QUOTED}"),
    Published("QLASS, best of 2 by Q", "Llama-2-7B", 77.9, 82.8, "eto", f"arXiv 2502.02584, {_QUOTED}"),
    Published("ReAct", "GPT-4o", None, 65.7, "prompted", _PAPER),
    Published("ReAct", "Claude-3.5-Sonnet", None, 76.1, "prompted", _PAPER),
)
