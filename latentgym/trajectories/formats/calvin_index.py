"""The index of a CALVIN folder: which step files make which recording, in which scene, cut into which episodes.

``ep_start_end_ids.npy`` lists ranges of step numbers, both ends included; each is one stretch of uninterrupted play,
often of thousands of steps. A range of n steps holds n - 1 transitions, which are cut into segments of nearly equal
length: neighbouring segments share the observation between them, so that every transition is in exactly one.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.formats.calvin_layout import SCENES
from latentgym.trajectories.formats.restricted_pickle import load_npy

INDEX_FILE = "ep_start_end_ids.npy"
SCENE_FILE = "scene_info.npy"
SPLITS = ("training", "validation")
GAP_STEPS = 32
"""Steps left out between two groups cut from one play range, about one second."""
_DIGITS = 7
_STEP_FILE = re.compile(r"episode_(\d+)\.npz")


@dataclasses.dataclass(frozen=True)
class PlayRange:
    """Steps ``first`` … ``last``, both included, recorded without interruption.

    Attributes:
        folder: split folder that holds the step files.
        split: ``"training"`` or ``"validation"``; empty where the split folder was opened by itself.
        first: number of the first step.
        last: number of the last step.
        scene: letter, empty where ``scene_info.npy`` does not say.
        digits: digits in the names of step files.
    """

    folder: Path
    split: str
    first: int
    last: int
    scene: str
    digits: int = _DIGITS

    def step_file(self, step: int) -> Path:
        """File of one step."""
        return self.folder / f"episode_{step:0{self.digits}d}.npz"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Steps ``first`` … ``last`` of a play range, both included: a group of episodes, or one episode.

    Attributes:
        play: the range.
        first: number of the first step.
        last: number of the last step; its action leads out of the stretch.
        group: label shared by the episodes that a split must keep together.
        instruction: what is carried out in an annotated episode, empty elsewhere.
    """

    play: PlayRange
    first: int
    last: int
    group: str
    instruction: str = ""

    @property
    def length(self) -> int:
        """Number of transitions, T."""
        return self.last - self.first


def is_calvin(root: Path) -> bool:
    """Whether a folder is a CALVIN split, or holds one as ``training`` or ``validation``."""
    return (root / INDEX_FILE).is_file() or bool(split_folders(root))


def split_folders(root: Path) -> list[Path]:
    """The split folders inside ``root``, training first."""
    return [root / split for split in SPLITS if (root / split / INDEX_FILE).is_file()]


def read_ranges(folder: Path, split: str = "") -> list[PlayRange]:
    """Play ranges of one split folder, ascending, labelled with ``split``.

    Raises:
        CorruptDataError: if the index is damaged, its ranges overlap, their first or last step file is not there, or
            ``scene_info.npy`` disagrees.
    """
    path = folder / INDEX_FILE
    index = load_npy(path)
    if not isinstance(index, np.ndarray) or index.ndim != 2 or index.shape[1:] != (2,) or index.dtype.kind not in "iu":
        raise CorruptDataError(f"{path}: expected integers of shape (N, 2), found {_describe(index)}")
    ranges = sorted((int(first), int(last)) for first, last in index)
    if not ranges:
        raise CorruptDataError(f"{path}: no play range is listed")
    for (first, last), following in zip(ranges, [*ranges[1:], None], strict=True):
        if first < 0 or last < first:
            raise CorruptDataError(f"{path}: the range {first} to {last} is not ascending")
        if following and following[0] <= last:
            raise CorruptDataError(f"{path}: the ranges {first} to {last} and {following[0]} to {following[1]} overlap")
    digits = _digits(folder, ranges[0][0])
    found = [PlayRange(folder, split, first, last, "", digits) for first, last in ranges]
    for play in found:
        for step in (play.first, play.last):
            if not play.step_file(step).is_file():
                raise CorruptDataError(
                    f"{path} lists the steps {play.first} to {play.last}, but {play.step_file(step).name} is missing; "
                    "the index and the step files belong to different data, or the download is not complete"
                )
    scenes = read_scenes(folder)
    return [dataclasses.replace(play, scene=_scene_of(scenes, play.first, play.last, folder)) for play in found]


