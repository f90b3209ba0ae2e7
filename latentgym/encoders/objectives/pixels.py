"""Parts of the objectives that predict pixels: a small decoder and random patch masks."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.trunk import GRID, IMAGE_SIZE, WIDTH, ConvBlock


class PixelDecoder(nn.Module):
    """Two convolution blocks and two pixel shuffles from the 8 × 8 grid back to 64 × 64 pixels."""

    def __init__(self, frames: int = 1, inputs: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(inputs, 64),
            nn.PixelShuffle(2),
            ConvBlock(16, 32),
            nn.Conv2d(32, 3 * frames * 16, 1),
            nn.PixelShuffle(4),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, C, 8, 8)`` to ``(B, 3 * frames, 64, 64)``."""
        pixels: torch.Tensor = self.layers(features)
        return pixels


def random_mask(
    batch: int, ratio: float | torch.Tensor, generator: torch.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Mask a share of the 8 × 8 patches (8 × 8 pixels each) of every row at random.

    Args:
        batch: number of rows B.
        ratio: share of patches to mask, one number or ``(B,)``; the number of patches is rounded.
        generator: source of randomness, on the CPU.
        device: where the mask is wanted.

    Returns:
        ``(B, 1, 8, 8)`` float32, 1 where masked.
    """
    ranks = torch.rand(batch, GRID * GRID, generator=generator).argsort(dim=1).argsort(dim=1)
    count = torch.round(torch.as_tensor(ratio) * GRID * GRID).expand(batch)
    return (ranks < count[:, None]).float().view(batch, 1, GRID, GRID).to(device)


def to_pixels(mask: torch.Tensor) -> torch.Tensor:
    """``(B, 1, 8, 8)`` mask at pixel resolution, ``(B, 1, 64, 64)``."""
    return nn.functional.interpolate(mask, size=(IMAGE_SIZE, IMAGE_SIZE), mode="nearest")


def hide(stack: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Set the masked patches of ``(B, C, 64, 64)`` to mid-grey (0 after normalisation)."""
    return stack * (1 - to_pixels(mask))


def masked_error(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the masked pixels alone."""
    pixels = to_pixels(mask).expand_as(target)
    return ((prediction - target).square() * pixels).sum() / pixels.sum()
