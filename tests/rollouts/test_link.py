from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgym.artifacts import write_json
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.rollouts import LinkPoint, LinkRow, analyse_link, link, link_studies, read_points, write_points
from latentgym.rollouts.link import read_studies, study_names
from latentgym.rollouts.link_samples import Samples, draw_samples
from latentgym.statistics import mean_maximum_rank_violation, spearman

SMALL = 300


def study(
    seed: int,
    *,
    strength: float,
    families: int = 9,
    runs: int = 1,
    envs: int = 3,
    rollouts: int = 100,
    checkpoints: tuple[int | None, ...] = (None,),
) -> list[LinkPoint]:
    """Families with a planted quality; ``strength`` is the share of it that the proxy ``r2`` sees."""
    rng = np.random.default_rng(seed)
    quality = rng.permutation(np.linspace(-2, 2, families))
    points = []
    for env in range(envs):
        for family in range(families):
            # What the proxy sees instead of the quality belongs to the family as well.
            other = np.random.default_rng((seed, family)).normal() * 1.3
            for run in range(runs):
                for checkpoint in checkpoints:
                    rate = 1 / (1 + np.exp(-quality[family] - 0.1 * rng.normal()))
                    proxy = strength * quality[family] + (1 - strength) * other + 0.05 * rng.normal()
                    points.append(
                        LinkPoint(
                            env=f"env{env}",
                            encoder=f"encoder{family}",
                            family=f"family{family}",
                            seed=run,
                            checkpoint=checkpoint,
                            reference=family == 0,
                            parameters=1000,
                            proxies={"r2": proxy, "psnr_db": float(rng.normal())},
                            proxy_replicates={"r2": [proxy + 0.02 * rng.normal() for _ in range(50)]},
                            success=[(rng.random(rollouts) < rate).astype(int).tolist()],
                        )
                    )
    return points


def find(rows: list[LinkRow], statistic: str, proxy: str = "r2", env: str = "all", scope: str = "all") -> LinkRow:
    (row,) = [row for row in rows if (row.proxy, row.env, row.scope, row.statistic) == (proxy, env, scope, statistic)]
    return row


def test_a_planted_link_is_found() -> None:
    rows = link(study(0, strength=1.0), replicates=SMALL)
    for statistic in ("spearman", "kendall", "pearson", "partial_spearman", "mmrv"):
        row = find(rows, statistic)
        assert row.verdict == "positive", row
        assert row.n_encoders == 9
    assert find(rows, "spearman").value == pytest.approx(1, abs=0.08)
    assert find(rows, "pearson").low > 0.7  # type: ignore[operator]
    # Nine families: chance alone picks the best one too often for any verdict, but the loss is small.
    regret, null = find(rows, "regret"), find(rows, "regret_null")
    assert regret.value is not None and null.value is not None
    assert regret.value < 0.05 < null.value
    reliability = find(rows, "split_half_reliability", proxy="success_rate")
    assert reliability.value is not None and reliability.value > 0.9


def test_a_perfect_link_is_one() -> None:
    points = [
        LinkPoint(
            env="e",
            encoder=str(i),
            family=str(i),
            proxies={"r2": float(i)},
            success=[[1] * (5 + 15 * i) + [0] * (95 - 15 * i)],
        )
        for i in range(6)
    ]
    rows = link(points, replicates=SMALL)
    for statistic in ("spearman", "kendall"):
        assert find(rows, statistic, env="e").value == pytest.approx(1)
    assert find(rows, "mmrv", env="e").value == 0
    # One environment is not averaged with itself.
    assert {row.env for row in rows} == {"e"}


