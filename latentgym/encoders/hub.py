"""Weights from the Hugging Face hub: configuration and safetensors only, pinned by revision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentgym.errors import LatentGymError, require

FILES = ("config.json", "*processor_config.json", "*.safetensors", "*.safetensors.index.json")


def fetch_snapshot(hub_id: str, advice: str, files: Sequence[str] = FILES) -> Path:
    """The folder of a hub repository's configuration and safetensors, downloaded if need be; its name is the revision.

    Args:
        hub_id: ``owner/name`` or ``owner/name@revision``.
        advice: what to do without network.
        files: patterns of the files that are wanted.

    Raises:
        LatentGymError: if it can neither be found in the local hub cache nor downloaded.
    """
    hub = require("huggingface_hub", "hf")
    repository, _, revision = hub_id.partition("@")
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    # The hub's client raises its own, its HTTP library's and the operating system's errors alike.
    except Exception as error:
        here = revision and (cached_repository(repository) / "refs" / "main").is_file()
        others = f"; {repository!r} opens another revision that is here" if here else ""
        raise LatentGymError(
            f"{hub_id!r} is no folder here and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}); if there is no network, {advice}{others}"
        ) from error


def cached_repository(repository: str) -> Path:
    """Where the hub's local cache keeps ``owner/name``, if it does."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
