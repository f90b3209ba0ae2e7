"""The points of the link, and their file: what a study hands on to any later analysis."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from latentgym.artifacts import read_json, write_json
from latentgym.errors import CorruptDataError, LatentGymError

SCHEMA = 1
FILE_NAME = "link_points.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkPoint:
    """One encoder in one environment: what was measured offline, and how its policies fared.

    Attributes:
        env: environment id.
        encoder: encoder name.
        family: pretraining family.
        seed: pretraining seed.
        checkpoint: pretraining step of an intermediate checkpoint; ``None`` for the final one.
        reference: whether it is the supervised reference.
        parameters: parameters used when encoding.
        proxies: value per proxy; ``"psnr_db"`` also serves as covariate.
        proxy_replicates: bootstrap replicates over episodes per proxy, drawn alike for every encoder of an environment;
            a proxy without them is taken as exact.
        success: outcomes (0 or 1), one list per policy seed, all on the same initial states in the same order.
        study: name of the study that measured it, where points of several are put together. Encoders are compared
            within a study alone, for studies differ in data, demonstrations and initial states.
    """

    env: str
    encoder: str
    family: str
    seed: int = 0
    checkpoint: int | None = None
    reference: bool = False
    parameters: int = 0
    proxies: dict[str, float]
    proxy_replicates: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    success: list[list[int]]
    study: str = ""

    def __post_init__(self) -> None:
        lengths = {len(outcomes) for outcomes in self.success}
        if len(lengths) != 1 or lengths == {0} or not {o for row in self.success for o in row} <= {0, 1}:
            raise LatentGymError(
                f"link point {self.encoder!r} in {self.env}: success must be one list of outcomes 0 or 1 per policy "
                f"seed, all equally long, found lengths {sorted(lengths)}"
            )


def places_of(points: Sequence[LinkPoint]) -> dict[str, list[LinkPoint]]:
    """Points by place: an environment of one study, named after the environment, and the study where others have it."""
    keys = dict.fromkeys((point.study, point.env) for point in points)
    shared = Counter(env for _, env in keys)
    labels = {(study, env): env if shared[env] == 1 else f"{env} ({study})" for study, env in keys}
    places: dict[str, list[LinkPoint]] = {label: [] for label in labels.values()}
    for point in points:
        places[labels[point.study, point.env]].append(point)
    return places


def write_points(path: str | Path, points: Sequence[LinkPoint]) -> None:
    """Write points as JSON, atomically."""
    write_json(Path(path), {"schema": SCHEMA, "points": [_to_dict(point) for point in points]})


def _to_dict(point: LinkPoint) -> dict[str, object]:
    """The point's fields; a study's own file leaves out which study it is."""
    fields = dataclasses.asdict(point)
    return fields if point.study else {name: value for name, value in fields.items() if name != "study"}


def read_points(path: str | Path) -> list[LinkPoint]:
    """Read points from a file, or from ``link_points.json`` in a study's folder.

    Raises:
        CorruptDataError: if the file is missing or damaged.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    data = read_json(file)
    try:
        if data["schema"] != SCHEMA:
            raise CorruptDataError(f"{file}: expected link points of schema {SCHEMA}, found {data['schema']}")
        return [LinkPoint(**point) for point in data["points"]]
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{file} holds no link points: {error!r}") from error
