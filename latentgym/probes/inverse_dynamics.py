"""Inverse dynamics from frozen latents: how much of the action a readout recovers from two moments."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.probes.floors import FITTED_FLOORS, FLOORS, probe_floor
from latentgym.probes.linear_readout import probe_online, probe_ridge
from latentgym.probes.report import ProbeResult, Scorer
from latentgym.probes.ridge import DEFAULT_LAMBDAS
from latentgym.probes.settings import ProbeSettings
from latentgym.probes.trained_readouts import probe_trained
from latentgym.probes.windows import Input, read_actions
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

TRAINED = ("mlp", "attentive", "transformer")
READOUTS = ("ridge", "ridge_mean", *TRAINED)
DEFAULT_READOUTS = ("ridge", "ridge_mean", "mlp")
EVERY_READOUT = "control_task_every_readout"
CONTROLS = ("shuffled_actions", "shuffled_endpoints", "time_shifted_actions", "control_task", EVERY_READOUT)
DEFAULT_CONTROLS = CONTROLS[:-1]
TARGETS = ("mean", "first", "chunk")
# Rows of ridge on the default pooling that ridge on mean-pooled tokens has none of, and those that it may have.
_RIDGE_ALONE = ("action_r2_shuffled_actions", "action_r2_shuffled_endpoints", "action_r2_time_shifted", "state_r2")
_CONTROL_TASK = ("action_r2_control_task", "selectivity")
INPUTS: tuple[Input, ...] = ("pair", "difference", "single", "window")


def probe(
    dataset: Dataset,
    encoder: Encoder | str,
    *,
    split: Split | None = None,
    horizons: Sequence[int] = (1, 4),
    inputs: Sequence[Input] = ("pair", "single"),
    readouts: Sequence[str] = DEFAULT_READOUTS,
    targets: Sequence[str] = ("mean", "first"),
    mlp_horizons: Sequence[int] = (1,),
    controls: Sequence[str] = DEFAULT_CONTROLS,
    description_length: bool = True,
    seed: int = 0,
    cache: FeatureCache | None = None,
    replicates: int = 1000,
    lambdas: Sequence[float] = DEFAULT_LAMBDAS,
    folds: int = 5,
    mlp_steps: int = 3000,
    mlp_seeds: int = 3,
    readout_options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
) -> ProbeResult:
    """Probe a frozen encoder for the action on held-out episodes.

    Row t of a window of horizon k sees o_t … o_t+k and nothing else. Input ``"pair"`` is [z_t ; z_t:t+k] for ridge and
    [z_t ; z_t:t+k − z_t] for the MLP, ``"difference"`` is z_t:t+k − z_t, ``"single"`` z_t alone, and ``"window"``
    (image encoders) every frame of the window. The headline target is the mean of actions t … t+k−1; for k > 1,
    ``action_r2_first`` scores the action at t and ``action_r2_chunk`` all k of them.
    At the smallest horizon ridge on single frames also predicts the simulator's state (``state_r2``).
    Readouts are fitted on the training episodes (the MLP's best step is chosen on the validation episodes) and
    scored once on the test episodes, on all windows and on those whose k actions were all random.

    Args:
        dataset: recorded episodes.
        encoder: an encoder, the source of one (see :func:`latentgym.load_encoder`), or ``"constant"``,
            ``"previous_action"`` or ``"pixel_pca"``.
        split: episodes of each part; :func:`latentgym.trajectories.split_episodes` with ``seed`` by default.
        horizons: horizons k in steps.
        inputs: of ``"pair"``, ``"difference"``, ``"single"``, ``"window"``; trained readouts read the pair only.
        readouts: of ``"ridge"`` (default pooling), ``"ridge_mean"`` (mean-pooled tokens; where that is the default
            pooling, the scores of ``"ridge"`` under this name as well), ``"mlp"``, and on all patch tokens
            ``"attentive"`` and ``"transformer"``, which are fitted on as many training windows as have tokens that fit
            into 1 GiB.
        targets: of ``"mean"`` (always scored), ``"first"`` (ridge) and ``"chunk"``.
        mlp_horizons: those of ``horizons`` at which the trained readouts (MLP, attentive, transformer) are trained.
        controls: of ``"shuffled_actions"``, ``"shuffled_endpoints"``, ``"time_shifted_actions"``, ``"control_task"``,
            by ridge on pairs at the smallest horizon, and ``"control_task_every_readout"``, which trains every other
            readout on the control task too.
        description_length: also fit ridge on mean-pooled pairs of growing shares of the training episodes at the
            smallest horizon: rows ``description_length_bits_saved`` (:mod:`latentgym.probes.description_length`) and
            ``sample_efficiency_r2``.
        seed: seed of the split, controls and MLP.
        cache: features are read from and kept in it; a temporary one by default.
        replicates: number of bootstrap resamples of the test episodes.
        lambdas: ridge penalties, ascending; the best is found by a coarse scan and hill climbing (:class:`RidgeProbe`).
        folds: folds of training episodes that choose the penalty; five at least for up to 256 features.
        mlp_steps: optimiser steps of the trained readouts.
        mlp_seeds: seeds of each trained readout; their scores are averaged.
        readout_options: further arguments of :class:`MLPProbe`, :class:`AttentiveProbe` or :class:`TransformerProbe` by
            readout, such as ``{"mlp": {"learning_rate": [1e-3, 3e-4]}}``; of several values the best on the validation
            episodes is kept.
        device: torch device of the readouts.

    Raises:
        LatentGymError: on unknown options, fewer training episodes than folds, horizons longer than every episode, or
            latents that are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from latentgym import record
        >>> with TemporaryDirectory() as folder:
        ...     data = record("latentgym/TabletopReach-v0", folder, episodes=12, random_fraction=0.5, image_size=32)
        ...     result = probe(data, "state", horizons=(1,), readouts=("ridge",), folds=2)
        >>> pairs = [row for row in result.rows if (row.metric, row.input) == ("action_r2", "pair")]
        >>> {row.dimension: row.value > 0.5 for row in pairs if row.subset == "all"}["macro"]
        True
    """
    split = split or split_episodes(dataset, seed=seed)
    check_names("input", inputs, INPUTS)
    check_names("readout", readouts, READOUTS)
    check_names("target", targets, TARGETS)
    check_names("control", controls, CONTROLS)
    check_names("readout with options", readout_options or (), TRAINED)
    if isinstance(encoder, str):
        if encoder in FLOORS or encoder in FITTED_FLOORS:
            with open_cache(cache) as opened:
                return probe_floor(
                    dataset, encoder, split=split, horizons=horizons, replicates=replicates, folds=folds, cache=opened
                )
        from latentgym.encoders.registry import load_encoder

        encoder = load_encoder(encoder, device=device)
    warn_of_seen_labels(dataset, encoder, split)
    if "window" in inputs and encoder.spec.temporal:
        raise LatentGymError(f"input 'window' is for image encoders; {encoder.spec.name!r} reads clips itself")
    actions = read_actions(dataset, (*split.train, *split.validation, *split.test))
    identity = {
        "env": dataset.env_id,
        "encoder": encoder.spec.name,
        "family": encoder.spec.family,
        "layer": None if encoder.spec.layer == -1 else encoder.spec.layer,
    }
    scorer = Scorer(identity, dataset.action_spec, dataset.key, replicates)
    trained = {
        name: {"steps": mlp_steps, "members": mlp_seeds, "device": device, **(readout_options or {}).get(name, {})}
        for name in TRAINED
    }
    with open_cache(cache) as opened:
        settings = ProbeSettings(
            dataset, encoder, split, actions, opened, tuple(inputs), tuple(targets), tuple(controls), tuple(lambdas),
            folds, trained, seed, device,
        )  # fmt: skip
        for k in horizons:
            _probe_horizon(settings, scorer, k, readouts, controlled=k == min(horizons), mlp=k in mlp_horizons)
        if description_length:
            probe_online(settings, scorer, min(horizons))
    return scorer.result


def warn_of_seen_labels(dataset: Dataset, encoder: Encoder, split: Split) -> None:
    """Warn if ``encoder`` was trained on the actions of episodes that a readout is tested or chosen on."""
    held_out = {*split.validation, *split.test}
    seen = held_out & encoder.label_episodes.get(dataset.key, frozenset())
    if seen:
        warnings.warn(
            f"encoder {encoder.spec.name!r} was trained on the actions of {len(seen)} of {len(held_out)} held-out "
            "episodes of this split, so that its scores are too high; use one split for both",
            RuntimeWarning,
            stacklevel=3,
        )


def check_names(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise :class:`UnknownNameError` for the first name that is not known."""
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)


