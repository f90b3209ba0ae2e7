"""State dicts as authors publish them: out of their nesting, checked, and into a network, without running a pickle."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from latentgym.errors import CorruptDataError, LatentGymError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Entries of a training checkpoint that hold weights, in order of preference: averaged ones are the published ones.
NESTS = ("ema_encoder", "target_encoder", "encoder", "r3m", "model", "module", "state_dict")
_SHOWN = 3

State = Mapping[str, torch.Tensor]


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint, by name, out of the entry that they are nested in.

    Torch checkpoints are read with ``torch.load(weights_only=True)``.

    Args:
        path: the file; a training checkpoint may nest the weights, see :data:`NESTS`.

    Raises:
        CorruptDataError: if the file is truncated, wants to run code, or holds no tensors.
    """
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else _load(path)
    # A damaged zip archive, a pickle that wants more than tensors, and a damaged safetensors file in turn.
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    while isinstance(loaded, Mapping):
        inner = next((loaded[nest] for nest in NESTS if isinstance(loaded.get(nest), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    tensors = loaded.items() if isinstance(loaded, Mapping) else ()
    state = {str(name): value for name, value in tensors if isinstance(value, torch.Tensor)}
    if not state:
        raise CorruptDataError(f"{path} holds no state dict: expected tensors by name")
    return state


def weight_names(path: Path) -> frozenset[str]:
    """The names of the tensors that :func:`read_checkpoint` gives, which raises the same errors."""
    if path.suffix != ".safetensors":
        return frozenset(read_checkpoint(path))
    try:
        with safe_open(path, framework="pt") as tensors:
            return frozenset(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CorruptDataError:
    return CorruptDataError(
        f"{path} is truncated or is not a plain state dict ({type(error).__name__}); copy or download it again"
    )


def _load(path: Path) -> Any:
    # Mapping the file leaves optimiser states on disk; files of before torch 1.6 cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def part_with(state: State, anchor: str) -> dict[str, torch.Tensor]:
    """The tensors that share their prefix with ``anchor``, without it; empty if nothing is named so.

    >>> sorted(part_with({"module.a.x": torch.ones(1), "module.a.y": torch.ones(1), "b": torch.ones(1)}, "x"))
    ['x', 'y']
    """
    names = [name for name in state if name == anchor or name.endswith(f".{anchor}")]
    if not names:
        return {}
    prefix = min(names, key=len).removesuffix(anchor)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    """``name`` after every substitution of ``table``, pairs of a regular expression and its replacement, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def require_names(state: State, what: str, *names: str) -> None:
    """Check that ``state`` has what tells an architecture from others.

    Raises:
        LatentGymError: if one of ``names`` is missing.
    """
    missing = [name for name in names if name not in state]
    if missing:
        raise LatentGymError(f"the checkpoint is not of {what}: it has no {_some(missing)}")


def block_count(state: State, pattern: str) -> int:
    """How many blocks there are: one more than the largest number that the group of ``pattern`` captures, else 0.

    >>> block_count({"blocks.0.x": torch.ones(1), "blocks.11.x": torch.ones(1)}, r"blocks.(\\d+)")
    12
    """
    found = (re.match(pattern, name) for name in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def fill(model: nn.Module, state: State, what: str, unused: Sequence[str] = ()) -> None:
    """Put ``state`` into ``model`` as float32.

    Args:
        model: may be on the meta device.
        state: every weight of the model, named as the model names it.
        what: name of the architecture, for messages.
        unused: beginnings of the names that encoding has no use for.

    Raises:
        LatentGymError: if weights are missing, have other shapes, or are left over.
    """
    state = {
        name: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        for name, value in state.items()
        if not name.startswith(tuple(unused))
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise LatentGymError(f"the weights do not have the shapes of {what}: {_last_line(error)}") from error
    if missing:
        raise LatentGymError(
            f"{len(missing)} weights of {what} are missing from the checkpoint and would be random: {_some(missing)}"
        )
    if unexpected:
        raise LatentGymError(
            f"the checkpoint has {len(unexpected)} weights that {what} has no place for, so it is of another "
            f"architecture: {_some(unexpected)}"
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
