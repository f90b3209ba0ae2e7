"""The CALVIN study: the shipped file, and the same file on a folder in CALVIN's format by changing one path."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from latentgym.studies.config import StudyConfig, load_config
from latentgym.studies.study import run_study
from latentgym.trajectories.formats.calvin_conversion import convert


def test_both_suites_hold_the_same_share_of_random_actions() -> None:
    calvin, metaworld = load_config("calvin").suites
    assert calvin.random_fraction == metaworld.random_fraction > 0
    assert calvin.policy == metaworld.policy and calvin.env_options["cameras"] == ["static"]


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A small folder in CALVIN's format that ``data convert`` has written."""
    convert(shared / "calvin_debug" / "training", tmp_path / "native", "native", segment_steps=16, progress=None)
    convert(tmp_path / "native", tmp_path / "converted", "calvin", progress=None)
    return tmp_path / "converted"


def on_data(path: Path, folder: Path) -> StudyConfig:
    """The shipped file with its one path changed, then made small."""
    text = (resources.files("latentgym.studies") / "presets" / "calvin.toml").read_text()
    path.write_text(text.replace('data = ""', f'data = "{folder}"'))
    config = load_config(path)
    suite = config.suites[0].model_copy(update={"pretraining_steps": 2})
    return config.model_copy(
        update={
            "suites": (suite,),
            "objectives": ("next_latent",),
            "probe": config.probe.model_copy(update={"mlp_steps": 2, "replicates": 10, "horizons": (1,)}),
            "fidelity": config.fidelity.model_copy(update={"steps": 2}),
        }
    )


@pytest.mark.slow
def test_the_study_runs_on_a_calvin_folder_by_changing_one_path(folder: Path, tmp_path: Path) -> None:
    config = on_data(tmp_path / "mine.toml", folder)
    with pytest.warns(UserWarning, match="several scenes"):
        report = run_study(config, tmp_path / "out", workers=1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    gains = {row["encoder"] for row in results["rows"] if row["metric"] == "temporal_gain"}
    assert report.is_file() and {"next_latent", "random"} <= gains
    assert {row["env"] for row in results["rows"] if row["metric"] == "action_r2"} == {"calvin-ABCD"}
