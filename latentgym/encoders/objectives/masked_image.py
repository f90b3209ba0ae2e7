"""Masked image modelling: predict the hidden pixels of one frame from the visible ones."""

from __future__ import annotations

import torch

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import PixelDecoder, hide, masked_error, random_mask
from latentgym.encoders.trunk import StillNetwork, still

MASK_RATIO = 0.5


class MaskedImage(Objective):
    """Mean squared error on masked patches only (MAE, equation in section 3; SimMIM's mask token for convolutions).

    The MAE's 75 % hides most of a 64-pixel scene's few objects; half of the patches are masked here.
    """

    name = "masked_image"
    source = "He et al., MAE, arXiv 2111.06377; Xie et al., SimMIM, arXiv 2111.09886"
    network_type = StillNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.decoder = PixelDecoder()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frame = batch.frames[:, 1]
        mask = random_mask(len(frame), MASK_RATIO, generator, frame.device)
        reconstruction = self.decoder(self.network.trunk(still(hide(frame, mask))))
        return masked_error(reconstruction, frame, mask)
