"""From CALVIN's format to the native store and back, exactly.

Every array of every step is kept with its dtype: frames as lossless movies, everything else (both action spaces, states
in double precision, depth, tactile images, arrays that this project knows nothing of) as extras of the episodes. Files
that belong to no episode (index, annotations, statistics, steps outside all play ranges) travel as attachments, byte
for byte.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from latentgym.artifacts import atomic_write, file_digest, read_json, write_json
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.trajectories.attachments import FOLDER, attachments_of, copy_attachment
from latentgym.trajectories.dataset import Dataset
from latentgym.trajectories.episode import Episode, Provenance
from latentgym.trajectories.formats.calvin import SEGMENT_STEPS, CalvinDataset
from latentgym.trajectories.formats.calvin_index import INDEX_FILE, SPLITS, PlayRange, step_number
from latentgym.trajectories.formats.calvin_steps import default_workers
from latentgym.trajectories.npz import write_arrays
from latentgym.trajectories.store import create_store, open_dataset

Progress = Callable[[int, int], None]
MARKER = ".latentgym-conversion.json"
"""Lies in a CALVIN folder that is being written, and goes when it is whole."""


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "native",
    *,
    segment_steps: int = SEGMENT_STEPS,
    progress: Progress | None = None,
) -> int:
    """Convert a data set; an interrupted conversion goes on where it stopped.

    Args:
        source: a CALVIN folder, or for ``to="calvin"`` a native data set converted from one.
        out: new or empty folder, or that of the same conversion begun before.
        to: ``"native"`` or ``"calvin"``.
        segment_steps: bound on the transitions in a native episode.
        progress: called with (episodes done, episodes in all).

    Returns:
        Number of episodes converted.

    Raises:
        CorruptDataError: if the source is damaged.
        LatentGymError: if source, target folder or format do not fit.
    """
    if to == "native":
        dataset = open_dataset(source, segment_steps=segment_steps)
        assert isinstance(dataset, CalvinDataset)
        _to_native(dataset, Path(out), progress)
    elif to == "calvin":
        dataset = open_dataset(source)
        _to_calvin(dataset, Path(out), progress)
    else:
        raise UnknownNameError("format", to, ("native", "calvin"))
    return len(dataset)


def _to_native(dataset: CalvinDataset, out: Path, progress: Progress | None) -> None:
    files = dict(_other_files(dataset))
    details = {
        **dataset.settings["data_set"],
        "attachments": {name: file_digest(path) for name, path in files.items()},
        "members": list(dataset.members),
        "digits": {play.split: play.digits for play in dataset.ranges},
    }
    store = create_store(
        out,
        env_id=dataset.env_id,
        action_spec=dataset.action_spec,
        cameras=dataset.cameras,
        control_hz=dataset.control_hz,
        horizon=dataset.horizon,
        provenance=Provenance({}, {}, 0, "latentgym data convert", ""),
        settings={**dataset.settings, "data_set": {**details, "source": dataset.key}},
        episodes=len(dataset),
    )
    # Before the episodes, so that a data set without missing episodes has all its attachments.
    for name, path in files.items():
        copy_attachment(path, out / FOLDER / name, details["attachments"][name])
    for index in store.missing():
        store.write(index, dataset.episode(index, extras=dataset.extras))
        if progress is not None:
            progress(index + 1, len(dataset))


def _other_files(dataset: CalvinDataset) -> Iterator[tuple[str, Path]]:
    """Name and path of the files that no episode holds: those in the split folders, and those beside them."""
    root = dataset.path
    covered: dict[Path, list[PlayRange]] = {}
    for play in dataset.ranges:
        kept = covered.setdefault(play.folder, [])
        if play.last > play.first:
            kept.append(play)
    beside = [] if root in covered else [path for path in root.iterdir() if path.is_file()]
    inside = itertools.chain.from_iterable(map(_files_in, covered))
    for path in sorted([*beside, *inside]):
        if path.is_file() and not _is_covered(path, covered.get(path.parent, [])):
            yield path.relative_to(root).as_posix(), path


def _files_in(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file under a folder, symbolic links followed as they are when the data are read, but none in a circle."""
    path = (*above, os.path.realpath(folder))
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            yield entry
        elif os.path.realpath(entry) not in path:
            yield from _files_in(entry, path)


def _is_covered(path: Path, ranges: list[PlayRange]) -> bool:
    step = step_number(path.name)
    return step is not None and any(
        play.first <= step <= play.last and play.step_file(step).name == path.name for play in ranges
    )


def _to_calvin(dataset: Dataset, out: Path, progress: Progress | None) -> None:
    details = dataset.settings.get("data_set", {})
    if details.get("format") != "calvin" or "members" not in details or isinstance(dataset, CalvinDataset):
        raise LatentGymError(
            f"{dataset.path} was not converted from CALVIN; only such a data set holds what CALVIN's format asks for"
        )
    attachments = attachments_of(dataset.settings)
    _begin(out, dataset.key)
    end: tuple[str, int] | None = None
    with ThreadPoolExecutor(default_workers()) as pool:
        for index in range(len(dataset)):
            episode = dataset.episode(index, extras=dataset.extras)
            split, first = str(episode.info["split"]), int(episode.info["first_step"])
            if split not in ("", *SPLITS):
                raise LatentGymError(f"{dataset.path}: episode {index} has the unknown split {split!r}")
            # Neighbouring episodes share a step, which the first of them has written.
            rows = range(end == (split, first), len(episode) + 1)
            digits = int(details["digits"][split])
            paths = [out / split / f"episode_{first + row:0{digits}d}.npz" for row in rows]
            list(pool.map(functools.partial(_write_step, episode, details["members"]), rows, paths))
            end = (split, first + len(episode))
            if progress is not None:
                progress(index + 1, len(dataset))
    # The indices come last: a folder without them is no CALVIN folder yet.
    for name in sorted(attachments, key=lambda name: Path(name).name == INDEX_FILE):
        copy_attachment(dataset.path / FOLDER / name, out / name, attachments[name])
    (out / MARKER).unlink()


def _write_step(episode: Episode, members: Sequence[str], row: int, path: Path) -> None:
    if not path.is_file():
        sources = {**episode.extras, **episode.frames}
        atomic_write(path, write_arrays({name: np.asarray(sources[name][row]) for name in members}))


def _begin(out: Path, key: str) -> None:
    """Claim the target folder.

    Raises:
        LatentGymError: if it holds anything but the same conversion, begun before.
    """
    marker = out / MARKER
    if marker.is_file():
        if read_json(marker) != {"source": key}:
            raise LatentGymError(f"{out} holds the beginning of another conversion; choose a new or empty folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LatentGymError(f"{out} is not empty; choose a new or empty folder")
    write_json(marker, {"source": key})
