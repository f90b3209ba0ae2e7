"""The link's page: which measure predicts control over any number of studies, and what lies behind each point."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentgym.artifacts import atomic_write, read_json
from latentgym.errors import CorruptDataError
from latentgym.rollouts.link import LinkPoint, LinkResult, analyse_link, read_studies, study_names
from latentgym.rollouts.link_disagreements import Disagreement, disagreements
from latentgym.rollouts.link_points import FILE_NAME, places_of, points_file
from latentgym.statistics import percentile_interval, success_interval
from latentgym.studies import summary
from latentgym.studies.config import ADAPTED_SUFFIX
from latentgym.studies.pages import data_uri, render_page, script_json
from latentgym.studies.report import link_tables
from latentgym.studies.wording import METRICS, label_env, label_metric, label_name

MAX_VIDEO_BYTES = 64 * 2**20
"""Videos beyond this size in all are left out of the page, which has to open in a browser."""
POOLED = "all"
NO_RANGE = "range unknown"


@dataclasses.dataclass(frozen=True)
class LinkStudies:
    """The link over several studies, and where they lie.

    Attributes:
        result: statistics and ranking.
        disagreements: what each proxy says and what the policy does, the largest disagreement first.
        paths: what was given, by the name of its study; one study alone has no name.
        folders: folder that a study's episodes lie in, by the name that its points carry; a study whose points were put
            into a file with others has none.
    """

    result: LinkResult
    disagreements: tuple[Disagreement, ...]
    paths: Mapping[str, Path]
    folders: Mapping[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the ranking first, then every statistic, then the disagreements."""
        return {
            "ranking": [dataclasses.asdict(item) for item in self.result.ranking],
            "rows": [dataclasses.asdict(row) for row in self.result.rows],
            "disagreements": [dataclasses.asdict(item) for item in self.disagreements],
        }


def link_folders(*paths: str | Path, seed: int = 0, replicates: int = 2000) -> LinkStudies:
    """The link over any number of studies, with the disagreements between probe and policy.

    Args:
        paths: study folders, or their ``link_points.json``.
        seed: seed of bootstraps and permutations.
        replicates: number of bootstrap replicates and permutations.

    Raises:
        LatentGymError: if a study is given twice, or none holds a point.
        CorruptDataError: if a file is missing or damaged.
    """
    points = read_studies(paths)
    names = study_names(paths) if len(paths) > 1 else [""]
    given = dict(zip(names, map(Path, paths), strict=True))
    result = analyse_link(points, seed=seed, replicates=replicates)
    return LinkStudies(result, tuple(disagreements(points, seed=seed)), given, _folders(given))


def _folders(given: Mapping[str, Path]) -> dict[str, Path]:
    """Folders of episodes: of several files in one folder, only the study's own has its episodes there."""
    files = {name: points_file(path) for name, path in given.items()}
    shared = Counter(file.parent.resolve() for file in files.values())
    return {
        name: file.parent
        for name, file in files.items()
        if file.name == FILE_NAME or shared[file.parent.resolve()] == 1
    }


def write_link_page(link: LinkStudies, path: Path) -> Path:
    """Write the page as one file that opens offline; it appears whole or not at all.

    Args:
        link: what :func:`link_folders` found.
        path: file to write or replace.

    Returns:
        ``path``.
    """
    atomic_write(path, render_page("link.html.j2", _context(link)))
    return path


