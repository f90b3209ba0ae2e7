"""What a data set as a whole states of itself: the content of ``dataset.json``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentgym.artifacts import canonical_json, write_json
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.episode import ActionSpec, Provenance
from latentgym.trajectories.episode_files import read_sealed, sealed

SCHEMA = 1
HEADER_FILE = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Header:
    """The content of ``dataset.json``; fields as in :func:`latentgym.trajectories.store.create_store`."""

    env_id: str
    action_spec: ActionSpec
    cameras: tuple[str, ...]
    control_hz: float
    horizon: int
    episodes: int | None
    provenance: Provenance
    settings: dict[str, Any]

    def determining(self) -> dict[str, Any]:
        """The part that determines the data, as JSON types: not versions, GL strings, command or revision."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        provenance = fields.pop("provenance")
        plain: dict[str, Any] = json.loads(
            canonical_json({**fields, "seed": provenance.seed, "provenance.settings": provenance.settings})
        )
        return plain

    def check(self) -> None:
        """Check the values.

        Raises:
            LatentGymError: naming every problem.
        """
        problems = [
            f"cameras: {camera!r} must consist of letters, digits, '_', '-' and '.', and not begin with '.'"
            for camera in self.cameras
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", camera)
        ]
        if len(set(self.cameras)) != len(self.cameras):
            problems.append(f"cameras: expected different names, found {list(self.cameras)}")
        if self.episodes is not None and self.episodes < 1:
            problems.append(f"episodes: expected at least 1, found {self.episodes}")
        if self.horizon < 1:
            problems.append(f"horizon: expected at least 1, found {self.horizon}")
        if not 0 < self.control_hz < float("inf"):
            problems.append(f"control_hz: expected a positive number, found {self.control_hz}")
        if problems:
            raise LatentGymError("; ".join(problems))

    def check_same(self, root: Path, now: Header, *, finished: bool) -> None:
        """Check that ``now`` asks for the data that this header, read from ``root``, describes.

        Raises:
            LatentGymError: naming every setting that differs. Versions and GL count only if not ``finished``: they
                would mix two kinds of frames in one data set.
        """
        differences = [*_differences(self.determining(), now.determining())]
        if not finished:
            differences += _differences(self.provenance.versions, now.provenance.versions, "version")
            differences += _differences(self.provenance.gl, now.provenance.gl, "gl")
        if differences:
            raise LatentGymError(
                f"{root} was begun with another configuration: {'; '.join(differences)}. Choose another folder, or "
                "use the same configuration to finish it"
            )


def write_header(root: Path, header: Header) -> None:
    """Write ``dataset.json``.

    Raises:
        LatentGymError: if settings or provenance hold what JSON cannot.
    """
    try:
        seal = sealed({"schema": SCHEMA, **dataclasses.asdict(header)})
    except (TypeError, ValueError) as error:
        raise LatentGymError(f"settings and provenance must hold JSON types only: {error}") from error
    write_json(root / HEADER_FILE, seal)


def read_header(root: Path) -> Header:
    """Read ``dataset.json``.

    Raises:
        CorruptDataError: if it is missing or damaged.
        LatentGymError: if another version of the format wrote it.
    """
    path = root / HEADER_FILE
    if not path.is_file():
        raise CorruptDataError(f"{root} holds no data set ({HEADER_FILE} is missing); make one with: latentgym record")
    data = read_sealed(path)
    schema = data.pop("schema", None)
    if schema != SCHEMA:
        raise LatentGymError(f"{path}: expected schema {SCHEMA}, found {schema}; use the version that recorded it")
    del data["digest"]
    try:
        data["action_spec"] = ActionSpec.from_dict(data["action_spec"])
        data["provenance"] = Provenance(**data["provenance"])
        data["cameras"] = tuple(data["cameras"])
        return Header(**data)
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{path}: unexpected fields: {error}") from error


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} {old!r} there, {new!r} now"
