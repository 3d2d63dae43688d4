"""Policies, settings and logs that the tests of policy gradients share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger
from transformers import GPT2Config, GPT2LMHeadModel

from algorithms.common.acting.policy import POLICY
from tests.llm_helpers import byte_level_tokenizer, randomise

SMALL: dict[str, Any] = {"n_games": 2, "group_size": 4, "batch_size": 8, "learning_rate": 3e-3, "seed": 0}
THINKING = {"template": "full", "reason": True, "max_new_tokens": 6}
#: Every way to act, as options of a policy.
MODES: dict[str, dict[str, Any]] = {
    "constrained": {"template": "full"},
    "constrained with reasons": THINKING,
    "score": {"template": "full", "action_mode": "score"},
    "score with reasons": {**THINKING, "action_mode": "score"},
    "generate": {"template": "full", "action_mode": "generate", "max_new_tokens": 6},
}


class Keep(KVWriter):
    """Keeps everything that is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))


def logged(model: Any, total_timesteps: int) -> list[dict[str, Any]]:
    """What is logged while a model learns, an iteration a row."""
    keep = Keep()
    model.set_logger(Logger(None, [keep]))
    model.learn(total_timesteps)
    return keep.rows


def make(cls: type, base: str, env: Any, **kwargs: Any) -> Any:
    """An algorithm whose policy has an adapter that is not zero."""
    model = cls(base, env, **{**SMALL, **kwargs})
    randomise(model.lm, POLICY)
    return model


def save_gpt2(folder: Path) -> str:
    """Save a tiny GPT-2 with its usual dropout of 0.1, on embeddings, attention and residuals; returns the folder."""
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=2, n_head=4)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
