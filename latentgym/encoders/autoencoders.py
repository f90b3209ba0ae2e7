"""Autoencoders of diffusers: Stable Diffusion's and SDXL's, TAESD, and the causal video ones of Cosmos, Wan and LTX.

Sources: latent diffusion (arXiv 2112.10752), TAESD (https://github.com/madebyollin/taesd), Cosmos (2501.03575), Wan
(2503.20314), LTX-Video (2501.00103). Latents are the mode of the posterior, not rescaled; frames go in as [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentgym.artifacts import read_json
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import HALF, check_weights
from latentgym.errors import LatentGymError, require

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Class in diffusers -> whether it encodes videos.
CLASSES = {
    "AutoencoderKL": False,
    "AutoencoderTiny": False,
    "AutoencoderKLCosmos": True,
    "AutoencoderKLWan": True,
    "AutoencoderKLLTXVideo": True,
}
# One frame and eight more: a whole number of steps for temporal strides of 2, 4 and 8.
CLIP_LENGTH = 9
# Where the configuration states none; a multiple of every published spatial stride.
IMAGE_SIZE = 256
# Large enough for one latent of every published spatial stride.
_TRIAL_SIZE = 64


class AutoencoderEncoder(FrozenEncoder):
    """The encoder half of an autoencoder; one layer, one token per latent pixel, D latent channels."""

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Latents of ``(B, T, 3, S, S)``; image models take any T, video models 1 and any multiple of their stride."""
        batch, time = clip.shape[:2]
        clip = clip.to(self.dtype)
        if self.spec.clip_length == 1:
            maps = encode_maps(self.model, clip.flatten(0, 1))
            maps = maps.reshape(batch, time, *maps.shape[1:])
            return Latents(maps.float().flatten(3).transpose(2, 3), torch.arange(time), layer)
        if (time - 1) % self.spec.tubelet:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of {self.spec.clip_length} frames, "
                f"or of 1 and any multiple of {self.spec.tubelet}, found {time}"
            )
        maps = encode_maps(self.model, clip.transpose(1, 2))
        times = torch.arange(maps.shape[2]) * self.spec.tubelet
        return Latents(maps.float().flatten(3).permute(0, 2, 3, 1), times, layer)

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """The same latents for every layer asked for: there is only one."""
        found = self.forward(clip, -1)
        return [dataclasses.replace(found, layer=layer) for layer in layers]


def encode_maps(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents ``(B, C, h, w)`` or ``(B, C, T', h, w)`` by the library's own ``encode``."""
    output = model.encode(pixels)
    maps: torch.Tensor = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
    return maps


def is_autoencoder(folder: Path) -> bool:
    """Whether ``folder`` holds a model of diffusers."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(config, dict) and "_class_name" in config


def check_class(folder: Path) -> str:
    """The class of the folder's autoencoder, with its weights checked.

    Raises:
        LatentGymError: if the class is not supported or the weights are missing or damaged.
    """
    name = str(read_json(folder / "config.json")["_class_name"])
    if name not in CLASSES:
        raise LatentGymError(
            f"{folder / 'config.json'}: class {name} of diffusers is not supported; supported are {', '.join(CLASSES)}"
        )
    check_weights(folder, WEIGHTS)
    return name


def load_autoencoder(
    folder: Path, *, image_size: int | None = None, source: str = "", revision: str = ""
) -> FrozenEncoder:
    """Open a folder that an autoencoder's ``save_pretrained`` wrote, in float32 on the CPU.

    Args:
        folder: holds ``config.json`` and ``diffusion_pytorch_model.safetensors``.
        image_size: side that frames are resized to, a multiple of the spatial stride; the configuration's
            ``sample_size`` by default, 256 where it states none.
        source: where the folder came from, the folder itself by default.
        revision: pinned revision of the source.

    Raises:
        LatentGymError: if the folder is incomplete or damaged, or its class is not supported.
    """
    name = check_class(folder)
    model = load_diffusers_model(folder, name)
    video = CLASSES[name]
    shape = (1, 3, CLIP_LENGTH, _TRIAL_SIZE, _TRIAL_SIZE) if video else (1, 3, _TRIAL_SIZE, _TRIAL_SIZE)
    with torch.inference_mode():
        trial = encode_maps(model, torch.zeros(shape))
    stride = _TRIAL_SIZE // trial.shape[-1]
    size = image_size or _side(model.config.get("sample_size")) or IMAGE_SIZE
    if size % stride:
        raise LatentGymError(
            f"{folder.name}: image_size {size} is no multiple of its spatial stride of {stride} pixels"
        )
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    parameters = [p.numel() for key, p in model.named_parameters() if not key.startswith(("decoder", "post_quant"))]
    spec = EncoderSpec(
        name=folder.name,
        family="video_autoencoder" if video else "pixel_autoencoder",
        source=source or str(folder),
        revision=revision,
        image_size=size,
        mean=HALF,
        std=HALF,
        clip_length=CLIP_LENGTH if video else 1,
        tubelet=(CLIP_LENGTH - 1) // max(1, trial.shape[2] - 1) if video else 1,
        temporal=video,
        embed_dim=trial.shape[1],
        grid=(size // stride, size // stride),
        parameters=sum(parameters),
        weights_digest=weights_digest(model, {"class": name, **config}),
    )
    return AutoencoderEncoder(spec, model)


def load_diffusers_model(folder: Path, name: str) -> Any:
    """The model of class ``name`` of diffusers that ``folder`` holds, in float32 on the CPU.

    Raises:
        LatentGymError: if it cannot be opened, or weights are missing.
    """
    ensure_torchvision()
    diffusers = require("diffusers", "diffusers")
    try:
        model, info = getattr(diffusers, name).from_pretrained(
            str(folder),
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    # Mismatched shapes, malformed configurations and damaged tensors surface as different errors.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise LatentGymError(f"diffusers cannot open {folder} as {name}: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise LatentGymError(
            f"{folder}: {len(missing)} weights of {name} are missing from the checkpoint and would be random, the "
            f"first {missing[0]!r}; config.json and the weights do not belong together"
        )
    return model


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value or 0)
