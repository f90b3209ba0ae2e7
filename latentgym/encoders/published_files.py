"""Published encoders that come as bare state dicts: V-JEPA 2.1, VideoMAE V2, R3M, VC-1 and LAPA's quantiser.

A name of :data:`FILES` fetches its file; a folder that holds the file under any name with a suffix of
:data:`latentgym.encoders.checkpoints.SUFFIXES` is opened by what the weights are called. A ``config.json`` beside it
may state what weights do not tell; its ``model_type`` is a key of :data:`KINDS`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from latentgym.artifacts import read_json
from latentgym.encoders.checkpoints import SUFFIXES, State, read_checkpoint, recognised, weight_names
from latentgym.encoders.downloads import fetch_file, fetch_url, url_cache
from latentgym.encoders.dreamer4 import checkpoint_in
from latentgym.encoders.frozen import FrozenEncoder
from latentgym.encoders.laq import build_laq
from latentgym.encoders.published import NON_COMMERCIAL
from latentgym.encoders.robot_images import build_r3m, build_vc1
from latentgym.encoders.videomaev2 import build_videomaev2
from latentgym.encoders.vjepa21 import build_vjepa21
from latentgym.errors import CorruptDataError, LatentGymError

CONFIG = "config.json"
# A file of the right architecture and the wrong size is not the one that was named.
PARAMETER_TOLERANCE = 0.05
_SHOWN = 5


class Builder(Protocol):
    """Makes an encoder of a state dict."""

    def __call__(
        self, state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None
    ) -> FrozenEncoder:
        """See :func:`latentgym.encoders.vjepa21.build_vjepa21`."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """An architecture that state dicts are published of.

    Attributes:
        title: what it is called.
        build: makes the encoder.
        recognises: whether a state dict is of this kind, by the names of its weights.
        family: pretraining family.
        code: public code that it agrees with, and its commit.
        preprocessing: what happens to frames.
        tokens: what a token is, and what CLS and register tokens there are.
        clip: frames that are looked at together.
    """

    title: str
    build: Builder
    recognises: Callable[[Collection[str]], bool]
    family: str
    code: str
    preprocessing: str
    tokens: str
    clip: str


def _has(anchor: str, *others: str) -> Callable[[Collection[str]], bool]:
    """Whether one prefix, of modules that the network was part of, gives ``anchor`` and all ``others``."""

    def recognises(names: Collection[str]) -> bool:
        prefixes = [name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")]
        return any(all(prefix + other in names for other in others) for prefix in prefixes)

    return recognises


_IMAGENET = "whole frame resized, /255, ImageNet mean and deviation"
KINDS = {
    "vjepa2_1": Kind(
        "V-JEPA 2.1",
        build_vjepa21,
        _has("patch_embed_img.proj.weight", "norms_block.0.weight"),
        "masked_video_latent",
        "facebookresearch/vjepa2@204698b45b3712590f06245fbfba32d3be539812",
        _IMAGENET,
        "patches of 16 × 16 pixels, tubelet 2; no CLS, no registers; any multiple of 16 pixels",
        "16 frames or any even number; a single frame has a patch embedding of its own",
    ),
    "videomaev2": Kind(
        "VideoMAE V2",
        build_videomaev2,
        _has("patch_embed.proj.weight", "blocks.0.attn.q_bias"),
        "masked_video",
        "OpenGVLab/VideoMAEv2@29eab1e8a588d1b3ec0cdec7b03a86cca491b74b",
        _IMAGENET,
        "patches of 16 × 16 (giant 14 × 14) pixels, tubelet 2; no CLS, no registers; one size only",
        "16 frames",
    ),
    "r3m": Kind(
        "R3M",
        build_r3m,
        # Without their prefix, they would be any ResNet's.
        _has("convnet.layer1.0.conv1.weight", "convnet.bn1.running_mean"),
        "time_contrastive",
        "facebookresearch/r3m@b2334e726887fa0206962d7984c69c5fb09cceab",
        _IMAGENET,
        "pixels of the last map (stride 32); their mean is the published feature; no CLS",
        "single frames",
    ),
    "vc1": Kind(
        "VC-1",
        build_vc1,
        _has("patch_embed.proj.weight", "cls_token", "mask_token", "blocks.0.attn.qkv.weight"),
        "masked_image",
        "facebookresearch/eai-vc@e782c3551e288403f925f6022d37984349aa0102",
        _IMAGENET,
        "patches of 16 × 16 pixels; prefix holds the CLS token, which is the published feature",
        "single frames",
    ),
    "laq": Kind(
        "LAPA's latent-action quantiser",
        build_laq,
        _has("vq.codebooks", "to_patch_emb_first_frame.2.weight"),
        "latent_action",
        "LatentActionPretraining/LAPA@46aca51d7faebcec02d7d323bbb3820c2df07bc6",
        "whole frame resized, /255",
        "the 2 × 2 vectors of the latent action before quantisation; no CLS; inner layers hold patches of both frames",
        "two frames; NAME:FRAMES compares the first and the last of FRAMES",
    ),
}
# What published configurations on the hub call them.
_HUB_TYPES = {"VideoMAEv2_Base": "videomaev2"}


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """One published state dict.

    Attributes:
        kind: key of :data:`KINDS`.
        source: repository on the Hugging Face hub, or the address of the folder that the file is in.
        file: name of the file, with its folders.
        revision: commit that is fetched; empty where a newer one cannot be told apart, and then the one that was opened
            is recorded.
        licence: licence of the weights.
        parameters_m: parameters used when encoding, in millions.
        image_size: side of the frames in pixels.
        elsewhere: name of the same file where its authors publish it apart from the hub.
    """

    kind: str
    source: str
    file: str
    revision: str
    licence: str
    parameters_m: float
    image_size: int
    elsewhere: str = ""

    @property
    def url(self) -> str:
        """Where a person finds the file."""
        if self.source.startswith("https://"):
            return f"{self.source}/{self.file}"
        return f"https://huggingface.co/{self.source}/resolve/{self.revision or 'main'}/{self.file}"


_VJEPA = ("vjepa2_1", "https://dl.fbaipublicfiles.com/vjepa2")
_DISTILLED = ("videomaev2", "OpenGVLab/VideoMAE2")
_DISTILLED_REVISION = "706cc172d65ebd4dedbee3f9c0183a93df9fa125"
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
FILES = {
    "vjepa2.1-b-384": PublishedFile(*_VJEPA, "vjepa2_1_vitb_dist_vitG_384.pt", "", "MIT", 86.8, 384),
    "vjepa2.1-l-384": PublishedFile(*_VJEPA, "vjepa2_1_vitl_dist_vitG_384.pt", "", "MIT", 304.7, 384),
    "vjepa2.1-g-384": PublishedFile(*_VJEPA, "vjepa2_1_vitg_384.pt", "", "MIT", 1013.3, 384),
    "vjepa2.1-gigantic-384": PublishedFile(*_VJEPA, "vjepa2_1_vitG_384.pt", "", "MIT", 1845.2, 384),
    "videomaev2-s-distilled": PublishedFile(
        *_DISTILLED, "distill/vit_s_k710_dl_from_giant.pth", _DISTILLED_REVISION, "Apache-2.0", 21.9, 224
    ),
    "videomaev2-b-distilled": PublishedFile(
        *_DISTILLED, "distill/vit_b_k710_dl_from_giant.pth", _DISTILLED_REVISION, "Apache-2.0", 86.2, 224
    ),
    "videomaev2-b": PublishedFile(
        "videomaev2",
        "OpenGVLab/VideoMAEv2-Base",
        _SAFE,
        "0e826d7e85e39f9d951e331cd91c5c2d8142d385",
        NON_COMMERCIAL,
        86.2,
        224,
    ),
    "videomaev2-l": PublishedFile(
        "videomaev2",
        "OpenGVLab/VideoMAEv2-Large",
        _SAFE,
        "9981a9c8f77118c421e5228e1b219468a4b0238d",
        NON_COMMERCIAL,
        303.9,
        224,
    ),
    "videomaev2-h": PublishedFile("videomaev2", "OpenGVLab/VideoMAEv2-Huge", _SAFE, "", NON_COMMERCIAL, 631.6, 224),
    "videomaev2-g": PublishedFile("videomaev2", "OpenGVLab/VideoMAEv2-giant", _SAFE, "", NON_COMMERCIAL, 1011.6, 224),
    "r3m-18": PublishedFile("r3m", "surajnair/r3m-18", _PICKLED, "", "MIT", 11.2, 224),
    "r3m-34": PublishedFile(
        "r3m", "surajnair/r3m-34", _PICKLED, "ae6d653f2ab737c79be68f705c30f4fbd645d782", "MIT", 21.3, 224
    ),
    "r3m-50": PublishedFile("r3m", "surajnair/r3m-50", _PICKLED, "", "MIT", 23.5, 224),
    "vc1-b": PublishedFile(
        "vc1",
        "facebook/vc1-base",
        _PICKLED,
        "413569a9eaa7272995c99bda25fe518816455e8c",
        NON_COMMERCIAL,
        85.8,
        224,
        "vc1_vitb.pth",
    ),
    "vc1-l": PublishedFile(
        "vc1",
        "facebook/vc1-large",
        _PICKLED,
        "8a47f311ef3a8e0b3f58e4249700c9c5b36012c9",
        NON_COMMERCIAL,
        303.3,
        224,
        "vc1_vitl.pth",
    ),
    "laq-openx": PublishedFile("laq", "latent-action-pretraining/LAPA-7B-openx", "laq_openx.pt", "", "MIT", 206.1, 256),
}
# What the hub calls any weights.
_ANY_NAME = (_SAFE, _PICKLED)


def open_published(source: str, *, image_size: int | None = None) -> FrozenEncoder | None:
    """Open what ``source`` names, in float32 on the CPU; ``None`` if it is no published state dict.

    Args:
        source: see :func:`find_published_file`, or a file or folder, see :func:`find_checkpoint`.
        image_size: side that frames are resized to, the encoder's own by default.

    Raises:
        LatentGymError: if the file is missing, damaged, incomplete, or of another architecture than it should be.
    """
    named = find_published_file(source)
    if named is not None:
        return open_published_file(*named, image_size=image_size)
    place = Path(source).expanduser()
    found = find_checkpoint(place) if place.exists() else None
    if found is None:
        return None
    encoder = open_checkpoint(*found, image_size=image_size)
    name = place.name if place.is_dir() else place.stem
    encoder.spec = dataclasses.replace(encoder.spec, name=name, source=str(place))
    return encoder


def find_published_file(source: str) -> tuple[str, PublishedFile, dict[str, Any]] | None:
    """What ``source`` names: the short name, its entry, and options; ``None`` if no published file.

    Args:
        source: a name of :data:`FILES`, ``NAME:FRAMES`` to look at clips of FRAMES frames, or ``owner/name`` or
            ``owner/name@revision`` of a hub repository that holds one of the files.

    Raises:
        LatentGymError: if a repository holds several, or the number of frames is none.

    >>> find_published_file("vc1-b")[1].source
    'facebook/vc1-base'
    """
    name, colon, argument = source.partition(":")
    if name in FILES:
        if colon and not (argument.isdecimal() and int(argument)):
            raise LatentGymError(f"encoder {source!r}: expected {name}:<frames of a clip>, such as {name}:16")
        return name, FILES[name], {"num_frames": int(argument)} if colon else {}
    repository, _, revision = source.partition("@")
    names = [name for name, entry in FILES.items() if entry.source == repository]
    if len(names) > 1:
        raise LatentGymError(f"{repository} holds several encoders; name one of them: {', '.join(names)}")
    if not names:
        return None
    entry = FILES[names[0]]
    return names[0], dataclasses.replace(entry, revision=revision) if revision else entry, {}


def open_published_file(
    name: str, entry: PublishedFile, options: Mapping[str, Any], *, image_size: int | None = None
) -> FrozenEncoder:
    """Fetch a published file and open it, in float32 on the CPU.

    Args:
        name: short name.
        entry: what it is.
        options: what the weights do not tell; see the builders.
        image_size: side that frames are resized to, the encoder's own by default.

    Raises:
        LatentGymError: if the file can neither be found nor downloaded (the message says where to put it), or is not
            what was published.
    """
    path, revision = _fetch(name, entry)
    encoder = open_checkpoint(path, entry.kind, options, image_size=image_size)
    found = encoder.spec.parameters / 1e6
    if abs(found / entry.parameters_m - 1) > PARAMETER_TOLERANCE:
        raise CorruptDataError(
            f"{path} is not {name}: expected {entry.parameters_m} million parameters, found {found:.1f} million"
        )
    encoder.spec = dataclasses.replace(
        encoder.spec, name=name, source=entry.source, revision=revision, licence=entry.licence
    )
    return encoder


def _fetch(name: str, entry: PublishedFile) -> tuple[Path, str]:
    advice = (
        f"fetch {entry.url} elsewhere, put {Path(entry.file).name} into a folder of its own and pass that folder "
        f"in place of {name!r}"
    )
    if entry.source.startswith("https://"):
        return fetch_url(entry.url, f"{advice}, or put it at {url_cache(entry.url)}"), entry.revision
    return fetch_file(f"{entry.source}@{entry.revision}".rstrip("@"), entry.file, advice)


def find_checkpoint(place: Path) -> tuple[Path, str] | None:
    """The state dict that a folder holds, or the file itself, and its key of :data:`KINDS`; tensors stay on disk.

    Args:
        place: a file; or a folder, whose ``config.json`` decides where there is one.

    Returns:
        ``None`` if there is none of a known kind, or the folder is of another sort.

    Raises:
        LatentGymError: if a folder holds several.
        CorruptDataError: if a configured folder lacks its weights, or the only candidates are damaged.
    """
    if place.is_dir():
        configured = _configured_kind(place)
        if configured is not None:
            return _only(place, _checkpoints(place)), configured
        # Dreamer 4's checkpoints nest their tensors in their own way: see latentgym.encoders.dreamer4.
        if checkpoint_in(place).is_file() or any((place / name).exists() for name in (CONFIG, "encoder.json")):
            return None
    found = recognised([place] if place.is_file() else _checkpoints(place), _kind_of)
    return (_only(place, [path for path, _ in found]), found[0][1]) if found else None


def open_checkpoint(
    path: Path, kind: str, options: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> FrozenEncoder:
    """Open a state dict, in float32 on the CPU.

    Args:
        path: the file; a ``config.json`` beside it counts if it is of the same kind.
        kind: key of :data:`KINDS`.
        options: what the weights do not tell, before those of ``config.json``; see the builders.
        image_size: side that frames are resized to, the encoder's own by default.

    Raises:
        LatentGymError: if the file is damaged, incomplete, or of another architecture.
    """
    state = read_checkpoint(path)
    stated = _config(path.parent) if _configured_kind(path.parent) == kind else {}
    try:
        encoder = KINDS[kind].build(state, {**stated, **(options or {})}, name=path.stem, image_size=image_size)
    except LatentGymError as error:
        raise LatentGymError(f"{path}: {error}") from error
    named = _named(path)
    licence = named.licence if named and named.kind == kind else ""
    encoder.spec = dataclasses.replace(encoder.spec, source=str(path), licence=licence)
    return encoder


def _named(path: Path) -> PublishedFile | None:
    """The published file of that name, unless anything may be called so."""
    entries = () if path.name in _ANY_NAME else FILES.values()
    return next((entry for entry in entries if path.name in (Path(entry.file).name, entry.elsewhere)), None)


def _kind_of(path: Path) -> str | None:
    """By the file's published name, else by the names of its weights, which are read in any case."""
    named, names = _named(path), weight_names(path)
    if named is not None:
        return named.kind
    return next((key for key, kind in KINDS.items() if kind.recognises(names)), None)


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return config if isinstance(config, dict) else {}


