"""Any image model of timm, transformer or convolutional: ``timm:<model>`` or ``timm:<model>@<folder or checkpoint>``.

Source: timm (https://github.com/huggingface/pytorch-image-models). The model's own mean, standard deviation and input
size are used; the whole frame is resized, nothing is cropped.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.hub import fetch_snapshot
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError, require

CHECKPOINT_NAMES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
# Pretraining family by what timm's pretrained tag says; everything else in timm is supervised.
FAMILIES = (
    (r"dino|lvd|ijepa|seer|simclr|byol|swav|moco", "image_ssl"),
    (r"(^|[._])mae|fcmae|beit|mim|eva", "masked_image"),
    (r"clip|siglip|openai|laion|webli|pe_", "image_text"),
)
FEATURE_MAP_NDIM = 4


class TimmEncoder(FrozenEncoder):
    """An image model of timm; each frame of a clip is encoded by itself.

    ``layer=-1`` is the model's own ``forward_features``; other layers are its intermediate blocks (transformers) or
    stages (convolutional networks), taken before any final normalisation.

    Args:
        spec: the spec; grid, width and number of layers are filled in from a first pass.
        model: the model, without classifier.
    """

    concurrent = True

    def __init__(self, spec: EncoderSpec, model: Any) -> None:
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        super().__init__(spec, model)
        with torch.inference_mode():
            output = model.forward_features(torch.zeros(1, 3, spec.image_size, spec.image_size))
        tokens, _, grid = self._read(output)
        layers = len(model.feature_info) if hasattr(model, "forward_intermediates") else 1
        self.spec = dataclasses.replace(self.spec, embed_dim=tokens.shape[-1], grid=grid, layers=layers)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T' = T."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks: one pass for the inner ones and one for the model's own output."""
        batch, time = clip.shape[:2]
        frames = clip.flatten(0, 1).to(self.dtype)
        model: Any = self.model
        inner = sorted({layer for layer in layers if layer not in (-1, self.spec.layers - 1)})
        read = dict(zip(inner, self._intermediates(frames, inner), strict=True)) if inner else {}
        if len(inner) < len({*layers}):
            last = self._read(model.forward_features(frames))[:2]
            read |= {layer: last for layer in layers if layer not in inner}
        found = []
        for layer in layers:
            tokens, prefix = read[layer]
            found.append(
                Latents(
                    tokens.float().reshape(batch, time, *tokens.shape[1:]),
                    torch.arange(time),
                    layer,
                    None if prefix is None else prefix.float().reshape(batch, time, *prefix.shape[1:]),
                )
            )
        return found

    def _intermediates(
        self, frames: torch.Tensor, layers: Sequence[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        model: Any = self.model
        options = {"return_prefix_tokens": True} if self._prefix_tokens else {}
        outputs = model.forward_intermediates(
            frames, indices=list(layers), stop_early=True, intermediates_only=True, output_fmt="NCHW", **options
        )
        pairs = [output if isinstance(output, tuple | list) else (output, None) for output in outputs]
        return [(maps.flatten(2).transpose(1, 2), prefix) for maps, prefix in pairs]

    def _read(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int]]:
        """Patch tokens ``(B, N, D)``, prefix tokens and grid of what ``forward_features`` returns."""
        if output.ndim == FEATURE_MAP_NDIM:
            maps = output if self._channels_last else output.permute(0, 2, 3, 1)
            return maps.flatten(1, 2), None, (maps.shape[1], maps.shape[2])
        tokens, prefix = output[:, self._prefix_tokens :], output[:, : self._prefix_tokens]
        side = round(float(tokens.shape[1]) ** 0.5)
        if output.ndim != FEATURE_MAP_NDIM - 1 or side * side != tokens.shape[1]:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: features of shape {tuple(output.shape)} are neither a map nor a square "
                "grid of tokens; this model cannot be read"
            )
        return tokens, prefix if self._prefix_tokens else None, (side, side)


