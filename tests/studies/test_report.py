"""The report: the right answer in words, everything in one file, and nothing that breaks when parts are missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentgym.errors import CorruptDataError
from latentgym.results import Row
from latentgym.studies import summary
from latentgym.studies.report import write_report

ENVS = ("latentgym/TabletopReach-v0", "latentgym/TabletopPush-v0")
ENCODERS = (
    ("next_latent", "next_latent", 0.4, 40),
    ("pixel_autoencoder", "pixel_autoencoder", 0.1, 20),
    ("inverse_dynamics", "inverse_dynamics", 0.6, 25),
    ("random", "random", 0.05, 10),
    ("state", "reference", 0.9, 50),
)


def probe_row(encoder: str, family: str, value: float, **fields: Any) -> dict[str, Any]:
    columns = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro", "env": ENVS[0]}
    row = Row(
        **{**columns, "metric": "action_r2", "low": value - 0.1, "high": value + 0.1, "n": 20, **fields},
        encoder=encoder,
        family=family,
        value=value,
    )
    return row.to_dict()


def success_row(encoder: str, family: str, successes: int, n: int = 50, **fields: Any) -> dict[str, Any]:
    columns = {"env": ENVS[0], "readout": "policy", "policy_seed": 0, "metric": "success_rate", "n": n}
    return Row(encoder=encoder, family=family, value=successes / n, **{**columns, **fields}).to_dict()


def link_row(value: float, low: float | None, high: float | None, **fields: Any) -> dict[str, Any]:
    row = {"proxy": "action_r2", "env": "all", "scope": "all", "statistic": "spearman", "n_encoders": 9}
    return {**row, "value": value, "low": low, "high": high, "verdict": "", **fields}


def study_rows() -> list[dict[str, Any]]:
    rows = []
    for env in ENVS:
        for name, family, r2, successes in ENCODERS:
            rows += [probe_row(name, family, r2, env=env), success_row(name, family, successes, env=env)]
            rows.append(probe_row(name, family, r2 / 2, env=env, metric="single_frame_r2", input="single"))
    return rows


def write_study(folder: Path, run: dict[str, Any] | None = None, **results: Any) -> Path:
    content = {"schema": 1, "study": "made up", "rows": study_rows(), "link": [], **results}
    (folder / "results.json").write_text(json.dumps(content))
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    return folder


class Addresses(HTMLParser):
    """Every address that a page would load or link to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "poster", "action") and value]


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "outcome"),
    [
        (0.8, 0.3, 0.95, "", "yes"),
        (0.5, -0.1, 0.9, "", "inconclusive"),
        (0.5, -0.1, 0.9, "predicts", "inconclusive"),
        (0.5, None, None, "", "inconclusive"),
        (0.5, 0.1, 0.9, "inconclusive", "inconclusive"),
        (0.5, None, None, "too few encoders", "unmeasured"),
        (-0.7, -0.9, -0.2, "", "no"),
    ],
)
def test_the_answer_follows_the_interval(
    value: float, low: float | None, high: float | None, verdict: str, outcome: str
) -> None:
    assert summary.answer([link_row(value, low, high, verdict=verdict)]).outcome == outcome


def test_the_answer_names_the_best_predictor_and_the_other_scope() -> None:
    links = [
        link_row(0.4, -0.2, 0.8),
        link_row(0.9, 0.6, 1.0, proxy="cloning_r2"),
        link_row(0.95, 0.6, 1.0, proxy="psnr_db", env=ENVS[0]),
        link_row(0.7, 0.1, 0.9, scope="all without the supervised reference", n_encoders=8),
    ]
    found = summary.answer(links)
    assert found.best == links[1]
    assert found.other_scopes == (links[3],)
    assert summary.answer([]).outcome == "unmeasured"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(30, 60)), min_size=1, max_size=5))
def test_pooled_success_counts_everything_and_lies_in_its_interval(counts: list[tuple[int, int]]) -> None:
    rows = [success_row("a", "a", hits, n, seed=seed) for seed, (hits, n) in enumerate(counts)]
    pooled = summary.success_of(rows)
    assert pooled is not None
    assert (pooled.successes, pooled.n) == (sum(hits for hits, _ in counts), sum(n for _, n in counts))
    assert pooled.low is not None and pooled.high is not None
    assert 0 <= pooled.low <= pooled.value <= pooled.high <= 1


def test_a_row_over_several_policy_seeds_stands_for_them() -> None:
    rows = [success_row("a", "a", 10, policy_seed=seed) for seed in (0, 1, 2)]
    crossed = {**success_row("a", "a", 30, 150, policy_seed=None), "low": 0.05, "high": 0.4}
    assert summary.success_of([*rows, crossed]) == summary.Estimate(0.2, 0.05, 0.4, 30, 150)


def test_spread_between_runs_widens_the_interval() -> None:
    rows = [probe_row("a", "a", value, seed=seed) for seed, value in enumerate((0.1, 0.5, 0.9))]
    (item,) = summary.summarise(rows, {})
    estimate = item.overall["action_r2"]
    assert item.runs == 3
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low is not None and estimate.low < 0.4


def test_only_final_checkpoints_and_headline_rows_count() -> None:
    rows = [
        probe_row("a", "a", 0.4),
        probe_row("a", "a", 0.9, checkpoint=100),
        probe_row("a", "a", 0.8, k=4),
        probe_row("a", "a", 0.7, readout="mlp"),
        probe_row("a", "a", 0.6, subset="random_actions"),
        probe_row("a", "a", 0.3, dimension="x"),
    ]
    (item,) = summary.summarise(rows, {})
    assert item.overall["action_r2"].value == 0.4


