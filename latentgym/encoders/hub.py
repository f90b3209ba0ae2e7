"""Weights from the Hugging Face hub: configuration and safetensors only, pinned by revision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latentgym.artifacts import atomic_write
from latentgym.errors import LatentGymError, require

FILES = ("config.json", "*processor_config.json", "*.safetensors", "*.safetensors.index.json")
# The hub's account that proposes safetensors to repositories which hold pickles.
CONVERTER = "SFconvertbot"


def fetch_snapshot(hub_id: str, advice: str, files: Sequence[str] = FILES) -> Path:
    """The folder of a hub repository's configuration and safetensors, downloaded if need be; its name is the revision.

    Where a revision holds no safetensors, the hub's own conversion of that very revision is taken, if there is one.

    Args:
        hub_id: ``owner/name`` or ``owner/name@revision``.
        advice: what to do without network.
        files: patterns of the files that are wanted.

    Raises:
        LatentGymError: if it can neither be found in the local hub cache nor downloaded, or holds no safetensors.
    """
    hub = require("huggingface_hub", "hf")
    repository, _, revision = hub_id.partition("@")
    try:
        folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
        if not _lacks_safetensors(folder, files):
            return folder
        return _converted(hub, repository, folder.name, files)
    except LatentGymError:
        raise
    # The hub's client raises its own, its HTTP library's and the operating system's errors alike.
    except Exception as error:
        here = revision and (cached_repository(repository) / "refs" / "main").is_file()
        others = f"; {repository!r} opens another revision that is here" if here else ""
        raise LatentGymError(
            f"{hub_id!r} is no folder here and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}); if there is no network, {advice}{others}"
        ) from error


def _lacks_safetensors(folder: Path, files: Sequence[str]) -> bool:
    wanted = any(pattern.endswith(".safetensors") for pattern in files)
    return wanted and not any(folder.rglob("*.safetensors"))


def _converted(hub: Any, repository: str, commit: str, files: Sequence[str]) -> Path:
    """The folder of the hub's conversion of ``commit``; a reference in the cache finds it again without network."""
    reference = cached_repository(repository) / "refs" / "safetensors-of" / commit
    if reference.is_file():
        return Path(hub.snapshot_download(repository, revision=reference.read_text(), allow_patterns=list(files)))
    conversion = next(_conversions(hub, repository, commit), None)
    if conversion is None:
        raise LatentGymError(
            f"{repository}@{commit} holds no safetensors, and the hub no conversion of it; pickles are not read, since "
            "they can run code: convert them elsewhere and pass the folder"
        )
    folder = Path(hub.snapshot_download(repository, revision=conversion, allow_patterns=list(files)))
    atomic_write(reference, conversion)
    return folder


def _conversions(hub: Any, repository: str, commit: str) -> Iterator[str]:
    """Commits by the hub's converter that directly follow ``commit``."""
    proposals = hub.get_repo_discussions(
        repository, author=CONVERTER, discussion_type="pull_request", discussion_status="open"
    )
    for proposal in proposals:
        # Anybody may propose anything.
        if proposal.author != CONVERTER:
            continue
        latest, *earlier = hub.list_repo_commits(repository, revision=proposal.git_reference)
        if earlier and earlier[0].commit_id == commit:
            yield latest.commit_id


def cached_repository(repository: str) -> Path:
    """Where the hub's local cache keeps ``owner/name``, if it does."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
