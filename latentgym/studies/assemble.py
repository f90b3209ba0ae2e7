"""From finished cells to a study's tidy rows, link points and link."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import read_json
from latentgym.probes.scores import Estimate, share
from latentgym.results import Row
from latentgym.rollouts.calvin_chains import CHAINS_ENV
from latentgym.rollouts.corruption import drop_rows, success_drops
from latentgym.rollouts.link import LinkPoint
from latentgym.statistics import holm, mcnemar, newcombe_interval, success_interval, wilson_interval
from latentgym.studies.cells import CHAINS_NAME
from latentgym.studies.config import ADAPTED_SUFFIX, TWIN_SUFFIX, StudyConfig
from latentgym.studies.engine import Cell
from latentgym.studies.evidence import is_evidence, read_replicates, replicate_name
from latentgym.studies.plan import EncoderUse, SuitePlan

_P_VALUE = "success_minus_random_p_value"
_ROLLOUTS_NAME = "rollouts.json"
# Every proxy that the link ranks: its name, and the row that holds it (metric, readout, input, k, subset).
PROXIES: dict[str, tuple[str, str | None, str | None, int | None, str | None]] = {
    "action_r2": ("action_r2", "ridge", "pair", 1, "all"),
    "action_r2_k4": ("action_r2", "ridge", "pair", 4, "all"),
    "action_r2_random_actions": ("action_r2_random_actions", "ridge", "pair", 1, "random_actions"),
    "action_r2_mlp": ("action_r2", "mlp", "pair", 1, "all"),
    "action_r2_mean_pooled": ("action_r2", "ridge_mean", "pair", 1, "all"),
    "pearson_r": ("pearson_r", "ridge", "pair", 1, "all"),
    "temporal_gain": ("temporal_gain", "ridge", "pair", 1, "all"),
    "single_frame_r2": ("single_frame_r2", "ridge", "single", 1, "all"),
    "selectivity": ("selectivity", "ridge", "pair", 1, "all"),
    "description_length": ("description_length_bits_saved", "ridge_mean", "pair", 1, "all"),
    "state_r2": ("state_r2", "ridge", "single", 1, "all"),
    "cloning_r2": ("cloning_r2", "policy", None, None, None),
    "psnr_db": ("psnr_db", "decoder", None, None, None),
}


@dataclasses.dataclass
class Measured:
    """Everything measured on one encoder in one environment.

    Attributes:
        use: the encoder.
        env: environment id.
        rows: rows of its cells.
        replicates: bootstrap replicates by the names of :func:`replicate_key`.
        success: outcomes by policy seed, on the study's initial states.
        corrupted: outcomes of the first policy seed under each corruption, on the same initial states.
        times: steps to success of the successes, by policy seed.
    """

    use: EncoderUse
    env: str
    rows: list[Row]
    replicates: dict[str, NDArray[np.float64]]
    success: dict[int, NDArray[np.bool_]]
    corrupted: dict[str, NDArray[np.bool_]] = dataclasses.field(default_factory=dict)
    times: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that name the encoder in a row."""
        family = self.rows[0].family if self.rows else self.use.name
        return {
            "env": self.env,
            "encoder": self.use.name,
            "family": family,
            "seed": self.use.seed,
            "checkpoint": self.use.checkpoint,
        }

    def value(self, proxy: str) -> float | None:
        """The proxy's value, averaged over policy seeds where there are several."""
        values = [row.value for row in self.rows if _is_proxy(row, proxy) and row.value is not None]
        return float(np.mean(values)) if values else None

    @property
    def action_r2(self) -> Estimate:
        """Action R² with its replicates; undefined where no window of one step was probed."""
        return Estimate(self.value("action_r2"), self.replicates.get(replicate_key("action_r2"), np.empty(0)))


def _is_proxy(row: Row, proxy: str) -> bool:
    metric, readout, frames, k, subset = PROXIES[proxy]
    found = (row.metric, row.readout, row.input, row.k, row.subset)
    wanted = (metric, readout, frames, k, subset)
    return row.dimension in (None, "macro") and all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def replicate_key(proxy: str) -> str:
    """Name of a proxy's bootstrap replicates in a cell's ``replicates.safetensors``."""
    metric, readout, frames, k, subset = PROXIES[proxy]
    return "|".join(str(part) for part in (metric, readout, frames, k, subset) if part is not None)


