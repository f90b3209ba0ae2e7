"""Heads on frozen latents, one module each, behind one interface (:class:`LatentHead`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies.heads.action_chunking import ActionChunkingHead
from latentgym.policies.heads.base import Batch, LatentHead
from latentgym.policies.heads.flow_matching import FlowMatchingHead
from latentgym.policies.heads.inverse_dynamics import InverseDynamicsHead
from latentgym.policies.heads.mlp import CloningHead

HEADS: dict[str, type[LatentHead]] = {
    head.kind: head for head in (CloningHead, ActionChunkingHead, FlowMatchingHead, InverseDynamicsHead)
}
"""Heads by name, as :func:`latentgym.policies.train_policy` takes it."""
ALIASES = {"act": ActionChunkingHead.kind, "flow": FlowMatchingHead.kind}
"""Short names."""
_SHAPE = ("features", "components", "history", "actions", "horizon", "condition")


def make_head(kind: str, shape: Mapping[str, Any], hidden: Sequence[int], options: Mapping[str, Any]) -> LatentHead:
    """A head with weights as yet unspecified.

    Args:
        kind: one of :data:`HEADS` or :data:`ALIASES`.
        shape: the entries of ``_SHAPE``.
        hidden: widths of hidden layers, for heads that have them.
        options: settings of this kind of head alone.

    Raises:
        UnknownNameError: if there is no such head, or it has no such option.
        LatentGymError: if an option does not fit.
    """
    head = check_head_options(kind, options)
    widths: dict[str, Any] = {"hidden": hidden} if "hidden" in inspect.signature(head).parameters else {}
    try:
        return head(**shape, **widths, **options)
    except TypeError as error:
        raise LatentGymError(f"head {kind!r} does not take {dict(options)}: {error}") from error


def check_head_options(kind: str, options: Iterable[str]) -> type[LatentHead]:
    """The class of a head that takes these options.

    Raises:
        UnknownNameError: if there is no such head, or it has no such option.
    """
    head = find_head(kind)
    known = set(inspect.signature(head).parameters) - {*_SHAPE, "hidden"}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of head {kind!r}", name, known)
    return head


def find_head(kind: str) -> type[LatentHead]:
    """The class of a head, by its name or one of :data:`ALIASES`.

    Raises:
        UnknownNameError: if there is no such head.
    """
    kind = ALIASES.get(kind, kind)
    if kind not in HEADS:
        raise UnknownNameError("head", kind, HEADS)
    return HEADS[kind]


__all__ = [
    "ALIASES",
    "HEADS",
    "ActionChunkingHead",
    "Batch",
    "CloningHead",
    "FlowMatchingHead",
    "InverseDynamicsHead",
    "LatentHead",
    "find_head",
    "make_head",
]