def _context(link: LinkStudies) -> dict[str, Any]:
    """Everything that the template shows."""
    rows = [dataclasses.asdict(row) for row in link.result.rows]
    points = [point for point in link.result.points if point.checkpoint is None]
    tables = link_tables(rows)
    places = _Places(link, points).described()
    proxies = [item.proxy for item in link.result.ranking if item.scope == "all"]
    data = {
        "places": places,
        "proxies": [
            {"name": name, "label": label_metric(name), "digits": METRICS.get(name, ("", "", 2))[2]} for name in proxies
        ],
    }
    pooled = POOLED if any(row["env"] == POOLED for row in rows) else next((row["env"] for row in rows), POOLED)
    return {
        "studies": {name or points_file(path).parent.resolve().name: str(path) for name, path in link.paths.items()},
        "answer": summary.answer(rows),
        "counts": {
            "places": len(places),
            "encoders": len({point.encoder for point in points}),
            "families": len({point.family for point in points}),
            "runs": len({(point.study, point.encoder, point.seed) for point in points}),
            "rollouts": sum(len(outcomes) for point in points for outcomes in point.success),
        },
        "rankings": _rankings(link.result, tables, pooled),
        "pooled": pooled,
        "tables": [table for table in tables if table["env"] != pooled],
        "proxies": proxies,
        "clear": sum(item.clear for item in link.disagreements if item.proxy == "action_r2"),
        "left_out": sum(place["left_out"] for place in places),
        "data": script_json(data),
    }


def _rankings(result: LinkResult, tables: Sequence[Mapping[str, Any]], pooled: str) -> list[dict[str, Any]]:
    """One table per scope over all places: proxies in order, each with the cells of its statistics."""
    found = []
    for table in tables:
        lines = [item for item in result.ranking if item.scope == table["scope"]]
        if table["env"] == pooled and lines:
            cells = [(item, table["proxies"].get(item.proxy, {})) for item in lines]
            found.append({**table, "lines": cells})
    return found


