"""OnlineDPO."""

from algorithms.online_dpo.online_dpo import OnlineDPO

__all__ = ["OnlineDPO"]
