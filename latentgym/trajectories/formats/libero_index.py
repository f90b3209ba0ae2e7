"""Index of HDF5 demonstrations: which files and demonstrations there are, read from metadata and a few small arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentgym.errors import CorruptDataError, LatentGymError, require
from latentgym.trajectories.formats import libero_layout as layout
from latentgym.trajectories.formats.libero_tasks import libero_instruction, libero_task_split, libero_tasks

SUFFIXES = (".hdf5", ".h5")
SPLITS = ("none", "tasks", "mask")
_DEMO_SUFFIX = "_demo"
_HELD_OUT_MASKS = ("valid", "test")
_FEWEST_ROWS = 3  # of which one transition is left when the rows of LIBERO are paired
_ROBOT_JOINTS = slice(1, 8)  # of a flattened state, after the time


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What one file says of all its demonstrations.

    Attributes:
        path: the file.
        layout: ``"libero"`` or ``"robomimic"``.
        task: LIBERO's task, or the name of robosuite's environment.
        instruction: language instruction, empty where there is none.
        env_kwargs: arguments of the recorded environment.
        follows: whether row j of the observations was taken after action j, not before it.
        upside_down: whether images are stored bottom row first.
        shapes: shape of every observation without its rows.
        dtypes: dtype of every observation.
        action_size: dimensions of the actions.
        state_size: numbers in a simulator state, 0 where none is stored.
    """

    path: Path
    layout: str
    task: str
    instruction: str
    env_kwargs: dict[str, Any]
    follows: bool
    upside_down: bool
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    action_size: int
    state_size: int


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One demonstration, without its arrays.

    Attributes:
        file: facts of its file.
        name: its group, such as ``"demo_0"``.
        rows: actions that are stored.
        success: whether the file says that it succeeded.
        held_out: whether it belongs to the test part in any case.
    """

    file: FileFacts
    name: str
    rows: int
    success: bool
    held_out: bool

    @property
    def length(self) -> int:
        """Transitions with an observation and a state at both ends."""
        return self.rows - (2 if self.file.follows else 1)

    @property
    def group(self) -> str:
        """Label that no other demonstration has."""
        return f"{self.file.path.stem}/{self.name}"


def demonstration_files(root: Path) -> list[Path]:
    """HDF5 files that ``root`` is or holds, directly or one folder deep, in the order of their names."""
    if root.is_file():
        return [root] if root.suffix in SUFFIXES else []
    for pattern in ("*", "*/*"):
        found = sorted(path for path in root.glob(pattern) if path.suffix in SUFFIXES and path.is_file())
        if found:
            return found
    return []


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """An HDF5 file to read from; whatever is wrong with it becomes one clear error.

    Raises:
        CorruptDataError: if it is truncated, or lacks what is read from it.
        MissingExtraError: if h5py is not installed.
    """
    h5py = require("h5py", "hdf5")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except LatentGymError:
        raise
    except (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptDataError(f"{path}: damaged, or no demonstrations of LIBERO or robomimic: {error}") from error


def read_index(files: Sequence[Path], split: str) -> list[Demonstration]:
    """All demonstrations of ``files``, in order.

    Args:
        files: HDF5 files.
        split: ``"none"``, ``"tasks"`` or ``"mask"``; see :func:`latentgym.trajectories.formats.libero.open_libero`.

    Raises:
        CorruptDataError: if a file is damaged or its demonstrations disagree with each other.
        LatentGymError: if files disagree, or a file holds no observations.
    """
    found: list[Demonstration] = []
    for path in files:
        found += _read_file(path, split)
    first = found[0].file
    for demonstration in found:
        _check_alike(demonstration.file, first)
    if split == "tasks" and not any(demonstration.held_out for demonstration in found):
        raise LatentGymError(
            f"split='tasks': none of the {len(files)} file(s) belongs to a held-out task of LIBERO; add the files of "
            "some, or leave the option out. Held out are: " + ", ".join(libero_task_split()[1])
        )
    return found


def _read_file(path: Path, split: str) -> list[Demonstration]:
    with open_file(path) as file:
        data = file["data"]
        names = sorted((name for name in data if "actions" in data[name]), key=_number)
        if not names:
            raise CorruptDataError(f"{path}: no demonstration in the group 'data'")
        facts = _facts(path, data, names[0])
        masked = _masked(file) if split == "mask" else set()
        if split == "mask" and not masked:
            raise LatentGymError(f"{path} has no mask 'valid' or 'test'; leave out split='mask'")
        held_out = split == "tasks" and facts.task in libero_task_split()[1]
        return [
            Demonstration(facts, name, _rows(path, data[name], facts), _succeeded(data[name], facts),
                          held_out or name in masked)
            for name in names
        ]  # fmt: skip


def _number(name: str) -> tuple[int, str]:
    digits = "".join(character for character in name if character.isdigit())
    return int(digits or 0), name


def _facts(path: Path, data: Any, name: str) -> FileFacts:
    demo = data[name]
    if "obs" not in demo:
        raise LatentGymError(
            f"{path} holds actions and states but no observations; make some first, for robomimic's files with its "
            "script dataset_states_to_obs.py"
        )
    observations = demo["obs"]
    kind = layout.layout_of(observations)
    arguments = _json(data.attrs.get("env_args"))
    task = path.stem.removesuffix(_DEMO_SUFFIX) if kind == "libero" else str(arguments.get("env_name") or path.stem)
    convention = data.attrs.get("macros_image_convention", "opengl" if kind == "libero" else "opencv")
    return FileFacts(
        path=path,
        layout=kind,
        task=task,
        instruction=_instruction(data, task) if kind == "libero" else "",
        env_kwargs=dict(arguments.get("env_kwargs") or {}),
        follows=_follows(demo, kind),
        upside_down=_text(convention) == "opengl",
        shapes={key: tuple(observations[key].shape[1:]) for key in observations},
        dtypes={key: observations[key].dtype for key in observations},
        action_size=int(demo["actions"].shape[1]),
        state_size=int(demo["states"].shape[1]) if "states" in demo else 0,
    )


def _follows(demo: Any, kind: str) -> bool:
    """Whether observations follow the actions of their rows, by comparing joint angles with the states'."""
    name = layout.JOINTS[kind]
    if "states" not in demo or name not in demo["obs"] or demo["states"].shape[1] < _ROBOT_JOINTS.stop:
        return kind == "libero"
    joints, states = np.asarray(demo["obs"][name], np.float64), np.asarray(demo["states"], np.float64)
    if joints.shape[1] < 7 or len(states) < _FEWEST_ROWS:
        return kind == "libero"
    before = np.abs(joints[:-1, :7] - states[:-1, _ROBOT_JOINTS]).mean()
    after = np.abs(joints[:-1, :7] - states[1:, _ROBOT_JOINTS]).mean()
    return bool(after < before)