class _Places:
    """The page's places: every run's proxies, ranks, outcomes and videos, as JSON types."""

    def __init__(self, link: LinkStudies, points: Sequence[LinkPoint]) -> None:
        self._link, self._places = link, places_of(points)
        self._said = {(item.place, item.encoder, item.seed, item.proxy): item for item in link.disagreements}
        self._episodes = {name: _episodes_of(folder) for name, folder in link.folders.items()}
        self._room = MAX_VIDEO_BYTES

    def described(self) -> list[dict[str, Any]]:
        """Places in order, each with its lines, the most successful first."""
        return [self._place(label, points) for label, points in self._places.items()]

    def _place(self, label: str, points: Sequence[LinkPoint]) -> dict[str, Any]:
        study, env = points[0].study, points[0].env
        filmed = self._episodes.get(study, {}).get(env, {})
        lines = [self._line(label, point, filmed) for point in points]
        lines.sort(key=lambda line: -line["success"]["value"])
        ours = {point.encoder for point in points}
        others = [self._other(name, runs) for (name, _), runs in filmed.items() if name not in ours]
        seeds = next((episodes.seeds for runs in filmed.values() for episodes in runs.values()), [])
        all_lines = [*lines, *sorted(others, key=lambda line: -line["success"]["value"])]
        return {
            "label": label,
            "title": label_env(label),
            "seeds": seeds,
            "lines": all_lines,
            "left_out": sum(line.pop("left_out") for line in all_lines),
        }

    def _line(self, place: str, point: LinkPoint, filmed: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
        runs = filmed.get((point.encoder, point.seed), {})
        proxies = {name: self._proxy(place, point, name) for name in point.proxies}
        identity: dict[str, Any] = {"name": label_name(point.encoder), "family": point.family, "run": point.seed}
        return identity | {
            "reference": point.reference,
            "parameters": point.parameters,
            "proxies": proxies,
            "success": _success(point.success),
            "outcomes": ["".join(map(str, outcomes)) for outcomes in point.success],
            **self._videos(runs),
        }

    def _proxy(self, place: str, point: LinkPoint, name: str) -> dict[str, Any]:
        low, high = percentile_interval(point.proxy_replicates.get(name, []))
        found: dict[str, Any] = {"value": point.proxies[name], "low": low, "high": high}
        said = self._said.get((place, point.encoder, point.seed, name))
        if said is not None:
            found |= {"rank": said.rank, "n": said.n, "clear": said.clear, "success_rank": said.success_rank}
            ends = {"rank_low": said.low, "rank_high": said.high}
            ends |= {"success_low": said.success_low, "success_high": said.success_high}
            # The page shows equal ends once.
            found |= {key: NO_RANGE if end is None else end for key, end in ends.items()}
        return found

    def _other(self, name: str, runs: Mapping[int | None, _Episodes]) -> dict[str, Any]:
        """A policy beside the link: expert, baselines, and encoders that read no pixels."""
        outcomes = [[int(won) for won in episodes.outcomes] for _, episodes in sorted(runs.items(), key=str)]
        return {
            "name": label_name(name),
            "family": "reference",
            "run": 0,
            "reference": False,
            "parameters": 0,
            "proxies": {},
            "success": _success(outcomes),
            "outcomes": ["".join(map(str, row)) for row in outcomes],
            **self._videos(runs),
        }

    def _videos(self, runs: Mapping[int | None, _Episodes]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        left_out = 0
        for policy_seed, episodes in sorted(runs.items(), key=str):
            for path in episodes.videos:
                outcome, _, seed = path.stem.partition("-")
                size = path.stat().st_size if path.is_file() else 0
                if not size:
                    continue
                if size > self._room:
                    left_out += 1
                    continue
                self._room -= size
                uri = data_uri(path)
                found.append({"seed": seed, "success": outcome == "success", "policy_seed": policy_seed, "uri": uri})
        return {"videos": found, "left_out": left_out}


def _success(outcomes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rate and counts over policy seeds, with Wilson's interval, or one that crosses several policy seeds."""
    successes, n = sum(sum(row) for row in outcomes), sum(len(row) for row in outcomes)
    low, high = success_interval(outcomes)
    return {"value": successes / n, "low": low, "high": high, "successes": successes, "n": n}


@dataclasses.dataclass(frozen=True)
class _Episodes:
    """Rollouts of one policy: seeds as text (they exceed what a browser's numbers hold), outcomes, video files."""

    seeds: list[str]
    outcomes: list[bool]
    videos: list[Path]


def _episodes_of(folder: Path) -> dict[str, dict[tuple[str, int], dict[int | None, _Episodes]]]:
    """Episodes of a study's final checkpoints and baselines, by environment, (encoder, run) and policy seed.

    Empty where the folder holds points alone.
    """
    if not (folder / "run.json").is_file():
        return {}
    run = read_json(folder / "run.json")
    found: dict[str, dict[tuple[str, int], dict[int | None, _Episodes]]] = {}
    try:
        for entry in _rollout_entries(run):
            file = folder / entry["folder"] / "rollouts.json"
            if entry.get("checkpoint") is None and entry.get("condition") is None and file.is_file():
                runs = found.setdefault(entry["env"], {}).setdefault((entry["encoder"], entry["seed"]), {})
                runs[entry["policy_seed"]] = _read_episodes(file)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptDataError(
            f"{folder / 'run.json'} does not say where the study's rollouts lie ({error!r}); let the study write it "
            f"again, or give its {FILE_NAME} in a folder of its own"
        ) from error
    return found


def _rollout_entries(run: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Where rollouts lie; studies that did not write it down yet filmed one run of each policy."""
    if "rollouts" in run:
        yield from run["rollouts"]
        return
    first = {env: suite["pretraining_seeds"][0] for suite in run["config"]["suites"] for env in suite["envs"]}
    trained = {*run["config"]["objectives"], "random"}
    for video in run.get("videos") or []:
        seed = first.get(video["env"], 0) if video["encoder"].partition(ADAPTED_SUFFIX)[0] in trained else 0
        place: dict[str, Any] = {"env": video["env"], "encoder": video["encoder"], "seed": seed, "policy_seed": 0}
        yield place | {"folder": str(Path(video["path"]).parent.parent)}


def _read_episodes(file: Path) -> _Episodes:
    data = read_json(file)
    try:
        records = data["records"]
        seeds = [str(record["seed"]) for record in records]
        videos = [file.parent / "videos" / name for name in data["videos"]]
        return _Episodes(seeds, [bool(record["success"]) for record in records], videos)
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{file} holds no rollouts: {error!r}") from error
