"""A whole study at its least size: complete, tidy, repeatable to the bit, and unharmed by being killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latentgym.artifacts import read_json
from latentgym.errors import LatentGymError
from latentgym.results import Row
from latentgym.studies.config import load_config, parse_config
from latentgym.studies.study import run_study

pytestmark = pytest.mark.slow

ROW_COLUMNS = {field for field in Row.__dataclass_fields__}
LINK_COLUMNS = {"proxy", "env", "scope", "statistic", "value", "low", "high", "n_encoders", "verdict"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted smoke study."""
    root = tmp_path_factory.mktemp("smoke")
    run_study("smoke", root)
    return root


def rows_of(root: Path, **wanted: Any) -> list[dict[str, Any]]:
    rows = read_json(root / "results.json")["rows"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_results_are_tidy(smoke: Path) -> None:
    results = read_json(smoke / "results.json")
    assert set(results) == {"schema", "study", "rows", "link"}
    assert all(set(row) == ROW_COLUMNS for row in results["rows"])
    assert results["link"] and all(set(row) == LINK_COLUMNS for row in results["link"])
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows_of(smoke, metric="success_rate"))
    columns = sorted(ROW_COLUMNS - {"value", "low", "high", "n"})
    identities = [tuple(row[key] for key in columns) for row in results["rows"]]
    assert len(identities) == len(set(identities))


def test_parquet_holds_the_same_rows(smoke: Path) -> None:
    assert pq.read_table(smoke / "results.parquet").to_pylist() == read_json(smoke / "results.json")["rows"]


def test_every_encoder_is_measured_everywhere(smoke: Path) -> None:
    config = load_config("smoke")
    names = {*config.objectives, *config.floors, *config.references}
    for env in config.suites[0].envs:
        for metric, readout in (("action_r2", "ridge"), ("cloning_r2", "policy"), ("success_rate", "policy")):
            found = {row["encoder"] for row in rows_of(smoke, env=env, metric=metric, readout=readout, checkpoint=None)}
            assert names <= found, (env, metric)
        probed = {row["encoder"] for row in rows_of(smoke, env=env, metric="action_r2")}
        assert {"constant", "previous_action", "pixel_pca"} <= probed
    decoded = {row["encoder"] for row in rows_of(smoke, metric="psnr_db", readout="decoder")}
    assert {*config.objectives, *config.floors} <= decoded


def test_a_study_may_leave_out_windows_of_one_step(tmp_path: Path) -> None:
    """Comparisons of the headline score are then undefined, and the rest stands."""
    suite = {"name": "one", "envs": ["latentgym/TabletopReach-v0"], "episodes": 12, "rollouts": 0, "image_size": 32}
    probe = {"horizons": [2], "folds": 2, "replicates": 20}
    given = {"name": "tiny", "objectives": ["pixel_autoencoder"], "suites": [{**suite, "pretraining_steps": 2}]}
    run_study(parse_config({**given, "fidelity": {"steps": 2}, "probe": probe}, "tiny"), tmp_path)
    assert {row["k"] for row in rows_of(tmp_path, metric="action_r2")} == {2}
    assert not rows_of(tmp_path, metric="action_r2_share_of_state")


def test_every_listed_rollout_counts(smoke: Path) -> None:
    suite = load_config("smoke").suites[0]
    assert {row["n"] for row in rows_of(smoke, metric="success_rate")} == {suite.rollouts}


def test_intermediate_checkpoints_are_measured(smoke: Path) -> None:
    checkpoint = load_config("smoke").suites[0].checkpoints[0]
    found = {row["encoder"] for row in rows_of(smoke, checkpoint=checkpoint, metric="success_rate")}
    assert found == set(load_config("smoke").objectives)


def test_run_json_holds_times_and_provenance(smoke: Path) -> None:
    run = read_json(smoke / "run.json")
    assert run["wall_s"] > 0 and all(cell["wall_s"] >= 0 for cell in run["cells"])
    assert {"versions", "gl", "seed", "command"} <= set(run["provenance"])
    assert all((smoke / video["path"]).is_file() for video in run["videos"])


def test_report_is_one_offline_page(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    assert not re.findall(r'<(?:script|link|img|video|source|iframe)\b[^>]*(?:src|href)="(?:https?:)?//', page)
    assert "data:video/mp4;base64," in page and "Plotly" in page


def _group_is_alive(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def test_killed_study_resumes_to_the_same_bits(smoke: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from latentgym.cli import main; main()", "study", "smoke", "-o", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 300
    while len(list(tmp_path.glob("cells/*/cell.json"))) < 8:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while _group_is_alive(process.pid):
        assert time.monotonic() < deadline_s, "a killed study left workers behind"
        time.sleep(0.1)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cell.json")}
    run_study("smoke", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert (tmp_path / "results.json").read_bytes() == (smoke / "results.json").read_bytes()
    assert not list(tmp_path.glob("cells/.*.partial"))


def test_missing_environment_shows_before_any_work(tmp_path: Path) -> None:
    config = load_config("smoke")
    suite = config.suites[0].model_copy(update={"envs": ("latentgym/TabletopReech-v0",)})
    with pytest.raises(LatentGymError, match="TabletopReach"):
        run_study(config.model_copy(update={"suites": (suite,)}), tmp_path)
    assert not list(tmp_path.glob("cells/*"))
