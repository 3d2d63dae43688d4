"""REINFORCE."""

from algorithms.reinforce.reinforce import REINFORCE

__all__ = ["REINFORCE"]
