"""One episode as a folder of standard files, with a record that says what they must hold.

``arrays.safetensors`` holds every array but the frames, ``<camera>.mov`` the frames of one camera, ``<extra>.npz`` one
further array, ``episode.json`` the record: length, shapes, behaviour, seed, and size and SHA-256 of the other files.
The record's own digest is the episode's identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from latentgym.artifacts import canonical_json, content_key, read_json, write_json
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.episode import Episode
from latentgym.trajectories.frames import EXTENSION, decode_frames, encode_frames
from latentgym.trajectories.npz import read_arrays, write_arrays

ARRAYS_FILE = "arrays.safetensors"
RECORD_FILE = "episode.json"
ARRAYS = ("action", "proprio", "state", "sim_state", "reward", "terminated", "truncated", "success", "random_action")
OPTIONAL_ARRAYS = ("expert_action",)
_EXTRA = "array"


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """What is known of an episode without reading its arrays.

    Attributes:
        length: number of actions, T.
        policy: name of the behaviour policy.
        seed: seed that ``reset`` was called with.
        env_id: id of the environment.
        instruction: language instruction, empty where there is none.
        success: whether ``is_success`` was ever true.
        info: further facts.
        shapes: array or camera name to its shape without the leading time axis.
        files: file name to its ``bytes`` and ``sha256``.
        digest: hash over everything else; equal for equal episodes.
        extras: names of further arrays.
    """

    length: int
    policy: str
    seed: int
    env_id: str
    instruction: str
    success: bool
    info: dict[str, Any]
    shapes: dict[str, list[int]]
    files: dict[str, dict[str, Any]]
    digest: str
    extras: tuple[str, ...] = ()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` as JSON types, with its digest added under ``"digest"``."""
    plain: dict[str, Any] = json.loads(canonical_json(content))
    return {**plain, "digest": content_key(plain)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read JSON written from :func:`sealed`, digest included.

    Raises:
        CorruptDataError: if the file is missing, is not JSON or does not match its digest.
    """
    data = read_json(path)
    if not isinstance(data, dict) or "digest" not in data:
        raise CorruptDataError(f"{path}: expected a JSON object with the key 'digest'")
    found = content_key({key: value for key, value in data.items() if key != "digest"})
    if found != data["digest"]:
        raise CorruptDataError(f"{path} was altered: its content has digest {found}, it states {data['digest']}")
    return data


def write_episode(folder: Path, episode: Episode, control_hz: float) -> None:
    """Write a valid episode into an existing folder, its record last."""
    names = [*ARRAYS, *(name for name in OPTIONAL_ARRAYS if getattr(episode, name) is not None)]
    # safetensors writes the buffer as it lies in memory, so a strided view must be made contiguous first.
    arrays = {name: np.ascontiguousarray(getattr(episode, name)) for name in names}
    content = {ARRAYS_FILE: safetensors.numpy.save(arrays)}
    for camera, frames in episode.frames.items():
        content[f"{camera}.{EXTENSION}"] = encode_frames(frames, control_hz)
    content |= {f"{name}.npz": write_arrays({_EXTRA: array}) for name, array in episode.extras.items()}
    record = {
        "length": len(episode),
        "policy": episode.policy,
        "seed": episode.seed,
        "env_id": episode.env_id,
        "instruction": episode.instruction,
        "success": bool(episode.success.any()),
        "info": episode.info,
        "shapes": {name: array.shape[1:] for name, array in {**arrays, **episode.frames, **episode.extras}.items()},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        },
        # Left out where there are none, so that the digest of such an episode is what it always was.
        **({"extras": sorted(episode.extras)} if episode.extras else {}),
    }
    try:
        seal = sealed(record)
    except (TypeError, ValueError) as error:
        raise LatentGymError(f"episode (seed {episode.seed}): info must hold JSON types only: {error}") from error
    for name, data in content.items():
        (folder / name).write_bytes(data)
    write_json(folder / RECORD_FILE, seal)


def read_record(folder: Path) -> EpisodeRecord:
    """Read ``episode.json`` of an episode's folder.

    Raises:
        CorruptDataError: if it is missing, damaged or lacks a field.
    """
    path = folder / RECORD_FILE
    try:
        content = read_sealed(path)
        return EpisodeRecord(**{**content, "extras": tuple(content.get("extras", ()))})
    except TypeError as error:
        raise CorruptDataError(f"{path}: unexpected fields: {error}") from error


def read_episode(folder: Path, record: EpisodeRecord, cameras: Sequence[str], extras: Sequence[str] = ()) -> Episode:
    """Read an episode's arrays, the frames of ``cameras`` and ``extras``, every file checked against its SHA-256.

    Raises:
        CorruptDataError: if a file is missing, truncated or altered, or does not hold what the record says.
    """
    data = _read_checked(folder, ARRAYS_FILE, record)
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise CorruptDataError(f"{folder / ARRAYS_FILE} is not a safetensors file: {error}") from error
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise CorruptDataError(f"{folder / ARRAYS_FILE}: missing {', '.join(missing)}")
    frames = {}
    for camera in cameras:
        name = f"{camera}.{EXTENSION}"
        try:
            frames[camera] = decode_frames(
                _read_checked(folder, name, record), (record.length + 1, *record.shapes[camera])
            )
        except KeyError as error:
            raise CorruptDataError(f"{folder / RECORD_FILE}: no entry for camera {camera!r}") from error
    return Episode(
        frames=frames,
        # What safetensors returns may be read-only views of the file's bytes, which torch.from_numpy warns about.
        **{name: np.require(array, requirements="W") for name, array in arrays.items()},
        seed=record.seed,
        policy=record.policy,
        env_id=record.env_id,
        instruction=record.instruction,
        info=record.info,
        extras={name: _read_extra(folder, name, record) for name in extras},
    )


def _read_extra(folder: Path, name: str, record: EpisodeRecord) -> NDArray[Any]:
    file = f"{name}.npz"
    if file not in record.files:
        raise CorruptDataError(f"{folder / RECORD_FILE}: no entry for {file}")
    return read_arrays(_read_checked(folder, file, record), [_EXTRA], folder / file)[_EXTRA]


def _read_checked(folder: Path, name: str, record: EpisodeRecord) -> bytes:
    path, expected = folder / name, record.files[name]
    remedy = f"delete {folder} and run the same record command again to make the episode anew"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if len(data) != expected["bytes"]:
        raise CorruptDataError(f"{path} is truncated or padded: {len(data)} of {expected['bytes']} bytes; {remedy}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CorruptDataError(f"{path} was altered: its SHA-256 is not the recorded one; {remedy}")
    return data
