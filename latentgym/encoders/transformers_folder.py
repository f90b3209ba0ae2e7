"""What a folder of transformers says of its encoder: architecture, sizes, preprocessing, and whether it is whole.

Sources: DINOv2 (arXiv 2304.07193), registers (2309.16588), DINOv3 (2508.10104), I-JEPA (2301.08243), MAE (2111.06377),
SigLIP (2303.15343), SigLIP 2 (2502.14786), CLIP (2103.00020), VideoMAE (2203.12602), V-JEPA 2 (2506.09985), VideoPrism
(2402.13217).
The suite resizes and normalises itself, from ``preprocessor_config.json`` where there is one; the whole frame is
resized, nothing is cropped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from latentgym.artifacts import read_json
from latentgym.encoders.contract import EncoderSpec
from latentgym.errors import CorruptDataError, LatentGymError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# DINOv2's own evaluations use 224 pixels although its position embeddings were last trained at 518.
IMAGE_SIZE = 224
# V-JEPA 2 was pretrained on up to 64 frames, its rotary positions serve any even number, and its own action
# recognition heads use 16.
VJEPA2_FRAMES = 16


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a model class of transformers is read.

    Attributes:
        model_class: name of the class in transformers.
        family: pretraining family.
        size_key: entry of the configuration that holds the side of its frames; ``""`` if it counts patches instead.
        frames_key: entry that holds the number of frames, ``""`` for image models.
        fixed_size: whether other sides than the configuration's give wrong positions.
        whole: ``model_type`` of a checkpoint that holds this tower beside others, such as CLIP's two.
        class_token: whether a CLS token, and registers where configured, come before the patch tokens.
        interpolates: whether other sides must be announced with ``interpolate_pos_encoding``.
        inputs: ``"pixels"``; ``"unmasked"``: pixels, masking nothing and shuffling nothing; ``"patches"``: pixels cut
            into flattened patches, with their mask and grid.
        mean: default per-channel mean where the folder states none.
        std: default per-channel deviation.
        attention: implementation of the attention.
    """

    model_class: str
    family: str
    size_key: str = "image_size"
    frames_key: str = ""
    fixed_size: bool = False
    whole: str = ""
    class_token: bool = False
    interpolates: bool = False
    inputs: Literal["pixels", "unmasked", "patches"] = "pixels"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    attention: str = "sdpa"


