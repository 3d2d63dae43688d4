"""RFT."""

from algorithms.rft.rft import RFT

__all__ = ["RFT"]
