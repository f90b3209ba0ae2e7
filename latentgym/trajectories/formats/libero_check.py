"""Reading of whole HDF5 demonstrations, to list everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.errors import LatentGymError
from latentgym.trajectories.dataset import CheckReport
from latentgym.trajectories.episode import Episode
from latentgym.trajectories.formats.libero import LiberoDataset, open_libero


def check_libero(path: Path, progress: Callable[[int, int], None] | None = None, **options: Any) -> CheckReport:
    """Read every array of every demonstration.

    Args:
        path: an HDF5 file or a folder of them.
        progress: called with (demonstrations read, demonstrations in all) after each.
        options: see :func:`latentgym.trajectories.formats.libero.open_libero`.
    """
    try:
        dataset = open_libero(path, **options)
    except LatentGymError as error:
        return CheckReport([str(error)])
    problems: list[str] = []
    clipped, steps = np.zeros(dataset.action_spec.size), 0
    for index in range(len(dataset)):
        try:
            episode = dataset.episode(index, extras=dataset.extras)
            problems += _problems(dataset, episode)
            clipped += (np.abs(episode.action) >= 1).sum(axis=0)
            steps += len(episode)
        except LatentGymError as error:
            problems.append(str(error))
        if progress is not None:
            progress(index + 1, len(dataset))
    return CheckReport(problems, [*_notes(dataset), _saturation(dataset, clipped, steps)])


def _problems(dataset: LiberoDataset, episode: Episode) -> Iterator[str]:
    place = f"{episode.info['file']}: {episode.info['demonstration']}"
    try:
        episode.validate()
    except LatentGymError as error:
        yield f"{place}: {error}"
        return
    low, high = np.array(dataset.action_spec.low), np.array(dataset.action_spec.high)
    outside = ((episode.action < low - 1e-6) | (episode.action > high + 1e-6)).any(axis=1)
    if outside.any():
        yield f"{place}: action {int(outside.argmax())} lies outside {low.tolist()} to {high.tolist()}"
    for camera, frames in episode.frames.items():
        if np.ptp(frames[0]) == 0:
            yield f"{place}: every pixel of the first frame of {camera} is {frames.flat[0]}"


def _notes(dataset: LiberoDataset) -> Iterator[str]:
    tasks = list(dict.fromkeys(dataset.tasks))
    yield (
        f"{dataset.files[0].layout}: {len(dataset)} demonstrations of {len(tasks)} task(s) in {len(dataset.files)} "
        f"file(s), {sum(dataset.held_out)} held out"
    )
    for follows in (True, False):
        count = sum(facts.follows == follows for facts in dataset.files)
        if count:
            yield f"{count} file(s) whose observations {'follow' if follows else 'precede'} the actions of their rows"
    if not dataset.uniform_state:
        yield "the state is not equally wide in all tasks, so that it is not probed"
    turned = sum(facts.upside_down for facts in dataset.files)
    yield f"images of {turned} of {len(dataset.files)} file(s) are stored bottom row first, and are read upright"
    failed = int((~dataset.successes).sum())
    if failed:
        yield f"{failed} demonstrations are not marked as successes"


def _saturation(dataset: LiberoDataset, clipped: np.ndarray[Any, Any], steps: int) -> str:
    shares = zip(dataset.action_spec.names, 100 * clipped / max(steps, 1), strict=True)
    return "actions at ±1: " + ", ".join(f"{name} {share:.1f} %" for name, share in shares)
