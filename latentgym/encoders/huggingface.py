"""Transformers folders and hub ids: DINOv2 and 3, I-JEPA, MAE, SigLIP 1 and 2, CLIP, VideoMAE, V-JEPA 2, VideoPrism.

Sources: DINOv2 (arXiv 2304.07193), registers (2309.16588), DINOv3 (2508.10104), I-JEPA (2301.08243), MAE (2111.06377),
SigLIP (2303.15343), SigLIP 2 (2502.14786), CLIP (2103.00020), VideoMAE (2203.12602), V-JEPA 2 (2506.09985), VideoPrism
(2402.13217).
The suite resizes and normalises itself, from ``preprocessor_config.json`` where there is one; the whole frame is
resized, nothing is cropped. Only safetensors are read and no remote code is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from latentgym.artifacts import read_json
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.hub import fetch_snapshot
from latentgym.encoders.timm_models import is_timm_folder, load_timm_folder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, require

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# DINOv2's own evaluations use 224 pixels although its position embeddings were last trained at 518.
IMAGE_SIZE = 224
# V-JEPA 2 was pretrained on up to 64 frames, its rotary positions serve any even number, and its own action
# recognition heads use 16.
VJEPA2_FRAMES = 16
# Entries of a configuration that do not change what the network computes.
_NAMES_ONLY = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}
)
# Parameters that encoding never uses; published checkpoints may lack them.
UNUSED = ("mask_token", "predictor.")


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
# Where the classes keep their blocks.
_BLOCKS = ("encoder.layer", "encoder.layers", "layer", "layers", "model.layer", "model.layers")


class HuggingFaceEncoder(FrozenEncoder):
    """A vision transformer of transformers.

    ``layer=-1`` is the model's own output, after its final normalisation; an earlier block's output is taken as it is.

    Args:
        spec: the spec.
        model: the network.
        prefix_tokens: number of CLS and register tokens before the patch tokens.
        inputs: what the network reads, see :class:`Architecture`.
        interpolate: whether frames differ from the size that positions were trained at.
        trained_frames: number of frames that it was trained on, where ``spec.clip_length`` is less; both are taken.
    """

    concurrent = True

    def __init__(
        self,
        spec: EncoderSpec,
        model: torch.nn.Module,
        prefix_tokens: int,
        inputs: Literal["pixels", "unmasked", "patches"] = "pixels",
        *,
        interpolate: bool = False,
        trained_frames: int = 0,
    ) -> None:
        self.prefix_tokens = prefix_tokens
        self.trained_frames = trained_frames
        self.inputs = inputs
        self._options = {"interpolate_pos_encoding": True} if interpolate else {}
        super().__init__(spec, model)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``; image models take any T, video models ``spec.clip_length``."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks in one pass."""
        batch, time = clip.shape[:2]
        clip = clip.to(self.dtype)
        if self.spec.clip_length == 1:
            clip = clip.flatten(0, 1)
        elif time not in (self.spec.clip_length, self.trained_frames):
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of {self.spec.clip_length} frames, found {time}"
            )
        outputs = self._block_outputs(clip, layers)
        return [self._latents(output, batch, time, layer) for layer, output in zip(layers, outputs, strict=True)]

    def _latents(self, output: torch.Tensor, batch: int, time: int, layer: int) -> Latents:
        # Images come as (B T, N, D), videos as (B, T' N, D), token time first: both are (B, T', N, D) in memory.
        output = output.reshape(batch, time // self.spec.tubelet, -1, output.shape[-1])
        output = output.float()
        prefix = output[:, :, : self.prefix_tokens] if self.prefix_tokens else None
        times = torch.arange(1, output.shape[1] + 1) * self.spec.tubelet - 1
        return Latents(output[:, :, self.prefix_tokens :], times, layer, prefix)

    def _block_outputs(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        outputs: dict[int, torch.Tensor] = {}

        caller = threading.get_ident()

        def keep(layer: int, _module: torch.nn.Module, _args: object, output: Any) -> None:
            if threading.get_ident() == caller:
                outputs[layer] = output[0] if isinstance(output, tuple) else output

        inner = {layer for layer in layers if layer not in (-1, self.spec.layers - 1)}
        blocks: Any = self._blocks() if inner else ()
        handles = [blocks[layer].register_forward_hook(functools.partial(keep, layer)) for layer in inner]
        try:
            last: torch.Tensor = self.model(**self._arguments(pixels)).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[layer] if layer in inner else last for layer in layers]

    def _blocks(self) -> torch.nn.ModuleList:
        for path in _BLOCKS:
            try:
                blocks = self.model.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == self.spec.layers:
                return blocks
        raise LatentGymError(f"encoder {self.spec.name!r}: its blocks cannot be read in this release of transformers")

    def _arguments(self, pixels: torch.Tensor) -> dict[str, Any]:
        """What the network's own forward takes."""
        rows, columns = self.spec.grid
        if self.inputs == "unmasked":
            # Increasing noise keeps the tokens in their order.
            noise = torch.arange(rows * columns, dtype=torch.float32, device=pixels.device).expand(len(pixels), -1)
            return {"pixel_values": pixels, "noise": noise, **self._options}
        if self.inputs == "patches":
            side = self.spec.image_size // rows
            patches = pixels.reshape(len(pixels), 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
            return {
                "pixel_values": patches.flatten(3).flatten(1, 2),
                "pixel_attention_mask": torch.ones(
                    len(pixels), rows * columns, dtype=torch.int64, device=pixels.device
                ),
                "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(len(pixels), -1),
            }
        return {next(iter(inspect.signature(self.model.forward).parameters)): pixels, **self._options}


def load_folder(folder: Path, *, image_size: int | None = None, source: str = "", revision: str = "") -> FrozenEncoder:
    """Open a folder that ``save_pretrained`` of transformers or diffusers wrote, in float32 on the CPU.

    Args:
        folder: holds ``config.json``, safetensors weights and, where published, ``preprocessor_config.json``.
        image_size: side that frames are resized to. Image models take any multiple of their patch (default: the
            configuration's; for DINOv2 at most the processor's crop, 224 where none is stated); video models take
            only their own.
        source: where the folder came from, the folder itself by default.
        revision: pinned revision of the source.

    Raises:
        LatentGymError: if the folder is incomplete or damaged, or holds an architecture that is not supported.
    """
    if "_class_name" in _config(folder):
        # Imported here because that module reads folders with the help of this one.
        from latentgym.encoders.autoencoders import load_autoencoder

        return load_autoencoder(folder, image_size=image_size, source=source, revision=revision)
    if is_timm_folder(folder):
        return load_timm_folder(folder, image_size=image_size, source=source, revision=revision)
    model_type = model_type_of(folder)
    architecture = ARCHITECTURES[model_type]
    check_weights(folder)
    model = _load_model(folder, architecture)
    facts = model.config.to_dict()
    spec = _spec(folder, architecture, facts, image_size)
    prefix_tokens = 1 + int(facts.get("num_register_tokens") or 0) if architecture.class_token else 0
    interpolate = architecture.interpolates and spec.image_size != _own_size(folder, architecture, facts)
    # V-JEPA 2's predictor takes no part in encoding.
    core: torch.nn.Module = model.encoder if model_type == "vjepa2" else model
    digest_facts = {key: value for key, value in facts.items() if key not in _NAMES_ONLY}
    spec = dataclasses.replace(
        spec,
        source=source or str(folder),
        revision=revision,
        parameters=sum(parameter.numel() for parameter in core.parameters()),
        weights_digest=weights_digest(core, digest_facts),
    )
    return HuggingFaceEncoder(
        spec,
        core,
        prefix_tokens,
        architecture.inputs,
        interpolate=interpolate,
        trained_frames=int(facts.get(architecture.frames_key) or 0),
    )


def load_hub(hub_id: str, *, image_size: int | None = None) -> FrozenEncoder:
    """Open ``owner/name`` or ``owner/name@revision``, from the local hub cache or downloaded.

    Raises:
        LatentGymError: if it can neither be found nor downloaded; the message says which files to put where.
    """
    repository = hub_id.partition("@")[0]
    folder = fetch_snapshot(
        hub_id,
        "fetch config.json, model.safetensors (of an autoencoder diffusion_pytorch_model.safetensors) and "
        f"preprocessor_config.json of https://huggingface.co/{repository} "
        "elsewhere, put them into one folder and pass that folder",
    )
    return load_folder(folder, image_size=image_size, source=repository, revision=folder.name)


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


def model_type_of(folder: Path) -> str:
    """The entry of :data:`ARCHITECTURES` that a transformers folder belongs to, by its ``config.json`` alone.

    Raises:
        LatentGymError: if there is no configuration, or its architecture is not supported.
    """
    return _model_type(folder, _config(folder))


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise LatentGymError(
            f"{folder} holds no encoder: expected encoder.json (a pretrained small encoder) or config.json "
            "(a transformers folder)"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CorruptDataError(f"{folder / 'config.json'}: expected a JSON object, found {type(config).__name__}")
    return config


def _model_type(folder: Path, config: Mapping[str, Any]) -> str:
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


def _load_model(folder: Path, architecture: Architecture) -> Any:
    ensure_torchvision()
    transformers = require("transformers", "hf")
    try:
        with _quiet(transformers):
            model, info = getattr(transformers, architecture.model_class).from_pretrained(
                str(folder),
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation=architecture.attention,
                dtype=torch.float32,
            )
    # Mismatched shapes, malformed configurations and damaged tensors surface as different errors.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise LatentGymError(f"transformers cannot open {folder} as {architecture.model_class}: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in UNUSED))
    if missing:
        raise LatentGymError(
            f"{folder}: {len(missing)} weights of {architecture.model_class} are missing from the checkpoint and would "
            f"be random, the first {missing[0]!r}; config.json and the weights do not belong together"
        )
    if architecture.inputs == "unmasked":
        model.config.mask_ratio = 0.0
    return model


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the loading report and its progress bar off the terminal: missing weights are an error of our own."""
    logging = transformers.utils.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _spec(folder: Path, architecture: Architecture, config: Mapping[str, Any], image_size: int | None) -> EncoderSpec:
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


def _own_size(folder: Path, architecture: Architecture, config: Mapping[str, Any]) -> int:
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
    own = _own_size(folder, architecture, config)
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
