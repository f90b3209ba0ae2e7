"""Reading of a whole CALVIN folder, to list everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.dataset import CheckReport
from latentgym.trajectories.formats import calvin_layout as layout
from latentgym.trajectories.formats.calvin import CalvinDataset, open_calvin, saturated
from latentgym.trajectories.formats.calvin_annotations import read_task_embeddings
from latentgym.trajectories.formats.calvin_index import PlayRange, step_number
from latentgym.trajectories.formats.calvin_steps import Arrays, read_steps
from latentgym.trajectories.npz import array_names

CHUNK_STEPS = 64
_SHAPES = {
    "actions": (7,),
    "rel_actions": (7,),
    layout.ROBOT_OBS: (layout.ROBOT_OBS_SIZE,),
    layout.SCENE_OBS: (layout.SCENE_OBS_SIZE,),
}


def check_calvin(path: Path, progress: Callable[[int, int], None] | None = None, **options: Any) -> CheckReport:
    """Read every array of every step, and the annotations.

    Args:
        path: a split folder or the root.
        progress: called with (steps read, steps in all) after each chunk.
        options: see :func:`latentgym.trajectories.formats.calvin.open_calvin`.
    """
    try:
        dataset = open_calvin(path, **options)
    except LatentGymError as error:
        return CheckReport([str(error)])
    check = _Check(dataset)
    total = sum(play.last - play.first + 1 for play in dataset.ranges)
    done = 0
    for play in dataset.ranges:
        for first in range(play.first, play.last + 1, CHUNK_STEPS):
            last = min(first + CHUNK_STEPS - 1, play.last)
            check.read(play, first, last)
            done += last - first + 1
            if progress is not None:
                progress(done, total)
    unread = [
        f"{files[0]}: {name} is not in the first step, so that it is not read (in {len(files)} steps)"
        for name, files in sorted(check.unread.items())
    ]
    return CheckReport([*check.problems, *unread, *_embedding_problems(dataset)], _notes(dataset, check))


class _Check:
    """What was found so far.

    Attributes:
        problems: everything that is wrong.
        clipped: ``(7,)`` number of clipped relative actions.
        steps: number of sound steps.
        unread: files of steps with an array that the first step lacks, by its name.
    """

    def __init__(self, dataset: CalvinDataset) -> None:
        self.problems: list[str] = []
        self.clipped = np.zeros(7)
        self.steps = 0
        self._dataset = dataset
        self.unread: dict[str, list[str]] = {}
        self._expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def read(self, play: PlayRange, first: int, last: int) -> None:
        """Read the steps ``first`` … ``last`` at once or, where something is wrong, in halves down to the culprits."""
        try:
            arrays = read_steps(play, first, last, self._dataset.members, self._dataset.workers)
        except CorruptDataError as error:
            if first == last:
                self.problems.append(str(error))
                return
            middle = (first + last) // 2
            self.read(play, first, middle)
            self.read(play, middle + 1, last)
            return
        for step in range(first, last + 1):
            for name in array_names(play.step_file(step)).keys() - set(self._dataset.members):
                self.unread.setdefault(name, []).append(str(play.step_file(step)))
        found = [*self._array_problems(arrays, play, first)]
        self.problems += found
        if not found:
            self.clipped += saturated(arrays["rel_actions"]).sum(axis=0)
            self.steps += len(arrays["rel_actions"])

    def _array_problems(self, arrays: Arrays, play: PlayRange, first: int) -> Iterator[str]:
        file = play.step_file(first)
        for name, array in arrays.items():
            found = (array.dtype, array.shape[1:])
            if found != (expected := self._expected.setdefault(name, found)):
                yield f"{file}: {name} is {found[0]} {found[1]}, in the steps before {expected[0]} {expected[1]}"
        for name in self._dataset.cameras:
            array = arrays[name]
            if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
                yield f"{file}: {name}: expected (H, W, 3) uint8, found {array.dtype} {array.shape[1:]}"
        for name, shape in _SHAPES.items():
            array = arrays[name]
            if array.shape[1:] != shape or array.dtype.kind != "f":
                yield f"{file}: {name}: expected floats {shape}, found {array.dtype} {array.shape[1:]}"
                continue
            bad = ~np.isfinite(array).all(axis=1)
            if bad.any():
                yield f"{play.step_file(first + int(bad.argmax()))}: {name} holds NaN or infinite values"
            elif name == "rel_actions" and (bad := (np.abs(array) > 1).any(axis=1)).any():
                yield f"{play.step_file(first + int(bad.argmax()))}: {name} lies outside -1 to 1"


def _embedding_problems(dataset: CalvinDataset) -> Iterator[str]:
    for folder in dict.fromkeys(play.folder for play in dataset.ranges):
        try:
            read_task_embeddings(folder, dataset.options.annotations)
        except LatentGymError as error:
            yield str(error)


def _notes(dataset: CalvinDataset, check: _Check) -> list[str]:
    names, percent = layout.RELATIVE_ACTIONS.names[:6], 100 * check.clipped / max(check.steps, 1)
    shares = ", ".join(f"{name} {share:.1f} %" for name, share in zip(names, percent, strict=False))
    spans = sum(len(found.spans) for found in dataset.annotations.values())
    scenes = sorted({play.scene or "unknown" for play in dataset.ranges})
    notes = [
        f"CALVIN: {check.steps} sound steps in {len(dataset.ranges)} play ranges, scenes {', '.join(scenes)}, "
        f"{spans} annotated spans",
        f"rel_actions clipped at ±1: {shares}",
    ]
    for folder in dict.fromkeys(play.folder for play in dataset.ranges):
        listed = sum(play.last - play.first + 1 for play in dataset.ranges if play.folder == folder)
        present = sum(step_number(file.name) is not None for file in folder.iterdir())
        if present > listed:
            notes.append(f"{folder}: {present - listed} step files lie outside all play ranges and are not read")
    return notes
