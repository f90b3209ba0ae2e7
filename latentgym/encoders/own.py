"""A torch module, or a TorchScript file, as an encoder: what ten lines of a user's own need."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentgym.artifacts import file_digest
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.errors import CorruptDataError, LatentGymError

_HALF = (0.5, 0.5, 0.5)


class ModuleEncoder(FrozenEncoder):
    """A torch module with one layer to read, its output.

    An image module (``clip_length`` 1) gets ``(B, 3, S, S)`` and returns a map ``(B, D, rows, columns)``, tokens
    ``(B, P + N, D)`` with P prefix tokens first, or one vector ``(B, D)``. A video module gets ``(B, 3, T, S, S)`` and
    returns a map ``(B, D, T', rows, columns)``, tokens ``(B, T', P + N, D)`` or vectors ``(B, T', D)``.

    Args:
        module: the network; it is put in evaluation mode and takes no gradient.
        name: name shown in tables.
        image_size: side S that frames are resized to.
        mean: per-channel mean subtracted after scaling to [0, 1]; 0.5 by default, which gives [−1, 1].
        std: per-channel deviation divided by.
        clip_length: frames T that it looks at together.
        prefix_tokens: number P of CLS and register tokens.
        family: pretraining family, for tables and leave-one-family-out.
        licence: licence of the weights.
        digest: whatever else determines its output, such as a version; it enters the weights' digest.

    Raises:
        LatentGymError: if a first pass gives another shape.

    Example:
        >>> import torch
        >>> from latentgym.encoders import ModuleEncoder
        >>> ModuleEncoder(torch.nn.Conv2d(3, 8, 16, stride=16), "patches", image_size=64).spec.grid
        (4, 4)
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        image_size: int,
        mean: tuple[float, ...] = _HALF,
        std: tuple[float, ...] = _HALF,
        clip_length: int = 1,
        prefix_tokens: int = 0,
        family: str = "own",
        licence: str = "",
        digest: str = "",
    ) -> None:
        self._prefix_tokens = prefix_tokens
        spec = EncoderSpec(
            name=name,
            family=family,
            source=type(module).__name__,
            licence=licence,
            image_size=image_size,
            mean=mean,
            std=std,
            clip_length=clip_length,
            temporal=clip_length > 1,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            weights_digest=weights_digest(module, {"module": digest or repr(module)}),
        )
        super().__init__(spec, module)
        with torch.inference_mode():
            latents = self.forward(torch.zeros(1, clip_length, 3, image_size, image_size), -1)
        times, count, width = latents.tokens.shape[1:]
        side = round(count**0.5)
        grid = (side, side) if side * side == count else (1, count)
        self.spec = dataclasses.replace(self.spec, tubelet=max(1, clip_length // times), embed_dim=width, grid=grid)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``; image modules take any T, video modules ``spec.clip_length``."""
        batch, frames = clip.shape[:2]
        clip = clip.to(self.dtype)
        if self.spec.clip_length == 1:
            tokens = self._tokens(self.model(clip.flatten(0, 1)), 1)
            return self._latents(tokens.reshape(batch, frames, *tokens.shape[2:]), frames, layer)
        if frames != self.spec.clip_length:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of {self.spec.clip_length} frames, found {frames}"
            )
        return self._latents(self._tokens(self.model(clip.transpose(1, 2)), 0), frames, layer)

    def _tokens(self, output: Any, image: int) -> torch.Tensor:
        """``(B, T', P + N, D)`` of any output; an image's has one axis (``image``) less, that of time."""
        if not isinstance(output, torch.Tensor) or output.ndim not in (3 - image, 4 - image, 5 - image):
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise LatentGymError(
                f"encoder {self.spec.name!r}: its module returned {found}; expected a feature map, tokens or vectors, "
                "see latentgym.encoders.ModuleEncoder"
            )
        output = output.unsqueeze(2 if output.ndim == 5 - image else 1) if image else output
        if output.ndim == 5:
            output = output.flatten(3).permute(0, 2, 3, 1)
        tokens: torch.Tensor = output.unsqueeze(2) if output.ndim == 3 else output
        return tokens

    def _latents(self, tokens: torch.Tensor, frames: int, layer: int) -> Latents:
        count = tokens.shape[1]
        times = torch.arange(1, count + 1) * (frames // count) - 1
        prefix = tokens[:, :, : self._prefix_tokens].float() if self._prefix_tokens else None
        return Latents(tokens[:, :, self._prefix_tokens :].float(), times, layer, prefix)


def load_torchscript(path: str | Path, *, trust: bool = False, image_size: int, **options: Any) -> ModuleEncoder:
    """Open a TorchScript file as an encoder. Such a file is a program: only open one whose author you trust.

    Args:
        path: what ``torch.jit.save`` wrote.
        trust: must be true.
        image_size: side that frames are resized to.
        options: as for :class:`ModuleEncoder`; ``name`` is the file's by default.

    Raises:
        LatentGymError: if ``trust`` is not given, or there is no such file.
        CorruptDataError: if it is no TorchScript file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise LatentGymError(f"there is no TorchScript file at {path}")
    if not trust:
        raise LatentGymError(
            f"{path} is TorchScript, a program that runs when it is used; if you trust its author, pass trust=True"
        )
    try:
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise CorruptDataError(f"{path} is truncated or is no TorchScript file; save it again") from error
    chosen: dict[str, Any] = {"name": path.stem, "digest": file_digest(path), **options}
    encoder = ModuleEncoder(module, image_size=image_size, **chosen)
    encoder.spec = dataclasses.replace(encoder.spec, source=str(path))
    return encoder


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, by the names in it; nothing of it is run."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
