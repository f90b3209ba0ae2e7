"""Image self-supervision: two augmented views of one frame should have one embedding."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.vicreg import Expander, vicreg
from latentgym.encoders.trunk import StillNetwork, still

SCALE = (0.7, 1.0)
CONTRAST = 0.3
BRIGHTNESS = 0.3


def augment(frame: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop (70 to 100 % of the side, resized back), contrast, brightness and colour cast per row.

    Args:
        frame: ``(B, 3, S, S)`` normalised frames.
        generator: source of randomness.
    """
    batch = len(frame)
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(batch, generator=generator)
    shift = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta.to(frame.device), list(frame.shape), align_corners=False)
    crop = nn.functional.grid_sample(frame, grid, padding_mode="border", align_corners=False)
    gain = 1 + CONTRAST * (2 * torch.rand(batch, 1, 1, 1, generator=generator) - 1)
    offset = BRIGHTNESS * (2 * torch.rand(batch, 3, 1, 1, generator=generator) - 1)
    return crop * gain.to(frame.device) + offset.to(frame.device)


class ImageSSL(Objective):
    """VICReg on two augmented views of one frame."""

    name = "image_ssl"
    source = "Bardes, Ponce, LeCun, VICReg, arXiv 2105.04906, equation 6"
    network_type = StillNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.expander = Expander()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frame = batch.frames[:, 1]
        views = torch.cat([augment(frame, generator), augment(frame, generator)])
        first, second = self.expander(self.network.trunk(still(views))).chunk(2)
        return vicreg(first, second)