def test_partial_correlations_count_the_encoders_that_they_rest_on() -> None:
    rng = np.random.default_rng(0)

    def partial(encoders: int, with_psnr: int) -> LinkRow:
        points = [
            LinkPoint(
                env="e", encoder=str(i), family=str(i), parameters=1000 + int(rng.integers(500)),
                proxies={"r2": float(rng.normal())} | ({"psnr_db": float(rng.normal())} if i < with_psnr else {}),
                success=[(rng.random(40) < 0.2 + 0.1 * i).astype(int).tolist()],
            )
            for i in range(encoders)
        ]  # fmt: skip
        return find(link(points, replicates=SMALL), "partial_spearman", env="e")

    # Four encoders and two covariates leave a single dimension, in which every correlation is 1 or -1.
    assert partial(4, with_psnr=4).value is None
    assert partial(6, with_psnr=3).value is None
    found = partial(7, with_psnr=6)
    assert found.n_encoders == 6 and found.value is not None and abs(found.value) < 1


def test_a_reversed_link_is_negative() -> None:
    points = [
        dataclasses.replace(point, proxies={"r2": -point.proxies["r2"]}, proxy_replicates={})
        for point in study(1, strength=1.0)
    ]
    rows = link(points, replicates=SMALL)
    assert {find(rows, name).verdict for name in ("spearman", "kendall", "pearson", "mmrv")} == {"negative"}
    assert find(rows, "regret").value > find(rows, "regret_null").value  # type: ignore[operator]


def test_no_link_is_mostly_inconclusive() -> None:
    verdicts: dict[str, Counter[str]] = {"spearman": Counter(), "mmrv": Counter(), "regret": Counter()}
    for seed in range(25):
        rows = link(study(seed, strength=0.0, runs=2, envs=1, rollouts=50), replicates=150)
        for statistic, counter in verdicts.items():
            counter[find(rows, statistic, env="env0").verdict] += 1
    for statistic, counter in verdicts.items():
        assert counter["inconclusive"] >= 20, (statistic, counter)


def test_few_encoders_are_never_conclusive() -> None:
    rows = link(study(0, strength=1.0, families=3, runs=4), replicates=50)
    assert {row.verdict for row in rows} == {"too few encoders"}
    assert {(row.low, row.high) for row in rows} == {(None, None)}
    assert find(rows, "spearman").n_encoders == 3


def test_runs_of_one_family_are_no_independent_evidence() -> None:
    # Four families with ten runs each hold no more than four values of quality.
    many = find(link(study(3, strength=0.7, families=4, runs=10, envs=1), replicates=SMALL), "spearman", env="env0")
    few = find(link(study(3, strength=0.7, families=12, runs=1, envs=1), replicates=SMALL), "spearman", env="env0")
    widths = [row.high - row.low for row in (many, few)]  # type: ignore[operator]
    assert widths[0] > 0.8 * widths[1]


def test_the_supervised_reference_is_reported_in_and_out() -> None:
    points = study(4, strength=1.0)
    rows = link(points, replicates=50)
    out = find(rows, "spearman", scope="all without the supervised reference")
    assert out.n_encoders == 8
    rest = [point for point in points if not point.reference]
    assert find(link(rest, replicates=50), "spearman").value == out.value
    assert {row.scope for row in link(rest, replicates=50)} == {"all"}


def test_intermediate_checkpoints_stay_out_of_the_headline() -> None:
    points = study(5, strength=1.0, checkpoints=(None, 100, 200))
    rows = link(points, replicates=50)
    final = link([point for point in points if point.checkpoint is None], replicates=50)
    assert [row for row in rows if row.scope != "all with intermediate checkpoints"] == final
    assert find(rows, "spearman", scope="all with intermediate checkpoints").n_encoders == 9


def test_values_are_averages_of_each_environment_alone() -> None:
    points = study(6, strength=0.6)
    rows = link(points, replicates=50)
    for name, statistic in (
        ("spearman", spearman),
        ("mmrv", lambda x, y: mean_maximum_rank_violation(proxy=x, success=y)),
    ):
        per_env = []
        for env in ("env0", "env1", "env2"):
            there = [point for point in points if point.env == env]
            x, y = [p.proxies["r2"] for p in there], [np.mean(p.success) for p in there]
            per_env.append(statistic(x, y))
            assert find(rows, name, env=env).value == pytest.approx(per_env[-1])
        assert find(rows, name).value == pytest.approx(np.mean(per_env))


