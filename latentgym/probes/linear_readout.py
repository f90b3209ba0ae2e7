"""The ridge readout of every input, the controls and the state that share its Gram matrix, and the online code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.controls import control_actions, shuffled_actions, time_shifted_actions
from latentgym.probes.description_length import bits_saved, growing_prefixes
from latentgym.probes.report import Scorer, Scores
from latentgym.probes.scores import (
    Estimate,
    constant_columns,
    dimension_groups,
    estimate,
    mean_defined,
    pooled_r2,
    resamples,
)
from latentgym.probes.settings import ProbeSettings
from latentgym.probes.windows import StateRows, Windows, action_chunks

_ONLINE_READOUT = "ridge_mean"
Targets = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def probe_ridge(
    settings: ProbeSettings,
    scorer: Scorer,
    k: int,
    readout: str,
    pooling: str,
    controls: Sequence[str],
    *,
    state: bool = False,
) -> None:
    """Ridge on every input of one horizon.

    Args:
        settings: what is probed.
        scorer: takes the rows.
        k: horizon.
        readout: name of the readout in the rows.
        pooling: how features are pooled.
        controls: controls to run, on pairs.
        state: also predict the simulator's state from single frames.
    """
    train, test, features = settings.windows("train", k), settings.windows("test", k), settings.features(k, pooling)
    found: dict[str, dict[str, Scores]] = {}
    for kind in settings.inputs:
        targets = _targets(settings, train, test, controls if kind == "pair" else ())
        if state and kind == "single":
            targets |= _state_targets(settings, train, test)
        probe = settings.fit_ridge(features, kind, train, [fitted for fitted, _ in targets.values()])
        scorer.result.lambdas[f"{readout}|{kind}|{k}"] = probe.lambda_
        predictions = settings.predict_ridge(probe, features, kind, test)
        by_target = dict(zip(targets, predictions, strict=True))
        where: dict[str, Any] = {"readout": readout, "input": kind}
        found[kind] = scorer.add(test, by_target["mean"], **where)
        add_targets(scorer, test, by_target, targets, **where)
        if "shuffled" in by_target:
            scorer.add(test, by_target["shuffled"], names={"r2": "action_r2_shuffled_actions"}, **where)
        if "shifted" in by_target:
            names = {"r2": "action_r2_time_shifted"}
            scorer.add(test, by_target["shifted"], target=targets["shifted"][1], names=names, **where)
        if "state" in by_target:
            _add_state(scorer, test, by_target["state"], targets["state"][1], **where)
        if "control" in by_target:
            scorer.selectivity(test, by_target["control"], targets["control"][1], found[kind], **where)
    scorer.aliases(found, readout, k)
    if "pair" in settings.inputs and "shuffled_endpoints" in controls:
        penalty = scorer.result.lambdas[f"{readout}|pair|{k}"]
        probe = settings.fit_ridge(features, "pair", train, [train.mean], lambdas=(penalty,), endpoints=True)
        (prediction,) = settings.predict_ridge(probe, features, "pair", test, endpoints=True)
        names = {"r2": "action_r2_shuffled_endpoints"}
        scorer.add(test, prediction, names=names, readout=readout, input="pair")


def _targets(settings: ProbeSettings, train: Windows, test: Windows, controls: Sequence[str]) -> Targets:
    """Training and test targets by name, the mean action first."""
    targets: Targets = {"mean": (train.mean, test.mean)}
    if train.k > 1 and "first" in settings.targets:
        targets["first"] = (train.first, test.first)
    if train.k > 1 and "chunk" in settings.targets:
        targets["chunk"] = (action_chunks(settings.actions, train), action_chunks(settings.actions, test))
    if "shuffled_actions" in controls:
        targets["shuffled"] = (shuffled_actions(train, settings.seed), test.mean)
    if "time_shifted_actions" in controls:
        targets["shifted"] = (time_shifted_actions(train), time_shifted_actions(test))
    if "control_task" in controls and settings.dataset.cameras:
        targets["control"] = control_actions(settings.dataset, train, test, settings.cache, settings.seed)
    return targets


def _state_targets(settings: ProbeSettings, train: Windows, test: Windows) -> Targets:
    """The state at the first observation, standardised by the training windows; what never varies there is left out.

    Nothing where tasks have states of different widths.
    """
    states = StateRows(settings.dataset)
    if not states.dim or not settings.dataset.uniform_state:
        return {}
    fitted, scored = states.at_start(train), states.at_start(test)
    varies = ~constant_columns(fitted)
    if not varies.any():
        return {}
    mean, deviation = fitted[:, varies].mean(0), fitted[:, varies].std(0)
    return {"state": ((fitted[:, varies] - mean) / deviation, (scored[:, varies] - mean) / deviation)}


def _add_state(
    scorer: Scorer, test: Windows, prediction: NDArray[np.float64], target: NDArray[np.float64], **where: Any
) -> None:
    """The row of R² over all dimensions of the standardised state together."""
    episodes = len(np.unique(test.episode))
    weights = resamples(scorer.dataset_key, "all", episodes, scorer.replicates)
    found = pooled_r2(target, prediction, test.episode, weights)
    scorer.row("state_r2", found, "macro", {**where, "k": test.k, "subset": "all", "n": episodes})


def add_targets(
    scorer: Scorer, test: Windows, predictions: dict[str, NDArray[np.float64]], targets: Targets, **where: Any
) -> None:
    """Rows of the first action and of the whole chunk, where they were predicted."""
    if "first" in predictions:
        names = {"r2": "action_r2_first"}
        scorer.add(test, predictions["first"], target=targets["first"][1], names=names, **where)
    if "chunk" in predictions:
        names = {"r2": "action_r2_chunk"}
        scorer.add(test, predictions["chunk"], target=targets["chunk"][1], names=names, **where)


def probe_online(settings: ProbeSettings, scorer: Scorer, k: int) -> None:
    """Description length and sample efficiency of ridge on mean-pooled pairs, fitted on growing shares of the episodes.

    Each prefix of the training episodes codes the episodes up to the next one and predicts the test windows.
    """
    train, test = settings.windows("train", k), settings.windows("test", k)
    features = settings.features(k, "mean", clips=True)
    prefixes = growing_prefixes(np.unique(train.episode), settings.folds, settings.seed)
    saved, counts = [], []
    for index, (fraction, prefix) in enumerate(prefixes):
        seen = train.select(np.isin(train.episode, prefix))
        probe = settings.fit_ridge(features, "pair", seen, [seen.mean])
        (prediction,) = settings.predict_ridge(probe, features, "pair", test)
        names = {"r2": "sample_efficiency_r2"}
        condition = f"train:{fraction:.0%}"
        scorer.add(test, prediction, names=names, readout=_ONLINE_READOUT, input="pair", condition=condition)
        if index + 1 < len(prefixes):
            new = np.setdiff1d(prefixes[index + 1][1], prefix)
            block = train.select(np.isin(train.episode, new))
            (predicted,) = settings.predict_ridge(probe, features, "pair", block)
            bits = bits_saved(block.mean, predicted, probe.cv_mse_, seen.mean)
            for episode in new:
                rows = block.episode == episode
                saved.append(bits[rows].sum(0))
                counts.append(rows.sum())
    if saved:
        _add_bits(scorer, np.array(saved), np.array(counts, dtype=np.float64), k)


def _add_bits(scorer: Scorer, saved: NDArray[np.float64], counts: NDArray[np.float64], k: int) -> None:
    """Rows of the bits saved per action and dimension.

    Args:
        scorer: takes the rows.
        saved: ``(E, A)`` bits saved on each coded episode.
        counts: ``(E,)`` its number of windows.
        k: horizon.
    """
    weights = resamples(scorer.dataset_key, "description_length", len(saved), scorer.replicates)
    table = (weights @ saved) / (weights @ counts)[:, None]
    where = {"readout": _ONLINE_READOUT, "input": "pair", "k": k, "subset": "all", "n": len(saved)}
    found: dict[str, Estimate] = {name: estimate(table[:, index]) for index, name in enumerate(scorer.spec.names)}
    for name, columns in dimension_groups(scorer.spec, table.shape[1]).items():
        found[name] = estimate(mean_defined(table[:, columns], 1))
    for name, value in found.items():
        scorer.row("description_length_bits_saved", value, name, where)
