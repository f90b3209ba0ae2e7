"""Rows of a probe's scores, with their intervals and paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.scores import Estimate, action_scores, constant_columns, dimension_groups, resamples, share
from latentgym.probes.windows import Windows
from latentgym.results import Row
from latentgym.trajectories.episode import ActionSpec

SUBSETS = ("all", "random_actions")
Scores = dict[tuple[str, str], Estimate]


@dataclasses.dataclass
class ProbeResult:
    """What a probe found.

    Attributes:
        rows: tidy results; an undefined value is ``None``.
        replicates: ``"metric|readout|input|k|subset"`` (and ``"|condition"`` where there is one) to ``(R,)`` bootstrap
            replicates of the macro mean; resamples are shared by every encoder of a data set, so replicates of two
            encoders can be subtracted.
        constant_dimensions: action dimensions that do not vary over the test windows and are left out of means.
        lambdas: ``"readout|input|k"`` to the chosen ridge penalty.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    replicates: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    constant_dimensions: tuple[str, ...] = ()
    lambdas: dict[str, float] = dataclasses.field(default_factory=dict)


def share_of_ceiling(result: ProbeResult, ceiling: ProbeResult, k: int) -> Row | None:
    """Action R² of ``result`` divided by that of ``ceiling``, a probe of the simulator's state on the same data.

    Returns:
        The row ``action_r2_share_of_state`` of ridge on pairs at horizon k; ``None`` where it is undefined.
    """
    key = f"action_r2|ridge|pair|{k}|all"
    ours, best = _macro_row(result, key), _macro_row(ceiling, key)
    if ours is None or best is None:
        return None
    found = share(Estimate(ours.value, result.replicates[key]), Estimate(best.value, ceiling.replicates[key]))
    if found is None:
        return None
    low, high = found.interval
    return dataclasses.replace(ours, metric="action_r2_share_of_state", value=found.value, low=low, high=high)


def _macro_row(result: ProbeResult, key: str) -> Row | None:
    """The macro mean whose replicates have that name."""
    for row in result.rows:
        parts = (row.metric, row.readout, row.input, row.k, row.subset, row.condition)
        if row.dimension == "macro" and key == "|".join(str(part) for part in parts if part is not None):
            return row
    return None


