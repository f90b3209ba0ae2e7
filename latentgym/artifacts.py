"""Content keys and atomic files: an artefact is on disk whole, under the hash of what determines it, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.errors import CorruptDataError, LatentGymError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_FOLDER_NEEDED = "a file is where a folder is needed"
# What the system's own words for a path in the way would leave unclear.
_IN_THE_WAY = {
    errno.EEXIST: _FOLDER_NEEDED,
    errno.ENOTDIR: _FOLDER_NEEDED,
    errno.EISDIR: "a folder is where the file is to go",
}


def _plain(value: Any) -> Any:
    """``value`` as JSON types; dataclasses become mappings, NumPy scalars become Python's."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return value


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk, or a path that cannot be written, into one clear error that names ``path``.

    Raises:
        LatentGymError: on a full, read-only or failing disk, missing rights, or any error at ``path`` itself, the
            folders that hold it or its temporary file. Errors at other files pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise LatentGymError(
                f"the disk is full: could not write {path} ({error.strerror}); free some space and run the same "
                "command again, finished work is kept"
            ) from error
        if error.errno in _REFUSED:
            raise LatentGymError(f"cannot write {path}: {error.strerror}; choose a folder you may write") from error
        if _is_at(error, path):
            reason = _IN_THE_WAY.get(error.errno or 0, error.strerror)
            raise LatentGymError(f"cannot write {path}: {reason}; choose another path") from error
        raise


def _is_at(error: OSError, path: Path) -> bool:
    """Whether an error names ``path``, a folder that holds it, or its temporary file."""
    target = Path(os.path.abspath(path))
    places = [Path(os.path.abspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str)]
    scratch = f".{target.name}-"
    return any(
        place in (target, *target.parents) or (place.parent == target.parent and place.name.startswith(scratch))
        for place in places
    )


def check_output(path: Path, *, folder: bool = True) -> None:
    """Refuse a path that nothing can be written to, before the work that would be lost.

    Args:
        path: folder or file that will be written.
        folder: whether it is a folder.

    Raises:
        LatentGymError: if a file is where a folder is needed, or a folder where the file is to go.
    """
    if not folder and os.path.isdir(path):
        raise LatentGymError(f"cannot write {path}: {_IN_THE_WAY[errno.EISDIR]}; choose another path")
    for place in (path, *path.parents) if folder else path.parents:
        if os.path.exists(place) and not os.path.isdir(place):
            raise LatentGymError(f"cannot write {path}: {place} is a file and no folder; choose another path")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` by one rename when the block ends without an error.

    An existing ``path`` wins: what was written is thrown away, since equal names mean equal content. On an error, the
    temporary folder is removed.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
        scratch.chmod(0o755)
        try:
            yield scratch
            try:
                scratch.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path`` and rename it into place, replacing what was there."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
            scratch.chmod(0o644)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON with sorted keys."""
    atomic_write(path, json.dumps(_plain(value), sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CorruptDataError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing; expected a JSON file") from error
    except (ValueError, OSError) as error:
        raise CorruptDataError(f"{path} is not readable as JSON: {error}") from error
