"""Demonstrations of LIBERO and robomimic, read where they lie (arXiv 2306.03310, 2108.03298).

::

    libero_goal/open_the_middle_drawer_of_the_cabinet_demo.hdf5     one file per task
        data                       attributes: problem_info, env_args, macros_image_convention
            demo_0                 one group per demonstration
                actions            (n, 7) float64
                states             (n, Q) float64, the flattened simulator state before each action
                rewards, dones     (n,)
                obs
                    agentview_rgb  (n, 128, 128, 3) uint8, bottom row first
                    ee_pos …       (n, …)

robomimic's files have the same outer layout, other observations, and upright images. See
:mod:`latentgym.trajectories.formats.libero_layout` for what differs, and ``docs/environments.md``. Indexing reads
metadata and a few small arrays; frames are read when an episode is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import content_key
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.seeding import derive_seed
from latentgym.trajectories.dataset import Dataset
from latentgym.trajectories.episode import Episode, Provenance
from latentgym.trajectories.formats import libero_layout as layout
from latentgym.trajectories.formats.libero_index import (
    SPLITS,
    Demonstration,
    FileFacts,
    demonstration_files,
    open_file,
    read_index,
    suites_of,
)
from latentgym.trajectories.formats.libero_tasks import libero_tasks

POLICY = "human"
_FORMAT_VERSION = 1
_OBJECTS = "object"


@dataclasses.dataclass(frozen=True)
class LiberoOptions:
    """How HDF5 demonstrations are read; see :func:`open_libero`."""

    camera: str | None = None
    split: Literal["none", "tasks", "mask"] = "none"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UnknownNameError("split of HDF5 demonstrations", str(self.split), SPLITS)
        if self.camera is not None and not isinstance(self.camera, str):
            raise LatentGymError(f"camera: expected a name, found {self.camera!r}")


class LiberoDataset(Dataset):
    """HDF5 demonstrations, opened by :func:`open_libero`.

    ``"proprio"`` is what the suite's environments observe; the state adds the objects' observation where the file has
    one, and else the simulator's positions and velocities. The simulator's state is the stored one: time, positions,
    velocities.

    Beside what every data set has:

    Attributes:
        tasks: task per episode: LIBERO's name, or that of robosuite's environment.
        files: facts of every file, in order.
        options: how the files are read.
    """

    def __init__(self, path: Path, demonstrations: Sequence[Demonstration], options: LiberoOptions) -> None:
        """Only :func:`open_libero` makes these."""
        self.path, self.options = path, options
        self._demos = tuple(demonstrations)
        facts = self._demos[0].file
        self.files = tuple({demo.file.path: demo.file for demo in self._demos}.values())
        self.tasks = tuple(demo.file.task for demo in self._demos)
        self.env_id = env_id_of(facts.layout, self.tasks)
        try:
            self.action_spec = layout.action_spec(facts.action_size, facts.env_kwargs, str(facts.path))
            self.control_hz = float(facts.env_kwargs.get("control_freq") or layout.CONTROL_HZ)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"{facts.path}: env_args hold no usable controller or rate: {error}") from error
        self.cameras = _ordered_cameras(facts, options.camera)
        self.extras = tuple(name for name in sorted(facts.shapes) if name not in self.cameras)
        self._proprio = layout.proprio_names({key: (0, *shape) for key, shape in facts.shapes.items()}, facts.layout)
        self.lengths = np.array([demo.length for demo in self._demos], np.int64)
        self.horizon = int(self.lengths.max())
        self.provenance = Provenance({}, {}, 0, "", "")
        self.settings = {
            "data_set": {"format": facts.layout, **dataclasses.asdict(options)},
            **_view(self.cameras, facts),
        }
        self.policies = (POLICY,) * len(self._demos)
        self.seeds = tuple(derive_seed(0, "demonstration", demo.group) for demo in self._demos)
        self.successes = np.array([demo.success for demo in self._demos], np.bool_)
        self.groups = tuple(demo.group for demo in self._demos)
        self.held_out = tuple(demo.held_out for demo in self._demos)

    @property
    def uniform_state(self) -> bool:
        """Whether the tasks' scenes have equally many objects."""
        return len({(facts.shapes.get(_OBJECTS), facts.state_size) for facts in self.files}) == 1

    @property
    def env_ids(self) -> tuple[str, ...]:
        """The environments of its tasks."""
        return tuple(env_id_of(self.files[0].layout, [task]) for task in dict.fromkeys(self.tasks))

    def observed_as(self, camera: str) -> str:
        """The suite's name of a camera: ``"pixels"`` for the one that looks from the front."""
        name = layout.model_camera(camera)
        return "pixels" if name == layout.FRONT_CAMERA else f"pixels_{name}"

    @functools.cached_property
    def key(self) -> str:
        """Hash over the options, the files' names and sizes, and every demonstration's actions and first frame.

        The other frames are not hashed, which would mean to read everything.

        Raises:
            CorruptDataError: if a file is damaged.
        """
        digests = []
        for facts in self.files:
            digest = hashlib.sha256(f"{facts.path.name}:{facts.path.stat().st_size}".encode())
            with open_file(facts.path) as file:
                for demo in (demo for demo in self._demos if demo.file is facts):
                    group = file["data"][demo.name]
                    digest.update(demo.name.encode() + group["actions"][()].tobytes())
                    for camera in self.cameras:
                        digest.update(group["obs"][camera][0].tobytes())
            digests.append(digest.hexdigest())
        options = dataclasses.asdict(self.options)
        return content_key({"version": _FORMAT_VERSION, "options": options, "files": digests})

    def episode_key(self, index: int) -> str:
        """Hash over everything that is stored of one demonstration."""
        self._check_index(index)
        demo, digest = self._demos[index], hashlib.sha256()
        with open_file(demo.file.path) as file:
            group = file["data"][demo.name]
            names = [name for name in ("actions", "states", "rewards", "dones") if name in group]
            for name in [*names, *(f"obs/{key}" for key in sorted(group["obs"]))]:
                digest.update(name.encode() + group[name][()].tobytes())
        options = dataclasses.asdict(self.options)
        pairing = [demo.file.follows, demo.file.upside_down]
        return content_key(
            {"version": _FORMAT_VERSION, "options": options, "rows": pairing, "bytes": digest.hexdigest()}
        )

    def _read(self, index: int, cameras: Sequence[str], extras: Sequence[str]) -> Episode:
        demo = self._demos[index]
        names = dict.fromkeys([*cameras, *extras, *self._proprio, *([_OBJECTS] if _OBJECTS in self.extras else [])])
        with open_file(demo.file.path) as file:
            group = file["data"][demo.name]
            rows = {name: group["obs"][name][: demo.length + 1] for name in names}
            later = int(demo.file.follows)
            action = group["actions"][later : later + demo.length]
            sim_state = np.zeros((demo.length + 1, 0))
            if demo.file.state_size:
                sim_state = np.asarray(group["states"][later : later + demo.length + 1], np.float64)
            reward = np.zeros(demo.length, np.float32)
            if "rewards" in group:
                reward = np.asarray(group["rewards"][later : later + demo.length], np.float32)
        proprio = layout.proprio({name: rows[name] for name in self._proprio}, demo.file.layout)
        objects = rows.get(_OBJECTS, sim_state[:, 1:])
        end = np.arange(demo.length) == demo.length - 1
        return Episode(
            frames={camera: _upright(rows[camera], demo.file) for camera in cameras},
            action=np.asarray(action, np.float32),
            proprio=proprio if proprio.size else np.zeros((demo.length + 1, 0), np.float32),
            state=np.concatenate([*([proprio] if proprio.size else []), objects], axis=1).astype(np.float32),
            sim_state=sim_state,
            reward=reward,
            terminated=np.zeros(demo.length, np.bool_),
            truncated=end,
            success=((reward >= 1) & (demo.file.layout == "robomimic")) | (end & demo.success),
            random_action=np.zeros(demo.length, np.bool_),
            seed=self.seeds[index],
            policy=POLICY,
            env_id=self.env_id,
            instruction=demo.file.instruction,
            info=self._info(demo),
            extras={name: _upright(rows[name], demo.file) for name in extras},
        )

    def _info(self, demo: Demonstration) -> dict[str, Any]:
        return {
            "group": demo.group,
            "held_out": demo.held_out,
            "task": demo.file.task,
            "suite": libero_tasks().get(demo.file.task, ""),
            "file": demo.file.path.name,
            "demonstration": demo.name,
        }