def _configured_kind(folder: Path) -> str | None:
    named = str(_config(folder).get("model_type", ""))
    named = _HUB_TYPES.get(named, named)
    return named if named in KINDS else None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _only(folder: Path, found: list[Path]) -> Path:
    if len(found) == 1:
        return found[0]
    if not found:
        raise CorruptDataError(f"{folder} lacks its weights: expected one file that ends in {', '.join(SUFFIXES)}")
    # The hub often holds the same weights twice.
    if {path.name for path in found} == set(_ANY_NAME):
        return next(path for path in found if path.name == _SAFE)
    raise LatentGymError(
        f"{folder} holds several checkpoints, {', '.join(path.name for path in found)}; put each into a folder of its "
        "own or pass the file"
    )


def published_file_rows() -> list[dict[str, Any]]:
    """One mapping per published file, as :func:`latentgym.encoders.published.published_rows` gives them."""
    return [_row(name, entry) for name, entry in FILES.items()]


def describe_published_file(name: str) -> dict[str, Any]:
    """Everything that is known of a name of :data:`FILES` before it is opened."""
    entry = FILES[name]
    kind = KINDS[entry.kind]
    return {
        **_row(name, entry),
        "revision": entry.revision or "recorded when it is opened",
        "file": entry.file,
        "url": entry.url,
        "folder": f"a folder of its own that holds {Path(entry.file).name}",
        "preprocessing": kind.preprocessing,
        "tokens": kind.tokens,
        "clip": kind.clip,
        "code": kind.code,
    }


def kind_rows() -> list[dict[str, Any]]:
    """One mapping per architecture that a folder with a bare state dict may hold."""
    return [
        {"name": kind.title, "family": kind.family, "description": "A folder with its published state dict."}
        for kind in KINDS.values()
    ]


def _row(name: str, entry: PublishedFile) -> dict[str, Any]:
    return {
        "name": name,
        "family": KINDS[entry.kind].family,
        "source": entry.source,
        "licence": entry.licence,
        "parameters": round(entry.parameters_m * 1e6),
        "image_size": entry.image_size,
        "weights": "here" if _is_here(entry) else "to download",
        "description": f"{KINDS[entry.kind].title}, {Path(entry.file).name}.",
    }


def _is_here(entry: PublishedFile) -> bool:
    if entry.source.startswith("https://"):
        return url_cache(entry.url).is_file()
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(entry.source, entry.file, revision=entry.revision or None), str)
