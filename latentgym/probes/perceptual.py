"""Perceptual distances between images that need no download: GMSD, and LPIPS where its weights are given."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentgym.errors import CorruptDataError, LatentGymError

FEATURES_FILE = "alexnet_features.safetensors"
HEADS_FILE = "linear_heads_v0.1.safetensors"
# Layers of torchvision's AlexNet: convolution index to (inputs, outputs, kernel, stride, padding).
_CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1), 10: (256, 256, 3, 1, 1)
}  # fmt: skip
_POOLED_BEFORE = (3, 6)
_GMSD_CONSTANT = 170 / 255**2


def gmsd(image: Tensor, target: Tensor) -> Tensor:
    """``(B,)`` gradient magnitude similarity deviation of images ``(B, 3, H, W)`` in [0, 1] (Xue et al., 2014).

    0 for equal images, larger for worse ones. Luminance, averaged and taken at every second pixel; Prewitt gradients;
    the standard deviation of their similarity.
    """
    weights = image.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    prewitt = image.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]

    def gradients(x: Tensor) -> Tensor:
        grey = functional.avg_pool2d((x * weights).sum(1, keepdim=True), 2, ceil_mode=True)
        return functional.conv2d(grey, kernels, padding=1).square().sum(1).sqrt()

    first, second = gradients(image), gradients(target)
    similarity = (2 * first * second + _GMSD_CONSTANT) / (first**2 + second**2 + _GMSD_CONSTANT)
    return similarity.flatten(1).std(1, correction=0)


class Lpips(nn.Module):
    """Learned perceptual image patch similarity, version 0.1 on AlexNet (Zhang et al., arXiv 1801.03924).

    Args:
        folder: holds ``alexnet_features.safetensors`` (``<layer>.weight`` and ``.bias`` of torchvision's features) and
            ``linear_heads_v0.1.safetensors`` (``lin<i>.model.1.weight`` of the published heads).

    Raises:
        LatentGymError: if the folder does not hold both files.
        CorruptDataError: if one of them is damaged or lacks a tensor.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        features, heads = (_tensors(Path(folder) / name) for name in (FEATURES_FILE, HEADS_FILE))
        self.convolutions = nn.ModuleDict()
        for index, (inputs, outputs, kernel, stride, padding) in _CONVOLUTIONS.items():
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            state = {part: features.get(f"{index}.{part}", torch.empty(0)) for part in ("weight", "bias")}
            try:
                convolution.load_state_dict(state)
            except RuntimeError as error:
                raise CorruptDataError(f"{Path(folder) / FEATURES_FILE} is not AlexNet's features: {error}") from error
            self.convolutions[str(index)] = convolution
        names = [f"lin{index}.model.1.weight" for index in range(len(_CONVOLUTIONS))]
        if missing := [name for name in names if name not in heads]:
            raise CorruptDataError(f"{Path(folder) / HEADS_FILE} lacks {', '.join(missing)}")
        self.heads = [heads[name] for name in names]
        self.requires_grad_(False).eval()

    def _features(self, image: Tensor) -> list[Tensor]:
        """Rectified features of every convolution, of unit length along channels."""
        shift, scale = (
            image.new_tensor(numbers)[:, None, None] for numbers in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        )
        x, found = (image * 2 - 1 - shift) / scale, []
        for index in _CONVOLUTIONS:
            if index in _POOLED_BEFORE:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(self.convolutions[str(index)](x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.inference_mode()
    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """``(B,)`` distances of images ``(B, 3, H, W)`` in [0, 1], of at least 31 pixels a side."""
        pairs = zip(self._features(image), self._features(target), self.heads, strict=True)
        parts = [((a - b).square() * head).sum(1).mean((1, 2)) for a, b, head in pairs]
        return torch.stack(parts).sum(0)


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise LatentGymError(f"LPIPS needs {path}; see the documentation of probes for where its weights come from")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(f"{path} is truncated or is not a safetensors file: {error}") from error