@contextlib.contextmanager
def open_cache(cache: FeatureCache | None) -> Iterator[FeatureCache]:
    """``cache`` itself, or a temporary one where there is none."""
    if cache is not None:
        yield cache
        return
    from latentgym.encoders.cache import FeatureCache

    with tempfile.TemporaryDirectory(prefix="latentgym-features-") as folder:
        yield FeatureCache(Path(folder))


def _probe_horizon(
    settings: ProbeSettings, scorer: Scorer, k: int, readouts: Sequence[str], *, controlled: bool, mlp: bool
) -> None:
    pooling = settings.encoder.spec.pooling
    if "ridge" in readouts:
        probe_ridge(settings, scorer, k, "ridge", pooling, settings.controls if controlled else (), state=controlled)
    controls = ("control_task",) if controlled and {"control_task", EVERY_READOUT} <= {*settings.controls} else ()
    if {"ridge", "ridge_mean"} <= {*readouts} and pooling == "mean":
        # The same features give the same readout: no second fit.
        scorer.repeat("ridge", "ridge_mean", k, without=_RIDGE_ALONE if controls else (*_RIDGE_ALONE, *_CONTROL_TASK))
    elif "ridge_mean" in readouts:
        probe_ridge(settings, scorer, k, "ridge_mean", "mean", controls)
    for readout in TRAINED:
        if readout in readouts and mlp and "pair" in settings.inputs:
            control = controlled and EVERY_READOUT in settings.controls
            probe_trained(settings, scorer, k, readout, pooling, control=control)
