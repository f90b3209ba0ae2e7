"""State dicts as authors publish them: out of their nesting, checked, and into a network, without running a pickle."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
Kind = TypeVar("Kind")


def read_file(path: Path) -> Any:
    """What a checkpoint file holds: tensors by name and, in torch files, plain values and mappings of these.

    Args:
        path: a safetensors file, or one that ``torch.save`` wrote, which is read with ``weights_only=True``.

    Raises:
        LatentGymError: if there is no such file.
        CorruptDataError: if it is truncated or wants to run code.
    """
    if not path.is_file():
        raise LatentGymError(f"there is no checkpoint at {path}")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load(path)
    # A damaged zip archive, a pickle that wants more than tensors, and a damaged safetensors file in turn.
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, by name, out of the entry that a training checkpoint nests them in, see :data:`NESTS`.

    Raises:
        LatentGymError: if there is no such file.
        CorruptDataError: if it is truncated, wants to run code, or holds no tensors.
    """
    loaded = read_file(path)
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


def recognised(files: Iterable[Path], kind_of: Callable[[Path], Kind | None]) -> list[tuple[Path, Kind]]:
    """The checkpoints among ``files`` that ``kind_of`` recognises, and what it calls them.

    Args:
        files: what ends in none of :data:`SUFFIXES` is passed over.
        kind_of: may raise ``CorruptDataError``, which counts only where nothing is recognised.

    Raises:
        CorruptDataError: if the only candidates are damaged.
    """
    found: list[tuple[Path, Kind]] = []
    damaged: list[CorruptDataError] = []
    for path in (path for path in files if path.suffix in SUFFIXES and path.is_file()):
        try:
            kind = kind_of(path)
        except CorruptDataError as error:
            damaged.append(error)
            continue
        found += [(path, kind)] if kind else []
    if damaged and not found:
        raise damaged[0]
    return found


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


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