def read_rows(path: Path) -> list[Row]:
    """Rows as a cell wrote them."""
    return [Row(**item) for item in read_json(path)]


def measure(plan: SuitePlan, root: Path) -> list[Measured]:
    """Gather what the cells of a suite measured, encoder by encoder and environment by environment."""
    fidelity = {(use.name, use.seed): cell.folder(root) for use, cell in plan.fidelity}
    success: dict[tuple[str, str, int, int | None], dict[int, NDArray[np.bool_]]] = {}
    times: dict[tuple[str, str, int, int | None], dict[int, list[int]]] = {}
    for use, env, policy_seed, cell in plan.rollouts:
        key = (use.name, env, use.seed, use.checkpoint)
        success.setdefault(key, {})[policy_seed] = _read_outcomes(cell.folder(root))
        times.setdefault(key, {})[policy_seed] = _read_times(cell.folder(root))
    corrupted: dict[tuple[str, str, int, int | None], dict[str, NDArray[np.bool_]]] = {}
    for use, env, _, condition, cell in plan.corrupted:
        key = (use.name, env, use.seed, use.checkpoint)
        corrupted.setdefault(key, {})[condition] = _read_outcomes(cell.folder(root))
    measured = []
    for use, env, cell in plan.offline:
        rows = read_rows(cell.folder(root) / "rows.json")
        replicates = dict(read_replicates(cell.folder(root) / "replicates.safetensors"))
        decoded = fidelity.get((use.name, use.seed)) if use.checkpoint is None else None
        if decoded is not None:
            rows += read_rows(decoded / "rows.json")
            replicates |= read_replicates(decoded / "replicates.safetensors")
        key = (use.name, env, use.seed, use.checkpoint)
        measured.append(
            Measured(use, env, rows, replicates, success.get(key, {}), corrupted.get(key, {}), times.get(key, {}))
        )
    return measured


def _read_outcomes(folder: Path) -> NDArray[np.bool_]:
    return np.array([record["success"] for record in read_json(folder / _ROLLOUTS_NAME)["records"]], bool)


def _read_times(folder: Path) -> list[int]:
    """Steps to success of the successes."""
    found = [record["time_to_success"] for record in read_json(folder / _ROLLOUTS_NAME)["records"]]
    return [int(time) for time in found if time is not None]


def _time_row(identity: Mapping[str, Any], times: Sequence[int], policy_seed: int | None) -> Row:
    """The median number of steps to success among the successes, undefined without one."""
    value = float(np.median(times)) if times else None
    return Row(
        **identity, metric="time_to_success_steps", readout="policy", policy_seed=policy_seed, value=value, n=len(times)
    )


def all_rows(plan: SuitePlan, measured: Sequence[Measured], root: Path, config: StudyConfig) -> list[Row]:
    """Every row of a suite: measured ones, then those that compare encoders."""
    rows = [row for env, cell in plan.floors for row in read_rows(cell.folder(root) / "rows.json")]
    decoded: set[tuple[str, int]] = set()
    for item in measured:
        first = (item.use.name, item.use.seed) not in decoded
        decoded.add((item.use.name, item.use.seed))
        rows += [row for row in item.rows if row.readout != "decoder" or (first and item.use.checkpoint is None)]
        rows += list(_success_rows(item, config.seed))
        rows += _corrupted_rows(item)
    rows += _adjusted([row for item in measured for row in _comparisons(item, measured)])
    rows += list(_baseline_rows(plan, root))
    rows += list(_chain_rows(plan, measured, root))
    rows += list(_crash_rows(plan, measured, root))
    return rows


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """The rows, their p-values adjusted by Holm over every comparison on the same task."""
    families: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row.metric == _P_VALUE:
            families.setdefault(row.env, []).append(place)
    found = list(rows)
    for places in families.values():
        values = holm([rows[place].value or 0.0 for place in places]).tolist()
        for place, value in zip(places, values, strict=True):
            found[place] = dataclasses.replace(rows[place], value=value)
    return found


def _success_rows(item: Measured, seed: int) -> Iterator[Row]:
    for policy_seed, outcome in sorted(item.success.items()):
        low, high = wilson_interval(int(outcome.sum()), outcome.size)
        yield Row(
            **item.identity, metric="success_rate", readout="policy", policy_seed=policy_seed,
            value=float(outcome.mean()), low=low, high=high, n=outcome.size,
        )  # fmt: skip
        yield _time_row(item.identity, item.times.get(policy_seed, []), policy_seed)
    if len(item.success) > 1:
        table = np.stack([outcome for _, outcome in sorted(item.success.items())])
        low, high = success_interval(table, seed=seed)
        yield Row(
            **item.identity, metric="success_rate", readout="policy",
            value=float(table.mean()), low=low, high=high, n=table.size,
        )  # fmt: skip