class Scorer:
    """Turns predictions into rows of one :class:`ProbeResult`.

    Args:
        identity: columns that every row shares (``env``, ``encoder``, ``family``).
        spec: meaning of the action's dimensions.
        dataset_key: seeds the resamples.
        replicates: number of bootstrap resamples.
    """

    def __init__(self, identity: dict[str, Any], spec: ActionSpec, dataset_key: str, replicates: int) -> None:
        self.identity, self.spec, self.dataset_key, self.replicates = identity, spec, dataset_key, replicates
        self.result = ProbeResult()

    def score(
        self, windows: Windows, target: NDArray[np.float64], prediction: NDArray[np.float64], subset: str
    ) -> tuple[Scores, int]:
        """Scores of ``prediction (M, n, A)`` on one subset of the windows, and its number of episodes."""
        rows = windows.random if subset == "random_actions" else np.ones(len(windows), dtype=np.bool_)
        if not rows.any():
            return {}, 0
        episode = windows.episode[rows]
        count = len(np.unique(episode))
        counts = resamples(self.dataset_key, subset, count, self.replicates)
        repeats = target.shape[1] // self.spec.size
        spec = _of_chunk(self.spec, repeats) if repeats > 1 else self.spec
        scores = action_scores(target[rows], prediction[:, rows], episode, spec, counts)
        if repeats > 1:
            scores = {key: value for key, value in scores.items() if key[1] in dimension_groups(self.spec, 0)}
        return scores, count

    def add(
        self,
        windows: Windows,
        prediction: NDArray[np.float64],
        *,
        target: NDArray[np.float64] | None = None,
        readout: str,
        input: str,
        names: dict[str, str] | None = None,
        condition: str | None = None,
    ) -> dict[str, Scores]:
        """Score on every subset and add the rows.

        Args:
            windows: n test windows.
            prediction: ``(M, n, A)``, or ``(n, A)`` for one member.
            target: ``(n, A)``, or ``(n, k · A)`` for chunks of actions, of which only means over all k are reported;
                the windows' mean action by default.
            readout: name of the readout.
            input: ``"pair"``, ``"single"`` …
            names: score to metric name, for the scores that are wanted; default: all of them.
            condition: what was done to the data, if anything.

        Returns:
            The scores of each subset.
        """
        target = windows.mean if target is None else target
        prediction = prediction if prediction.ndim == 3 else prediction[None]
        names = names or {"r2": "action_r2", **{n: n for n in ("pearson_r", "clipped_r2", "balanced_accuracy")}}
        found = {}
        for subset in SUBSETS:
            scores, count = self.score(windows, target, prediction, subset)
            where = {"readout": readout, "input": input, "k": windows.k, "subset": subset, "n": count}
            where |= {"condition": condition} if condition else {}
            if not scores:
                undefined = Estimate(None, np.full(self.replicates, np.nan))
                scores = {(score, "macro"): undefined for score in ("r2", "pearson_r", "clipped_r2")}
            for (score, dimension), estimate in scores.items():
                if score in names:
                    self.row(names[score], estimate, dimension, where)
            found[subset] = scores
            if subset == "all" and target is windows.mean:
                constant = np.flatnonzero(constant_columns(target))
                self.result.constant_dimensions = tuple(self.spec.names[index] for index in constant)
        return found

    def row(self, metric: str, estimate: Estimate, dimension: str, where: dict[str, Any]) -> None:
        """Add one row, and its replicates if it is a macro mean."""
        low, high = estimate.interval
        self.result.rows.append(
            Row(**self.identity, **where, metric=metric, dimension=dimension, value=estimate.value, low=low, high=high)
        )
        if dimension == "macro":
            parts = (metric, *(where[name] for name in ("readout", "input", "k", "subset")))
            key = "|".join(str(part) for part in (*parts, *([where["condition"]] if where.get("condition") else [])))
            self.result.replicates[key] = estimate.replicates

    def selectivity(
        self,
        test: Windows,
        prediction: NDArray[np.float64],
        control: NDArray[np.float64],
        real: dict[str, Scores],
        *,
        readout: str,
        input: str,
    ) -> None:
        """Rows of R² on the control task and of its distance from R² on the real one.

        Args:
            test: n test windows.
            prediction: ``(M, n, A)`` or ``(n, A)`` predictions of the control targets.
            control: ``(n, A)`` control targets.
            real: scores on the real targets, by subset.
            readout: name of the readout.
            input: input form.
        """
        names = {"r2": "action_r2_control_task"}
        found = self.add(test, prediction, target=control, names=names, readout=readout, input=input)
        for subset, scores in found.items():
            difference = real[subset]["r2", "macro"] - scores["r2", "macro"]
            count = len(np.unique(test.episode if subset == "all" else test.episode[test.random]))
            where = {"readout": readout, "input": input, "k": test.k, "subset": subset, "n": count}
            self.row("selectivity", difference, "macro", where)

    def repeat(self, readout: str, name: str, k: int, without: Collection[str] = ()) -> None:
        """Add the rows of ``readout`` at horizon k, with their replicates, under ``name`` too, but for some metrics."""
        chosen = [row for row in self.result.rows if (row.readout, row.k) == (readout, k) and row.metric not in without]
        for row in chosen:
            self.result.rows.append(dataclasses.replace(row, readout=name))
            if row.dimension == "macro":
                ours, theirs = (f"{row.metric}|{one}|{row.input}|{k}|{row.subset}" for one in (readout, name))
                self.result.replicates[theirs] = self.result.replicates[ours]

    def aliases(self, found: dict[str, dict[str, Scores]], readout: str, k: int) -> None:
        """Rows under their own metric names: random-action and single-frame R², and pair minus single.

        Args:
            found: input to subset to scores, of one readout and horizon.
            readout: name of the readout.
            k: horizon.
        """
        for subset in SUBSETS:
            macro = {i: scores[subset]["r2", "macro"] for i, scores in found.items()}
            counts = {row.n for row in self.result.rows if (row.k, row.subset, row.readout) == (k, subset, readout)}
            where = {"readout": readout, "k": k, "subset": subset, "n": max(n or 0 for n in counts)}
            if subset == "random_actions" and "pair" in macro:
                self.row("action_r2_random_actions", macro["pair"], "macro", {**where, "input": "pair"})
            if "single" in macro:
                self.row("single_frame_r2", macro["single"], "macro", {**where, "input": "single"})
            if "pair" in macro and "single" in macro:
                gain = macro["pair"] - macro["single"]
                self.row("temporal_gain", gain, "macro", {**where, "input": "pair"})


def _of_chunk(spec: ActionSpec, k: int) -> ActionSpec:
    """The meaning of k actions one after the other."""

    def repeated(columns: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(step * spec.size + column for step in range(k) for column in columns)

    return dataclasses.replace(
        spec,
        names=tuple(f"{name}@{step}" for step in range(k) for name in spec.names),
        units=spec.units * k,
        scale=spec.scale * k,
        low=spec.low * k,
        high=spec.high * k,
        translation=repeated(spec.translation),
        rotation=repeated(spec.rotation),
        gripper=repeated(spec.gripper),
    )
