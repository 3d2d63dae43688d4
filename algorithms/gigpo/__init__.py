"""GiGPO, and HGPO beside it."""

from algorithms.gigpo.gigpo import GiGPO
from algorithms.gigpo.hgpo import HGPO

__all__ = ["HGPO", "GiGPO"]
