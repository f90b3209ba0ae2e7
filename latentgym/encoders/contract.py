"""The encoder contract: clips in, latents out, and a frozen statement of what made them.

To add an encoder, subclass :class:`Encoder`, fill in an :class:`EncoderSpec`, implement :meth:`Encoder.forward`, and
register it (see :mod:`latentgym.encoders.registry`). The suite resizes and normalises; ``forward`` receives what the
network expects.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.errors import LatentGymError


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Everything that determines an encoder's output, and what a reader wants to know of it.

    Attributes:
        name: unique name, also shown in tables.
        family: pretraining family (``"image_ssl"``, ``"masked_image"``, ``"pixel_autoencoder"``, ``"masked_video"``,
            ``"masked_video_latent"``, ``"next_latent"``, ``"diffusion"``, ``"shortcut_forcing"``,
            ``"inverse_dynamics"``, ``"supervised"``, ``"random"``, ``"floor"``, ``"reference"`` …).
        modality: observation that it reads: ``"pixels"``, ``"proprio"`` or ``"state"``.
        source: hub id, folder or recipe that it came from.
        revision: pinned revision of the source, empty where there is none.
        licence: licence of the weights.
        image_size: side in pixels that frames are resized to; 0 for vectors.
        mean: per-channel mean subtracted after scaling to [0, 1].
        std: per-channel standard deviation divided by.
        clip_length: number of frames that it looks at together (1 for image encoders).
        tubelet: number of frames that share one token time.
        temporal: whether it uses more than one distinct frame; an image family with a two-frame stem gets the same
            frame twice and has ``temporal=False``.
        embed_dim: width D of a token.
        grid: (rows, columns) of the patch tokens; ``(1, 1)`` for vectors.
        layers: number of blocks whose output can be read.
        pooling: how a feature vector is made from tokens by default: ``"mean"``, ``"cls"`` or ``"grid:G"``
            (tokens averaged onto a G × G grid, then flattened).
        parameters: number of parameters used when encoding.
        weights_digest: SHA-256 over the weights, or over what determines them; empty for parameter-free encoders.
        trained_on_actions: whether action labels were used in training.
        layer: block that :meth:`Encoder.encode` reads by default, ``-1`` for the last.
        dtype: floating-point type that the network computes in.
    """

    name: str
    family: str
    modality: Literal["pixels", "proprio", "state"] = "pixels"
    source: str = ""
    revision: str = ""
    licence: str = ""
    image_size: int = 64
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    clip_length: int = 1
    tubelet: int = 1
    temporal: bool = False
    embed_dim: int = 0
    grid: tuple[int, int] = (1, 1)
    layers: int = 1
    pooling: str = "mean"
    parameters: int = 0
    weights_digest: str = ""
    trained_on_actions: bool = False
    layer: int = -1
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """Tokens of a batch of clips.

    Attributes:
        tokens: ``(B, T', N, D)`` patch tokens, row-major on the spatial grid; T' token times.
        times: ``(T',)`` index of the last frame of the clip that each token time covers.
        layer: block that the tokens come from, counted from 0; ``-1`` means the last.
        prefix: ``(B, T', P, D)`` CLS and register tokens, CLS first, or ``None``.
    """

    tokens: torch.Tensor
    times: torch.Tensor
    layer: int = -1
    prefix: torch.Tensor | None = None

    @property
    def pooled(self) -> torch.Tensor:
        """``(B, T', D)`` mean over patch tokens."""
        return self.tokens.mean(dim=2)