def _corrupted_rows(item: Measured) -> list[Row]:
    """Success under each corruption and the drop from clean, for the first policy seed."""
    if not item.corrupted:
        return []
    policy_seed, before = next(iter(item.success.items()))
    template = Row(
        **item.identity, metric="success_rate", readout="policy", policy_seed=policy_seed, value=float(before.mean()),
    )  # fmt: skip
    return drop_rows(template, success_drops(before, item.corrupted))


def _comparisons(item: Measured, measured: Sequence[Measured]) -> Iterator[Row]:
    """Share of the state ceiling, and paired differences from the frozen encoder and from the random-weight twin."""
    ceiling = _find(measured, "state", item.env, 0)
    twin = _find(measured, f"{item.use.name}{TWIN_SUFFIX}", item.env, 0)
    twin = twin or _find(measured, "random", item.env, item.use.seed)
    probe: dict[str, Any] = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro"}
    if ceiling is not None and item is not ceiling:
        found = share(item.action_r2, ceiling.action_r2)
        if found is not None:
            low, high = found.interval
            yield Row(
                **item.identity, **probe, metric="action_r2_share_of_state",
                value=found.value, low=low, high=high, n=_episodes(item),
            )  # fmt: skip
    base, adapted, _ = item.use.name.partition(ADAPTED_SUFFIX)
    frozen = _find(measured, base, item.env, item.use.seed) if adapted else None
    for metric, other in (("id_lift", frozen), ("action_r2_minus_random", twin)):
        if other is not None and item is not other:
            yield from _difference(item, other, metric, probe)
    if twin is not None and item is not twin:
        yield from _paired_success(item, twin)


def _difference(item: Measured, other: Measured, metric: str, probe: Mapping[str, Any]) -> Iterator[Row]:
    """Action R² minus that of another encoder, paired by episode."""
    found = item.action_r2 - other.action_r2
    if found.value is not None:
        low, high = found.interval
        yield Row(**item.identity, **probe, metric=metric, value=found.value, low=low, high=high, n=_episodes(item))


def _paired_success(item: Measured, twin: Measured) -> Iterator[Row]:
    """Paired Newcombe interval and exact McNemar p-value over the shared initial states, per policy seed."""
    for policy_seed in sorted(set(item.success) & set(twin.success)):
        ours, floor = item.success[policy_seed], twin.success[policy_seed]
        low, high = newcombe_interval(ours, floor)
        columns = {**item.identity, "readout": "policy", "policy_seed": policy_seed, "n": ours.size}
        difference = float(ours.mean() - floor.mean())
        yield Row(**columns, metric="success_minus_random", value=difference, low=low, high=high)
        yield Row(**columns, metric=_P_VALUE, value=mcnemar(ours, floor))


def _episodes(item: Measured) -> int | None:
    return next((row.n for row in item.rows if _is_proxy(row, "action_r2")), None)


def _find(measured: Sequence[Measured], name: str, env: str, seed: int) -> Measured | None:
    wanted = (name, env, seed, None)
    found = [item for item in measured if (item.use.name, item.env, item.use.seed, item.use.checkpoint) == wanted]
    return found[0] if found else None


def _baseline_rows(plan: SuitePlan, root: Path) -> Iterator[Row]:
    for name, env, policy_seed, cell in plan.baselines:
        records = read_json(cell.folder(root) / _ROLLOUTS_NAME)["records"]
        successes, total = sum(bool(record["success"]) for record in records), len(records)
        low, high = wilson_interval(successes, total)
        family = _baseline_family(name)
        yield Row(
            env=env, encoder=f"{name} policy", family=family, metric="success_rate", readout="policy",
            policy_seed=policy_seed, value=successes / total, low=low, high=high, n=total,
        )  # fmt: skip
        identity = {"env": env, "encoder": f"{name} policy", "family": family}
        yield _time_row(identity, _read_times(cell.folder(root)), policy_seed)


def _baseline_family(name: str) -> str:
    return "floor" if name in ("random", "constant") else "reference"


