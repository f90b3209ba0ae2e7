"""Masked video modelling with a pixel target: the same patches are hidden in both frames (tube masking)."""

from __future__ import annotations

import torch

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import PixelDecoder, hide, masked_error, random_mask
from latentgym.encoders.trunk import PairNetwork, pair

MASK_RATIO = 0.5


class MaskedVideo(Objective):
    """Mean squared error on the masked tubes of two frames (VideoMAE, equation 1).

    VideoMAE masks 90 % of 16 frames; with two frames of 64 pixels that leaves nothing to predict from, so half is
    masked.
    """

    name = "masked_video"
    source = "Tong et al., VideoMAE, arXiv 2203.12602, equation 1"
    network_type = PairNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.decoder = PixelDecoder(frames=2)

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        stack = pair(batch.frames[:, 0], batch.frames[:, 1])
        mask = random_mask(len(stack), MASK_RATIO, generator, stack.device)
        reconstruction = self.decoder(self.network.trunk(hide(stack, mask)))
        return masked_error(reconstruction, stack, mask)
