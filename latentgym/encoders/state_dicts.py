"""Published state dicts: files of tensors and nothing else, read without running what a pickle might hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from latentgym.errors import CorruptDataError, LatentGymError

SUFFIXES = (".safetensors", ".pth", ".pt")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds: tensors by name and, in ``.pt`` files, numbers, strings and mappings of these.

    Args:
        path: a safetensors file, or one that ``torch.save`` wrote, which is read with ``weights_only=True``.

    Raises:
        LatentGymError: if there is no such file.
        CorruptDataError: if it is truncated, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise LatentGymError(f"there is no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged zip archive, a pickle that wants more than tensors, and a damaged safetensors file in turn.
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, OSError) as error:
        raise CorruptDataError(
            f"{path} is truncated or is not a plain state dict ({type(error).__name__}); copy or download it again"
        ) from error
    if not isinstance(found, Mapping):
        raise CorruptDataError(f"{path}: expected a mapping of names to tensors, found {type(found).__name__}")
    return dict(found)


def load_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], origin: object) -> None:
    """Give ``model`` the tensors of ``state``, every one of its own and no other.

    Raises:
        LatentGymError: if a tensor is missing, left over or of another shape; the message names ``origin`` and the
            first of them.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    extra = sorted(name for name in state if name not in expected)
    odd = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    problems = [
        *(f"{len(missing)} tensors are missing, the first {name!r}" for name in missing[:1]),
        *(f"{len(extra)} are unknown, the first {name!r}" for name in extra[:1]),
        *(
            f"{name!r} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in odd[:1]
        ),
    ]  # fmt: skip
    if problems:
        raise LatentGymError(f"{origin} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