def _rows(path: Path, demo: Any, facts: FileFacts) -> int:
    """Number of actions, after a check of every array against it."""
    rows, label = int(demo["actions"].shape[0]), f"{path}: {demo.name}"
    if rows < _FEWEST_ROWS:
        raise CorruptDataError(f"{label}: expected at least {_FEWEST_ROWS} actions, found {rows}")
    arrays = {f"obs/{key}": demo["obs"][key] for key in facts.shapes if key in demo["obs"]}
    arrays |= {key: demo[key] for key in ("states", "rewards", "dones") if key in demo}
    for key, array in arrays.items():
        if array.shape[0] != rows:
            raise CorruptDataError(f"{label}: {rows} actions, but {array.shape[0]} rows of {key}")
    shapes = {key: tuple(demo["obs"][key].shape[1:]) for key in demo["obs"]}
    sizes = (int(demo["actions"].shape[1]), int(demo["states"].shape[1]) if "states" in demo else 0)
    if shapes != facts.shapes or sizes != (facts.action_size, facts.state_size):
        raise CorruptDataError(f"{label}: arrays of other names or shapes than in the file's first demonstration")
    return rows


def _succeeded(demo: Any, facts: FileFacts) -> bool:
    """Whether the last row says so; published demonstrations are successes, which LIBERO's rows state at the end."""
    name = "dones" if facts.layout == "libero" else "rewards"
    return bool(name in demo and np.max(np.asarray(demo[name][-10:])) >= 1)


def _masked(file: Any) -> set[str]:
    masks = file.get("mask", {})
    return {_text(name) for mask in _HELD_OUT_MASKS if mask in masks for name in masks[mask][()]}


def _instruction(data: Any, task: str) -> str:
    """As LIBERO's benchmark has it; the sentence in the file differs in places, and serves for other tasks."""
    if task in libero_tasks():
        return libero_instruction(task)
    found = _json(data.attrs.get("problem_info")).get("language_instruction")
    if isinstance(found, list):
        found = " ".join(str(word) for word in found)
    return str(found or "").strip().strip('"') or libero_instruction(task)


def _json(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    found = json.loads(_text(value))
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_alike(facts: FileFacts, first: FileFacts) -> None:
    for what, ours, theirs in (
        ("layout", facts.layout, first.layout),
        ("observations", _cameras_and_names(facts), _cameras_and_names(first)),
        ("action size", facts.action_size, first.action_size),
    ):
        if ours != theirs:
            raise LatentGymError(
                f"{facts.path} and {first.path} differ in their {what} ({ours} and {theirs}); open files of one kind, "
                "or one file by its name"
            )


def _cameras_and_names(facts: FileFacts) -> Mapping[str, tuple[int, ...]]:
    """Observations whose shapes must agree between files: all but the objects', which differ between tasks."""
    return {name: shape for name, shape in sorted(facts.shapes.items()) if name != "object"}


def suites_of(tasks: Sequence[str]) -> set[str]:
    """LIBERO's suites of some tasks; tasks of no suite are left out."""
    return {libero_tasks()[task] for task in tasks if task in libero_tasks()}
