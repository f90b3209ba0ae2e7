"""Image corruptions on clips of frames: seeded, batched, on any device, and steady in time unless asked otherwise.

The functions and severities are those of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261). Lengths in pixels are
given there for frames of 224 pixels and scale with the frame's side here. Every random number comes from a generator of
its clip, drawn on the CPU, so that a clip's corruption depends on its seed alone: not on its batch, nor on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.seeding import torch_generator

Mode = Literal["static", "per_frame"]
_REFERENCE_SIDE = 224
_DEFAULT_SEVERITY = 3
_JPEG_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_JPEG_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *(((99,) * 8,) * 4),
)  # fmt: skip


class Draws:
    """Random numbers of a batch of clips: ``(B, T, …)``, with T = 1 where they stay the same over a clip's frames."""

    def __init__(self, seeds: Sequence[int], name: str, frames: int, mode: Mode, device: torch.device) -> None:
        self.generators = [torch_generator(seed, "corruption", name) for seed in seeds]
        self.frames, self.device = frames if mode == "per_frame" else 1, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers ``(B, T, *shape)``."""
        drawn = [torch.randn(self.frames, *shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers ``(B, T, *shape)`` in [0, 1)."""
        drawn = [torch.rand(self.frames, *shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: takes frames ``(B, T, 3, H, W)`` in [0, 1], draws and one of ``severities``.
        severities: parameters of severities 1, 2, …
        random: whether anything is drawn; where not, ``mode`` makes no difference.
    """

    apply: Callable[[Tensor, Draws, Any], Tensor]
    severities: tuple[Any, ...]
    random: bool = True


def corrupt(
    clips: NDArray[np.uint8] | Tensor,
    name: str,
    severity: int = 3,
    *,
    seed: int | Sequence[int] = 0,
    mode: Mode = "static",
    device: str | torch.device = "cpu",
) -> NDArray[np.uint8] | Tensor:
    """Corrupt clips of frames.

    Args:
        clips: ``(B, T, H, W, 3)`` uint8.
        name: one of :data:`CORRUPTIONS`.
        severity: from 1; most have 5, and ``"noise_015"`` and ``"blur_11"`` have one.
        seed: one seed per clip, or one for all of them.
        mode: ``"static"``, one draw per clip, as a camera with a stained lens would; ``"per_frame"``, one per frame.
        device: where arrays are computed; tensors stay on their own device.

    Returns:
        ``(B, T, H, W, 3)`` uint8, an array for an array and a tensor for a tensor.

    Raises:
        UnknownNameError: if there is no such corruption.
        LatentGymError: on clips of another shape or dtype, a severity out of range, or seeds that are not B.
    """
    name, severity = checked_corruption(name, severity, mode)
    severities = CORRUPTIONS[name].severities
    frames = clips if isinstance(clips, Tensor) else torch.from_numpy(np.ascontiguousarray(clips)).to(device)
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise LatentGymError(
            f"corruption {name!r}: expected clips of shape (B, T, H, W, 3) and dtype uint8, found "
            f"{tuple(frames.shape)} {frames.dtype}"
        )
    seeds = [int(seed)] * len(frames) if isinstance(seed, int | np.integer) else [int(one) for one in seed]
    if len(seeds) != len(frames):
        raise LatentGymError(f"corruption {name!r}: expected one seed per clip, {len(frames)}, found {len(seeds)}")
    pixels = frames.permute(0, 1, 4, 2, 3).float() / 255
    draws = Draws(seeds, name, frames.shape[1], mode, frames.device)
    corrupted = CORRUPTIONS[name].apply(pixels, draws, severities[severity - 1])
    result = (corrupted.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    return result if isinstance(clips, Tensor) else result.cpu().numpy()


def checked_corruption(name: str, severity: int | None = None, mode: str = "static") -> tuple[str, int]:
    """Name and severity, of which the latter may stand in the name.

    Args:
        name: one of :data:`CORRUPTIONS`, or ``"name:severity"``.
        severity: from 1; where none is given anywhere 3, or the only one there is.
        mode: ``"static"`` or ``"per_frame"``.

    Raises:
        UnknownNameError: if there is no such corruption or mode.
        LatentGymError: if there is no such severity.

    >>> checked_corruption("snow:4"), checked_corruption("blur_11")
    (('snow', 4), ('blur_11', 1))
    """
    kind, colon, text = name.partition(":")
    if kind not in CORRUPTIONS:
        raise UnknownNameError("corruption", kind, CORRUPTIONS)
    known = len(CORRUPTIONS[kind].severities)
    if colon and severity is None and text.isdecimal():
        severity = int(text)
    elif colon:
        raise LatentGymError(
            f"corruption {name!r}: expected NAME:SEVERITY with one whole number, such as {kind}:{known}"
        )
    severity = min(_DEFAULT_SEVERITY, known) if severity is None else severity
    if not 1 <= severity <= known:
        raise LatentGymError(f"corruption {kind!r}: severities are 1 … {known}, found {severity}")
    if mode not in ("static", "per_frame"):
        raise UnknownNameError("corruption mode", mode, ("static", "per_frame"))
    return kind, severity


def _scaled(length: float, x: Tensor) -> float:
    """A length in pixels of a 224-pixel frame, in pixels of ``x``."""
    return length * min(x.shape[-2:]) / _REFERENCE_SIDE


def _gaussian_noise(x: Tensor, draws: Draws, deviation: float) -> Tensor:
    return x + deviation * draws.normal(*x.shape[2:])


def _impulse_noise(x: Tensor, draws: Draws, amount: float) -> Tensor:
    flipped = draws.uniform(*x.shape[2:]) < amount
    salt = (draws.uniform(*x.shape[2:]) < 0.5).to(x.dtype)
    return torch.where(flipped, salt, x)


def _gaussian_blur(x: Tensor, draws: Draws, deviation: float) -> Tensor:
    return smooth(x, _scaled(deviation, x), "edge")


def _kernel_blur(x: Tensor, draws: Draws, size: int) -> Tensor:
    """A Gaussian kernel of ``size`` pixels whatever the frame's side, with the deviation that goes with that size."""
    deviation = 0.3 * ((size - 1) / 2 - 1) + 0.8
    return smooth(x, deviation, "mirror", radius=size // 2)


def smooth(
    x: Tensor, deviation: float, border: Literal["edge", "reflect", "mirror"], radius: int | None = None
) -> Tensor:
    """Gaussian filter of the last two axes of ``x``; as a product of dense matrices, any width is exact.

    Args:
        x: ``(…, H, W)``.
        deviation: standard deviation in pixels.
        border: ``"edge"`` repeats the border pixel, ``"reflect"`` mirrors about its edge, ``"mirror"`` its centre.
        radius: half width of the kernel; 4 deviations by default.
    """
    rows, columns = (_smoothing(size, deviation, border, radius).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _smoothing(size: int, deviation: float, border: str, radius: int | None) -> Tensor:
    radius = int(4 * deviation + 0.5) if radius is None else radius
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / max(deviation, 1e-9)) ** 2)
    position = torch.arange(size)[:, None] + offsets.long()
    if border == "edge":
        position = position.clamp(0, size - 1)
    elif border == "reflect":
        position = position.remainder(2 * size)
        position = torch.minimum(position, 2 * size - 1 - position)
    elif size > 1:
        position = position.remainder(2 * size - 2)
        position = torch.minimum(position, 2 * size - 2 - position)
    weights = (kernel / kernel.sum()).expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, position.clamp(0, size - 1), weights)


def _motion_blur(x: Tensor, draws: Draws, shape: tuple[float, float]) -> Tensor:
    angle = math.radians(90) * draws.uniform() - math.radians(45)
    return _streak(x, _scaled(shape[0], x), _scaled(shape[1], x), angle)


def _streak(x: Tensor, radius: float, deviation: float, angle: Tensor) -> Tensor:
    """Average of ``x (B, T, C, H, W)`` along a one-sided line of 2 radius + 1 pixels at ``angle (B, 1 or T)``."""
    width = 2 * max(1, round(radius)) + 1
    weights = torch.exp(-0.5 * (torch.arange(width, dtype=torch.float64) / max(deviation, 0.3)) ** 2)
    weights = weights / weights.sum()
    total, (height, columns) = torch.zeros_like(x), x.shape[-2:]
    across, down = torch.cos(angle), torch.sin(angle)
    for index in range(width):
        # Halves round down, as in the reference.
        shift_x, shift_y = (torch.ceil(index * part - 0.5).long()[..., None] for part in (across, down))
        row = (torch.arange(height, device=x.device) + shift_y).clamp(0, height - 1)
        column = (torch.arange(columns, device=x.device) + shift_x).clamp(0, columns - 1)
        moved = x.gather(-2, row[:, :, None, :, None].expand(x.shape))
        total += float(weights[index]) * moved.gather(-1, column[:, :, None, None, :].expand(x.shape))
    return total


def _snow(x: Tensor, draws: Draws, shape: tuple[float, ...]) -> Tensor:
    mean, deviation, zoom, threshold, radius, blur, keep = shape
    height, width = x.shape[-2:]
    flakes = mean + deviation * draws.normal(1, height, width)
    inner = [max(1, math.ceil(side / zoom)) for side in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    crop = flakes[..., top : top + inner[0], left : left + inner[1]].flatten(0, 1)
    flakes = functional.interpolate(crop, size=(height, width), mode="bilinear", align_corners=True).view(flakes.shape)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = math.radians(-135) + math.radians(90) * draws.uniform()
    flakes = _streak(flakes, _scaled(radius, x), _scaled(blur, x), angle)
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2, keepdim=True)
    whitened = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return whitened + flakes + flakes.flip(-1, -2)


def _brightness(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Raise the value of hue, saturation and value, which scales the colour as a whole."""
    value = x.amax(2, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-9), raised)


def _contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * factor + mean


def _pixelate(x: Tensor, draws: Draws, factor: float) -> Tensor:
    """Average boxes of whole pixels, and show each as one."""
    for axis in (-2, -1):
        size = x.shape[axis]
        count = max(1, int(size * factor))
        box = ((torch.arange(size) + 0.5) * count / size).floor().long()
        edges = (torch.arange(count + 1) * size / count + 0.5).floor()
        pixel = torch.arange(size)
        inside = ((pixel >= edges[box, None]) & (pixel < edges[box + 1, None])).to(x)
        x = torch.movedim(torch.movedim(x, axis, -1) @ (inside / inside.sum(1, keepdim=True)).T, -1, axis)
    return x


def _jpeg(x: Tensor, draws: Draws, quality: int) -> Tensor:
    """Quantise the cosine transform of 8 × 8 blocks as baseline JPEG does, with chroma at half resolution."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    flat = x.flatten(0, 1) * 255
    height, width = flat.shape[-2:]
    padded = functional.pad(flat, (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = torch.einsum("ij,bjhw->bihw", _to_ycbcr(x), padded) - x.new_tensor([128, 0, 0])[:, None, None]
    luminance = _quantised(planes[:, :1], _JPEG_LUMINANCE, scale)
    chroma = _quantised(functional.avg_pool2d(planes[:, 1:], 2), _JPEG_CHROMINANCE, scale)
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    restored = torch.cat([luminance + 128, chroma], dim=1)[..., :height, :width]
    return (torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_to_ycbcr(x)), restored) / 255).view(x.shape)


def _to_ycbcr(x: Tensor) -> Tensor:
    return x.new_tensor([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])


def _quantised(planes: Tensor, table: Sequence[Sequence[int]], scale: int) -> Tensor:
    steps = ((planes.new_tensor(table) * scale + 50) / 100).floor().clamp(1, 255)
    index = torch.arange(8, dtype=torch.float64)
    cosine = torch.cos((2 * index + 1) * index[:, None] * math.pi / 16) / 2
    cosine[0] /= 2**0.5
    cosine = cosine.to(planes)
    batch, channels, height, width = planes.shape
    blocks = planes.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = cosine @ blocks @ cosine.T
    restored = cosine.T @ ((coefficients / steps).round() * steps) @ cosine
    return restored.transpose(3, 4).reshape(planes.shape)


def _elastic(x: Tensor, draws: Draws, shape: tuple[float, float, float]) -> Tensor:
    """A random affine map and a smooth random displacement, all in shares of the frame's side."""
    strength, deviation, affine = shape
    batch, time, _, height, width = x.shape
    side = min(height, width)
    centre, third = torch.tensor([width, height]) / 2, side / 3
    corners = centre + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = corners.to(x) + affine * side * (2 * draws.uniform(3, 2) - 1)
    homogeneous = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=-1)
    # Where each pixel of the result comes from: the map that takes the moved corners back.
    back = torch.linalg.solve(homogeneous, corners.to(x).expand_as(moved))
    noise = 2 * draws.uniform(2, height, width) - 1
    field = strength * side * smooth(noise, deviation * side, "reflect", radius=int(3 * deviation * side + 0.5))
    y, x_axis = torch.meshgrid(
        torch.arange(height, device=x.device, dtype=x.dtype), torch.arange(width, device=x.device, dtype=x.dtype),
        indexing="ij",
    )  # fmt: skip
    points = torch.stack([x_axis, y, torch.ones_like(y)], dim=-1)
    source = torch.einsum("hwi,btij->bthwj", points, back) + field.permute(0, 1, 3, 4, 2)
    grid = (2 * source + 1) / source.new_tensor([width, height]) - 1
    grid = grid.expand(batch, time, height, width, 2).flatten(0, 1)
    return functional.grid_sample(x.flatten(0, 1), grid, padding_mode="reflection", align_corners=False).view(x.shape)


CORRUPTIONS: dict[str, Corruption] = {
    "noise_015": Corruption(_gaussian_noise, (0.15,)),
    "blur_11": Corruption(_kernel_blur, (11,), random=False),
    "gaussian_noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "impulse_noise": Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Corruption(_gaussian_blur, (1.0, 2.0, 3.0, 4.0, 6.0), random=False),
    "motion_blur": Corruption(_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "snow": Corruption(
        _snow,
        (
            (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8), (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7), (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), random=False),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), random=False),
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), random=False),
    "jpeg": Corruption(_jpeg, (25, 18, 15, 10, 7), random=False),
    "elastic": Corruption(
        _elastic, ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ),
}  # fmt: skip
"""Corruptions by name: the two of the paper that this suite follows, then those of ImageNet-C."""
