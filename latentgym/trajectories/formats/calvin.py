"""CALVIN's published data set, opened where it lies (Mees et al., 2022, arXiv 2112.03227).

::

    training/                            a split folder; the data set's root holds training/ and validation/
        ep_start_end_ids.npy             (N, 2) first and last step of each stretch of play, both included
        episode_0000000.npz              one step: both action spaces, states, camera images
        scene_info.npy                   scene → first and last step
        lang_annotations/auto_lang_ann.npy

See ``docs/calvin-data.md``. The index is read once; step files are read when an episode is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import content_key, file_digest
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.dataset import Dataset
from latentgym.trajectories.episode import Episode, Provenance
from latentgym.trajectories.formats import calvin_layout as layout
from latentgym.trajectories.formats.calvin_annotations import (
    ANNOTATION_FILE,
    ANNOTATION_FOLDER,
    Annotations,
    read_annotations,
)
from latentgym.trajectories.formats.calvin_index import (
    INDEX_FILE,
    SCENE_FILE,
    PlayRange,
    Stretch,
    cut_groups,
    cut_segments,
    read_ranges,
    split_folders,
)
from latentgym.trajectories.formats.calvin_steps import Arrays, default_workers, read_chunks, read_steps
from latentgym.trajectories.npz import array_names

SEGMENT_STEPS = 64
"""Default bound on an episode's length, the length of CALVIN's annotated windows."""
PUBLISHED_RENDERER = "egl"
"""What drew the published frames."""
RENDERERS = ("egl", "tiny")
STATE_ARRAYS = (layout.ROBOT_OBS, layout.SCENE_OBS)
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CalvinOptions:
    """How a CALVIN folder is read; see :func:`open_calvin`."""

    actions: str = "rel_actions"
    episodes: Literal["play", "language"] = "play"
    segment_steps: int = SEGMENT_STEPS
    group_steps: int | None = None
    camera: str = layout.CAMERAS[0]
    annotations: str = ANNOTATION_FOLDER
    renderer: str = PUBLISHED_RENDERER
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("actions", "episodes", "camera", "annotations", "renderer"):
            if not isinstance(getattr(self, name), str):
                raise LatentGymError(f"{name}: expected a text, found {getattr(self, name)!r}")
        layout.action_spec(self.actions)
        if self.episodes not in ("play", "language"):
            raise LatentGymError(f"episodes: expected 'play' or 'language', found {self.episodes!r}")
        if self.renderer not in RENDERERS:
            raise LatentGymError(f"renderer: expected 'egl' or 'tiny', found {self.renderer!r}")
        for name in ("segment_steps", "group_steps", "workers"):
            value = getattr(self, name)
            if not (value is None and name != "segment_steps") and (type(value) is not int or value < 1):
                raise LatentGymError(f"{name}: expected a positive whole number, found {value!r}")

    def determining(self) -> dict[str, Any]:
        """Everything but what changes speed only."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "workers"}


