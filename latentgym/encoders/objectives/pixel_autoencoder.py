"""Reconstruction: decode the frame from its own latent."""

from __future__ import annotations

import torch

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import PixelDecoder
from latentgym.encoders.trunk import StillNetwork, still


class PixelAutoencoder(Objective):
    """Mean squared error between a frame and its reconstruction, ‖D(E(o_t)) − o_t‖² (Hinton & Salakhutdinov 2006)."""

    name = "pixel_autoencoder"
    source = "Hinton & Salakhutdinov, Science 313 (2006)"
    network_type = StillNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.decoder = PixelDecoder()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frame = batch.frames[:, 1]
        reconstruction = self.decoder(self.network.trunk(still(frame)))
        return torch.nn.functional.mse_loss(reconstruction, frame)
