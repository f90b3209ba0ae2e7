"""The small regression that policy heads share: explicit seeds, Adam with cosine decay, a fixed number of steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentgym.errors import LatentGymError

# Products with fewer columns than this may round a row differently from place to place in a batch.
_STEADY_COLUMNS = 16


def steady_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``rows @ weight.T + bias``; with few columns, a row has the same bits wherever in the batch it stands.

    Matrix libraries have kernels of their own for narrow products, which on some processors treat the rows at the end
    of a batch differently; a sum over each row by itself does not. Rollouts rest on this: which episodes share a batch
    depends on timing.
    """
    if len(weight) >= _STEADY_COLUMNS:
        return nn.functional.linear(rows, weight, bias)
    products = (rows.unsqueeze(-2) * weight).sum(-1)
    return products if bias is None else products + bias


class RowLinear(nn.Linear):
    """A linear layer that is a :func:`steady_linear` outside of training."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(…, out_features)``."""
        return super().forward(input) if self.training else steady_linear(input, self.weight, self.bias)


def linear(wide: int, narrow: int) -> RowLinear:
    """A linear layer with weights as yet unspecified."""
    return nn.utils.skip_init(RowLinear, wide, narrow)  # type: ignore[no-untyped-call, no-any-return]


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them; weights as yet unspecified."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def initialise(module: nn.Module, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """Draw linear and convolutional layers from ``generator``, uniformly within ``gain`` / √fan-in.

    A gain of 1 is PyTorch's default; √6 keeps the variance through layers with ReLU (He et al. 2015).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -gain * bound, gain * bound, generator=generator)
            assert layer.bias is not None
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def fit(
    module: nn.Module,
    draw: Callable[[torch.Tensor], tuple[Any, torch.Tensor]],
    *,
    rows: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    objective: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
) -> list[float]:
    """Minimise a loss for a fixed number of steps; return its mean over each tenth of them.

    Args:
        module: the network, on the device of its data.
        draw: maps row indices ``(batch_size,)`` int64 to inputs and targets.
        rows: number of training rows, drawn without replacement within an epoch.
        steps: gradient steps.
        batch_size: rows per step; all rows where there are fewer.
        learning_rate: Adam's at the first step; it falls to zero along a cosine.
        generator: CPU generator of the row order.
        objective: loss of inputs and targets; the mean squared error of ``module(inputs)`` by default.

    Raises:
        LatentGymError: if the loss is not finite.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
    size, losses = min(batch_size, rows), []
    order = torch.empty(0, dtype=torch.int64)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        if len(order) < size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        chosen, order = order[:size], order[size:]
        inputs, targets = draw(chosen)
        loss = objective(inputs, targets) if objective else nn.functional.mse_loss(module(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    module.eval()
    curve = torch.stack(losses).cpu()
    if not torch.isfinite(curve).all():
        raise LatentGymError("training of the policy diverged (loss is not finite); lower the learning rate")
    return [float(part.mean()) for part in curve.chunk(10)]


def safe_scale(rows: NDArray[np.float64], floor: float = 1e-4) -> NDArray[np.float64]:
    """Standard deviation per column; 1 where a column hardly varies compared with the most variable one."""
    scale = rows.std(axis=0)
    return np.where(scale > floor * max(float(scale.max(initial=0.0)), 1e-12), scale, 1.0)
