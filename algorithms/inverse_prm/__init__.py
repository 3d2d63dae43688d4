"""InversePRM: process rewards from demonstrations alone."""

from algorithms.inverse_prm.inverse_prm import InversePRM

__all__ = ["InversePRM"]
