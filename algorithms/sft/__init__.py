"""Supervised fine-tuning: behaviour cloning on episodes."""

from algorithms.sft.sft import SFT

__all__ = ["SFT"]
