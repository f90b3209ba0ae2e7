"""What encoders there are: registered ones, pretraining objectives, and folders of weights."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentgym.encoders.adapted import is_adapted_encoder, load_adapted_encoder
from latentgym.encoders.autoencoders import CLASSES, check_class, is_autoencoder
from latentgym.encoders.bare_weights import BARE_KINDS, find_bare_weights
from latentgym.encoders.diffusion import DENOISERS, denoiser_of
from latentgym.encoders.dreamer4 import checkpoint_in
from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.published import published_rows
from latentgym.encoders.published_files import (
    FILES,
    describe_published_file,
    find_checkpoint,
    kind_rows,
    published_file_rows,
)
from latentgym.encoders.registry import encoder_names, find_factory, load_encoder
from latentgym.encoders.small import load_small_encoder
from latentgym.encoders.timm_models import is_timm_folder
from latentgym.encoders.transformers_folder import ARCHITECTURES, check_weights, model_type_of
from latentgym.errors import LatentGymError

# Built-in names whose encoder takes no time to make, so that its spec can be shown.
_COLUMNS = ("family", "source", "revision", "licence", "parameters", "image_size", "weights", "description")
_NO_ENCODER = (
    "{} holds no encoder: expected encoder.json, config.json with its weights, or a state dict that is known here"
)
_LIGHT = ("pixels", "proprio", "random", "state")


def list_encoders() -> list[dict[str, Any]]:
    """One mapping per encoder: ``name``, ``family``, ``source``, ``licence``, ``parameters``, ``image_size`` and more.

    Registered names come first, then the objectives that small encoders are pretrained with, published encoders by
    family, and the model classes of transformers and diffusers that a folder or hub id may hold. ``None`` where it
    depends on the weights; ``weights`` says of published ones whether they are here or to be downloaded.

    >>> [row["name"] for row in list_encoders()][:2]
    ['pixels', 'proprio']
    """
    rows = [_registered(name) for name in sorted(encoder_names(), key=lambda name: (name not in _LIGHT, name))]
    rows += [
        _row(name, family=name, source=kind.source, description=f"Pretrained here: {_first_line(kind)}")
        for name, kind in OBJECTIVES.items()
    ]
    rows += sorted(published_rows() + published_file_rows(), key=lambda row: str(row["family"]))
    rows += [
        _row(architecture.model_class, family=architecture.family, description="A transformers folder or hub id.")
        for architecture in ARCHITECTURES.values()
    ]
    rows += [_row(kind.name, family=kind.family, description=kind.description) for kind in BARE_KINDS]
    rows += [
        _row(name, family="latent_diffusion", description="In a pipeline's folder or hub id, as diffusion:<place>.")
        for name in DENOISERS.values()
    ]
    rows.append(_row("Dreamer4Network", family="shortcut_forcing", description="As dreamer4:<folder or hub id>."))
    families = {False: "pixel_autoencoder", True: "video_autoencoder"}
    rows += [
        _row(name, family=families[video], description="A diffusers folder or hub id.")
        for name, video in CLASSES.items()
    ]
    rows += [_row(**row) for row in kind_rows()]
    return rows


def describe_encoder(name: str) -> dict[str, Any]:
    """The row of :func:`list_encoders`, or the whole spec of an encoder that has to be opened first.

    Args:
        name: a listed name, or anything that :func:`latentgym.encoders.registry.load_encoder` opens.

    Raises:
        LatentGymError: if there is no such encoder.
    """
    if name in FILES:
        return describe_published_file(name)
    row = next((row for row in list_encoders() if row["name"] == name), None)
    if row is not None and name not in _LIGHT:
        return row
    spec = dataclasses.asdict(load_encoder(name).spec)
    return {**(row or {}), **spec}


def find_encoders(folder: Path | str) -> tuple[dict[str, str], dict[str, str]]:
    """Look through a folder that holds one encoder folder each.

    Returns:
        The paths that can be opened, by folder name, and the reasons why the others cannot.

    Raises:
        LatentGymError: if there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise LatentGymError(f"there is no folder of encoders at {root}")
    found: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            if find_checkpoint(path) is not None:
                pass
            elif is_adapted_encoder(path):
                load_adapted_encoder(path)
            elif (path / "encoder.json").exists():
                load_small_encoder(path)
            elif is_autoencoder(path):
                check_class(path)
            elif (path / "config.json").exists():
                if not is_timm_folder(path):
                    model_type_of(path)
                    check_weights(path)
            elif denoiser_of(path) is not None or checkpoint_in(path).is_file():
                pass
            elif find_bare_weights(path) is None:
                raise LatentGymError(_NO_ENCODER.format(path))
            found[path.name] = str(path)
        except LatentGymError as error:
            skipped[path.name] = str(error)
    return found, skipped


def _registered(name: str) -> dict[str, Any]:
    description = _first_line(find_factory(name))
    if name not in _LIGHT:
        return _row(name, description=description)
    spec = load_encoder(name).spec
    return _row(
        name,
        family=spec.family,
        source=spec.source,
        licence=spec.licence,
        parameters=spec.parameters,
        description=description,
    )


def _row(name: str, **facts: Any) -> dict[str, Any]:
    empty: Mapping[str, Any] = dict.fromkeys(_COLUMNS)
    return {"name": name, **empty, **facts}


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