class Encoder(abc.ABC):
    """A frozen map from clips to latents; subclasses implement :meth:`forward`.

    Attributes:
        spec: what it is.
        device: where it computes.
        concurrent: whether several threads may encode at once, which a module that keeps anything between or during
            passes (hooks, caches) forbids.
        batch_limit: largest batch of clips that was seen to fit the device, ``None`` where none failed.
        label_episodes: episodes whose action labels it was trained on, by content key of their data set, where known.
    """

    spec: EncoderSpec
    device: torch.device = torch.device("cpu")
    concurrent: bool = False
    batch_limit: int | None = None
    label_episodes: Mapping[str, frozenset[int]] = MappingProxyType({})

    @abc.abstractmethod
    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Latents of a prepared clip.

        Args:
            clip: ``(B, T, 3, S, S)`` float32, resized to ``spec.image_size`` and normalised, for pixel encoders;
                ``(B, T, P)`` float32 for vector encoders.
            layer: block to read, ``-1`` for the last.
        """

    def to(self, device: str | torch.device) -> Encoder:
        """Move the encoder to ``device`` and return it."""
        self.device = torch.device(device)
        return self

    @torch.inference_mode()
    def encode(self, clip: NDArray[np.generic] | torch.Tensor, layer: int | None = None) -> Latents:
        """Encode clips.

        Args:
            clip: ``(B, T, H, W, 3)`` uint8 RGB for pixel encoders, ``(B, T, P)`` floats for vector encoders.
            layer: block to read, ``-1`` for the last; ``spec.layer`` where it is left out.

        Raises:
            LatentGymError: on a wrong shape or dtype, a layer that does not exist, or if a latent is not finite.
        """
        layer = self._known_layer(self.spec.layer if layer is None else layer)
        return self._checked(self.forward(self.prepare(torch.as_tensor(clip)), layer), len(clip))

    @torch.inference_mode()
    def encode_layers(self, clip: NDArray[np.generic] | torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Encode clips once and read several blocks; arguments and errors as in :meth:`encode`."""
        known = [self._known_layer(layer) for layer in layers]
        found = self.forward_layers(self.prepare(torch.as_tensor(clip)), known)
        return [self._checked(latents, len(clip)) for latents in found]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Latents of several blocks, by one pass each; a subclass that can read them in one pass overrides this."""
        return [self.forward(clip, layer) for layer in layers]

    def _known_layer(self, layer: int) -> int:
        """The layer counted from the front, or -1 for the last."""
        count = self.spec.layers
        if layer != -1 and not -count <= layer < count:
            raise LatentGymError(
                f"encoder {self.spec.name!r} has layers 0 to {count - 1} (or -1 for the last), found {layer}"
            )
        return layer if layer >= -1 else layer + count

    def _checked(self, latents: Latents, count: int) -> Latents:
        if latents.tokens.ndim != 4 or latents.tokens.shape[0] != count:
            raise LatentGymError(
                f"encoder {self.spec.name!r} returned tokens of shape {tuple(latents.tokens.shape)}; "
                f"expected ({count}, T', N, D)"
            )
        if not torch.isfinite(latents.tokens).all():
            raise LatentGymError(
                f"encoder {self.spec.name!r} returned NaN or infinite latents; with reduced precision try dtype "
                "float32, otherwise check its weights"
            )
        return latents

    def prepare(self, clip: torch.Tensor) -> torch.Tensor:
        """Check a clip, move it to the device, resize (bilinear, antialiased) and normalise it."""
        if self.spec.modality != "pixels":
            if clip.ndim != 3:
                raise LatentGymError(
                    f"encoder {self.spec.name!r} reads vectors: expected (B, T, P), found {tuple(clip.shape)}"
                )
            return clip.to(self.device, torch.float32)
        if clip.ndim != 5 or clip.shape[-1] != 3 or clip.dtype != torch.uint8 or 0 in clip.shape[1:]:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected a clip of shape (B, T, H, W, 3) and dtype uint8, "
                f"found {tuple(clip.shape)} {clip.dtype}"
            )
        batch, time, height, width, _ = clip.shape
        size = self.spec.image_size
        pixels = clip.to(self.device).permute(0, 1, 4, 2, 3).reshape(batch * time, 3, height, width)
        pixels = pixels.contiguous().float()
        if (height, width) != (size, size):
            pixels = torch.nn.functional.interpolate(
                pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )
        mean, std = _scaling(tuple(self.spec.mean), tuple(self.spec.std), self.device)
        return pixels.div_(255.0).sub_(mean).div_(std).reshape(batch, time, 3, size, size)


@functools.lru_cache(maxsize=64)
def _scaling(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as ``(3, 1, 1)`` on the device; a GPU would stand still for every copy of them."""
    # Made outside inference mode, they serve callers inside and outside of it.
    with torch.inference_mode(False):
        return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)
