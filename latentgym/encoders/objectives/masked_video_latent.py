"""Masked video modelling with a latent target: predict a slow copy's latents of the hidden patches."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import hide, random_mask
from latentgym.encoders.trunk import GRID, WIDTH, ConvBlock, PairNetwork, Trunk, pair

MASK_RATIO = 0.5
EMA_START = 0.98


class MaskedVideoLatent(Objective):
    """L1 between predicted and target latents at masked places; the target is an average of past weights (V-JEPA).

    The target's momentum rises linearly from 0.98 to 1. V-JEPA normalises target latents over channels; here they are
    centred over the batch at every place and scaled to unit deviation per channel, because in a fixed scene most of a
    latent is the background, whose prediction teaches nothing and invites collapse.
    """

    name = "masked_video_latent"
    source = "Bardes et al., V-JEPA, arXiv 2404.08471, equation 1"
    network_type = PairNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.target = Trunk().requires_grad_(False)
        self.query = nn.Parameter(torch.zeros(1, WIDTH, GRID, GRID))
        self.predictor = nn.Sequential(ConvBlock(WIDTH, WIDTH), ConvBlock(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))

    def initialise(self, seed: int) -> None:
        """See :meth:`Objective.initialise`; the target starts as a copy of the trunk."""
        super().initialise(seed)
        self.target.load_state_dict(self.network.trunk.state_dict())

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        stack = pair(batch.frames[:, 0], batch.frames[:, 1])
        mask = random_mask(len(stack), MASK_RATIO, generator, stack.device)
        with torch.no_grad():
            target = self.target(stack)
            target = target - target.mean(dim=0)
            target = target / (target.std(dim=(0, 2, 3), keepdim=True) + 1e-4)
        context = self.network.trunk(hide(stack, mask))
        predicted = self.predictor(context * (1 - mask) + self.query * mask)
        loss: torch.Tensor = ((predicted - target).abs() * mask).sum() / (mask.sum() * WIDTH)
        return loss

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target towards the trunk."""
        momentum = EMA_START + (1 - EMA_START) * progress
        for slow, fast in zip(self.target.parameters(), self.network.trunk.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)
