"""The on-disk data set: written episode by episode, read lazily, checked by digests.

::

    dataset.json                 what was recorded, and how many episodes are planned
    episodes/000000/             appears by one rename, whole or not at all
        episode.json             length, behaviour, seed, shapes, digests
        arrays.safetensors       actions, proprioception, states, rewards, flags
        <camera>.mov             frames, lossless

See ``docs/storage.md`` for every field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.artifacts import atomic_directory, content_key, disk_errors
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.attachments import attachment_problems
from latentgym.trajectories.dataset import CheckReport, Dataset
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance
from latentgym.trajectories.episode_files import (
    OPTIONAL_ARRAYS,
    RECORD_FILE,
    EpisodeRecord,
    read_episode,
    read_record,
    write_episode,
)
from latentgym.trajectories.formats.foreign import foreign_format
from latentgym.trajectories.header import HEADER_FILE, Header, read_header, write_header

__all__ = ["Dataset", "RecordedDataset", "Store", "check_dataset", "create_store", "inspect_dataset", "open_dataset"]

_EPISODES = "episodes"
# A live writer's temporary folder is seconds old; one of this age belongs to a process that was killed.
_STALE_S = 3600.0


class RecordedDataset(Dataset):
    """A data set in the project's own format.

    Episodes whose ``info`` holds ``"group"`` or ``"held_out"`` were cut from one recording, or set aside for testing,
    by whoever wrote them; the others are groups of their own.
    """

    def __init__(self, path: Path, header: Header, records: Sequence[EpisodeRecord]) -> None:
        self.path = path
        self.env_id = header.env_id
        self.action_spec = header.action_spec
        self.cameras = header.cameras
        self.extras = records[0].extras
        self.control_hz = header.control_hz
        self.horizon = header.horizon
        self.provenance = header.provenance
        self.settings = header.settings
        self.lengths = np.array([record.length for record in records], np.int64)
        self.policies = tuple(record.policy for record in records)
        self.seeds = tuple(record.seed for record in records)
        self.successes = np.array([record.success for record in records], np.bool_)
        self.groups = tuple(str(record.info.get("group", index)) for index, record in enumerate(records))
        self.held_out = tuple(bool(record.info.get("held_out", False)) for record in records)
        self._key = content_key({"data": header.determining(), "episodes": [record.digest for record in records]})
        self._records = tuple(records)

    @property
    def key(self) -> str:
        """Hash over the determining metadata and the episodes' digests."""
        return self._key

    def episode_key(self, index: int) -> str:
        """Digest of one episode's record, which covers its files."""
        self._check_index(index)
        return self._records[index].digest

    def _read(self, index: int, cameras: Sequence[str], extras: Sequence[str]) -> Episode:
        return read_episode(_folder(self.path, index), self._records[index], cameras, extras)


@dataclasses.dataclass(frozen=True)
class Store:
    """The write side of a data set, made by :func:`create_store`; several processes may write different episodes.

    Attributes:
        path: folder of the data set.
        episodes: number of episodes planned, or ``None`` for an open end.
        action_size: number of action dimensions.
        cameras: names of the cameras that every episode must have.
        env_id: id of the environment that every episode must come from.
        control_hz: playback rate of the videos.
    """

    path: Path
    episodes: int | None
    action_size: int
    cameras: tuple[str, ...]
    env_id: str
    control_hz: float

    def has(self, index: int) -> bool:
        """Whether episode ``index`` is there, whole."""
        return (_folder(self.path, index) / RECORD_FILE).is_file()

    def missing(self) -> tuple[int, ...]:
        """Indices of the planned episodes that are not there yet; with an open end, those before the last one."""
        return _missing(self.path, _count(self.path, self.episodes))

    def write(self, index: int, episode: Episode) -> None:
        """Write one episode; it appears whole or not at all, and one that is there already is kept.

        Args:
            index: 0 … ``episodes`` - 1, or any from 0 on where the end is open.
            episode: an episode of this environment, with these cameras and this action size.

        Raises:
            LatentGymError: if the episode breaks its contract or does not belong here, or if the disk is full.
        """
        if index < 0 or (self.episodes is not None and index >= self.episodes):
            last = "" if self.episodes is None else f" to {self.episodes - 1}"
            raise LatentGymError(f"{self.path}: expected an episode index from 0{last}, found {index}")
        try:
            episode.validate()
            self._check_membership(episode)
        except LatentGymError as error:
            raise LatentGymError(f"episode {index} was not written to {self.path}: {error}") from None
        if (left := _folder(self.path, index)).is_dir() and not self.has(index):
            shutil.rmtree(left)  # copied without its record, it counts for nothing and would be in the way
        with atomic_directory(_folder(self.path, index)) as folder:
            write_episode(folder, episode, self.control_hz)

    def _check_membership(self, episode: Episode) -> None:
        problems = []
        if episode.env_id != self.env_id:
            problems.append(f"expected env_id {self.env_id!r}, found {episode.env_id!r}")
        if set(episode.frames) != set(self.cameras):
            problems.append(f"expected cameras {sorted(self.cameras)}, found {sorted(episode.frames)}")
        if episode.action.shape[1] != self.action_size:
            problems.append(f"expected {self.action_size} action dimensions, found {episode.action.shape[1]}")
        if problems:
            raise LatentGymError("; ".join(problems))


