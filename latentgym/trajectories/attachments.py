"""Files of a foreign data set that travel with a converted one byte for byte and are never interpreted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from latentgym.artifacts import atomic_write, file_digest
from latentgym.errors import CorruptDataError

FOLDER = "attachments"


def attachments_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name → SHA-256 of a data set's attachments, from the settings in its header.

    Raises:
        CorruptDataError: if a name points out of the folder.
    """
    listed: dict[str, str] = settings.get("data_set", {}).get("attachments", {})
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CorruptDataError(f"attachment {name!r} points out of its folder")
    return listed


def copy_attachment(source: Path, target: Path, digest: str) -> None:
    """Copy a file of that SHA-256 atomically, unless the copy is there already.

    Raises:
        CorruptDataError: if ``source`` is missing or altered.
    """
    if problem := _problem(source, digest):
        raise CorruptDataError(problem)
    if not target.is_file() or file_digest(target) != digest:
        atomic_write(target, source.read_bytes())


def attachment_problems(root: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the attachments of the data set in ``root``."""
    try:
        listed = attachments_of(settings)
    except CorruptDataError as error:
        yield f"{root}: {error}"
        return
    for name, digest in listed.items():
        if problem := _problem(root / FOLDER / name, digest):
            yield problem


def _problem(path: Path, digest: str) -> str:
    try:
        return "" if file_digest(path) == digest else f"{path} was altered: its SHA-256 is not the recorded one"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
