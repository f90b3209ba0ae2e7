"""The engine: finished cells are reused, failures keep what is done, keys follow content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from latentgym.artifacts import read_json
from latentgym.errors import LatentGymError
from latentgym.studies.engine import Cell, CellRecord, _code_of, run_cells, study_lock


def recording(env: str = "latentgym/TabletopReach-v0", episodes: int = 2) -> Cell:
    """A small cell of a real kind."""
    params = {
        "env": env, "seed": 0, "env_options": {}, "image_size": 32,
        "episodes": episodes, "random_fraction": 0.5, "policy": "expert",
    }  # fmt: skip
    return Cell("record", f"record {env}", params)


def run(cells: list[Cell], root: Path) -> list[CellRecord]:
    return run_cells(cells, root, 1, lambda cell: None, lambda cell, record: None)


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
from latentgym.studies import cells
from latentgym.studies.engine import _execute

def fill(task):
    cells._write_replicates(task, {"a": np.zeros(10**6)})

cells.RUNNERS["floors"] = fill
root = Path(sys.argv[1])
print(_execute("floors", "floors", {}, {}, str(root / "cells" / "floors-1"), str(root)))
print(sorted(path.name for path in (root / "cells").iterdir()))
"""


def test_full_disk_is_one_message_and_leaves_no_cell(on_full_disk: Callable[[str], str]) -> None:
    message, left = on_full_disk(FULL_DISK).strip().splitlines()
    assert message.startswith("the disk is full: could not write ") and "replicates.safetensors" in message
    assert left == "[]"


def test_finished_cells_are_reused(tmp_path: Path) -> None:
    cell = recording()
    first = run([cell], tmp_path)
    stamp = (cell.folder(tmp_path) / "cell.json").stat().st_mtime_ns
    second = run([cell], tmp_path)
    assert [record.cached for record in first + second] == [False, True]
    assert (cell.folder(tmp_path) / "cell.json").stat().st_mtime_ns == stamp


def test_failure_names_the_cell_and_keeps_the_rest(tmp_path: Path) -> None:
    good, bad = recording(), recording("latentgym/TabletopReech-v0")
    with pytest.raises(LatentGymError, match=r"record latentgym/TabletopReech-v0: .*TabletopReach"):
        run([good, bad], tmp_path)
    assert good.is_done(tmp_path)
    assert not bad.is_done(tmp_path)


def test_equal_cells_run_once(tmp_path: Path) -> None:
    assert len(run([recording(), recording()], tmp_path)) == 1


def test_key_follows_parameters_and_inputs() -> None:
    assert recording().key == recording().key
    assert recording().key != recording(episodes=3).key
    dependent = [Cell("floors", "floors", {}, {"data": recording(episodes=n)}) for n in (2, 3)]
    assert dependent[0].key != dependent[1].key


def test_code_digest_sees_code_and_not_comments() -> None:
    source = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert _code_of(source) == _code_of("# why\ndef f(x):\n    '''Other.'''\n    return x + 1  # because\n")
    assert _code_of(source) != _code_of(source.replace("1", "2"))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with study_lock(tmp_path), pytest.raises(LatentGymError, match="another run is using"), study_lock(tmp_path):
        pass


def test_cell_record_holds_its_time(tmp_path: Path) -> None:
    cell = recording()
    record = run([cell], tmp_path)[0]
    assert read_json(cell.folder(tmp_path) / "cell.json")["wall_s"] == record.wall_s > 0
