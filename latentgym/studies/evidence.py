"""What a finished study says about one encoder family: one value per pretraining run, with its bootstrap replicates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from latentgym.artifacts import read_json
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.seeding import numpy_generator
from latentgym.studies.effects import Effect, effect_of_runs

Row = Mapping[str, Any]
Array = NDArray[np.float64]
REPLICATES_NAME = "claim_replicates.safetensors"
_HEADLINE = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro"}
# Metrics that claims rest on, and the columns of the one row that holds each.
METRICS: dict[str, dict[str, Any]] = {
    "action_r2": _HEADLINE,
    "corrupted_r2": _HEADLINE,
    "psnr_db": {"readout": "decoder"},
    "psnr_mean_image_db": {"readout": "decoder"},
}
BENCHMARKS = {"latentgym/Tabletop": "tabletop", "latentgym/Calvin": "calvin", "metaworld/": "metaworld"}
_SYNTHETIC = 400
_ROW_FIELDS = frozenset({"env", "encoder", "metric", "value"})
AGAIN = "run the study again, finished cells are kept"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The tasks of one suite.

    Attributes:
        name: ``"tabletop"``, ``"metaworld"``, ``"calvin"``, or the environments' namespace.
        suite: the suite's name, under which its decoders are reported.
        envs: environment ids.
        mixture: what drove the recorded episodes: behaviour policy and share of random actions.
    """

    name: str
    suite: str
    envs: tuple[str, ...]
    mixture: tuple[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """One number per pretraining run.

    Attributes:
        seeds: pretraining seed of each run.
        values: ``(S,)``.
        replicates: ``(S, R)`` over test episodes, paired across runs and encoders.
        episodes: number of test episodes.
    """

    seeds: tuple[int, ...]
    values: Array
    replicates: Array
    episodes: int

    def __sub__(self, other: Runs) -> Runs:
        """Differences between runs of one seed."""
        return self.combined(other, lambda mine, theirs: mine - theirs)

    def __add__(self, other: Runs) -> Runs:
        """Sums over runs of one seed."""
        return self.combined(other, lambda mine, theirs: mine + theirs)

    def __mul__(self, factor: float) -> Runs:
        """The runs in another unit."""
        return dataclasses.replace(self, values=self.values * factor, replicates=self.replicates * factor)

    def combined(self, other: Runs, rule: Any) -> Runs:
        """Apply ``rule`` to the values and replicates of the seeds that both have."""
        seeds = tuple(seed for seed in self.seeds if seed in other.seeds)
        mine, theirs = ([runs.seeds.index(seed) for seed in seeds] for runs in (self, other))
        return Runs(
            seeds,
            rule(self.values[mine], other.values[theirs]),
            rule(self.replicates[mine], other.replicates[theirs]),
            min(self.episodes, other.episodes),
        )

    def floored(self, floor: float) -> Runs:
        """No value below ``floor``."""
        return dataclasses.replace(
            self, values=np.maximum(self.values, floor), replicates=np.maximum(self.replicates, floor)
        )

    @property
    def effect(self) -> Effect:
        """Mean over the runs, with its uncertainty."""
        return effect_of_runs(self.values, self.replicates, self.episodes)


class Evidence:
    """Rows of a study, by encoder, benchmark and pretraining run.

    Args:
        rows: rows of ``results.json``.
        benchmarks: the study's suites.
        replicates: bootstrap replicates by `replicate_name`; where they are missing, draws around each row's value
            with the width of its interval stand in, unpaired, which makes intervals of differences wider.
        labelled: encoders that action labels trained.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        benchmarks: Sequence[Benchmark],
        replicates: Mapping[str, Array] | None = None,
        labelled: Collection[str] = (),
    ) -> None:
        self.labelled = frozenset(labelled)
        self.benchmarks = tuple(benchmarks)
        self.replicates = replicates or {}
        self._rows: dict[tuple[str, str, str, str | None], dict[int, Row]] = {}
        for row in rows:
            if row["value"] is not None and row.get("checkpoint") is None and is_evidence(row):
                key = (row["metric"], row["encoder"], row["env"], row.get("condition"))
                self._rows.setdefault(key, {})[int(row["seed"])] = row
        self.encoders = {encoder for _, encoder, _, _ in self._rows}

    def conditions(self) -> tuple[str, ...]:
        """Corruptions that were scored."""
        found = dict.fromkeys(c for metric, _, _, c in self._rows if metric == "corrupted_r2" and c is not None)
        return tuple(found)

    def runs(self, metric: str, encoder: str, benchmark: Benchmark, condition: str | None = None) -> Runs | None:
        """Values of the runs that have every task of the benchmark, averaged over tasks; ``None`` without any."""
        places = (benchmark.suite,) if metric.startswith("psnr") else benchmark.envs
        tables = [self._rows.get((metric, encoder, place, condition), {}) for place in places]
        seeds = tuple(sorted(set.intersection(*(set(table) for table in tables))))
        if not seeds:
            return None
        values = np.array([[float(table[seed]["value"]) for table in tables] for seed in seeds])
        drawn = [[self._drawn(table[seed]) for table in tables] for seed in seeds]
        size = min(len(one) for row in drawn for one in row)
        replicates = np.array([[one[:size] for one in row] for row in drawn])
        episodes = sum(int(table[seeds[0]].get("n") or 2) for table in tables)
        return Runs(seeds, values.mean(axis=1), replicates.mean(axis=1), episodes)

    def _drawn(self, row: Row) -> Array:
        name = replicate_name(row)
        if name in self.replicates:
            return self.replicates[name]
        if row.get("low") is None or row.get("high") is None:
            return np.full(_SYNTHETIC, float(row["value"]))
        rng = numpy_generator(0, "claims", name)
        drawn: Array = float(row["value"]) + (row["high"] - row["low"]) / 3.92 * rng.standard_normal(_SYNTHETIC)
        return drawn


def is_evidence(row: Row) -> bool:
    """Whether claims rest on a row."""
    wanted = METRICS.get(row["metric"])
    return wanted is not None and all(row.get(name) == value for name, value in wanted.items())


def replicate_name(row: Row) -> str:
    """Name of a row's replicates in ``claim_replicates.safetensors``."""
    parts = (row["metric"], row["encoder"], row["seed"], row["env"], row.get("condition") or "")
    return "|".join(str(part) for part in parts)


def benchmark_of(suite: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a suite as ``run.json`` has it."""
    first = suite["envs"][0]
    names = [name for prefix, name in BENCHMARKS.items() if first.startswith(prefix)]
    name = names[0] if names else first.partition("/")[0]
    return Benchmark(name, suite["name"], tuple(suite["envs"]), (suite["policy"], float(suite["random_fraction"])))


def read_evidence(folder: Path) -> Evidence:
    """Evidence of a finished study's folder.

    Raises:
        LatentGymError: if the folder holds no finished study.
        CorruptDataError: if a file of it is damaged.
    """
    folder = Path(folder)
    for name in ("results.json", "run.json"):
        if not (folder / name).is_file():
            raise LatentGymError(f"{folder} holds no finished study: {name} is missing; give the folder of `-o`")
    rows, run = read_results(folder / "results.json")["rows"], read_run(folder / "run.json")
    try:
        benchmarks = [benchmark_of(suite) for suite in run["config"]["suites"]]
        labelled = {item["name"] for item in run.get("encoders", ()) if item.get("trained_on_actions")}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(f"{folder / 'run.json'} is damaged ({error!r}); {AGAIN}") from error
    return Evidence(rows, benchmarks, _kept(folder / REPLICATES_NAME), labelled)


def read_results(path: Path) -> dict[str, Any]:
    """A study's ``results.json``.

    Raises:
        CorruptDataError: if it is missing or damaged, or a row lacks what every row has.
    """
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("rows"), list):
        raise CorruptDataError(f"{path} holds no study results: expected an object with 'rows'; {AGAIN}")
    for index, row in enumerate(results["rows"]):
        if problem := _row_problem(row):
            raise CorruptDataError(f"{path} is damaged: row {index} {problem}; {AGAIN}")
    return results


def _row_problem(row: Any) -> str:
    """What keeps a value from being a result's row; empty where nothing does."""
    if not isinstance(row, dict):
        return f"is {row!r}, expected an object"
    if missing := sorted(_ROW_FIELDS - row.keys()):
        return f"lacks {', '.join(missing)}"
    wrong = [name for name in ("value", "low", "high") if not _is_number(row.get(name))]
    return f"has as {wrong[0]} {row[wrong[0]]!r}, expected a number" if wrong else ""


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, or ``None`` for an undefined one."""
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def read_run(path: Path) -> dict[str, Any]:
    """A study's ``run.json``.

    Raises:
        CorruptDataError: if it is missing, damaged or no object.
    """
    run = read_json(path)
    if not isinstance(run, dict):
        raise CorruptDataError(f"{path} is damaged: expected an object, found {type(run).__name__}; {AGAIN}")
    return run


def _kept(path: Path) -> dict[str, Array] | None:
    """Bootstrap replicates by name; ``None`` where the study kept none."""
    return read_replicates(path) if path.is_file() else None


def read_replicates(path: Path) -> dict[str, Array]:
    """Bootstrap replicates by name.

    Raises:
        CorruptDataError: if the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(f"{path} is damaged ({error}); delete what holds it and run the study again") from error