class CalvinDataset(Dataset):
    """A CALVIN folder, opened by :func:`open_calvin`.

    Beside what every data set has:

    Attributes:
        ranges: the play ranges that the episodes were cut from.
        annotations: split to its language annotations; ``""`` where a split folder was opened by itself.
        scenes: scene letter per episode, empty where it is not known.
        members: names of the arrays in a step file, in its order.
        options: how the folder is read.
        workers: threads that read.
    """

    def __init__(
        self, path: Path, ranges: Sequence[PlayRange], annotations: dict[str, Annotations], options: CalvinOptions
    ) -> None:
        """Only :func:`open_calvin` makes these."""
        self.path, self.options = path, options
        self.ranges, self.annotations = tuple(ranges), annotations
        self._stretches = _episodes(ranges, annotations, options, path)
        self.workers = options.workers or default_workers()
        self._read_members(ranges[0])
        self.scenes = tuple(stretch.play.scene for stretch in self._stretches)
        self.env_id = layout.env_id_of(set(self.scenes))
        self.action_spec = layout.action_spec(options.actions)
        self.control_hz = layout.CONTROL_HZ
        self.lengths = np.array([stretch.length for stretch in self._stretches], np.int64)
        self.horizon = int(self.lengths.max())
        self.provenance = Provenance({}, {}, 0, "", "")
        self.settings = {"data_set": {"format": "calvin", **options.determining()}}
        if self.cameras:
            self.settings["renderer"] = options.renderer
        self.policies = ("play",) * len(self._stretches)
        self.seeds = tuple(stretch.first for stretch in self._stretches)
        self.successes = np.full(len(self._stretches), options.episodes == "language", np.bool_)
        self.groups = tuple(stretch.group for stretch in self._stretches)
        self.held_out = tuple(stretch.play.split == "validation" for stretch in self._stretches)

    @functools.cached_property
    def key(self) -> str:
        """Hash over the options, the index files' bytes, and names and sizes of all step files.

        The step files' content is not hashed, which would mean to read hundreds of gigabytes; they are compressed, so
        that other content seldom has the same size.

        Raises:
            CorruptDataError: if a step file is missing.
        """
        sizes = hashlib.sha256()
        for play in self.ranges:
            for step in range(play.first, play.last + 1):
                file = play.step_file(step)
                try:
                    size = file.stat().st_size
                except OSError as error:
                    raise CorruptDataError(
                        f"{file} is missing ({error.strerror}); see: latentgym data check"
                    ) from error
                sizes.update(f"{play.split}/{file.name}:{size}\n".encode())
        determining = {"version": _FORMAT_VERSION, "options": self.options.determining(), "steps": sizes.hexdigest()}
        return content_key({**determining, "index": self._index_digests()})

    def episode_key(self, index: int) -> str:
        """Hash of the CRC-32 of every array of the episode's steps, which the archives state; nothing is inflated."""
        self._check_index(index)
        stretch = self._stretches[index]
        files = [stretch.play.step_file(step) for step in range(stretch.first, stretch.last + 1)]
        return content_key({"options": self.options.determining(), "arrays": [array_names(file) for file in files]})

    def chunks(self, names: Sequence[str], steps: int = SEGMENT_STEPS) -> Iterator[tuple[PlayRange, int, Arrays]]:
        """Every step of every play range once, in order, at most ``steps`` of them in memory.

        Args:
            names: arrays to read, of :attr:`members`.
            steps: steps at a time.

        Yields:
            The play range, the number of the first step, and the arrays with a leading axis over steps.

        Raises:
            CorruptDataError: if a step file is missing, truncated or altered.
        """
        for play in self.ranges:
            for first, arrays in read_chunks(play, names, steps, self.workers):
                yield play, first, arrays

    def saturation(self) -> NDArray[np.float64]:
        """``(7,)`` share of all relative actions that were clipped, |a| = 1; the gripper's is always 1.

        R² on clipped targets is not R² on the motion. Reads ``rel_actions`` of every step.
        """
        counts, total = np.zeros(7), 0
        for _, _, arrays in self.chunks(("rel_actions",)):
            counts += saturated(arrays["rel_actions"]).sum(axis=0)
            total += len(arrays["rel_actions"])
        return counts / total

    def _read(self, index: int, cameras: Sequence[str], extras: Sequence[str]) -> Episode:
        stretch = self._stretches[index]
        space = self.options.actions
        names = dict.fromkeys(["rel_actions", space, *STATE_ARRAYS, *cameras, *extras])
        arrays = read_steps(stretch.play, stretch.first, stretch.last, list(names), self.workers)
        state = np.concatenate([arrays[name].astype(np.float64, copy=False) for name in STATE_ARRAYS], axis=1)
        end = np.arange(stretch.length) == stretch.length - 1
        never = np.zeros(stretch.length, np.bool_)
        return Episode(
            frames={camera: arrays[camera] for camera in cameras},
            action=arrays[space][:-1].astype(np.float32),
            proprio=arrays[layout.ROBOT_OBS].astype(np.float32),
            state=state.astype(np.float32),
            sim_state=state,
            reward=np.zeros(stretch.length, np.float32),
            terminated=never,
            truncated=end,
            success=end if self.options.episodes == "language" else never.copy(),
            random_action=never.copy(),
            seed=stretch.first,
            policy=self.policies[index],
            env_id=self.env_id,
            instruction=stretch.instruction,
            info=self._info(stretch, arrays["rel_actions"][:-1]),
            extras={name: arrays[name] for name in extras},
        )

    def _info(self, stretch: Stretch, actions: NDArray[np.floating[Any]]) -> dict[str, Any]:
        shares = saturated(actions).mean(axis=0)
        spans = self.annotations[stretch.play.split].overlapping(stretch.first, stretch.last)
        return {
            "group": stretch.group,
            "held_out": stretch.play.split == "validation",
            "split": stretch.play.split,
            "play_range": [stretch.play.first, stretch.play.last],
            "first_step": stretch.first,
            "last_step": stretch.last,
            "scene": stretch.play.scene,
            "spans": [dataclasses.asdict(span) for span in spans],
            "saturation": dict(zip(layout.RELATIVE_ACTIONS.names[:6], shares[:6].tolist(), strict=True)),
        }

    def _read_members(self, play: PlayRange) -> None:
        """Cameras and further arrays, from the first step file."""
        file = play.step_file(play.first)
        self.members = tuple(array_names(file))
        if missing := [name for name in ("actions", "rel_actions", *STATE_ARRAYS) if name not in self.members]:
            raise CorruptDataError(f"{file}: no {', '.join(missing)}; expected a step of CALVIN")
        cameras = [name for name in layout.CAMERAS if name in self.members]
        if cameras and self.options.camera not in cameras:
            raise LatentGymError(f"{self.path} has the cameras {', '.join(cameras)}; found {self.options.camera!r}")
        # A stable sort: the main camera first, the others in their order.
        self.cameras = tuple(sorted(cameras, key=lambda name: name != self.options.camera))
        self.extras = tuple(name for name in self.members if name not in cameras)

    def _index_digests(self) -> list[str]:
        names = (INDEX_FILE, SCENE_FILE, f"{self.options.annotations}/{ANNOTATION_FILE}")
        files = [folder / name for folder in dict.fromkeys(play.folder for play in self.ranges) for name in names]
        return [file_digest(file) if file.is_file() else "" for file in files]


