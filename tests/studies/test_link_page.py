"""The link's page: one file, every proxy ranked, and behind each point its episodes and videos."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.artifacts import write_json
from latentgym.cli import _run
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.rollouts import LinkPoint, read_points, write_points, write_video
from latentgym.studies import link_page
from latentgym.studies.link_page import link_folders, write_link_page

ENVS = ("latentgym/TabletopReach-v0", "metaworld/reach-v3")
SEEDS = [9_007_199_254_740_993 + index for index in range(20)]  # beyond what a browser's numbers hold
FAMILIES = ("next_latent", "pixel_autoencoder", "image_ssl", "diffusion", "inverse_dynamics")


def write_study(folder: Path, offset: int = 0, *, rollouts: bool = True) -> Path:
    """A finished study's files: points, and the folders of rollouts with a filmed success."""
    folder.mkdir(parents=True)
    points, entries = [], []
    for env in ENVS:
        for index, family in enumerate(FAMILIES):
            outcomes = [int(i < 3 + 3 * index + offset) for i in range(20)]
            points.append(
                LinkPoint(
                    env=env, encoder=family, family=family, reference=family == "inverse_dynamics", parameters=1000,
                    proxies={"action_r2": 0.1 * index, "psnr_db": 20.0 - index, "cloning_r2": 0.3},
                    proxy_replicates={"action_r2": [0.1 * index + 0.01 * i for i in range(-5, 6)]}, success=[outcomes],
                )
            )  # fmt: skip
            entries.append(write_rollouts(folder, env, family, outcomes))
        entries.append(write_rollouts(folder, env, "expert policy", [1] * 20, policy_seed=None))
    write_points(folder / "link_points.json", points)
    if rollouts:
        write_json(folder / "run.json", {"rollouts": entries})
    return folder


def write_rollouts(
    folder: Path, env: str, encoder: str, outcomes: list[int], policy_seed: int | None = 0
) -> dict[str, Any]:
    cell = Path("cells") / f"rollout-{encoder}-{ENVS.index(env)}".replace(" ", "-")
    video = f"success-{SEEDS[0]}.mp4"
    write_video(folder / cell / "videos" / video, [np.zeros((16, 16, 3), np.uint8)] * 2, 10.0)
    records = [{"seed": seed, "success": bool(won)} for seed, won in zip(SEEDS, outcomes, strict=True)]
    write_json(folder / cell / "rollouts.json", {"records": records, "videos": [video]})
    columns = {"env": env, "encoder": encoder, "seed": 0, "checkpoint": None, "policy_seed": policy_seed}
    return {**columns, "folder": str(cell)}


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_page_holds_ranking_disagreements_episodes_and_videos(tmp_path: Path) -> None:
    link = link_folders(write_study(tmp_path / "one"), replicates=100)
    page = write_link_page(link, tmp_path / "link.html").read_text()
    assert not re.findall(r'<(?:script|link|img|video|source|iframe)\b[^>]*(?:src|href)="(?:https?:)?//', page)
    body = page[page.index("<main>") :]
    ranking = body[body.index('id="ranking"') :].split("</section>")[0]
    assert [*re.findall(r'<th scope="row">(.*?)</th>', ranking)][:2] == ["action R²", "PSNR (dB)"]
    assert "the supervised reference left out" in ranking
    data = data_of(page)
    assert [place["label"] for place in data["places"]] == list(ENVS)
    lines = {line["name"]: line for line in data["places"][0]["lines"]}
    assert next(iter(lines)) == "inverse dynamics" and list(lines)[-1] == "expert policy"
    best = lines["inverse dynamics"]
    assert (best["proxies"]["action_r2"]["rank"], best["proxies"]["action_r2"]["success_rank"]) == (1, 1)
    assert (best["proxies"]["psnr_db"]["rank"], best["proxies"]["psnr_db"]["n"]) == (5, 5)
    assert best["outcomes"] == ["1" * 15 + "0" * 5]
    assert best["success"]["successes"] == 15
    assert data["places"][0]["seeds"] == [str(seed) for seed in SEEDS]
    for line in lines.values():
        (video,) = line["videos"]
        assert (video["seed"], video["success"]) == (str(SEEDS[0]), True)
        assert video["uri"].startswith("data:video/mp4;base64,")
    assert lines["expert policy"]["proxies"] == {}


def test_several_studies_are_kept_apart(tmp_path: Path) -> None:
    folders = [write_study(tmp_path / name, offset) for offset, name in enumerate(("one", "two"))]
    link = link_folders(*folders, replicates=50)
    page = write_link_page(link, tmp_path / "link.html").read_text()
    labels = [f"{env} ({name})" for name in ("one", "two") for env in ENVS]
    assert [place["label"] for place in data_of(page)["places"]] == labels
    assert "Tabletop Reach (two)" in page and "All tasks (one)" in page.replace("all tasks", "All tasks")
    assert all(line["videos"] for place in data_of(page)["places"] for line in place["lines"])


def test_points_alone_make_a_page_without_episodes(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "one", rollouts=False)
    page = write_link_page(link_folders(folder / "link_points.json", replicates=50), tmp_path / "link.html").read_text()
    assert {len(line["videos"]) for place in data_of(page)["places"] for line in place["lines"]} == {0}


