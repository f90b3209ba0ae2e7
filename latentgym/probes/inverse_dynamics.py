"""Inverse dynamics from frozen latents: how much of the action a readout recovers from two moments."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.probes.controls import control_actions, shuffled_actions, shuffled_rows
from latentgym.probes.floors import FLOORS, probe_floor
from latentgym.probes.mlp import MLPProbe
from latentgym.probes.report import ProbeResult, Scorer, Scores
from latentgym.probes.ridge import DEFAULT_LAMBDAS, RidgeProbe
from latentgym.probes.windows import Actions, Input, WindowFeatures, Windows, cut_windows, read_actions
from latentgym.seeding import derive_seed
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

READOUTS = ("ridge", "ridge_mean", "mlp")
# A pixel that hardly moves in training can lie 30,000 training deviations off in a test episode, and then ruins R² by
# itself. Latents, states and proprioception seldom have a feature this far below the median and score the same.
SCALE_FLOOR = 0.3
CONTROLS = ("shuffled_actions", "shuffled_endpoints", "control_task")
INPUTS: tuple[Input, ...] = ("pair", "single", "window")


@dataclasses.dataclass(frozen=True, eq=False)
class _Settings:
    """Everything that a probe of one encoder needs beside its features."""

    dataset: Dataset
    encoder: Encoder
    split: Split
    actions: Actions
    cache: FeatureCache
    inputs: tuple[Input, ...]
    controls: tuple[str, ...]
    lambdas: tuple[float, ...]
    folds: int
    mlp: dict[str, Any]
    seed: int
    device: str

    def windows(self, part: Literal["train", "validation", "test"], k: int) -> Windows:
        return cut_windows(self.actions, getattr(self.split, part), k)

    def features(self, k: int, pooling: str | None) -> WindowFeatures:
        from latentgym.encoders.features import View

        def get(view: View) -> Any:
            return self.cache.get(self.dataset, self.encoder, view, pooling=pooling)

        return WindowFeatures(get(View("single")), get(View("clip", k)) if "pair" in self.inputs else None)


def probe(
    dataset: Dataset,
    encoder: Encoder | str,
    *,
    split: Split | None = None,
    horizons: Sequence[int] = (1, 4),
    inputs: Sequence[Input] = ("pair", "single"),
    readouts: Sequence[str] = READOUTS,
    mlp_horizons: Sequence[int] = (1,),
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    cache: FeatureCache | None = None,
    replicates: int = 1000,
    lambdas: Sequence[float] = DEFAULT_LAMBDAS,
    folds: int = 5,
    mlp_steps: int = 3000,
    mlp_seeds: int = 3,
    device: str = "auto",
) -> ProbeResult:
    """Probe a frozen encoder for the action on held-out episodes.

    Row t of a window of horizon k sees o_t … o_t+k and nothing else. Input ``"pair"`` is [z_t ; z_t:t+k] for ridge and
    [z_t ; z_t:t+k − z_t] for the MLP, ``"single"`` is z_t alone, and ``"window"`` (image encoders) every frame of the
    window. The headline target is the mean of actions t … t+k−1; for k > 1, ``action_r2_first`` scores the action at t.
    Readouts are fitted on the training episodes (the MLP's best step is chosen on the validation episodes) and
    scored once on the test episodes, on all windows and on those whose k actions were all random.

    Args:
        dataset: recorded episodes.
        encoder: an encoder, the source of one (see :func:`latentgym.load_encoder`), or ``"constant"`` or
            ``"previous_action"``.
        split: episodes of each part; :func:`latentgym.trajectories.split_episodes` with ``seed`` by default.
        horizons: horizons k in steps.
        inputs: of ``"pair"``, ``"single"``, ``"window"``; the MLP reads the pair only.
        readouts: of ``"ridge"`` (default pooling), ``"ridge_mean"`` (mean-pooled tokens, left out where that is the
            default pooling) and ``"mlp"``.
        mlp_horizons: those of ``horizons`` at which the MLP is trained.
        controls: of ``"shuffled_actions"``, ``"shuffled_endpoints"``, ``"control_task"``; by ridge on pairs at the
            smallest horizon.
        seed: seed of the split, controls and MLP.
        cache: features are read from and kept in it; a temporary one by default.
        replicates: number of bootstrap resamples of the test episodes.
        lambdas: ridge penalties, ascending; the best is found by hill climbing (:class:`RidgeProbe`).
        folds: folds of training episodes that choose the penalty.
        mlp_steps: Adam steps of the MLP.
        mlp_seeds: MLPs trained; their scores are averaged.
        device: torch device of the readouts.

    Raises:
        LatentGymError: on unknown options, fewer training episodes than folds, horizons longer than every episode, or
            latents that are not finite.
    """
    split = split or split_episodes(dataset, seed=seed)
    for kind, given, known in (
        ("input", inputs, INPUTS),
        ("readout", readouts, READOUTS),
        ("control", controls, CONTROLS),
    ):
        for name in given:
            if name not in known:
                raise UnknownNameError(kind, name, known)
    if isinstance(encoder, str):
        if encoder in FLOORS:
            return probe_floor(dataset, encoder, split=split, horizons=horizons, replicates=replicates, folds=folds)
        from latentgym.encoders.registry import load_encoder

        encoder = load_encoder(encoder, device=device)
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
    mlp = {"steps": mlp_steps, "members": mlp_seeds, "device": device}
    with _open_cache(cache) as opened:
        settings = _Settings(
            dataset, encoder, split, actions, opened, tuple(inputs), tuple(controls), tuple(lambdas), folds, mlp,
            seed, device,
        )  # fmt: skip
        for k in horizons:
            _probe_horizon(settings, scorer, k, readouts, controlled=k == min(horizons), mlp=k in mlp_horizons)
    return scorer.result


@contextlib.contextmanager
def _open_cache(cache: FeatureCache | None) -> Iterator[FeatureCache]:
    if cache is not None:
        yield cache
        return
    from latentgym.encoders.cache import FeatureCache

    with tempfile.TemporaryDirectory(prefix="latentgym-features-") as folder:
        yield FeatureCache(Path(folder))


def _probe_horizon(
    settings: _Settings, scorer: Scorer, k: int, readouts: Sequence[str], *, controlled: bool, mlp: bool
) -> None:
    pooling = settings.encoder.spec.pooling
    if "ridge" in readouts:
        _ridge(settings, scorer, k, "ridge", pooling, settings.controls if controlled else ())
    if "ridge_mean" in readouts and pooling != "mean":
        _ridge(settings, scorer, k, "ridge_mean", "mean", ())
    if "mlp" in readouts and mlp and "pair" in settings.inputs:
        _mlp(settings, scorer, k, pooling)


def _ridge(settings: _Settings, scorer: Scorer, k: int, readout: str, pooling: str, controls: Sequence[str]) -> None:
    """Ridge on every input of one horizon, and the controls that share the pair's Gram matrix."""
    train, test, features = settings.windows("train", k), settings.windows("test", k), settings.features(k, pooling)
    found: dict[str, dict[str, Scores]] = {}
    start: float | None = None
    for kind in settings.inputs:
        targets = {"mean": (train.mean, test.mean)}
        if k > 1:
            targets["first"] = (train.first, test.first)
        if kind == "pair" and "shuffled_actions" in controls:
            targets["shuffled"] = (shuffled_actions(train, settings.seed), test.mean)
        if kind == "pair" and "control_task" in controls:
            targets["control"] = control_actions(settings.dataset, train, test, settings.cache, settings.seed)
        train_targets = [fitted for fitted, _ in targets.values()]
        probe, predictions = _fit_predict(settings, features, kind, train, test, train_targets, start=start)
        start = probe.lambda_
        scorer.result.lambdas[f"{readout}|{kind}|{k}"] = probe.lambda_
        by_target = dict(zip(targets, predictions, strict=True))
        where: dict[str, Any] = {"readout": readout, "input": kind}
        found[kind] = scorer.add(test, by_target["mean"], **where)
        if k > 1:
            scorer.add(test, by_target["first"], target=test.first, names={"r2": "action_r2_first"}, **where)
        if "shuffled" in by_target:
            scorer.add(test, by_target["shuffled"], names={"r2": "action_r2_shuffled_actions"}, **where)
        if "control" in by_target:
            _selectivity(scorer, test, by_target["control"], targets["control"][1], found[kind], where)
    scorer.aliases(found, readout, k)
    if "pair" in settings.inputs and "shuffled_endpoints" in controls:
        penalty = scorer.result.lambdas[f"{readout}|pair|{k}"]
        _, (prediction,) = _fit_predict(
            settings, features, "pair", train, test, [train.mean], lambdas=(penalty,), endpoints=True
        )
        names = {"r2": "action_r2_shuffled_endpoints"}
        scorer.add(test, prediction, names=names, readout=readout, input="pair")


def _fit_predict(
    settings: _Settings,
    features: WindowFeatures,
    kind: Input,
    train: Windows,
    test: Windows,
    targets: Sequence[NDArray[np.float64]],
    *,
    lambdas: Sequence[float] | None = None,
    start: float | None = None,
    endpoints: bool = False,
) -> tuple[RidgeProbe, list[NDArray[np.float64]]]:
    """One ridge probe of several targets, each with its own λ, streamed over episodes; predictions per target.

    Args:
        settings: what is probed.
        features: feature rows.
        kind: input form.
        train: training windows.
        test: test windows.
        targets: ``(n, A)`` each.
        lambdas: penalties, those of the settings by default.
        start: where the search for the penalty starts.
        endpoints: shuffle the windows' endpoints, within blocks of episodes.
    """

    def rows(block: Windows) -> NDArray[np.float32]:
        return features.rows(block, kind, shuffled_rows(block, settings.seed) if endpoints else None)

    size = targets[0].shape[1]
    groups = [list(range(size * index, size * (index + 1))) for index in range(len(targets))]
    probe = RidgeProbe(
        lambdas or settings.lambdas,
        folds=settings.folds,
        device=settings.device,
        search="climb",
        start=start,
        scale_floor=SCALE_FLOOR,
        target_groups=groups,
    ).plan_folds(train.episode)
    stacked, first = np.concatenate(targets, axis=1), 0
    for block in train.blocks():
        probe.partial_fit(rows(block), stacked[first : first + len(block)], block.episode)
        first += len(block)
    probe.finalize()
    predicted = np.concatenate([probe.predict(rows(block)) for block in test.blocks()])
    return probe, [predicted[:, group] for group in groups]


def _selectivity(
    scorer: Scorer,
    test: Windows,
    prediction: NDArray[np.float64],
    control: NDArray[np.float64],
    real: dict[str, Scores],
    where: dict[str, Any],
) -> None:
    names = {"r2": "action_r2_control_task"}
    found = scorer.add(test, prediction, target=control, names=names, **where)
    for subset, scores in found.items():
        difference = real[subset]["r2", "macro"] - scores["r2", "macro"]
        count = len(np.unique(test.episode if subset == "all" else test.episode[test.random]))
        columns = {**where, "k": test.k, "subset": subset, "n": count}
        scorer.row("selectivity", difference, "macro", columns)


def _mlp(settings: _Settings, scorer: Scorer, k: int, pooling: str) -> None:
    """The MLP on [z_t ; z_t:t+k − z_t]; training features of one horizon are held in memory."""
    features = settings.features(k, pooling)
    parts = {name: settings.windows(name, k) for name in ("train", "validation", "test")}
    x = {name: features.rows(windows, "difference") for name, windows in parts.items()}
    probe = MLPProbe(seed=derive_seed(settings.seed, "mlp", k), scale_floor=SCALE_FLOOR, **settings.mlp)
    probe.fit(x["train"], parts["train"].mean, validation=(x["validation"], parts["validation"].mean))
    found = scorer.add(parts["test"], probe.predict_members(x["test"]), readout="mlp", input="pair")
    scorer.aliases({"pair": found}, "mlp", k)