def open_calvin(
    path: Path,
    *,
    actions: str = "rel_actions",
    episodes: Literal["play", "language"] = "play",
    segment_steps: int = SEGMENT_STEPS,
    group_steps: int | None = None,
    camera: str = layout.CAMERAS[0],
    annotations: str = ANNOTATION_FOLDER,
    renderer: str = PUBLISHED_RENDERER,
    workers: int | None = None,
) -> CalvinDataset:
    """Open a CALVIN folder; only the index files and one step file are read.

    Args:
        path: a split folder, or the root that holds ``training`` and ``validation``; then validation is held out: it is
            the test part of every split.
        actions: ``"rel_actions"`` or ``"actions"`` (absolute).
        episodes: ``"play"``: all transitions, cut into segments of equal length; ``"language"``: the annotated spans,
            each with its instruction, successful at its end.
        segment_steps: bound on the transitions in a play segment. All segments of a play range stay in one part of a
            split.
        group_steps: cuts play ranges into smaller groups for splitting, of at most that many transitions each and about
            a second apart: for data of fewer ranges than a split needs. By default a range is one group.
        camera: the main camera, which encoders read: ``"rgb_static"`` or ``"rgb_gripper"``.
        annotations: folder of the language annotations inside a split folder.
        renderer: what drew the frames, ``"egl"`` for the published data; a folder does not say. Policies trained on the
            data are rolled out under it where that can be had, and warn where it cannot.
        workers: threads that read; one per core by default.

    Raises:
        CorruptDataError: if an index file is damaged, points to missing steps, or holds anything but plain data.
        LatentGymError: if an option is invalid or no episode is left.
    """
    options = CalvinOptions(actions, episodes, segment_steps, group_steps, camera, annotations, renderer, workers)
    folders = {folder.name: folder for folder in split_folders(path)} or {"": path}
    ranges, found = [], {}
    for split, folder in folders.items():
        ranges_here = read_ranges(folder, split)
        found[split] = read_annotations(folder, ranges_here, annotations)
        ranges += ranges_here
    return CalvinDataset(path, ranges, found, options)


def saturated(actions: NDArray[Any]) -> NDArray[np.bool_]:
    """Where relative actions lie on the bound that they were clipped to, up to float32 rounding."""
    clipped: NDArray[np.bool_] = np.abs(actions) >= 1 - 1e-6
    return clipped


def _episodes(
    ranges: Sequence[PlayRange], annotations: dict[str, Annotations], options: CalvinOptions, path: Path
) -> list[Stretch]:
    groups = cut_groups(ranges, options.group_steps)
    if options.episodes == "play":
        found = cut_segments(groups, options.segment_steps)
    else:
        found = [
            dataclasses.replace(group, first=span.first, last=span.last, instruction=span.instruction)
            for group in groups
            for span in annotations[group.play.split].overlapping(group.first, group.last)
            if group.first <= span.first and span.last <= group.last
        ]
    if not found:
        what = "transition" if options.episodes == "play" else "annotated span"
        raise LatentGymError(f"{path} holds no {what}")
    return found