def create_store(
    path: str | os.PathLike[str],
    *,
    env_id: str,
    action_spec: ActionSpec,
    cameras: Sequence[str],
    control_hz: float,
    horizon: int,
    provenance: Provenance,
    settings: Mapping[str, Any],
    episodes: int | None = None,
) -> Store:
    """Make a data set's folder, or reopen one of the very same configuration to finish it.

    Args:
        path: folder, new or empty or begun by an equal call.
        env_id: id of the environment.
        action_spec: meaning of the action's dimensions.
        cameras: names of the cameras, the main one first; letters, digits, ``_``, ``-`` and ``.`` only.
        control_hz: actions per second of simulated time.
        horizon: steps after which an episode is truncated.
        provenance: where the data come from. Seed and settings are part of the configuration; versions and GL must
            agree unless all planned episodes are there; command and revision may differ.
        settings: whatever else determines the data, of JSON types.
        episodes: number of episodes planned, so that an interrupted recording is told from a finished one; ``None``
            for an open end.

    Raises:
        LatentGymError: if the folder holds another configuration or foreign files, or an argument is invalid.
    """
    root = Path(path)
    header = Header(
        env_id, action_spec, tuple(cameras), float(control_hz), horizon, episodes, provenance, dict(settings)
    )
    header.check()
    if not (root / HEADER_FILE).exists():
        foreign = [entry for entry in root.iterdir() if not _is_partial(entry)] if root.is_dir() else []
        if foreign:
            raise LatentGymError(f"{root} is not empty and holds no data set; choose a new or empty folder")
        write_header(root, header)
    store = Store(root, episodes, action_spec.size, header.cameras, env_id, header.control_hz)
    # Reading back settles the race of two processes that begin one folder with different configurations.
    read_header(root).check_same(root, header, finished=episodes is not None and not store.missing())
    with disk_errors(root):
        (root / _EPISODES).mkdir(exist_ok=True)
        _remove_stale(root)
    return store


def open_dataset(path: str | os.PathLike[str], **options: Any) -> Dataset:
    """Open a recorded data set, a CALVIN folder, or HDF5 demonstrations of LIBERO or robomimic; no episode is read.

    Args:
        path: its folder; for demonstrations also one HDF5 file.
        options: for a CALVIN folder, as in :func:`latentgym.trajectories.formats.calvin.open_calvin`; for
            demonstrations, as in :func:`latentgym.trajectories.formats.libero.open_libero`.

    Raises:
        CorruptDataError: if it is no data set, or a record is damaged or disagrees with the others.
        LatentGymError: if the recording was not finished, was made by a newer version, or has no such option.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from latentgym import record
        >>> with TemporaryDirectory() as folder:
        ...     _ = record("latentgym/TabletopReach-v0", folder, episodes=1, policy="expert", image_size=32)
        ...     episode = open_dataset(folder).episode(0)
        >>> len(episode.frames["pixels"]) == len(episode.action) + 1, episode.action.shape[1]
        (True, 3)
    """
    root = Path(path)
    if not (root / HEADER_FILE).exists() and (foreign := foreign_format(root)):
        return foreign.open(root, options)
    _check_no_options(root, options)
    header = read_header(root)
    count = _count(root, header.episodes)
    if count == 0:
        raise LatentGymError(f"{root} holds no episodes yet")
    if missing := _missing(root, count):
        raise LatentGymError(_unfinished(root, header, missing, count))
    records = [read_record(_folder(root, index)) for index in range(count)]
    for index, record in enumerate(records):
        if problem := _disagreement(record, records[0], header):
            raise CorruptDataError(f"{_folder(root, index)}: {problem}")
    return RecordedDataset(root, header, records)


