"""Denoising: flow matching on single frames, with the denoiser's trunk as encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import PixelDecoder
from latentgym.encoders.trunk import IMAGE_SIZE, WIDTH, EncodingNetwork, still
from latentgym.seeding import torch_generator

READ_TAU = 0.9
LOGIT_MEAN, LOGIT_DEVIATION = -0.4, 1.0
MIN_DISTANCE = 0.1


def corrupt(frame: torch.Tensor, noise: torch.Tensor, tau: torch.Tensor | float) -> torch.Tensor:
    """The straight path from noise (τ = 0) to the frame (τ = 1): (1 − τ) noise + τ frame."""
    return (1 - tau) * noise + tau * frame


class NoisyStillNetwork(EncodingNetwork):
    """The trunk on the clip's last frame, twice, corrupted to τ = 0.9 with one fixed draw of noise.

    The noise is the same for every frame and every run, so that encoding is a function of the frame.
    """

    temporal = False
    noise: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        shape = (1, 3, IMAGE_SIZE, IMAGE_SIZE)
        self.register_buffer("noise", torch.randn(shape, generator=torch_generator(0, "diffusion", "read noise")))

    def read(self, clip: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """See :meth:`EncodingNetwork.read`."""
        return self.trunk.read(still(corrupt(clip[:, -1], self.noise, READ_TAU)), layers)


class Diffusion(Objective):
    """Flow matching with a clean-frame prediction: ‖(x̂ − x_τ)/(1 − τ) − (x − noise)‖², which is ‖x̂ − x‖²/(1 − τ)².

    The decoder is told τ, drawn from a logit-normal; 1 − τ is kept above 0.1 in the weight. The frame is predicted and
    not the velocity, because noise does not pass through the 8 × 8 grid.
    """

    name = "diffusion"
    source = "Lipman et al., Flow Matching, arXiv 2210.02747, equation 23; Li & He, JiT, arXiv 2511.13720, section 4"
    network_type = NoisyStillNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.level = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.decoder = PixelDecoder()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frame = batch.frames[:, 1]
        level = LOGIT_MEAN + LOGIT_DEVIATION * torch.randn(len(frame), 1, 1, 1, generator=generator)
        tau = torch.sigmoid(level).to(frame.device)
        noise = torch.randn(frame.shape, generator=generator).to(frame.device)
        features = self.network.trunk(still(corrupt(frame, noise, tau)))
        prediction = self.decoder(features + self.level(tau.flatten(1))[:, :, None, None])
        weight = (1 - tau).clamp(min=MIN_DISTANCE) ** -2
        loss: torch.Tensor = (weight * (prediction - frame).square()).mean()
        return loss