def test_leave_one_family_out_is_a_range() -> None:
    points = study(7, strength=0.6, envs=1)
    row = find(link(points, replicates=50), "spearman_leave_one_family_out", env="env0")
    values = []
    for family in {point.family for point in points}:
        rest = [point for point in points if point.family != family]
        values.append(spearman([p.proxies["r2"] for p in rest], [np.mean(p.success) for p in rest]))
    assert (row.low, row.high) == pytest.approx((min(values), max(values)))
    assert row.verdict == "range"


def test_equal_seeds_give_equal_rows_and_order_does_not_matter_to_values() -> None:
    points = study(8, strength=0.6)
    rows = link(points, seed=3, replicates=50)
    assert link(points, seed=3, replicates=50) == rows
    shuffled = link(points[::-1], seed=3, replicates=50)
    assert find(shuffled, "spearman").value == pytest.approx(find(rows, "spearman").value)
    assert find(link(points, seed=4, replicates=50), "spearman").low != find(rows, "spearman").low


def test_an_undefined_statistic_is_none() -> None:
    points = [
        LinkPoint(env="e", encoder=str(i), family=str(i), proxies={"r2": float(i)}, success=[[1, 1]]) for i in range(5)
    ]
    row = find(link(points, replicates=20), "spearman", env="e")
    assert (row.value, row.low, row.high, row.verdict) == (None, None, None, "inconclusive")


def test_a_task_that_nobody_solves_does_not_make_proxies_look_better() -> None:
    points = study(6, strength=0.6, envs=2)
    unsolved = [dataclasses.replace(p, env="env9", success=[[0] * 20]) for p in points if p.env == "env0"]
    alone, rows = link(points, replicates=50), link([*points, *unsolved], replicates=50)
    for statistic in ("mmrv", "regret", "mmrv_null", "spearman"):
        assert find(rows, statistic).value == pytest.approx(find(alone, statistic).value)
    assert find(rows, "mmrv", env="env9").value is None


def test_encoders_may_miss_in_some_environments() -> None:
    points = [
        p for p in study(9, strength=1.0) if (p.env, p.encoder) not in {("env1", "encoder3"), ("env2", "encoder5")}
    ]
    rows = link(points, replicates=50)
    assert find(rows, "spearman", env="env1").n_encoders == 8
    assert find(rows, "spearman").n_encoders == 9


def test_policy_seeds_are_averaged() -> None:
    points = [dataclasses.replace(p, success=[p.success[0], [0] * len(p.success[0])]) for p in study(0, strength=1.0)]
    (sample, *_) = draw_samples(points, seed=0, replicates=40)
    assert sample.success == pytest.approx([np.mean(p.success) for p in points if p.env == "env0"])
    spread = np.nanstd(sample.drawn_success)
    (single, *_) = draw_samples(study(0, strength=1.0), seed=0, replicates=40)
    assert spread > 0
    assert np.nanmean(sample.drawn_success) < np.nanmean(single.drawn_success)


def test_the_null_exchanges_whole_families() -> None:
    points = study(0, strength=1.0, families=4, runs=3, envs=1)
    (sample,) = draw_samples(points, seed=0, replicates=30)
    families = np.array([int(p.family[-1]) for p in points], float)
    for row in sample.permuted(families):
        blocks = row.reshape(4, 3)
        assert (blocks == blocks[:, :1]).all()
        assert sorted(blocks[:, 0]) == [0, 1, 2, 3]


def test_points_survive_their_file_and_studies_can_be_joined(tmp_path: Path) -> None:
    points = study(0, strength=1.0, envs=1)
    write_points(tmp_path / "link_points.json", points)
    assert read_points(tmp_path) == points == read_points(tmp_path / "link_points.json")
    assert list(link_studies(tmp_path, replicates=20).rows) == link(points, replicates=20)


