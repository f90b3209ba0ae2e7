"""Where torch computes."""

from __future__ import annotations

import torch

from latentgym.errors import LatentGymError


def find_device(device: str) -> torch.device:
    """The device of that name.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:<index>"``, or ``"auto"``, CUDA where there is one.

    Raises:
        LatentGymError: if there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise LatentGymError(f"unknown device {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:<index>'") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise LatentGymError(
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return target
