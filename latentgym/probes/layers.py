"""The layer sweep: the probe at every block of an encoder, from one pass over the frames, and its depth profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import atomic_write
from latentgym.errors import LatentGymError
from latentgym.probes.estimator import mean_r2
from latentgym.probes.inverse_dynamics import open_cache
from latentgym.probes.report import Scorer
from latentgym.probes.ridge import DEFAULT_LAMBDAS
from latentgym.probes.settings import ProbeSettings
from latentgym.probes.windows import read_actions
from latentgym.results import Row
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

PROFILE_HEIGHT_PX = 420


@dataclasses.dataclass(frozen=True, eq=False)
class LayerProfile:
    """What the probe found at each block.

    Attributes:
        rows: those of ridge on pairs, with the block in column ``layer``; ``action_r2_best_layer`` and
            ``action_r2_last_layer`` repeat the macro mean of the chosen and of the last block.
        replicates: ``"metric|readout|input|k|subset|layer:<block>"`` to ``(R,)`` bootstrap replicates.
        validation_r2: block to R² on the validation episodes.
        best_layer: block with the highest of them; chosen without a look at the test episodes.
    """

    rows: list[Row]
    replicates: dict[str, NDArray[np.float64]]
    validation_r2: dict[int, float]
    best_layer: int


def probe_layers(
    dataset: Dataset,
    encoder: Encoder | str,
    *,
    layers: Sequence[int] | None = None,
    split: Split | None = None,
    k: int = 1,
    pooling: str | None = None,
    seed: int = 0,
    cache: FeatureCache | None = None,
    replicates: int = 1000,
    lambdas: Sequence[float] = DEFAULT_LAMBDAS,
    folds: int = 5,
    device: str = "auto",
) -> LayerProfile:
    """Probe every block of a frozen encoder by ridge on pairs.

    Args:
        dataset: recorded episodes.
        encoder: an encoder, or the source of one.
        layers: blocks, counted from 0; all by default. The last is the encoder's own output.
        split: episodes of each part; :func:`latentgym.trajectories.split_episodes` with ``seed`` by default.
        k: horizon.
        pooling: how features are pooled, the encoder's default if left out.
        seed: seed of the split.
        cache: features are read from and kept in it; a temporary one by default.
        replicates: number of bootstrap resamples.
        lambdas: ridge penalties.
        folds: folds of training episodes that choose the penalty.
        device: torch device of the readouts.

    Raises:
        LatentGymError: if there is no such layer, or on what :func:`latentgym.probe` refuses.
    """
    from latentgym.encoders.features import View
    from latentgym.encoders.registry import at_layers, load_encoder

    if isinstance(encoder, str):
        encoder = load_encoder(encoder, device=device)
    wanted = list(range(encoder.spec.layers) if layers is None else layers)
    if not wanted:
        raise LatentGymError("a layer sweep needs at least one layer")
    encoders = at_layers(encoder, wanted)
    split = split or split_episodes(dataset, seed=seed)
    actions = read_actions(dataset, (*split.train, *split.validation, *split.test))
    profile = LayerProfile([], {}, {}, 0)
    with open_cache(cache) as opened:
        for view in (View("single"), View("clip", k)):
            opened.get_layers(dataset, encoders, view, pooling=pooling)
        for layer, one in zip(wanted, encoders, strict=True):
            settings = ProbeSettings(
                dataset, one, split, actions, opened, ("pair",), ("mean",), (), tuple(lambdas), folds, {}, seed, device
            )
            _probe_layer(settings, profile, layer, k, pooling, replicates)
    best = max(wanted, key=lambda layer: profile.validation_r2[layer])
    for metric, layer in (("action_r2_best_layer", best), ("action_r2_last_layer", wanted[-1])):
        profile.rows.extend(
            dataclasses.replace(row, metric=metric)
            for row in list(profile.rows)
            if (row.metric, row.layer, row.dimension) == ("action_r2", layer, "macro")
        )
    return dataclasses.replace(profile, best_layer=best)


def _probe_layer(
    settings: ProbeSettings, profile: LayerProfile, layer: int, k: int, pooling: str | None, replicates: int
) -> None:
    spec = settings.encoder.spec
    identity = {"env": settings.dataset.env_id, "encoder": spec.name, "family": spec.family, "layer": layer}
    scorer = Scorer(identity, settings.dataset.action_spec, settings.dataset.key, replicates)
    features = settings.features(k, pooling)
    train, held, test = settings.windows("train", k), settings.windows("validation", k), settings.windows("test", k)
    probe = settings.fit_ridge(features, "pair", train, [train.mean])
    (predicted,) = settings.predict_ridge(probe, features, "pair", held)
    profile.validation_r2[layer] = mean_r2(held.mean, predicted)
    (predicted,) = settings.predict_ridge(probe, features, "pair", test)
    scorer.add(test, predicted, readout="ridge", input="pair")
    profile.rows.extend(scorer.result.rows)
    for key, values in scorer.result.replicates.items():
        profile.replicates[f"{key}|layer:{layer}"] = values


def write_depth_profile(path: Path | str, rows: Sequence[Row], title: str = "Action R² by depth") -> None:
    """Draw R² against relative depth, a line per encoder with its intervals, as one HTML file that opens offline.

    Args:
        path: file to write.
        rows: rows of any number of :class:`LayerProfile`.
        title: heading.

    Raises:
        LatentGymError: if no row is a macro mean at a layer.
    """
    import plotly.graph_objects as go

    kept = [
        row
        for row in rows
        if (row.metric, row.dimension, row.subset) == ("action_r2", "macro", "all")
        and row.layer is not None
        and row.value is not None
    ]
    if not kept:
        raise LatentGymError("a depth profile needs rows of probe_layers: none is a macro mean at a layer")
    figure = go.Figure(layout={"title": title, "height": PROFILE_HEIGHT_PX, "template": "plotly_white"})
    for name in dict.fromkeys(row.encoder for row in kept):
        line = sorted((row for row in kept if row.encoder == name), key=lambda row: row.layer or 0)
        deepest = max(1, line[-1].layer or 0)
        above, below = zip(*((_gap(row.high, row.value), _gap(row.value, row.low)) for row in line), strict=True)
        figure.add_trace(
            go.Scatter(
                x=[(row.layer or 0) / deepest for row in line],
                y=[row.value for row in line],
                error_y={"type": "data", "array": above, "arrayminus": below},
                text=[f"block {row.layer}" for row in line],
                mode="lines+markers",
                name=name,
            )
        )
    figure.update_xaxes(title="relative depth (0: first block, 1: output)")
    figure.update_yaxes(title="action R² on test episodes")
    atomic_write(Path(path), figure.to_html(include_plotlyjs=True, full_html=True))


def _gap(upper: float | None, lower: float | None) -> float:
    return 0.0 if upper is None or lower is None else upper - lower