def load_timm(argument: str, *, image_size: int | None = None) -> TimmEncoder:
    """Open ``<model>`` with timm's published weights, or ``<model>@<folder or checkpoint>``, in float32 on the CPU.

    Args:
        argument: a timm model name, such as ``"vit_tiny_patch16_224"``; the checkpoint is a safetensors file, or a
            ``.pth``/``.pt`` state dict, which is read with ``torch.load(weights_only=True)``.
        image_size: side that frames are resized to, the model's own by default. Transformers resample their position
            embeddings.

    Raises:
        LatentGymError: if the name is unknown, the weights cannot be had, are damaged or do not fit, or the model
            cannot take this size.
    """
    ensure_torchvision()
    timm = require("timm", "timm")
    name, _, checkpoint = argument.partition("@")
    if not timm.is_model(name.partition(".")[0]):
        raise UnknownNameError("timm model", name, timm.list_models(), "(see timm.list_models())")
    model, revision = (_from_checkpoint(timm, name, Path(checkpoint)), "") if checkpoint else _published(timm, name)
    config = model.pretrained_cfg
    size = int(config["input_size"][-1])
    if image_size not in (None, size):
        assert image_size is not None
        size = _set_size(name, model, image_size)
    spec = EncoderSpec(
        name=f"timm:{name}",
        family=_family(str(config.get("tag") or "") + "." + name),
        source=checkpoint or str(config.get("hf_hub_id") or name),
        revision=revision,
        licence="" if checkpoint else str(config.get("license") or ""),
        image_size=size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"timm": name}),
    )
    try:
        return TimmEncoder(spec, model)
    # Frames that are too small for a network fail deep inside it.
    except (RuntimeError, AssertionError, ValueError) as error:
        raise LatentGymError(f"encoder {spec.name!r} cannot take frames of {size} pixels: {error}") from error


def _published(timm: Any, name: str) -> tuple[Any, str]:
    """The model with its published weights, and their revision on the hub."""
    repository = timm.models.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise LatentGymError(f"timm publishes no weights for {name}; pass your own as timm:{name}@<checkpoint>")
    folder = fetch_snapshot(
        repository,
        f"fetch model.safetensors of https://huggingface.co/{repository} elsewhere and pass "
        f"timm:{name}@path/to/model.safetensors",
    )
    files = sorted(folder.glob("*.safetensors"), key=lambda path: (path.name != "model.safetensors", path.name))
    if not files:
        raise LatentGymError(f"https://huggingface.co/{repository} holds no safetensors; timm:{name} cannot be opened")
    try:
        # Through timm's own loader, which converts weights that were published in another layout.
        overlay = {"file": str(files[0])}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0), folder.name
    except (RuntimeError, SafetensorError, OSError) as error:
        raise CorruptDataError(f"{files[0]} is damaged ({error}); delete it to download it again") from error


def _from_checkpoint(timm: Any, name: str, path: Path) -> Any:
    if path.is_dir():
        candidates = [path / file for file in CHECKPOINT_NAMES if (path / file).is_file()]
        if not candidates:
            raise LatentGymError(f"timm:{name}: {path} holds no checkpoint; expected {' or '.join(CHECKPOINT_NAMES)}")
        path = candidates[0]
    if not path.is_file():
        raise LatentGymError(f"timm:{name}: there is no checkpoint at {path}")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    # A damaged zip archive, a pickle that wants more than tensors, and a damaged safetensors file in turn.
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, OSError) as error:
        raise CorruptDataError(
            f"{path} is truncated or is not a plain state dict ({type(error).__name__}); copy or download it again"
        ) from error
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise LatentGymError(f"{path} does not fit timm:{name}: {error}") from error
    if missing:
        raise LatentGymError(
            f"{path} does not fit timm:{name}: {len(missing)} weights are missing and would be random, the first "
            f"{missing[0]!r}"
        )
    return model


def _set_size(name: str, model: Any, image_size: int) -> int:
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=(image_size, image_size))
        except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError) as error:
            raise LatentGymError(f"timm:{name} cannot take frames of {image_size} pixels: {error}") from error
    elif model.pretrained_cfg.get("fixed_input_size"):
        own = model.pretrained_cfg["input_size"][-1]
        raise LatentGymError(f"timm:{name} only takes frames of {own} pixels; image_size was {image_size}")
    return image_size


def _family(tag: str) -> str:
    return next((family for pattern, family in FAMILIES if re.search(pattern, tag)), "supervised")
