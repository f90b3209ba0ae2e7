"""The points of the link, and their file: what a study hands on to any later analysis."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
        CorruptDataError: if the file is missing or damaged; it names the point and the field.
    """
    file = points_file(path)
    data = read_json(file)
    if not isinstance(data, dict) or "schema" not in data:
        raise CorruptDataError(f"{file} holds no link points: expected an object with a schema and points; {_REMEDY}")
    if data["schema"] != SCHEMA:
        raise CorruptDataError(f"{file}: expected link points of schema {SCHEMA}, found {data['schema']!r}")
    points = data.get("points")
    if not isinstance(points, list):
        raise CorruptDataError(
            f"{file} holds no link points: expected a list of points, found {reprlib.repr(points)}; {_REMEDY}"
        )
    return [_from_json(file, number, point) for number, point in enumerate(points, start=1)]


def points_file(path: str | Path) -> Path:
    """The file of points that a path names: itself, or ``link_points.json`` in a study's folder."""
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)


_REMEDY = "correct the file, or let the study write it again"
_KNOWN = {field.name: field for field in dataclasses.fields(LinkPoint)}


def _from_json(file: Path, number: int, point: Any) -> LinkPoint:
    where = f"{file}, point {number}"
    if not isinstance(point, dict):
        raise CorruptDataError(f"{where}: expected an object of fields, found {reprlib.repr(point)}; {_REMEDY}")
    where += f" (encoder {reprlib.repr(point.get('encoder'))} in {reprlib.repr(point.get('env'))})"
    for field, expected, found in _faults(point):
        raise CorruptDataError(f"{where}, field {field}: expected {expected}, found {found}; {_REMEDY}")
    return LinkPoint(**point)


def _faults(point: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, what was expected there, and what was found, for everything that is wrong with a point."""
    for name, field in _KNOWN.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in point:
            yield name, "a value", "none"
    for name, value in point.items():
        if name not in _KNOWN:
            yield name, f"one of the fields {', '.join(_KNOWN)}", "this one"
        elif name in ("proxies", "proxy_replicates"):
            yield from _proxy_faults(name, value)
        elif expected := _expected(name, value):
            yield name, expected, reprlib.repr(value)


def _expected(name: str, value: Any) -> str | None:
    """What a field should hold; ``None`` where it does."""
    if name in ("env", "encoder", "family", "study"):
        return None if isinstance(value, str) else "a text"
    if name == "reference":
        return None if isinstance(value, bool) else "true or false"
    if name == "checkpoint":
        return None if value is None or _is_whole(value) else "a whole number or null"
    if name == "success":
        return None if _are_outcomes(value) else "lists of outcomes 0 or 1, one per policy seed, all equally long"
    if name == "parameters":
        return None if _is_whole(value) and _is_finite(value) and value >= 0 else "a whole number from 0"
    return None if _is_whole(value) else "a whole number"


def _proxy_faults(name: str, values: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(values, dict):
        yield name, "an object with one entry per proxy", reprlib.repr(values)
        return
    for proxy, value in values.items():
        if name == "proxies" and not _is_finite(value):
            yield f"{name}[{proxy!r}]", "a finite number", reprlib.repr(value)
        if name == "proxy_replicates" and not _are_replicates(value):
            yield f"{name}[{proxy!r}]", "a list of at least one number", reprlib.repr(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float holds; JSON also knows NaN, and whole numbers of any size."""
    return (isinstance(value, float) or _is_whole(value)) and abs(value) <= sys.float_info.max


def _are_replicates(value: Any) -> bool:
    """A resample may leave a proxy undefined: NaN is a replicate like any other."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, float) or _is_finite(v) for v in value)


def _are_outcomes(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(row, list) and row for row in value):
        return False
    equally_long = len({len(row) for row in value}) == 1
    return equally_long and all(_is_whole(outcome) and outcome in (0, 1) for row in value for outcome in row)
