"""The readouts that are trained: the MLP on pooled features, the attentive probe and the transformer on tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.attention import AttentiveProbe, TransformerProbe
from latentgym.probes.controls import control_actions
from latentgym.probes.linear_readout import Targets, add_targets
from latentgym.probes.members import MemberProbe
from latentgym.probes.mlp import MLPProbe
from latentgym.probes.report import Scorer
from latentgym.probes.settings import SCALE_FLOOR, Part, ProbeSettings
from latentgym.probes.windows import WindowFeatures, Windows, action_chunks
from latentgym.seeding import derive_seed, numpy_generator

TOKENS = "tokens"
# Training tokens are held in memory, as many windows as fit; test tokens come in blocks of whole episodes.
_TOKEN_BYTES = 2**30
_BLOCK_BYTES = 2**27


def probe_trained(
    settings: ProbeSettings, scorer: Scorer, k: int, readout: str, pooling: str, *, control: bool
) -> None:
    """Train ``"mlp"``, ``"attentive"`` or ``"transformer"`` on the pairs of one horizon and score it.

    The MLP reads [z_t ; z_t:t+k − z_t], the others the tokens of o_t followed by those of the clip.

    Args:
        settings: what is probed.
        scorer: takes the rows.
        k: horizon.
        readout: name of the readout.
        pooling: how features are pooled for the MLP.
        control: train on the control task too, for the selectivity.
    """
    features = settings.features(k, pooling if readout == "mlp" else TOKENS)
    names: tuple[Part, ...] = ("train", "validation", "test")
    parts: dict[Part, Windows] = {name: settings.windows(name, k) for name in names}
    if readout != "mlp":
        parts |= {name: _fitting(parts[name], features, settings.seed) for name in names[:2]}

    def rows(windows: Windows) -> NDArray[np.float32]:
        if readout == "mlp":
            return features.rows(windows, "pair_difference")
        return features.rows(windows, "pair").reshape(len(windows), -1, _channels(settings, features))

    x = {name: rows(parts[name]) for name in names[:2]}
    where: dict[str, Any] = {"readout": readout, "input": "pair"}
    test = parts["test"]
    predicted, targets = {}, _targets(settings, parts)
    for name, (fitted, held, _) in targets.items():
        probe = _make(settings, readout, k, name, k if name == "chunk" else 1)
        probe.fit(x["train"], fitted, validation=(x["validation"], held))
        predicted[name] = _predict(probe, rows, test, features)
    found = scorer.add(test, predicted["mean"], **where)
    tested: Targets = {name: (fitted, wanted) for name, (fitted, _, wanted) in targets.items()}
    add_targets(scorer, test, predicted, tested, **where)
    scorer.aliases({"pair": found}, readout, k)
    if control:
        seen, wanted = control_actions(settings.dataset, parts["train"], test, settings.cache, settings.seed)
        _, held = control_actions(settings.dataset, parts["train"], parts["validation"], settings.cache, settings.seed)
        probe = _make(settings, readout, k, "mean", 1)
        probe.fit(x["train"], seen, validation=(x["validation"], held))
        scorer.selectivity(test, _predict(probe, rows, test, features), wanted, found, **where)


def _targets(settings: ProbeSettings, parts: dict[Part, Windows]) -> dict[str, tuple[NDArray[np.float64], ...]]:
    """Training, validation and test targets by name."""
    names: tuple[Part, ...] = ("train", "validation", "test")
    targets = {"mean": tuple(parts[name].mean for name in names)}
    if parts["test"].k > 1 and "chunk" in settings.targets:
        targets["chunk"] = tuple(action_chunks(settings.actions, parts[name]) for name in names)
    return targets


def _fitting(windows: Windows, features: WindowFeatures, seed: int) -> Windows:
    """As many windows, drawn at random, as have features that fit into memory."""
    limit = max(1, _TOKEN_BYTES // (8 * features.single.dim))
    if len(windows) <= limit:
        return windows
    chosen = numpy_generator(seed, "token-windows", len(windows)).permutation(len(windows))[:limit]
    return windows.select(np.isin(np.arange(len(windows)), chosen))


def _channels(settings: ProbeSettings, features: WindowFeatures) -> int:
    # Vector encoders do not know their width: the vector is the one token.
    return settings.encoder.spec.embed_dim if settings.encoder.spec.modality == "pixels" else features.single.dim


def _make(settings: ProbeSettings, readout: str, k: int, target: str, queries: int) -> MemberProbe:
    names = (readout, k) if target == "mean" else (readout, k, target)
    training = {"seed": derive_seed(settings.seed, *names), "scale_floor": SCALE_FLOOR, **settings.trained[readout]}
    if readout == "mlp":
        return MLPProbe(**training)
    return AttentiveProbe(**training) if readout == "attentive" else TransformerProbe(queries, **training)


def _predict(
    probe: MemberProbe, rows: Callable[[Windows], NDArray[np.float32]], test: Windows, features: WindowFeatures
) -> NDArray[np.float64]:
    size = max(1, _BLOCK_BYTES // (8 * features.single.dim))
    return np.concatenate([probe.predict_members(rows(block)) for block in test.blocks(size)], axis=1)