def test_encoders_are_compared_within_their_study_alone(tmp_path: Path) -> None:
    # The second study is easier and its proxy higher: across studies the two would agree, within one they do not.
    first = [dataclasses.replace(p, proxies={"r2": -p.proxies["r2"]}, proxy_replicates={}) for p in planted(0)]
    second = [dataclasses.replace(p, proxies={"r2": -p.proxies["r2"] + 100}, proxy_replicates={}) for p in planted(1)]
    second = [dataclasses.replace(p, success=[[1] * 900 + p.success[0]]) for p in second]
    for name, points in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        write_points(tmp_path / name / "link_points.json", points)
    rows = list(link_studies(tmp_path / "one", tmp_path / "two", replicates=100).rows)
    assert {row.env for row in rows if row.statistic == "spearman"} == {
        "env0 (one)", "env1 (one)", "env0 (two)", "env1 (two)", "all (one)", "all (two)", "all",
    }  # fmt: skip
    assert {find(rows, "spearman", env=env).value < -0.9 for env in ("env0 (two)", "all")} == {True}  # type: ignore[operator]
    alone = link(first, replicates=100)
    assert find(rows, "spearman", env="all (one)").value == find(alone, "spearman").value
    assert find(rows, "spearman").n_encoders == 9


def planted(seed: int) -> list[LinkPoint]:
    return study(seed, strength=1.0, envs=2, rollouts=200)


def test_families_are_resampled_for_all_studies_together() -> None:
    first = [dataclasses.replace(p, study="a") for p in study(0, strength=1.0, runs=2, envs=1)]
    second = [dataclasses.replace(p, study="b") for p in study(1, strength=1.0, runs=3, envs=1)]
    here, there = draw_samples([*first, *second], seed=0, replicates=40)
    for ours, theirs in zip(here.take(family_numbers(here)), there.take(family_numbers(there)), strict=True):
        drawn = [Counter(row[np.isfinite(row)].tolist()) for row in (ours, theirs)]
        # Every drawn family is there with as many runs as it has in the study.
        assert {family: count / 2 for family, count in drawn[0].items()} == {
            family: count / 3 for family, count in drawn[1].items()
        }


def family_numbers(sample: Samples) -> np.ndarray:
    return np.array([float(family[6:]) for family in sample.families])


def test_studies_may_differ_in_their_families() -> None:
    first = [dataclasses.replace(p, study="a") for p in study(0, strength=0.4, families=6)]
    second = [
        dataclasses.replace(p, study="b", family=f"other {p.family}")
        for p in study(1, strength=0.4, families=5, envs=1)
    ]
    rows = link([*first, *second], replicates=50)
    assert find(rows, "spearman", env="env0 (b)").n_encoders == 5
    left_out = find(rows, "spearman_leave_one_family_out")
    assert left_out.low is not None and left_out.high is not None and left_out.low < left_out.high
    assert find(rows, "mmrv_null").low is not None


def test_a_study_counts_once(tmp_path: Path) -> None:
    undefined = {"r2": [0.5, math.nan]}
    for name in ("one", "copy"):
        (tmp_path / name).mkdir()
        points = [dataclasses.replace(point, proxy_replicates=undefined) for point in planted(0)]
        write_points(tmp_path / name / "link_points.json", points)
    with pytest.raises(LatentGymError, match="same results"):
        link_studies(tmp_path / "one", tmp_path / "copy")


def test_studies_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/study", "b/study", "c")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert study_names(folders[:2]) == ["a/study", "b/study"]
    assert study_names([folders[0] / "link_points.json", folders[2]]) == ["study", "c"]
    files = [folders[2] / name for name in ("one.json", "two.json", "two.txt")]
    assert study_names(files[:2]) == ["c/one", "c/two"]
    above = tmp_path.name
    assert study_names([*files[:2], *folders[:2]]) == [f"{above}/c/one", f"{above}/c/two", "a/study", "b/study"]
    assert study_names([folders[2], files[0]]) == ["c/link_points", "c/one"]
    assert len(set(study_names(files))) == 3