def test_floors_and_references_are_set_apart() -> None:
    groups = {item.name: item.group for item in summary.summarise(study_rows(), {})}
    assert groups == {
        "next_latent": "pretrained",
        "pixel_autoencoder": "pretrained",
        "inverse_dynamics": "supervised",
        "random": "floor",
        "state": "reference",
    }
    assert next(iter(groups)) == "next_latent"


def test_the_report_is_one_file_that_needs_no_network(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "frame.png")
    (tmp_path / "video.mp4").write_bytes(b"\x00\x00\x00\x18ftyp")
    entry = {"env": ENVS[0], "encoder": "next_latent", "seed": 1, "success": True, "path": "video.mp4"}
    run = {
        "wall_s": 301.0,
        "videos": [entry, {**entry, "path": "lost.mp4"}],
        "frames": [{"env": ENVS[0], "path": "frame.png"}],
        "curves": {"next_latent/tabletop/seed0": {"step": [0, 10, 20], "loss": [2.0, 1.0, 0.5]}},
        "cells": [{"kind": "probe", "name": "p", "key": "0", "wall_s": 1.0, "cached": False}],
        "provenance": {"versions": {"torch": "2.13.0"}, "gl": {"backend": "egl"}, "seed": 0},
        "reproduce": "latentgym study made-up -o DIR",
    }
    links = [link_row(0.4, -0.2, 0.8), link_row(0.9, 0.6, 1.0, proxy="cloning_r2")]
    path = write_report(write_study(tmp_path, run, link=links))
    page = path.read_text()
    parser = Addresses()
    parser.feed(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert parser.found
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert sum(address.startswith("data:video/mp4") for address in parser.found) == 1
    assert "<script src" not in page and "@import" not in page
    assert page.index("Inconclusive.") < page.index("<table")
    for text in ("Tabletop Reach", "40/50", "5 min 01 s", "latentgym study made-up", "cloning R²", "torch 2.13.0"):
        assert text in page


def test_ranges_of_the_link_carry_no_verdict(tmp_path: Path) -> None:
    links = [
        link_row(0.4, -0.2, 0.8, verdict="inconclusive"),
        link_row(0.4, 0.3, 0.5, verdict="positive", statistic="spearman_leave_one_family_out"),
        link_row(0.9, 0.8, 1.0, verdict="positive", statistic="split_half_reliability", proxy="success_rate"),
    ]
    page = write_report(write_study(tmp_path, link=links)).read_text()
    assert "one family out 0.30 to 0.50" in page
    assert "Noise ceiling" in page
    assert re.findall(r'class="verdict [a-z]*">([a-z ]*)<', page) == ["inconclusive"]


@pytest.mark.parametrize("rows", [[], study_rows()[:1], study_rows()], ids=["none", "one", "all"])
def test_missing_parts_are_left_out(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    page = write_report(write_study(tmp_path, rows=rows)).read_text()
    assert "Not measured here." in page
    assert 'id="videos"' not in page and 'id="link"' not in page


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    rows = [probe_row(name, "evil", 0.5), success_row(name, "evil", 3)]
    page = write_report(write_study(tmp_path, rows=rows)).read_text()
    assert name not in page
    assert "&lt;/script&gt;" in page


def test_crashed_rollouts_are_named(tmp_path: Path) -> None:
    crash = success_row("next_latent", "next_latent", 3, metric="crashed_rollouts", condition="snow:3") | {"value": 3.0}
    page = write_report(write_study(tmp_path, rows=[*study_rows(), crash])).read_text()
    assert (
        "Crashed twice and counted as failed: 3 of 50 rollouts of next latent on Tabletop Reach under snow:3." in page
    )
    assert "Crashed twice" not in write_report(write_study(tmp_path, rows=study_rows())).read_text()


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_study_says_what_its_wall_time_leaves_out(tmp_path: Path, cached: bool) -> None:
    cell = {"kind": "probe", "name": "p", "key": "0", "wall_s": 200.0, "cached": cached}
    run = {"wall_s": 68.0, "cells_wall_s": 200.0, "cells": [cell]}
    page = write_report(write_study(tmp_path, run)).read_text()
    assert ("since it was last resumed" in page) == cached
    assert "3 min 20 s" in page


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    write_study(tmp_path, {"wall_s": 1.0})
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_figures_hold_one_point_per_encoder_and_run(tmp_path: Path) -> None:
    extra = [
        probe_row("next_latent", "next_latent", 0.3, seed=1),
        success_row("next_latent", "next_latent", 30, seed=1),
    ]
    page = write_report(write_study(tmp_path, rows=study_rows() + extra)).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    panels = json.loads(found[1])["scatter"]["action_r2"]
    assert [len(panel["points"]) for panel in panels] == [len(ENCODERS) + 1, len(ENCODERS)]
    assert {point["y"]["n"] for point in panels[0]["points"]} == {50}


@pytest.mark.parametrize(
    ("rows", "run"),
    [
        ([{**probe_row("a", "a", 0.5), "value": float("nan")}], {}),
        (study_rows(), {"wall_s": "1"}),
    ],
    ids=["nan", "time"],
)
def test_damaged_values_are_one_clear_error(tmp_path: Path, rows: list[dict[str, Any]], run: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError, match="damaged"):
        write_report(write_study(tmp_path, run, rows=rows))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 1}'], ids=["missing", "cut", "list", "no rows"])
def test_results_that_are_none_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(CorruptDataError, match=r"results\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
