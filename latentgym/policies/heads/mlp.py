"""The plain head: an MLP from a short history to one action (CortexBench, arXiv 2303.18240)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latentgym.policies.heads.base import Batch, LatentHead
from latentgym.policies.regression import mlp


class CloningHead(LatentHead):
    """An MLP on the newest latent and, for each older one, the scaled step to its successor.

    These are the same numbers as the history itself, but with motion at unit scale instead of hidden in the difference
    of two large values. Its loss is the mean squared error.

    Args:
        hidden: widths of the hidden layers.
        horizon: number of actions that it puts out at once.
    """

    kind = "mlp"

    def __init__(
        self, features: int, components: int | None, history: int, hidden: Sequence[int], actions: int,
        horizon: int = 1, condition: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(features, components, history, actions, horizon, condition, hidden=list(hidden))
        self.network = mlp([history * self.width + condition, *hidden, horizon * actions])

    def forward(self, history: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Standardised actions ``(B, H · A)`` from prepared latents ``(B, history, F')``."""
        actions: torch.Tensor = self.network(self.seen(history, condition))
        return actions

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error over the actions within the episode."""
        if self.horizon == 1:
            return nn.functional.mse_loss(self.forward(batch.history, batch.condition), targets[:, 0])
        errors = (self.plan(batch.history, batch.condition) - targets).square().mean(dim=-1)
        return (errors * batch.valid).sum() / batch.valid.sum()

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, H, A)``."""
        return self.forward(history, condition).reshape(-1, self.horizon, self.actions_size)
