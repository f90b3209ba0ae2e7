"""Where CALVIN's scene files lie, whether they are whole, and how they get there."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentgym.artifacts import atomic_directory, file_digest
from latentgym.errors import CorruptDataError, LatentGymError, require

ROOT_VARIABLE = "CALVIN_ENV_ROOT"
_MANIFEST_NAME = "assets.json"
_HOW = f"fetch them with: latentgym assets calvin  (or set {ROOT_VARIABLE} to a checkout of mees/calvin_env)"
_ANNOTATIONS = ("annotations", "../calvin_models/conf/annotations")
_TIMEOUT_S = 60
_SHOWN = 3


@functools.cache
def manifest() -> dict[str, Any]:
    """The pinned repositories: ``url``, ``revision``, and for each file its path there, size in bytes and SHA-256."""
    text = importlib.resources.files("latentgym.envs.calvin").joinpath(_MANIFEST_NAME).read_text()
    data: dict[str, Any] = json.loads(text)
    return data


def default_folder() -> Path:
    """Where :func:`fetch_assets` puts the files if not told otherwise: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "latentgym" / "calvin"


def find_assets(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of CALVIN's assets, every needed file checked.

    Args:
        folder: where to look; by default where ``CALVIN_ENV_ROOT`` points, else in the user's cache.

    Raises:
        LatentGymError: if there is nothing.
        CorruptDataError: if files are missing, truncated or altered, as after half a download.
    """
    if not isinstance(folder, str | os.PathLike | None):
        raise LatentGymError(f"assets: expected a folder, found {folder!r}")
    named = folder if folder is not None else os.environ.get(ROOT_VARIABLE) or None
    root = Path(named) if named is not None else default_folder()
    if not root.is_dir():
        raise LatentGymError(f"CALVIN's assets were not found: {root} is no folder; {_HOW}")
    _check(root.resolve())
    return root


@functools.cache
def _check(root: Path) -> None:
    """Compare every needed file, and the sentences that are there, with their digests, once per process."""
    needed = {
        root / path: entry for path, entry in manifest()["calvin_env"]["files"].items() if not entry.get("optional")
    }
    sentences = {
        path: entry
        for name, entry in manifest()["calvin"]["files"].items()
        for folder in _ANNOTATIONS
        if (path := root / folder / Path(name).name).is_file()
    }
    problems = [
        problem for path, entry in {**needed, **sentences}.items() if (problem := _problem(path, entry)) is not None
    ]
    if problems:
        shown = ", ".join(problems[:_SHOWN]) + (f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
        raise CorruptDataError(f"CALVIN's assets in {root} are not whole: {shown}; {_HOW}")


def _problem(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry["size"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {entry['size']}"
    return None if file_digest(path) == entry["sha256"] else f"{path.name} differs from the pinned revision"


def instructions(root: Path, split: str = "validation") -> dict[str, list[str]]:
    """Task to its language instructions.

    Args:
        root: the asset folder; a checkout of calvin_env inside one of calvin does as well.
        split: ``"validation"``, one sentence per task, which the official evaluation uses; or ``"training"``.

    Returns:
        The sentences; empty where the folder holds none.
    """
    name = "new_playtable_validation.yaml" if split == "validation" else "new_playtable.yaml"
    for folder in _ANNOTATIONS:
        path = root / folder / name
        if path.is_file():
            found: dict[str, list[str]] = require("yaml", "calvin").safe_load(path.read_text())
            return found
    return {}


def fetch_assets(
    out: str | os.PathLike[str] | None = None,
    source: str | Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Bring CALVIN's assets here, every file checked against its SHA-256; the folder appears whole or not at all.

    Args:
        out: folder to make; the user's cache by default. One that is there and whole is left alone.
        source: a folder laid out like a checkout of calvin_env, or a local git repository (bare or not) with the pinned
            revision or the same files at its head; or several, each file taken from the first that has it; by default
            the public repositories on GitHub. Instruction sentences belong to another repository, mees/calvin: name its
            clone as well, or a folder that holds them in ``annotations``.
        progress: called with (files done, files in all).

    Returns:
        The folder.

    Raises:
        LatentGymError: if the source lacks a file, a file differs from the pinned revision, or the network fails.
    """
    target = Path(out) if out is not None else default_folder()
    if target.exists():
        try:
            return find_assets(target)
        except CorruptDataError as error:
            raise LatentGymError(f"{str(error).partition('; ')[0]}; remove that folder, then fetch again") from error
    wanted, read_file = _wanted(), _opener(source)
    with atomic_directory(target) as folder:
        for count, (path, read) in enumerate(wanted, start=1):
            data = read(read_file)
            if data is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            if progress is not None:
                progress(count, len(wanted))
    return find_assets(target)


# Reads one file of a repository: its name in the manifest, the path here, the path there.
_Opener = Callable[[str, str, str], bytes | None]


def _wanted() -> list[tuple[str, Callable[[_Opener], bytes | None]]]:
    return [
        (path, functools.partial(_checked, repository, path, entry))
        for repository, item in manifest().items()
        for path, entry in item["files"].items()
    ]


def _checked(repository: str, path: str, entry: Mapping[str, Any], read: _Opener) -> bytes | None:
    data = read(repository, path, entry.get("path", path))
    if data is None:
        if entry.get("optional"):
            return None  # licences, and sentences: tasks are then named in plain words
        raise LatentGymError(
            f"the source of CALVIN's assets lacks {path}; nothing was written. Expected a folder laid out like a "
            f"checkout of mees/calvin_env, or a git repository with revision {manifest()[repository]['revision'][:7]}"
        )
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        revision = manifest()[repository]["revision"]
        raise LatentGymError(
            f"{path} differs from {repository} {revision[:7]} ({len(data)} bytes, expected {entry['size']} of another "
            "content); nothing was written. Take the pinned revision, or try the download again"
        )
    return data


def _opener(source: str | Sequence[str] | None) -> _Opener:
    if not source:
        return _download
    openers = [_local_opener(name) for name in ([source] if isinstance(source, str) else source)]

    def first_found(repository: str, path: str, original: str) -> bytes | None:
        return next((data for opener in openers if (data := opener(repository, path, original)) is not None), None)

    return first_found


def _local_opener(source: str) -> _Opener:
    root = Path(source)
    if not root.is_dir():
        raise LatentGymError(f"no source of CALVIN's assets at {source}: expected a folder or a git repository")
    if any((root / folder).is_dir() for folder in ("data", "annotations")):
        return functools.partial(_read_folder, root)
    return functools.partial(_read_git, root)


def _read_folder(root: Path, repository: str, path: str, original: str) -> bytes | None:
    places = [root / path] + [root / folder / Path(path).name for folder in _ANNOTATIONS if repository == "calvin"]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else found.read_bytes()


def _read_git(root: Path, repository: str, path: str, original: str) -> bytes | None:
    """From the pinned revision or, where the repository lacks that, from its head: the checksum decides anyway."""
    revision = manifest()[repository]["revision"]
    for name in (f"{revision}:{original}", f"HEAD:{path}"):
        command = ["git", "-C", str(root), "cat-file", "blob", name]
        try:
            result = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LatentGymError(f"git could not read {root}: {error}") from error
        if result.returncode == 0:
            return result.stdout
    return None


def _download(repository: str, path: str, original: str) -> bytes | None:
    item = manifest()[repository]
    url = f"{item['url'].replace('github.com', 'raw.githubusercontent.com')}/{item['revision']}/{original}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise LatentGymError(
            f"could not download {url} ({error}); nothing was written. Try again, or name a folder or local clone of "
            "mees/calvin_env with --source"
        ) from error
    return data
