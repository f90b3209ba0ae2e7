"""One row of a study's results: a measured value with its interval and count, and what it was measured on."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A tidy result; ``None`` means that the column does not apply.

    Attributes:
        env: environment id; ``"all"`` where a value covers every environment of the study.
        encoder: encoder name.
        family: pretraining family of the encoder.
        seed: pretraining seed (0 for encoders that the study does not train).
        checkpoint: pretraining step of the checkpoint; ``None`` for the final one.
        readout: ``"ridge"``, ``"ridge_mean"``, ``"mlp"``, ``"policy"``, ``"decoder"`` …
        input: ``"pair"``, ``"single"``, ``"window"``; ``None`` outside probes.
        k: horizon in steps.
        subset: ``"all"`` or ``"random_actions"``.
        dimension: action dimension's name, a group's name, or ``"macro"``.
        layer: block that the latents come from; ``None`` means the encoder's default.
        policy_seed: seed of the policy head.
        condition: what was done to the data, such as ``"gaussian_blur:3"`` or ``"reverse"``; ``None`` for nothing.
        metric: name of the metric (see the documentation's list).
        value: the value; ``None`` where it is undefined (never NaN).
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: count behind the interval (episodes for probes, rollouts for success).
    """

    env: str
    encoder: str
    family: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seed: int = 0
    checkpoint: int | None = None
    readout: str | None = None
    input: str | None = None
    k: int | None = None
    subset: str | None = None
    dimension: str | None = None
    layer: int | None = None
    policy_seed: int | None = None
    condition: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as a mapping of JSON types."""
        return dict(vars(self))
