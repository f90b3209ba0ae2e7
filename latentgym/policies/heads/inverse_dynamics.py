"""Inverse dynamics as a policy: one model proposes the next latent, another says which action leads there.

This is control by prediction in latent space (UniPi, arXiv 2302.00111, predicts frames): what is imitated is where the
demonstrator went, and the action is what a model learned from *any* behaviour, random actions included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentgym.errors import LatentGymError
from latentgym.policies.heads.base import MIN_STEP_SCALE, Batch, LatentHead, masked_mean
from latentgym.policies.regression import mlp


class InverseDynamicsHead(LatentHead):
    """A forward model of the demonstrator, z_t … → z_t+1, and an inverse model (z_t, z_t+1) → a_t.

    The forward model sees the history and the condition (with a goal: its latent) and learns on demonstrations only;
    the inverse model sees two latents and learns on every training episode, with the executed action as its target.
    Both losses are mean squared errors.

    Args:
        hidden: widths of the hidden layers of each model.
    """

    kind = "inverse_dynamics"
    learns_from_any_action = True

    def __init__(
        self, features: int, components: int | None, history: int, hidden: Sequence[int], actions: int,
        horizon: int = 1, condition: int = 0,
    ) -> None:  # fmt: skip
        if horizon != 1:
            raise LatentGymError(f"head 'inverse_dynamics' plans one action at a time, found chunk={horizon}")
        super().__init__(features, components, history, actions, 1, condition, hidden=list(hidden))
        self.forward_model = mlp([history * self.width + condition, *hidden, self.width])
        self.inverse_model = mlp([2 * self.width, *hidden, actions])

    def fit_step_scale(self, prepared: torch.Tensor, windows: torch.Tensor) -> None:
        """As every head, but also with a history of one: the next latent is a step away too."""
        newest = windows[:, -1:]
        pairs = windows if self.history > 1 else torch.cat([(newest - 1).clamp_min(0), newest], dim=1)
        steps = prepared[pairs[:, -1]] - prepared[pairs[:, -2]]
        self.step_scale.copy_(steps.square().mean().sqrt().clamp_min(MIN_STEP_SCALE))

    def propose(self, history: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The next latent ``(B, F')`` of the demonstrator, prepared as the history is."""
        step: torch.Tensor = self.forward_model(self.seen(history, condition))
        return history[:, -1] + step * self.step_scale

    def infer(self, latent: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Standardised action ``(B, A)`` that leads from one prepared latent ``(B, F')`` to another."""
        inputs = torch.cat([latent, (following - latent) / self.step_scale], dim=1)
        action: torch.Tensor = self.inverse_model(inputs)
        return action

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sum of both models' losses."""
        newest = batch.history[:, -1]
        proposed = (self.propose(batch.history, batch.condition) - batch.following) / self.step_scale
        inferred = self.infer(newest, batch.following) - targets[:, 0]
        imitated = masked_mean(proposed.square(), batch.demonstrated)
        return imitated + inferred.square().mean()

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, 1, A)``."""
        return self.infer(history[:, -1], self.propose(history, condition))[:, None]
