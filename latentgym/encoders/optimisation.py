"""What every training of an encoder shares: schedule, gradient bound, loss curve, one thread, and a state on disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from latentgym.artifacts import atomic_write
from latentgym.errors import CorruptDataError, LatentGymError

WARMUP_SHARE = 0.05
GRADIENT_NORM = 1.0
STATE_NAME = "training-state.safetensors"
_CURVE_POINTS = 50


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate at ``step``: linear warm-up over the first twentieth, then a cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def loss_curve(losses: Sequence[float]) -> list[list[float]]:
    """Loss averaged over at most 50 equal stretches, as pairs (last step of the stretch, mean loss)."""
    stretch = max(1, math.ceil(len(losses) / _CURVE_POINTS))
    parts = [losses[i : i + stretch] for i in range(0, len(losses), stretch)]
    return [[float(min((i + 1) * stretch, len(losses))), sum(part) / len(part)] for i, part in enumerate(parts)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block: sums are then always made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_state(
    path: Path,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    facts: Mapping[str, str],
) -> None:
    """Replace the training state at ``path`` by the present one.

    Args:
        path: file to write.
        module: everything that is trained.
        optimizer: its optimiser.
        losses: loss of every step so far.
        facts: ``"key"``, which tells runs apart, and whatever else :func:`load_state` should give back.
    """
    tensors = {f"module.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    atomic_write(path, safetensors.torch.save(tensors, metadata=dict(facts)))


def load_state(
    path: Path, key: str, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[float], dict[str, str]] | None:
    """Put a saved training state into ``module`` and ``optimizer``.

    Returns:
        The losses so far and the saved facts; ``None`` where nothing was saved.

    Raises:
        CorruptDataError: if the file cannot be read.
        LatentGymError: if it belongs to a run of another ``key``.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CorruptDataError(f"{path} cannot be read; remove it to start this run afresh: {error}") from error
    if facts.get("key") != key:
        raise LatentGymError(f"{path} belongs to another run (other data or settings); choose another folder")
    losses: list[float] = tensors.pop("losses").tolist()
    parts: dict[str, dict[str, torch.Tensor]] = {"module": {}, "optimizer": {}}
    for name, value in tensors.items():
        prefix, _, rest = name.partition(".")
        parts[prefix][rest] = value
    module.load_state_dict(parts["module"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in parts["optimizer"].items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return losses, facts
