"""Parameter-free encoders: raw pixels as a floor, proprioception and simulator state as references."""

from __future__ import annotations

from typing import Literal

import torch

from latentgym.encoders.contract import Encoder, EncoderSpec, Latents
from latentgym.errors import LatentGymError


class PixelEncoder(Encoder):
    """Every pixel of a small frame is a token of width 3; the feature is the flattened frame.

    Args:
        image_size: side in pixels that frames are resized to, 16 by default (768 numbers per frame).

    Raises:
        LatentGymError: if ``image_size`` is not positive.
    """

    concurrent = True

    def __init__(self, image_size: int = 16) -> None:
        if image_size < 1:
            raise LatentGymError(f"encoder 'pixels': image_size must be at least 1, found {image_size}")
        self.spec = EncoderSpec(
            name="pixels",
            family="floor",
            source="raw pixels",
            image_size=image_size,
            embed_dim=3,
            grid=(image_size, image_size),
            pooling=f"grid:{image_size}",
        )

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Pixels ``(B, T, 3, S, S)`` as tokens ``(B, T, S * S, 3)``."""
        tokens = clip.flatten(3).transpose(2, 3).contiguous()
        return Latents(tokens, torch.arange(clip.shape[1]), layer)


class VectorEncoder(Encoder):
    """One token per time step: the vector itself. Its width depends on the environment, so ``embed_dim`` is 0.

    Args:
        modality: ``"proprio"`` or ``"state"``, the observation that it reads.
    """

    concurrent = True

    def __init__(self, modality: Literal["proprio", "state"]) -> None:
        self.spec = EncoderSpec(
            name=modality,
            family="reference",
            modality=modality,
            source=f"observation[{modality!r}]",
            image_size=0,
            mean=(),
            std=(),
        )

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Vectors ``(B, T, P)`` as tokens ``(B, T, 1, P)``."""
        return Latents(clip.unsqueeze(2), torch.arange(clip.shape[1]), layer)