def halves_of(points: list[LinkPoint]) -> tuple[list[LinkPoint], list[LinkPoint]]:
    """Two studies of the same tasks that have no encoder in common."""
    first = [point for point in points if int(point.family[6:]) < 4]
    return first, [point for point in points if int(point.family[6:]) >= 4]


def places(*paths: Path) -> dict[str, int]:
    """Encoders that are compared with each other, by place."""
    rows = link_studies(*paths, replicates=20).rows
    chosen = [row for row in rows if (row.proxy, row.scope, row.statistic) == ("r2", "all", "spearman")]
    return {row.env: row.n_encoders for row in chosen if not row.env.startswith("all")}


def test_studies_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for name, points in zip(("a", "b"), halves_of(study(0, strength=1.0, envs=1)), strict=True):
        write_points(folder / f"{name}.json", points)
    assert places(folder / "a.json", folder / "b.json") == {"env0 (same/a)": 4, "env0 (same/b)": 5}


def test_studies_in_one_file_are_kept_apart(tmp_path: Path) -> None:
    for name, points in zip(("A", "B"), halves_of(study(0, strength=1.0, envs=1)), strict=True):
        (tmp_path / name).mkdir()
        write_points(tmp_path / name / "link_points.json", points)
    (tmp_path / "both").mkdir()
    both = tmp_path / "both" / "points.json"
    write_points(both, read_studies([tmp_path / "A", tmp_path / "B"]))
    assert places(both) == places(tmp_path / "A", tmp_path / "B") == {"env0 (A)": 4, "env0 (B)": 5}
    (tmp_path / "C").mkdir()
    write_points(tmp_path / "C" / "link_points.json", study(1, strength=1.0, envs=1))
    assert places(both, tmp_path / "C") == {"env0 (both/A)": 4, "env0 (both/B)": 5, "env0 (C)": 9}
    with pytest.raises(LatentGymError, match="same results"):
        read_studies([both, tmp_path / "A"])


def test_studies_that_come_under_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("p/X", "q/X"):
        (tmp_path / folder).mkdir(parents=True)
    inner = [dataclasses.replace(point, study="a") for point in study(0, strength=1.0, envs=1)]
    write_points(tmp_path / "p/X/link_points.json", inner)
    write_points(tmp_path / "q/X/a.json", study(1, strength=1.0, envs=1))
    write_points(tmp_path / "q/X/b.json", study(2, strength=1.0, envs=1))
    with pytest.raises(LatentGymError, match="under the name 'X/a'"):
        read_studies([tmp_path / "p/X", tmp_path / "q/X/a.json", tmp_path / "q/X/b.json"])