def read_scenes(folder: Path) -> dict[str, tuple[int, int]]:
    """Scene letter to its steps, first and last included; empty without ``scene_info.npy``.

    Raises:
        CorruptDataError: if the file is damaged or names a scene other than A, B, C, D.
    """
    path = folder / SCENE_FILE
    if not path.is_file():
        return {}
    content = load_npy(path)
    if not isinstance(content, dict):
        raise CorruptDataError(f"{path}: expected a dictionary of scenes, found {_describe(content)}")
    scenes = {}
    for name, steps in content.items():
        letter = str(name).removeprefix("calvin_scene_")
        if letter not in SCENES:
            raise CorruptDataError(f"{path}: unknown scene {name!r}; expected calvin_scene_A, _B, _C or _D")
        try:
            bounds = np.asarray(steps)
        except ValueError:  # lists of different lengths
            bounds = np.empty(0)
        if bounds.shape != (2,) or bounds.dtype.kind not in "iu" or bounds[0] > bounds[1]:
            raise CorruptDataError(f"{path}: scene {letter}: expected the first and last step, found {steps!r}")
        scenes[letter] = (int(bounds[0]), int(bounds[1]))
    return scenes


def cut_groups(ranges: Sequence[PlayRange], group_steps: int | None = None) -> list[Stretch]:
    """What a split must keep together, in order.

    Args:
        ranges: play ranges.
        group_steps: ``None``: a play range is one group. Otherwise it is cut into groups of at most that many
            transitions, and the `GAP_STEPS` transitions before the next group are left out.

    Raises:
        LatentGymError: if ``group_steps`` is too small.
    """
    if group_steps is not None and group_steps <= 2 * GAP_STEPS:
        raise LatentGymError(f"group_steps: expected more than {2 * GAP_STEPS}, found {group_steps}")
    return [group for play in ranges for group in _groups(play, group_steps)]


def cut_segments(groups: Sequence[Stretch], segment_steps: int) -> list[Stretch]:
    """Each group in the fewest segments of at most ``segment_steps`` transitions.

    Raises:
        LatentGymError: if ``segment_steps`` is not positive.
    """
    if segment_steps < 1:
        raise LatentGymError(f"segment_steps: expected at least 1, found {segment_steps}")
    return [
        dataclasses.replace(group, first=first, last=last)
        for group in groups
        for first, last in _pieces(group.first, group.last, segment_steps)
    ]


def _groups(play: PlayRange, group_steps: int | None) -> Iterator[Stretch]:
    label = f"{play.split}/{play.first}-{play.last}".removeprefix("/")
    pieces = _pieces(play.first, play.last, group_steps or max(1, play.last - play.first))
    for number, (first, last) in enumerate(pieces):
        if len(pieces) == 1:
            yield Stretch(play, first, last, label)
        else:
            yield Stretch(play, first, last if last == play.last else last - GAP_STEPS, f"{label}/{number}")


def _pieces(first: int, last: int, most: int) -> list[tuple[int, int]]:
    """The transitions from ``first`` to ``last`` in the fewest pieces of at most ``most``, as equal as can be."""
    total = last - first
    count = -(-total // most)
    bounds = [first + total * piece // count for piece in range(count + 1)] if count else []
    return list(itertools.pairwise(bounds))


def _scene_of(scenes: dict[str, tuple[int, int]], first: int, last: int, folder: Path) -> str:
    touched = [letter for letter, (low, high) in scenes.items() if first <= high and last >= low]
    if len(touched) > 1:
        raise CorruptDataError(
            f"{folder / SCENE_FILE}: the play range {first} to {last} lies in the scenes {' and '.join(touched)}; "
            "expected one scene per range"
        )
    for letter in touched:
        low, high = scenes[letter]
        if first < low or last > high:
            raise CorruptDataError(
                f"{folder / SCENE_FILE}: scene {letter} holds the steps {low} to {high}, which is a part of the play "
                f"range {first} to {last}; expected whole ranges"
            )
    return touched[0] if touched else ""


def _digits(folder: Path, first: int) -> int:
    """Digits of the step numbers in file names, read off the files where they are not seven."""
    if PlayRange(folder, "", first, first, "").step_file(first).is_file():
        return _DIGITS
    for path in folder.glob("episode_*.npz"):
        if match := _STEP_FILE.fullmatch(path.name):
            return len(match[1])
    return _DIGITS


def step_number(name: str) -> int | None:
    """Step that a file name stands for, ``None`` for other files."""
    match = _STEP_FILE.fullmatch(name)
    return int(match[1]) if match else None


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