def check_dataset(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None, **options: Any
) -> list[str]:
    """The problems that :func:`inspect_dataset` finds; an empty list means that the data are sound."""
    return inspect_dataset(path, progress, **options).problems


def inspect_dataset(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None, **options: Any
) -> CheckReport:
    """Read everything, list every problem at once and say what is worth knowing of the data.

    Args:
        path: folder of the data set.
        progress: called with (episodes checked, episodes in all) after each episode; steps for a CALVIN folder.
        options: as in :func:`open_dataset`.

    Raises:
        LatentGymError: if there is no such option.
    """
    root = Path(path)
    if not (root / HEADER_FILE).exists() and (foreign := foreign_format(root)):
        return foreign.inspect(root, progress, options)
    _check_no_options(root, options)
    return CheckReport(_problems(root, progress))


def _problems(root: Path, progress: Callable[[int, int], None] | None) -> list[str]:
    try:
        header = read_header(root)
    except LatentGymError as error:
        return [str(error)]
    count = _count(root, header.episodes)
    problems = [*_foreign_entries(root, count), *attachment_problems(root, header.settings)]
    missing: list[int] = []
    first: EpisodeRecord | None = None
    for index in range(count):
        folder = _folder(root, index)
        if not folder.exists():
            missing.append(index)
        else:
            try:
                record = read_record(folder)
                first = first or record
                if problem := _disagreement(record, first, header):
                    problems.append(f"{folder}: {problem}")
                read_episode(folder, record, header.cameras, record.extras).validate()
            except LatentGymError as error:
                problems.append(str(error))
        if progress is not None:
            progress(index + 1, count)
    return [*([_unfinished(root, header, missing, count)] if missing else []), *problems]


def _check_no_options(root: Path, options: dict[str, Any]) -> None:
    if options:
        raise LatentGymError(
            f"{root} is no CALVIN folder and holds no HDF5 demonstrations; the options {', '.join(options)} are for "
            "those only"
        )


def _folder(root: Path, index: int) -> Path:
    return root / _EPISODES / f"{index:06d}"


def _count(root: Path, planned: int | None) -> int:
    """Number of episodes: as planned or, with an open end, up to the last one that is there."""
    if planned is not None:
        return planned
    return max((int(entry.name) + 1 for entry in (root / _EPISODES).glob("*") if entry.name.isdecimal()), default=0)


def _missing(root: Path, count: int) -> tuple[int, ...]:
    return tuple(index for index in range(count) if not (_folder(root, index) / RECORD_FILE).is_file())


def _is_partial(entry: Path) -> bool:
    return entry.name.startswith(".") and entry.name.endswith(".partial")


def _remove_stale(root: Path) -> None:
    for entry in [*root.iterdir(), *(root / _EPISODES).iterdir()]:
        with contextlib.suppress(FileNotFoundError):  # its writer has finished it meanwhile
            if _is_partial(entry) and time.time() - entry.stat().st_mtime > _STALE_S:
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


def _unfinished(root: Path, header: Header, missing: Sequence[int], count: int) -> str:
    command = f" ({header.provenance.command})" if header.provenance.command else ""
    return (
        f"{root} is an unfinished recording: {len(missing)} of {count} episodes are missing "
        f"({_ranges(missing)}); run the same record command again to finish{command}"
    )


def _ranges(indices: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``"1-3, 7"``, at most ten ranges."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join([*texts[:10], *(["…"] if len(texts) > 10 else [])])


def _disagreement(record: EpisodeRecord, first: EpisodeRecord, header: Header) -> str:
    """How ``record`` disagrees with the data set or with its first episode; empty if it does not."""
    if record.env_id != header.env_id:
        return f"expected env_id {header.env_id!r}, found {record.env_id!r}"
    if absent := [camera for camera in header.cameras if camera not in record.shapes]:
        return f"no frames of camera {', '.join(absent)}"
    for name in sorted({*record.shapes, *first.shapes} - {*OPTIONAL_ARRAYS}):
        if record.shapes.get(name) != first.shapes.get(name):
            return (
                f"{name} has shape {record.shapes.get(name)} per step, "
                f"in the first episode {first.shapes.get(name)}; one data set holds equal shapes"
            )
    return ""


def _foreign_entries(root: Path, count: int) -> Iterator[str]:
    expected = {_folder(root, index).name for index in range(count)}
    for entry in sorted((root / _EPISODES).glob("*")):
        if entry.name not in expected and not _is_partial(entry):
            yield f"{entry} is none of the {count} episodes"
