"""GRPO, and IStar beside it."""

from algorithms.grpo.grpo import GRPO
from algorithms.grpo.istar import IStar

__all__ = ["GRPO", "IStar"]
