"""``agentprm train`` under ``accelerate launch`` or ``torchrun``: several processes train one model, one of them writes."""

from __future__ import annotations

import os

from rich.console import Console


def is_main() -> bool:
    """Whether this process writes files and speaks: the only one, or the first of a launch. Torch is not loaded."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("RANK", "0") == "0"


def join() -> None:
    """Meet the other processes of the launch, if there are any.

    Raises:
        ModuleNotFoundError: ``accelerate`` is not installed.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        from algorithms.common.acting import ranks

        ranks.join()


def heard(console: Console) -> Console:
    """The console where this process speaks; one that says nothing elsewhere."""
    return console if is_main() else Console(quiet=True)