def test_proxies_are_ranked_and_the_rank_has_a_range() -> None:
    points = []
    for point in study(2, strength=1.0, families=12):
        r2 = point.proxies["r2"]
        noise = float(np.random.default_rng(int(point.family[6:]) + 50).normal())
        proxies = {"good": r2, "noisy": r2 + 1.5 * noise, "bad": -r2, "rare": r2}
        if point.family not in ("family0", "family1", "family2"):
            del proxies["rare"]
        points.append(dataclasses.replace(point, proxies=proxies, proxy_replicates={}))
    ranking = [item for item in analyse_link(points, replicates=SMALL).ranking if item.scope == "all"]
    assert [(item.proxy, item.rank) for item in ranking] == [("good", 1), ("noisy", 2), ("bad", 3), ("rare", None)]
    good, noisy, bad, rare = ranking
    assert {item.n_proxies for item in ranking} == {3}
    assert (bad.low, bad.high, bad.best_share) == (3, 3, 0.0)
    assert good.low == 1 and good.best_share + noisy.best_share == pytest.approx(1)  # type: ignore[operator]
    assert good.ranks == {"spearman": 1, "kendall": 1, "pearson": 1, "mmrv": 1, "regret": 1}
    assert rare.best_share is None


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match="missing"):
        read_points(tmp_path)
    for text in ("{}", "[1]", '{"schema": 1}', '{"schema": 1, "points": [3]}', '{"schema": 2, "points": []}', "["):
        (tmp_path / "link_points.json").write_text(text)
        with pytest.raises(CorruptDataError, match=r"link_points\.json"):
            read_points(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("proxies", None, "proxies"),
        ("proxies", {"r2": None}, r"proxies\['r2'\]"),
        ("proxies", {"r2": "high"}, r"proxies\['r2'\]"),
        ("proxies", {"r2": True}, r"proxies\['r2'\]"),
        ("proxies", {"r2": math.nan}, r"proxies\['r2'\]"),
        ("proxies", {"r2": 10**400}, r"proxies\['r2'\]"),
        ("proxy_replicates", [], "proxy_replicates"),
        ("proxy_replicates", {"r2": []}, r"proxy_replicates\['r2'\]"),
        ("proxy_replicates", {"r2": 0.5}, r"proxy_replicates\['r2'\]"),
        ("proxy_replicates", {"r2": [0.5, None]}, r"proxy_replicates\['r2'\]"),
        ("parameters", None, "parameters"),
        ("parameters", -1, "parameters"),
        ("env", None, "env"),
        ("encoder", 3, "encoder"),
        ("family", ["f"], "family"),
        ("study", None, "study"),
        ("seed", "0", "seed"),
        ("checkpoint", 1.5, "checkpoint"),
        ("reference", 1, "reference"),
        ("success", 5, "success"),
        ("success", [], "success"),
        ("success", [[]], "success"),
        ("success", [[1, 0], [1]], "success"),
        ("success", [[0.5, 1]], "success"),
        ("success", [[[1], 0]], "success"),
        ("success", [[True, False]], "success"),
        ("colour", "red", "colour"),
    ],
)
def test_damaged_points_are_named(tmp_path: Path, field: str, value: object, named: str) -> None:
    written = [dataclasses.asdict(point) for point in planted(0)[:3]]
    written[1][field] = value
    write_json(tmp_path / "link_points.json", {"schema": 1, "points": written})
    with pytest.raises(CorruptDataError, match=rf"link_points\.json, point 2 \(.*\), field {named}: expected"):
        read_points(tmp_path)


def test_a_missing_field_is_named_and_undefined_replicates_are_none(tmp_path: Path) -> None:
    written = dataclasses.asdict(planted(0)[0])
    written["proxy_replicates"] = {"r2": [math.nan, 1, 0.5]}
    write_json(tmp_path / "link_points.json", {"schema": 1, "points": [written]})
    assert read_points(tmp_path)[0].proxy_replicates["r2"][1:] == [1, 0.5]
    del written["family"]
    write_json(tmp_path / "link_points.json", {"schema": 1, "points": [written]})
    with pytest.raises(CorruptDataError, match=r"point 1 .*, field family: expected a value, found none"):
        read_points(tmp_path)


def test_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="found none"):
        link([])
    write_points(tmp_path / "link_points.json", [])
    with pytest.raises(LatentGymError, match=f"found none in {tmp_path}"):
        link_studies(tmp_path)


def test_bad_points() -> None:
    with pytest.raises(LatentGymError, match="equally long"):
        LinkPoint(env="e", encoder="a", family="f", proxies={}, success=[[1, 0], [1]])
    with pytest.raises(LatentGymError, match="0 or 1"):
        LinkPoint(env="e", encoder="a", family="f", proxies={}, success=[[2]])
    point = study(0, strength=1.0)[0]
    with pytest.raises(LatentGymError, match="more than once"):
        link([point, point])


@pytest.mark.parametrize("wrong", ["runs/mine/link_points.json", [{"env": "e"}]])
def test_what_are_no_points_is_said(wrong: Any) -> None:
    with pytest.raises(LatentGymError, match=r"expected LinkPoints, found (str|dict); .*read_points"):
        link(wrong)
