"""GRPO."""

from algorithms.grpo.grpo import GRPO

__all__ = ["GRPO"]
