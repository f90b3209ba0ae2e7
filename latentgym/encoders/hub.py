"""Weights from the Hugging Face hub: configuration and safetensors only, pinned by revision."""

from __future__ import annotations

from pathlib import Path

from latentgym.errors import LatentGymError, require


def fetch_snapshot(hub_id: str, advice: str) -> Path:
    """The folder of a hub repository's configuration and safetensors, downloaded if need be; its name is the revision.

    Args:
        hub_id: ``owner/name`` or ``owner/name@revision``.
        advice: what to do without network.

    Raises:
        LatentGymError: if it can neither be found in the local hub cache nor downloaded.
    """
    hub = require("huggingface_hub", "hf")
    repository, _, revision = hub_id.partition("@")
    patterns = ["config.json", "*preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    # The hub's client raises its own, its HTTP library's and the operating system's errors alike.
    except Exception as error:
        raise LatentGymError(
            f"{hub_id!r} is no folder here and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}); if there is no network, {advice}"
        ) from error
