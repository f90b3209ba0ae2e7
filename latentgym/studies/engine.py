"""The engine: content-addressed cells, run by worker processes, each finished cell on disk whole or not at all.

A cell's key is a hash of its kind, its parameters, its inputs' keys and the code of the rooms that it runs through
(comments and docstrings left out). A study that was killed therefore continues with the cells that are missing, and a
changed setting or changed code recomputes what depends on it and nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import functools
import gc
import hashlib
import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import resources
from pathlib import Path
from typing import Any

from latentgym.artifacts import atomic_directory, content_key, disk_errors, read_json, write_json
from latentgym.errors import LatentGymError
from latentgym.workers import follow_parent

GROUND = ("statistics", "corruptions.py", "seeding.py", "artifacts.py", "results.py")
ROOMS_OF_KIND = {
    "data": ("trajectories",),
    "record": ("trajectories", "envs"),
    "pretrain": ("trajectories", "encoders"),
    "adapt": ("trajectories", "encoders"),
    "fidelity": ("trajectories", "encoders", "probes"),
    "floors": ("trajectories", "encoders", "probes"),
    "offline": ("trajectories", "encoders", "probes", "policies"),
    "convnet": ("trajectories", "encoders", "policies"),
    "rollout": ("trajectories", "encoders", "envs", "policies", "rollouts"),
    "chains": ("trajectories", "encoders", "envs", "policies", "rollouts"),
}
RESUMABLE_KINDS = frozenset({"record", "pretrain"})
# glibc hands large tensors back to the system and asks for them again, a page fault for every 4 KiB: a tenth of the
# time of training. Read when a process starts; other C libraries ignore them.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One unit of work.

    Attributes:
        kind: name of the function in :data:`latentgym.studies.cells.RUNNERS` that does it.
        name: what a person calls it.
        params: everything that determines its result beside its inputs; JSON types.
        inputs: cells whose results it reads, by label.
    """

    kind: str
    name: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Cell] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """Content key: equal keys mean equal results."""
        return content_key(
            {
                "kind": self.kind,
                "params": self.params,
                "inputs": {label: cell.key for label, cell in self.inputs.items()},
                "code": code_digest(ROOMS_OF_KIND[self.kind]),
            }
        )

    def folder(self, root: Path) -> Path:
        """Where the cell's results lie under the study's folder."""
        return root / "cells" / f"{self.kind}-{self.key}"

    def is_done(self, root: Path) -> bool:
        """Whether the cell's results are on disk, whole."""
        return (self.folder(root) / "cell.json").is_file()


@dataclasses.dataclass(frozen=True)
class CellRecord:
    """What is known of a finished cell: seconds of wall time, and whether an earlier run had computed it."""

    kind: str
    name: str
    key: str
    wall_s: float
    cached: bool