ARCHITECTURES = {
    "dinov2": Architecture("Dinov2Model", "image_ssl", class_token=True),
    "dinov2_with_registers": Architecture("Dinov2WithRegistersModel", "image_ssl", class_token=True),
    "dinov3_vit": Architecture("DINOv3ViTModel", "image_ssl", class_token=True),
    "ijepa": Architecture("IJepaModel", "image_ssl", interpolates=True),
    "vit_mae": Architecture("ViTMAEModel", "masked_image", class_token=True, interpolates=True, inputs="unmasked"),
    "siglip_vision_model": Architecture(
        "SiglipVisionModel", "image_text", whole="siglip", interpolates=True, mean=HALF, std=HALF
    ),
    "siglip2_vision_model": Architecture(
        "Siglip2VisionModel", "image_text", "", whole="siglip2", inputs="patches", mean=HALF, std=HALF
    ),
    "clip_vision_model": Architecture(
        "CLIPVisionModel",
        "image_text",
        whole="clip",
        class_token=True,
        interpolates=True,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "videomae": Architecture("VideoMAEModel", "masked_video", frames_key="num_frames", fixed_size=True),
    "vjepa2": Architecture("VJEPA2Model", "masked_video_latent", "crop_size", "frames_per_clip", fixed_size=True),
    "videoprism_vision_model": Architecture(
        "VideoPrismVisionModel",
        "video_text",
        frames_key="num_frames",
        fixed_size=True,
        mean=ZERO,
        std=ONE,
        # Its attention caps the logits, which sdpa cannot.
        attention="eager",
    ),
}


def check_weights(folder: Path, name: str = "model.safetensors") -> None:
    """Check that the safetensors of ``folder`` are all there and whole, without reading the tensors.

    Raises:
        LatentGymError: if there are none.
        CorruptDataError: if one is missing or truncated.
    """
    index = folder / f"{name}.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        files = sorted({folder / file for file in weight_map.values()})
    else:
        files = [folder / name]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = (
            f" ({', '.join(pickled)} is not read: pickles can run code; convert it to safetensors)" if pickled else ""
        )
        raise CorruptDataError(f"{folder} lacks its weights: expected {', '.join(missing)}{found}")
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise CorruptDataError(
                f"{file} is truncated or is not a safetensors file ({error}); copy or download it again"
            ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        LatentGymError: if there is none.
        CorruptDataError: if it holds no JSON object.
    """
    if not (folder / "config.json").is_file():
        raise LatentGymError(
            f"{folder} holds no encoder: expected encoder.json (a pretrained small encoder) or config.json "
            "(a transformers folder)"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CorruptDataError(f"{folder / 'config.json'}: expected a JSON object, found {type(config).__name__}")
    return config


def model_type_of(folder: Path) -> str:
    """The entry of :data:`ARCHITECTURES` that a transformers folder belongs to, by its ``config.json`` alone.

    Raises:
        LatentGymError: if there is no configuration, or its architecture is not supported.
    """
    config = read_config(folder)
    named = str(config.get("model_type", ""))
    classes = [str(name) for name in config.get("architectures") or []]
    for model_type, architecture in ARCHITECTURES.items():
        if (named and named in (model_type, architecture.whole)) or (not named and architecture.model_class in classes):
            return model_type
    supported = ", ".join(architecture.model_class for architecture in ARCHITECTURES.values())
    raise LatentGymError(
        f"{folder / 'config.json'}: architecture {', '.join(classes) or named or 'not stated'} is not supported; "
        f"supported are {supported}, and any timm image model as timm:<model>@<checkpoint>"
    )


def spec_of_folder(
    folder: Path, architecture: Architecture, config: Mapping[str, Any], image_size: int | None
) -> EncoderSpec:
    """The spec of the folder's encoder, but for its source, parameters and digest.

    Args:
        folder: the folder.
        architecture: its architecture.
        config: the model's whole configuration, the class's defaults in it.
        image_size: side that frames are resized to; by default the folder's own.

    Raises:
        LatentGymError: if the side fits neither model nor patches, or its preprocessing is not supported.
        CorruptDataError: if means or deviations are damaged.
    """
    patch = _patch(config, folder)
    preprocessor = _preprocessor(folder, architecture)
    size = _image_size(folder, architecture, config, preprocessor, image_size)
    if size < patch or size % patch:
        raise LatentGymError(
            f"{folder.name}: image_size {size} does not fit patches of {patch} pixels; the nearest that does is "
            f"{max(1, round(size / patch)) * patch}"
        )
    frames, tubelet = 1, 1
    if architecture.frames_key:
        frames, tubelet = int(config[architecture.frames_key]), _tubelet(config)
        if architecture.model_class == "VJEPA2Model":
            frames = max(tubelet, min(frames, VJEPA2_FRAMES) // tubelet * tubelet)
        if frames % tubelet:
            raise LatentGymError(f"{folder.name}: {frames} frames are no multiple of its tubelet of {tubelet} frames")
    return EncoderSpec(
        name=folder.name,
        family=architecture.family,
        image_size=size,
        mean=_channels(preprocessor, "image_mean", architecture.mean, folder),
        std=_channels(preprocessor, "image_std", architecture.std, folder),
        clip_length=frames,
        tubelet=tubelet,
        temporal=frames > 1,
        embed_dim=int(config["hidden_size"]),
        grid=(size // patch, size // patch),
        # VideoPrism's spatial and temporal blocks hold their tokens in different orders: only its output is read.
        layers=int(config.get("num_hidden_layers", 1)),
    )


def _patch(config: Mapping[str, Any], folder: Path) -> int:
    """Side of a patch; VideoPrism states (frames, rows, columns) in one entry."""
    return _side(config["patch_size"] if "patch_size" in config else list(config["tubelet_size"])[1:], folder)


def _tubelet(config: Mapping[str, Any]) -> int:
    value = config["tubelet_size"]
    return int(value[0] if isinstance(value, list | tuple) else value)


def own_size(folder: Path, architecture: Architecture, config: Mapping[str, Any]) -> int:
    """The side that the position embeddings were made for."""
    if architecture.size_key:
        return _side(config[architecture.size_key], folder)
    return int(float(config["num_patches"]) ** 0.5 + 0.5) * _patch(config, folder)


def _preprocessor(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """What the folder's processor states; transformers saves it by itself, or inside a processor of several parts."""
    kinds = ("video", "image") if architecture.frames_key else ("image", "video")
    alone = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
    combined = folder / "processor_config.json"
    parts = read_json(combined) if combined.is_file() else {}
    for kind in kinds:
        path = folder / alone[kind]
        found = read_json(path) if path.is_file() else parts.get(f"{kind}_processor")
        if not isinstance(found, dict):
            continue
        factor = found.get("rescale_factor", 1 / 255)
        if abs(factor - 1 / 255) > 1e-6:
            origin = path if path.is_file() else combined
            raise LatentGymError(f"{origin}: rescale_factor {factor} is not supported, only 1/255")
        if not found.get("do_normalize", True):
            found = {**found, "image_mean": ZERO, "image_std": ONE}
        return dict(found)
    return {}


def _image_size(
    folder: Path,
    architecture: Architecture,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    requested: int | None,
) -> int:
    own = own_size(folder, architecture, config)
    if architecture.fixed_size:
        if requested not in (None, own):
            raise LatentGymError(
                f"{folder.name}: {architecture.model_class} only takes frames of {own} pixels, its position "
                f"embeddings fit no other size; image_size was {requested}"
            )
        return own
    if requested is not None:
        return requested
    if not architecture.model_class.startswith("Dinov2"):
        return own
    # DINOv2 is published with a crop below the size of its position embeddings.
    patch, stated = _patch(config, folder), preprocessor.get("crop_size") or preprocessor.get("size")
    wanted = IMAGE_SIZE if stated is None else _side(stated, folder)
    return max(patch, min(own, wanted) // patch * patch)


def _side(value: Any, folder: Path) -> int:
    """The side of a square given as a number, a pair, or transformers' size mapping."""
    if isinstance(value, Mapping):
        value = value["shortest_edge"] if "shortest_edge" in value else [value.get("height"), value.get("width")]
    sides = set(value) if isinstance(value, list | tuple) else {value}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise LatentGymError(f"{folder.name}: only square frames and patches are supported, found {value}")
    return side


def _channels(preprocessor: Mapping[str, Any], key: str, default: tuple[float, ...], folder: Path) -> tuple[float, ...]:
    values = preprocessor.get(key, default)
    try:
        channels = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        channels = ()
    if len(channels) != len(default):
        raise CorruptDataError(f"{folder}: {key} must be three numbers, found {json.dumps(values)}")
    return channels