def is_hdf5(path: Path) -> bool:
    """Whether ``path`` is an HDF5 file, or a folder that holds some."""
    return bool(demonstration_files(path))


def open_libero(
    path: Path, *, camera: str | None = None, split: Literal["none", "tasks", "mask"] = "none"
) -> LiberoDataset:
    """Open demonstrations of LIBERO or robomimic.

    Rows are paired so that every transition has an observation and a simulator state at both ends. Where observations
    precede the actions of their rows, that leaves out the last action; where they follow, the first and the last. What
    the left-out end said of success stands at the last transition: LIBERO's demonstrations go on for ten steps after
    they succeeded.

    Args:
        path: an HDF5 file, a folder of such files, or a folder of such folders (suites).
        camera: the main camera, which encoders read; by default the one that looks at the scene from the front.
        split: what is held out and thus the test part of every split: ``"none"``; ``"tasks"``, the 26 tasks of
            :func:`latentgym.trajectories.formats.libero_tasks.libero_task_split`; or ``"mask"``, the demonstrations of
            robomimic's masks ``valid`` and ``test``.

    Raises:
        CorruptDataError: if a file is damaged.
        LatentGymError: if files of different kinds are mixed, hold no observations, or an option is invalid.
        MissingExtraError: if h5py is not installed.
    """
    options = LiberoOptions(camera, split)
    files = demonstration_files(path)
    if not files:
        raise LatentGymError(f"{path} holds no HDF5 file")
    return LiberoDataset(path, read_index(files, split), options)