@functools.cache
def code_digest(rooms: tuple[str, ...]) -> str:
    """SHA-256 over the syntax trees of ``rooms`` and the ground floor, without docstrings and comments."""
    package = Path(str(resources.files("latentgym")))
    paths = [package / "studies" / "cells.py"]
    for name in (*GROUND, *rooms):
        paths += [package / name] if name.endswith(".py") else sorted((package / name).rglob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(str(path.relative_to(package)).encode())
            digest.update(_code_of(path.read_text()).encode())
    return digest.hexdigest()


@functools.cache
def _code_of(source: str) -> str:
    """The syntax tree of ``source`` as text, docstrings left out; kept, for the kinds of cells share most rooms."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:]
    return ast.dump(tree)


@contextlib.contextmanager
def study_lock(root: Path) -> Iterator[None]:
    """Hold the study's folder for one run at a time; the operating system frees it when the process dies.

    Raises:
        LatentGymError: if another process holds it.
    """
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LatentGymError(f"another run is using {root}; wait for it or choose another folder with -o") from error
    try:
        for leftover in (root / "cells").glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        handle.close()


def run_cells(
    cells: Sequence[Cell],
    root: Path,
    workers: int,
    on_start: Callable[[Cell], None],
    on_done: Callable[[Cell, CellRecord], None],
) -> list[CellRecord]:
    """Run the cells that are missing; earlier cells in the list come first among those that are ready.

    Args:
        cells: every cell after its inputs.
        root: the study's folder.
        workers: number of worker processes, each on one thread.
        on_start: called when a cell is handed to a worker.
        on_done: called when a cell is finished or found finished.

    Raises:
        LatentGymError: if a cell fails or a worker dies; finished cells stay.
    """
    records: dict[str, CellRecord] = {}
    for cell in cells:
        if cell.is_done(root) and cell.key not in records:
            records[cell.key] = _record_of(cell, root, cached=True)
            on_done(cell, records[cell.key])
    waiting = [cell for cell in _distinct(cells) if cell.key not in records]
    if waiting:
        with _worker_pool(workers) as pool:
            _drive(pool, waiting, root, workers, records, on_start, on_done)
    return [records[cell.key] for cell in _distinct(cells)]


def _drive(
    pool: ProcessPoolExecutor,
    waiting: list[Cell],
    root: Path,
    workers: int,
    records: dict[str, CellRecord],
    on_start: Callable[[Cell], None],
    on_done: Callable[[Cell, CellRecord], None],
) -> None:
    running: dict[Future[str | None], Cell] = {}
    failure: str | None = None
    while running or (waiting and failure is None):
        ready = [cell for cell in waiting if all(item.key in records for item in cell.inputs.values())]
        for cell in ready[: workers - len(running)] if failure is None else []:
            waiting.remove(cell)
            inputs = {label: str(item.folder(root)) for label, item in cell.inputs.items()}
            arguments = (cell.kind, cell.name, dict(cell.params), inputs, str(cell.folder(root)), str(root))
            running[pool.submit(_execute, *arguments)] = cell
            on_start(cell)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell = running.pop(future)
            message = _outcome(future, cell)
            if message is not None:
                failure = failure or message
            else:
                records[cell.key] = _record_of(cell, root, cached=False)
                on_done(cell, records[cell.key])
    if failure is not None:
        raise LatentGymError(f"{failure}; finished cells are kept, run the same command again to continue")


def _outcome(future: Future[str | None], cell: Cell) -> str | None:
    """``None`` for success, else what went wrong."""
    try:
        message = future.result()
    except BrokenProcessPool:
        return f"a worker process died during {cell.name!r} (killed, or out of memory)"
    except Exception as error:
        return f"{cell.name}: its worker failed ({type(error).__name__}: {error})"
    return None if message is None else f"{cell.name}: {message}"


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.key: cell for cell in cells}.values())


def _record_of(cell: Cell, root: Path, cached: bool) -> CellRecord:
    wall_s = float(read_json(cell.folder(root) / "cell.json")["wall_s"])
    return CellRecord(kind=cell.kind, name=cell.name, key=cell.key, wall_s=wall_s, cached=cached)


@contextlib.contextmanager
def _worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that share nothing with the parent, whose GL contexts and threads must not be forked."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    for name, value in _KEEP_FREED_MEMORY.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentgym.studies.cells"])
    # The server that workers are forked from may have been started earlier, with other variables.
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(dict(os.environ),))
    try:
        yield pool
    except BaseException:
        _terminate(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Stop workers at once: what they were doing is not on disk yet, or can be resumed."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _start_worker(environment: dict[str, str]) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    follow_parent()


def _execute(kind: str, name: str, params: dict[str, Any], inputs: dict[str, str], out: str, root: str) -> str | None:
    """Run one cell in a worker; returns an error message or ``None``."""
    from latentgym.studies.cells import RUNNERS, Task

    folder = Path(out)
    start_s = time.perf_counter()
    try:
        with disk_errors(folder), contextlib.ExitStack() as stack:
            if kind in RESUMABLE_KINDS:
                folder.mkdir(parents=True, exist_ok=True)
                scratch = folder
            else:
                shutil.rmtree(folder, ignore_errors=True)
                scratch = stack.enter_context(atomic_directory(folder))
            paths = {label: Path(path) for label, path in inputs.items()}
            RUNNERS[kind](Task(params=params, inputs=paths, out=scratch, root=Path(root)))
            wall_s = round(time.perf_counter() - start_s, 3)
            write_json(scratch / "cell.json", {"kind": kind, "name": name, "params": params, "wall_s": wall_s})
    except LatentGymError as error:
        return str(error)
    except Exception as error:
        log = Path(root) / "errors" / f"{folder.name}.txt"
        with contextlib.suppress(OSError):
            log.parent.mkdir(exist_ok=True)
            log.write_text(traceback.format_exc())
        return f"failed unexpectedly ({type(error).__name__}: {error}); the traceback is in {log}"
    finally:
        gc.collect()  # simulators stand in reference cycles, and a batch of them can fill gigabytes
    return None
