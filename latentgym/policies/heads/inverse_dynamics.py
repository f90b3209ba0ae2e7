"""Inverse dynamics as a policy: one model proposes the next latent, another says which action leads there.

This is control by prediction in latent space (UniPi, arXiv 2302.00111, predicts frames): what is imitated is where the
demonstrator went, and the action is what a model learned from *any* behaviour, random actions included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call

from latentgym.errors import LatentGymError
from latentgym.policies.heads.base import MIN_STEP_SCALE, Batch, LatentHead, masked_mean
from latentgym.policies.regression import mlp


class InverseDynamicsHead(LatentHead):
    """A forward model of the demonstrator, z_t … → z_t+1, and an inverse model (z_t, z_t+1) → a_t.

    The forward model sees the history and the condition (with a goal: its latent) and learns on demonstrations only;
    the inverse model sees two latents and learns on every training episode, with the executed action as its target.
    What follows a noisy demonstrator is mostly the noise, so the forward model is also asked that the action inferred
    from its proposal be the intended one; the inverse model does not learn from that. All losses are mean squared
    errors.

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
        action: torch.Tensor = self.inverse_model(self.pair(latent, following))
        return action

    def pair(self, latent: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Input of the inverse model ``(B, 2 F')``: a latent and the scaled step to another."""
        return torch.cat([latent, (following - latent) / self.step_scale], dim=1)

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sum of the proposal's, the inference's and the intended action's losses."""
        newest = batch.history[:, -1]
        proposal = self.propose(batch.history, batch.condition)
        proposed = masked_mean(((proposal - batch.following) / self.step_scale).square(), batch.demonstrated)
        inferred = (self.infer(newest, batch.following) - targets[:, 0]).square().mean()
        frozen = {name: weight.detach() for name, weight in self.inverse_model.named_parameters()}
        action = functional_call(self.inverse_model, frozen, (self.pair(newest, proposal),))
        intended = masked_mean((action - batch.intended).square(), batch.demonstrated)
        return proposed + inferred + intended

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, 1, A)``."""
        return self.infer(history[:, -1], self.propose(history, condition))[:, None]
