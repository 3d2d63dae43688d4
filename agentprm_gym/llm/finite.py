"""Weights that are numbers: NaN and infinity are refused where weights are loaded, and before they are written."""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: The head under which a checkpoint keeps what is no weight; an optimizer of the user's own may hold an infinity there.
NO_WEIGHTS = "checkpoint"


def not_finite(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> str | None:
    """The first tensor that holds NaN or infinity, as ``group/name``; ``None`` where all values are numbers.

    Args:
        groups: tensors by name, in named groups: adapters or heads.
    """
    for group, tensors in groups.items():
        if group == NO_WEIGHTS:
            continue
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"{group}/{name}"
    return None


def check_finite(path: object, *parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Refuse weights with which every answer would be arbitrary.

    Args:
        path: where they come from, for the message.
        parts: see :func:`not_finite`.

    Raises:
        ValueError: a value is NaN or infinite; the message names its tensor.
    """
    for groups in parts:
        if (found := not_finite(groups)) is not None:
            raise ValueError(
                f"{path}: expected weights that are numbers, got NaN or infinity in {found}: training diverged before they "
                "were saved; use an earlier save, and train again with a lower learning rate"
            )
