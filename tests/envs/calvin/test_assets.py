"""Assets come whole or not at all, whatever they come from."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from latentgym import cli
from latentgym.envs import make_env
from latentgym.envs.calvin import assets
from latentgym.errors import CorruptDataError, LatentGymError


@pytest.fixture
def source(shared: Path) -> Path:
    return shared / "calvin_assets"


def mirror_of(folder: Path, names: tuple[str, ...], out: Path) -> Path:
    """A bare git repository whose head holds some of a folder's entries."""
    work = out.with_suffix(".work")
    for name in names:
        shutil.copytree(folder / name, work / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "assets"]):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(out)], check=True)
    return out


def test_a_folder_is_copied_whole(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    folder = assets.fetch_assets(tmp_path / "out", str(source), lambda *counts: calls.append(counts))
    assert assets.find_assets(folder) == folder and calls[-1][0] == calls[-1][1]
    assert len(assets.instructions(folder)) == 34
    for scene in "ABCD":
        env = make_env(f"latentgym/Calvin{scene}-v0", assets=folder, pixels=False)
        env.reset(seed=0)  # PyBullet finds every mesh that the scene names
        env.close()
    assert assets.fetch_assets(folder, str(tmp_path / "nothing")) == folder, "what is whole is left alone"


def test_a_local_mirror_and_another_for_the_sentences(source: Path, tmp_path: Path) -> None:
    scenes = mirror_of(source, ("conf", "data"), tmp_path / "calvin_env.git")
    sentences = mirror_of(source, ("annotations",), tmp_path / "calvin.git")
    bare = assets.fetch_assets(tmp_path / "bare", str(scenes))
    assert assets.instructions(bare) == {}
    both = assets.fetch_assets(tmp_path / "both", [str(scenes), str(sentences)])
    assert assets.instructions(both) == assets.instructions(source)


def test_nothing_is_left_of_a_fetch_that_fails(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = shutil.copytree(source, tmp_path / "altered")
    victim = altered / "data" / "plane" / "plane.urdf"
    victim.chmod(0o644)
    victim.write_text(victim.read_text() + " ")
    with pytest.raises(LatentGymError, match=r"plane\.urdf differs from calvin_env 797142c"):
        assets.fetch_assets(tmp_path / "out", str(altered))
    victim.unlink()
    with pytest.raises(LatentGymError, match=r"lacks data/plane/plane\.urdf"):
        assets.fetch_assets(tmp_path / "out", str(altered))
    with pytest.raises(LatentGymError, match="no source"):
        assets.fetch_assets(tmp_path / "out", str(tmp_path / "nothing"))

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(LatentGymError, match="--source"):
        assets.fetch_assets(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["altered"]


def test_half_a_folder_is_neither_used_nor_overwritten(source: Path, tmp_path: Path) -> None:
    half = shutil.copytree(source, tmp_path / "half")
    (half / "data" / "plane" / "plane.obj").unlink()
    with pytest.raises(LatentGymError, match=r"plane\.obj is missing; remove that folder") as found:
        assets.fetch_assets(half, str(source))
    assert str(found.value).count(";") == 1


@pytest.mark.parametrize("content", ["", "rotate_red_block_right: ['take the red", "rotate_red_block_right: []\n"])
def test_half_a_file_of_sentences_is_refused(source: Path, tmp_path: Path, content: str) -> None:
    half = shutil.copytree(source, tmp_path / "half")
    victim = half / "annotations" / "new_playtable_validation.yaml"
    victim.chmod(0o644)
    victim.write_text(content)
    with pytest.raises(CorruptDataError, match=r"new_playtable_validation\.yaml has \d+ bytes instead of"):
        assets.find_assets(half)


def test_the_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["latentgym", "assets", "calvin", "-o", str(out), "--source", str(source)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and f"export CALVIN_ENV_ROOT={out}" in capsys.readouterr().out
