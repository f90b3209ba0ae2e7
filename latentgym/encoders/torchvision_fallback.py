"""Make torchvision importable where its compiled operators do not fit the installed torch.

A torchvision wheel built for CUDA beside a CPU-only torch dies on import with ``operator torchvision::nms does not
exist``, and takes transformers' and timm's models with it, although neither needs those operators. Declaring the two
operator schemas first makes the import work; the operators themselves stay unusable.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Literal

import torch

from latentgym.errors import LatentGymError

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A schema lives as long as the library object that declared it.
_LIBRARIES: list[torch.library.Library] = []


def ensure_torchvision() -> Literal["native", "patched", "absent"]:
    """Import torchvision, declaring its missing operator schemas only if a plain import fails.

    Call it before importing transformers or timm.

    Returns:
        ``"native"`` if the plain import works, ``"patched"`` if the schemas had to be declared, ``"absent"`` if
        torchvision is not installed (transformers does without it, timm does not).

    Raises:
        LatentGymError: if torchvision cannot be imported even so.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        return "absent"
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise LatentGymError(
                f"torchvision does not fit the installed torch {torch.__version__}: {error}"
            ) from error
        _import_with_schemas()
    return "patched" if _LIBRARIES else "native"


def _import_with_schemas() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        library.define(schema)
    _LIBRARIES.append(library)
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise LatentGymError(
            f"torchvision does not fit the installed torch {torch.__version__}: {error}; install the release that "
            "belongs to this torch"
        ) from error
