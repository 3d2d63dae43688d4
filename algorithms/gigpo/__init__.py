"""GiGPO."""

from algorithms.gigpo.gigpo import GiGPO

__all__ = ["GiGPO"]
