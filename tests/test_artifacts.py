"""Paths that cannot be written end in one error that names them; errors at other files pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from latentgym.artifacts import atomic_directory, atomic_write, check_output, disk_errors
from latentgym.errors import LatentGymError


def _make(path: Path) -> None:
    with atomic_directory(path) as folder:
        (folder / "content").touch()


def _write(path: Path) -> None:
    atomic_write(path, "content")


@pytest.mark.parametrize(
    ("write", "place", "reason"),
    [
        (_make, "file", "a file is where a folder is needed"),
        (_make, "file/sub", "a file is where a folder is needed"),
        (_make, "file/sub/deep", "a file is where a folder is needed"),
        (_write, "folder", "a folder is where the file is to go"),
        (_write, "file/sub", "a file is where a folder is needed"),
        (_write, "n" * 300, "too long"),
    ],
)
def test_a_path_in_the_way_is_named(write: Callable[[Path], None], place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LatentGymError, match=reason) as caught:
        write(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_relative_path_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(LatentGymError, match="cannot write folder: "):
        _write(Path("folder"))


def test_errors_at_other_files_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "out"):
        (tmp_path / "other" / "input").read_text()
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out") as folder:
        (folder / "missing").read_text()
    with pytest.raises(ConnectionResetError), disk_errors(tmp_path / "out"):
        raise ConnectionResetError("reset")


def test_an_existing_folder_wins(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").touch()
    _make(tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["first"]


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, folder in ((tmp_path / "new" / "sub", True), (tmp_path, True), (tmp_path / "file", False)):
        check_output(path, folder=folder)
    for path, folder in ((tmp_path / "file", True), (tmp_path / "file" / "sub", False), (tmp_path, False)):
        with pytest.raises(LatentGymError, match="cannot write"):
            check_output(path, folder=folder)
