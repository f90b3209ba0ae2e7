"""Whether training an encoder on action labels made it more robust: drops under corruption, frozen minus adapted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentgym.errors import LatentGymError
from latentgym.probes.report import SUBSETS, ProbeResult, Scorer
from latentgym.probes.robustness import DEFAULT_CONDITIONS, robustness
from latentgym.probes.scores import Estimate

if TYPE_CHECKING:
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.store import Dataset

MEAN_CONDITION = "mean"


def robustness_gain(
    dataset: Dataset,
    frozen: Encoder | str,
    adapted: Encoder | str,
    *,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    readouts: Sequence[str] = ("ridge",),
    k: int = 1,
    replicates: int = 1000,
    **options: Any,
) -> ProbeResult:
    """Compare the drop in R² under corruption of a frozen encoder with that of its adapted version.

    Both encoders see the same corrupted frames, and the bootstrap resamples the same test episodes, so that the
    interval is that of a paired difference. Rows ``r2_drop_reduction`` per condition and over all of them (condition
    ``"mean"``): the frozen encoder's ``r2_drop`` minus the adapted one's, positive where the adapted one loses less.
    An encoder that knows nothing loses nothing: read it beside the clean ``action_r2`` rows, which come too.

    Args:
        dataset: recorded episodes.
        frozen: the encoder before, or its source.
        adapted: the encoder after, or its folder (see :func:`latentgym.encoders.adaptation.adapt`).
        conditions: corruptions, at least one; see :func:`latentgym.probes.robustness`.
        readouts: of ``"ridge"`` and ``"mlp"``.
        k: horizon in steps.
        replicates: number of bootstrap resamples.
        options: further arguments of :func:`latentgym.probes.robustness`, such as ``split``, ``seed`` and ``cache``.

    Returns:
        Rows of both encoders, then the differences under the adapted encoder's name.

    Raises:
        LatentGymError: without a condition, or what :func:`latentgym.probes.robustness` refuses.
    """
    if not conditions:
        raise LatentGymError("robustness_gain needs at least one corruption to compare under")
    both = [
        robustness(
            dataset,
            encoder,
            conditions=conditions,
            stresses=(),
            readouts=readouts,
            k=k,
            replicates=replicates,
            **options,
        )
        for encoder in (frozen, adapted)
    ]
    last = both[1].rows[0]
    identity = {"env": last.env, "encoder": last.encoder, "family": last.family, "layer": last.layer}
    scorer = Scorer(identity, dataset.action_spec, dataset.key, replicates)
    for readout in readouts:
        for subset in SUBSETS:
            found = [_difference(both, readout, subset, k, condition) for condition in conditions]
            values = [one.value for one in found]
            mean = None if None in values else float(np.mean([value for value in values if value is not None]))
            found.append(Estimate(mean, np.mean([one.replicates for one in found], axis=0)))
            count = next(r.n for r in both[1].rows if (r.metric, r.subset, r.readout) == ("r2_drop", subset, readout))
            for condition, one in zip((*conditions, MEAN_CONDITION), found, strict=True):
                where = {"readout": readout, "input": "pair", "k": k, "subset": subset, "n": count}
                scorer.row("r2_drop_reduction", one, "macro", {**where, "condition": condition})
    scorer.result.rows[:0] = [*both[0].rows, *both[1].rows]
    return scorer.result


def _difference(both: Sequence[ProbeResult], readout: str, subset: str, k: int, condition: str) -> Estimate:
    """Drop of the first encoder minus that of the second."""
    wanted = ("r2_drop", readout, k, subset, condition)
    values = [
        next(r.value for r in one.rows if (r.metric, r.readout, r.k, r.subset, r.condition) == wanted) for one in both
    ]
    key = "|".join(str(item) for item in ("r2_drop", readout, "pair", k, subset, condition))
    replicates = both[0].replicates[key] - both[1].replicates[key]
    before, after = values
    return Estimate(None if before is None or after is None else before - after, replicates)
