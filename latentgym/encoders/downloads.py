"""Single published files: from the Hugging Face hub, pinned by revision, or from an https address, by name."""

from __future__ import annotations

import http.client
from pathlib import Path

import torch

from latentgym.errors import LatentGymError, require


def fetch_file(hub_id: str, file: str, advice: str) -> tuple[Path, str]:
    """One file of a hub repository, downloaded if need be, and the revision that it is of.

    Args:
        hub_id: ``owner/name`` or ``owner/name@revision``.
        file: name of the file in the repository, with its folders.
        advice: what to do without network.

    Raises:
        LatentGymError: if it can neither be found in the local hub cache nor downloaded.
    """
    hub = require("huggingface_hub", "hf")
    repository, _, revision = hub_id.partition("@")
    try:
        path = Path(hub.hf_hub_download(repository, file, revision=revision or None))
    # The hub's client raises its own, its HTTP library's and the operating system's errors alike.
    except Exception as error:
        raise LatentGymError(
            f"{file} of {hub_id!r} is not here and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}); if there is no network, {advice}"
        ) from error
    # <cache>/models--owner--name/snapshots/<revision>/<file>
    return path, path.parents[len(Path(file).parts) - 1].name


def url_cache(url: str) -> Path:
    """Where a file from ``url`` is kept: the folder of ``torch.hub``, so that its downloads are shared."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def fetch_url(url: str, advice: str) -> Path:
    """A file from an https address, downloaded whole if need be.

    Raises:
        LatentGymError: if it is neither in the cache nor can be downloaded.
    """
    path = url_cache(url)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writes a temporary file and renames it once it is whole.
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise LatentGymError(
            f"{path.name} is not here and could not be downloaded from {url} ({type(error).__name__}); if there is no "
            f"network, {advice}"
        ) from error
    return path