def _chain_rows(plan: SuitePlan, measured: Sequence[Measured], root: Path) -> Iterator[Row]:
    """Chains with at least 1, 2, … instructions done in a row, and the mean length."""
    for follower, cell in plan.chains:
        found = read_json(cell.folder(root) / CHAINS_NAME)
        columns: dict[str, Any] = {"env": found["env_id"], "readout": "policy", "n": found["chains"]}
        if isinstance(follower, str):
            family = "reference" if follower == "expert policy" else "floor"
            columns |= {"encoder": follower, "family": family}
        else:
            item = next(item for item in measured if item.use == follower and item.env == found["env_id"])
            columns |= {**item.identity, "policy_seed": plan.suite.policy_seeds[0]}
        for length, rate in found["success_at"].items():
            value, low, high = (rate[name] for name in ("rate", "low", "high"))
            yield Row(**columns, metric=f"chain_success_at_{length}", value=value, low=low, high=high)
        yield Row(**columns, metric="mean_chain_length", **found["mean_length"])


def _crash_rows(plan: SuitePlan, measured: Sequence[Measured], root: Path) -> Iterator[Row]:
    """Rollouts that crashed twice and count as failed; one row for every cell that has some."""
    families = {item.use.name: item.identity["family"] for item in measured}
    first = plan.suite.policy_seeds[0]
    cells: list[tuple[EncoderUse | str, str, int | None, str | None, Cell, str]] = [
        *((use, env, seed, None, cell, _ROLLOUTS_NAME) for use, env, seed, cell in plan.rollouts),
        *((*corrupted, _ROLLOUTS_NAME) for corrupted in plan.corrupted),
        *((f"{name} policy", env, seed, None, cell, _ROLLOUTS_NAME) for name, env, seed, cell in plan.baselines),
        *(
            (use, CHAINS_ENV, None if isinstance(use, str) else first, None, cell, CHAINS_NAME)
            for use, cell in plan.chains
        ),
    ]
    for use, env, policy_seed, condition, cell, name in cells:
        records = read_json(cell.folder(root) / name)["records"]
        crashed = sum(record.get("error") is not None for record in records)
        if not crashed:
            continue
        if isinstance(use, str):
            columns: dict[str, Any] = {"encoder": use, "family": _baseline_family(use.removesuffix(" policy"))}
        else:
            columns = {
                "encoder": use.name, "family": families.get(use.name, use.name), "seed": use.seed,
                "checkpoint": use.checkpoint,
            }  # fmt: skip
        yield Row(
            **columns, env=env, metric="crashed_chains" if name == CHAINS_NAME else "crashed_rollouts",
            readout="policy", policy_seed=policy_seed, condition=condition, value=float(crashed), n=len(records),
        )  # fmt: skip


def claim_replicates(measured: Sequence[Measured]) -> dict[str, NDArray[np.float64]]:
    """Bootstrap replicates of every row that claims rest on, by the name that evidence looks them up by."""
    found = {}
    for item in measured:
        for row in item.rows:
            columns = (row.metric, row.readout, row.input, row.k, row.subset, row.condition)
            key = "|".join(str(part) for part in columns if part is not None)
            if row.checkpoint is None and is_evidence(row.to_dict()) and key in item.replicates:
                found[replicate_name(row.to_dict())] = item.replicates[key]
    return found


def link_points(
    measured: Sequence[Measured], config: StudyConfig, parameters: dict[str, int], labelled: Collection[str]
) -> list[LinkPoint]:
    """The points of the link: encoders that read pixels, whatever their family; floors of raw input stay out."""
    out_of_link = {"pixels", *config.references}
    points = []
    for item in measured:
        if item.use.name in out_of_link or not item.success:
            continue
        values = {proxy: item.value(proxy) for proxy in PROXIES}
        known = {proxy: value for proxy, value in values.items() if value is not None}
        replicates = {
            proxy: [float(value) for value in item.replicates[replicate_key(proxy)]]
            for proxy in known
            if replicate_key(proxy) in item.replicates
        }
        identity = item.identity
        points.append(
            LinkPoint(
                **identity,
                reference=item.use.name in labelled,
                parameters=parameters.get(item.use.name, 0),
                proxies=known,
                proxy_replicates=replicates,
                success=[[int(won) for won in outcome] for _, outcome in sorted(item.success.items())],
            )
        )
    return points
