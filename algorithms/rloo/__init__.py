"""RLOO."""

from algorithms.rloo.rloo import RLOO

__all__ = ["RLOO"]
