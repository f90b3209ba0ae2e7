"""Transformers folders and hub ids: DINOv2 and 3, I-JEPA, MAE, SigLIP 1 and 2, CLIP, VideoMAE, V-JEPA 2, VideoPrism.

Only safetensors are read and no remote code is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from latentgym.encoders.autoencoders import load_autoencoder
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import AllRead, FrozenEncoder, weights_digest
from latentgym.encoders.hub import fetch_snapshot
from latentgym.encoders.timm_models import is_timm_folder, load_timm_folder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import (
    ARCHITECTURES,
    Architecture,
    check_weights,
    model_type_of,
    own_size,
    read_config,
    spec_of_folder,
)
from latentgym.errors import LatentGymError, require

# Entries of a configuration that do not change what the network computes.
_NAMES_ONLY = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}
)
# Parameters that encoding never uses; published checkpoints may lack them.
UNUSED = ("mask_token", "predictor.")
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
        # Images and videos go by different names.
        self._entry = next(iter(inspect.signature(model.forward).parameters))
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
        inner = {layer for layer in layers if layer not in (-1, self.spec.layers - 1)}
        deepest = max(inner, default=-1) if inner.issuperset(layers) else -1

        def keep(layer: int, _module: torch.nn.Module, _args: object, output: Any) -> None:
            if threading.get_ident() == caller:
                outputs[layer] = output[0] if isinstance(output, tuple) else output
                if layer == deepest:
                    raise AllRead

        blocks: Any = self._blocks() if inner else ()
        handles = [blocks[layer].register_forward_hook(functools.partial(keep, layer)) for layer in inner]
        try:
            with contextlib.suppress(AllRead):
                outputs[-1] = self.model(**self._arguments(pixels)).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[layer if layer in inner else -1] for layer in layers]

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
        return {self._entry: pixels, **self._options}


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
    if "_class_name" in read_config(folder):
        return load_autoencoder(folder, image_size=image_size, source=source, revision=revision)
    if is_timm_folder(folder):
        return load_timm_folder(folder, image_size=image_size, source=source, revision=revision)
    model_type = model_type_of(folder)
    architecture = ARCHITECTURES[model_type]
    check_weights(folder)
    model = _load_model(folder, architecture)
    facts = model.config.to_dict()
    spec = spec_of_folder(folder, architecture, facts, image_size)
    prefix_tokens = 1 + int(facts.get("num_register_tokens") or 0) if architecture.class_token else 0
    interpolate = architecture.interpolates and spec.image_size != own_size(folder, architecture, facts)
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


def _load_model(folder: Path, architecture: Architecture) -> Any:
    ensure_torchvision()
    transformers = require("transformers", "hf")
    try:
        with quiet_loading(transformers):
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
def quiet_loading(transformers: Any) -> Iterator[None]:
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