def test_studies_that_list_videos_alone_are_read_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "one", rollouts=False)
    video = f"cells/rollout-image_ssl-0/videos/success-{SEEDS[0]}.mp4"
    suites = [{"envs": list(ENVS), "pretraining_seeds": [0]}]
    config = {"objectives": list(FAMILIES), "suites": suites}
    write_json(
        folder / "run.json", {"config": config, "videos": [{"env": ENVS[0], "encoder": "image_ssl", "path": video}]}
    )
    page = write_link_page(link_folders(folder, replicates=50), tmp_path / "link.html").read_text()
    filmed = [line["name"] for place in data_of(page)["places"] for line in place["lines"] if line["videos"]]
    assert filmed == ["image ssl"]


def test_files_of_one_folder_and_studies_of_one_file_keep_their_own_episodes(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "one")
    others = [dataclasses.replace(p, success=[p.success[0][::-1]]) for p in read_points(folder)]
    write_points(folder / "other.json", others)
    link = link_folders(folder, folder / "other.json", replicates=50)
    page = write_link_page(link, tmp_path / "link.html").read_text()
    filmed = {place["label"]: bool(place["lines"][0]["videos"]) for place in data_of(page)["places"]}
    # What was filmed in the folder are the study's own policies.
    assert filmed == {f"{env} (one/{name})": name == "link_points" for name in ("link_points", "other") for env in ENVS}
    assert f"latentgym link --json {folder} {folder / 'other.json'}" in page
    (tmp_path / "both").mkdir()
    write_points(tmp_path / "both/points.json", link.result.points)
    again = link_folders(tmp_path / "both/points.json", replicates=50)
    page = write_link_page(again, tmp_path / "link.html").read_text()
    assert [place["label"] for place in data_of(page)["places"]] == list(filmed)


def test_a_rank_without_a_range_is_said(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "one", rollouts=False)
    undefined = {"action_r2": [math.nan] * 5}
    points = [dataclasses.replace(point, proxy_replicates=undefined) for point in read_points(folder)]
    write_points(folder / "link_points.json", points)
    link = link_folders(folder, replicates=50)
    line = data_of(write_link_page(link, tmp_path / "link.html").read_text())["places"][0]["lines"][0]
    assert {line["proxies"]["action_r2"][end] for end in ("rank_low", "rank_high")} == {"range unknown"}
    assert line["proxies"]["action_r2"]["rank"] == 1
    ranges = {(item["low"], item["high"]) for item in link.to_dict()["disagreements"] if item["proxy"] == "action_r2"}
    assert ranges == {(None, None)}


@pytest.mark.parametrize("run", [{}, [], {"rollouts": [{}]}, {"rollouts": [3]}, {"config": {"suites": 3}}])
def test_a_damaged_run_is_named(tmp_path: Path, run: object) -> None:
    folder = write_study(tmp_path / "one", rollouts=False)
    write_json(folder / "run.json", run)
    with pytest.raises(CorruptDataError, match=r"run\.json does not say where"):
        write_link_page(link_folders(folder, replicates=20), tmp_path / "link.html")
    assert not (tmp_path / "link.html").exists()


def test_videos_beyond_the_limit_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_study(tmp_path / "one")
    size = next(folder.rglob("*.mp4")).stat().st_size
    monkeypatch.setattr(link_page, "MAX_VIDEO_BYTES", 3 * size)
    page = write_link_page(link_folders(folder, replicates=50), tmp_path / "link.html").read_text()
    assert sum(len(line["videos"]) for place in data_of(page)["places"] for line in place["lines"]) == 3
    assert "9 videos are left out" in page


def test_too_few_encoders_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    point = LinkPoint(env="e", encoder="a", family="a", proxies={"action_r2": 0.1}, success=[[1, 0]])
    write_points(folder / "link_points.json", [point, dataclasses.replace(point, encoder="b", family="b")])
    page = write_link_page(link_folders(folder, replicates=20), tmp_path / "link.html").read_text()
    assert "Not measured here." in page
    early = [dataclasses.replace(point, checkpoint=1)]
    write_points(folder / "link_points.json", early)
    assert "No policy was rolled out" in write_link_page(link_folders(folder), tmp_path / "none.html").read_text()
    write_points(folder / "link_points.json", [])
    with pytest.raises(LatentGymError, match="found none"):
        link_folders(folder)


def test_damaged_rollouts_are_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "one")
    file = next(folder.rglob("rollouts.json"))
    write_json(file, {"records": [{}], "videos": []})
    with pytest.raises(CorruptDataError, match=file.parent.name):
        write_link_page(link_folders(folder, replicates=20), tmp_path / "link.html")


def test_the_command_prints_the_ranking_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["latentgym", "link", str(folder)])
    assert _run() == 0
    printed = capsys.readouterr().out
    assert "action_r2" in printed and "page: link.html" in printed
    assert (tmp_path / "link.html").is_file()
    (tmp_path / "link.html").unlink()
    monkeypatch.setattr("sys.argv", ["latentgym", "link", str(folder), "--json"])
    assert _run() == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"ranking", "rows", "disagreements"}
    assert found["ranking"][0]["proxy"] == "action_r2"
    assert not (tmp_path / "link.html").exists()
