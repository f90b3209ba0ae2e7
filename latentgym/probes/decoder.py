"""The one small decoder that every encoder's latents are read with, and the image distances it is judged by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TARGET_PIXELS = 64
_CHANNELS = (64, 48, 24, 12)
_SIDE = 8


class GridDecoder(nn.Module):
    """Tokens on their native grid to a 64 × 64 image.

    A 1 × 1 projection to 64 channels on an 8 × 8 grid, a learned position map, then 3 × 3 convolutions with three
    doublings of the resolution; the training set's mean image is added at the end. On grids above 8 × 8, blocks of
    tokens are folded into channels first, so that no token is averaged away. Only the projection depends on the
    encoder: 64 parameters per input channel.

    Args:
        width: channels D of a token.
        grid: rows and columns of the tokens.
        mean_image: ``(3, 64, 64)`` in [0, 1].
        generator: draws the initial weights.
    """

    mean_image: Tensor

    def __init__(self, width: int, grid: tuple[int, int], mean_image: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.grid = grid
        self.fold = -(-max(grid) // _SIDE)
        first, second, third, fourth = _CHANNELS
        self.project = nn.Conv2d(width * self.fold**2, first, 1)
        self.position = nn.Parameter(torch.zeros(1, first, _SIDE, _SIDE))
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in ((first, second), (second, 4 * third), (third, 4 * fourth), (fourth, 12))
        )
        self.register_buffer("mean_image", mean_image)
        self.initialise(generator)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights: He initialisation, and a last layer that adds little to the mean image at first."""
        for convolution in (self.project, *self.layers):
            assert isinstance(convolution, nn.Conv2d)
            fan_in = convolution.weight[0].numel()
            nn.init.normal_(convolution.weight, std=(2 / fan_in) ** 0.5, generator=generator)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.position, std=0.1, generator=generator)
        with torch.no_grad():
            self.project.weight.mul_(0.5**0.5)
            self.layers[-1].weight.mul_(0.1)  # type: ignore[operator]

    def forward(self, tokens: Tensor) -> Tensor:
        """Images ``(B, 3, 64, 64)``, about in [0, 1], from tokens ``(B, N, D)``."""
        rows, columns = self.grid
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)
        if self.fold > 1:
            maps = functional.pad(maps, (0, -columns % self.fold, 0, -rows % self.fold))
            maps = functional.pixel_unshuffle(maps, self.fold)
        x = self.project(maps.contiguous())
        if x.shape[-2:] != (_SIDE, _SIDE):
            x = functional.interpolate(x, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        x = _activate(self.layers[0](_activate(x + self.position)))
        for layer in self.layers[1:-1]:
            x = _activate(functional.pixel_shuffle(layer(x), 2))
        return functional.pixel_shuffle(self.layers[-1](x), 2) + self.mean_image


def _activate(x: Tensor) -> Tensor:
    # Leaky, because plain rectifiers can die together in a short training and leave the mean image alone.
    return functional.leaky_relu(x, 0.1)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """``(B,)`` peak signal-to-noise ratio in dB of images ``(B, 3, H, W)`` in [0, 1]; at most 100 dB."""
    return -10 * torch.log10((image - target).square().mean((1, 2, 3)).clamp_min(1e-10))


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """``(B,)`` structural similarity of images ``(B, 3, H, W)`` in [0, 1] (Wang et al., 2004).

    Gaussian window of 11 pixels with σ = 1.5, K₁ = 0.01, K₂ = 0.03, windows inside the image only.
    """
    offsets = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    kernel = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = (kernel / kernel.sum())[None, None]

    def blur(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        flat = functional.conv2d(functional.conv2d(flat, kernel[..., None]), kernel[:, :, None])
        return flat.reshape(*x.shape[:2], *flat.shape[-2:])

    mean_a, mean_b = blur(image), blur(target)
    var_a, var_b = blur(image * image) - mean_a**2, blur(target * target) - mean_b**2
    covariance = blur(image * target) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (index / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))