def env_id_of(kind: str, tasks: Sequence[str]) -> str:
    """Id of the environment that demonstrations of these tasks stand for.

    >>> env_id_of("libero", ["put_the_bowl_on_the_plate"]), env_id_of("robomimic", ["Lift"])
    ('libero/put_the_bowl_on_the_plate', 'robosuite/Lift-v0')
    >>> env_id_of("libero", ["put_the_bowl_on_the_plate", "turn_on_the_stove"]), env_id_of("robomimic", ["Lift", "Can"])
    ('libero-goal', 'robomimic')
    """
    if len(set(tasks)) == 1:
        return f"libero/{tasks[0]}" if kind == "libero" else f"robosuite/{tasks[0]}-v0"
    suites = suites_of(tasks)
    return next(iter(suites)).replace("_", "-") if kind == "libero" and len(suites) == 1 else kind


def _ordered_cameras(facts: FileFacts, main: str | None) -> tuple[str, ...]:
    """The main camera first, the others by name."""
    found = [name for name, shape in sorted(facts.shapes.items()) if layout.is_camera((0, *shape), facts.dtypes[name])]
    if main is not None and main not in found:
        raise UnknownNameError("camera", main, found)
    preferred = [main] if main else [name for name in layout.MAIN_CAMERAS if name in found]
    return tuple(sorted(found, key=lambda name: name not in preferred[:1]))


def _view(cameras: Sequence[str], facts: FileFacts) -> dict[str, Any]:
    """Options of an environment that looks as the demonstrations do, through the main camera too."""
    if not cameras:
        return {}
    main = layout.model_camera(cameras[0])
    height, width = facts.shapes[cameras[0]][:2]
    view: dict[str, Any] = {"render": "stock"} | ({"image_size": int(height)} if height == width else {})
    return view if main == layout.FRONT_CAMERA else view | {"cameras": [main]}


def _upright(rows: NDArray[Any], facts: FileFacts) -> NDArray[Any]:
    """Images ``(n, H, W, …)`` top row first; other arrays as they are."""
    return np.ascontiguousarray(rows[:, ::-1]) if facts.upside_down and rows.ndim >= 3 else rows
