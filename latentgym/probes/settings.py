"""What every readout of one probing run shares: the windows of each part and the features of each horizon."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.probes.controls import shuffled_rows
from latentgym.probes.ridge import RidgeProbe
from latentgym.probes.windows import Actions, Input, WindowFeatures, Windows, cut_windows

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache, Features
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

Part = Literal["train", "validation", "test"]
# A pixel that hardly moves in training can lie 30,000 training deviations off in a test episode, and then ruins R² by
# itself. Latents, states and proprioception seldom have a feature this far below the median and score the same.
SCALE_FLOOR = 0.3
# One episode in which something moves that stands still in all others would otherwise choose the penalty by itself.
FOLD_FLOOR = -1.0
# Readouts of so few features cost nothing, so that their penalty is chosen on five folds where a study takes fewer.
_NARROW = 256
_NARROW_FOLDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeSettings:
    """Everything that a probe of one encoder needs beside its features; see :func:`latentgym.probe`."""

    dataset: Dataset
    encoder: Encoder
    split: Split
    actions: Actions
    cache: FeatureCache
    inputs: tuple[Input, ...]
    targets: tuple[str, ...]
    controls: tuple[str, ...]
    lambdas: tuple[float, ...]
    folds: int
    trained: dict[str, dict[str, Any]]
    seed: int
    device: str

    def windows(self, part: Part, k: int) -> Windows:
        """The windows of horizon k of one part of the split."""
        return cut_windows(self.actions, getattr(self.split, part), k)

    def features(self, k: int, pooling: str | None, *, clips: bool = False) -> WindowFeatures:
        """Feature rows of horizon k, with those of clips where an input or ``clips`` asks for them."""
        from latentgym.encoders.features import View

        def get(view: View) -> Features:
            return self.cache.get(self.dataset, self.encoder, view, pooling=pooling)

        needs_clip = clips or {"pair", "difference"} & {*self.inputs}
        return WindowFeatures(get(View("single")), get(View("clip", k)) if needs_clip else None)

    def fit_ridge(
        self,
        features: WindowFeatures,
        kind: Input,
        train: Windows,
        targets: Sequence[NDArray[np.float64]],
        *,
        lambdas: Sequence[float] | None = None,
        endpoints: bool = False,
    ) -> RidgeProbe:
        """One ridge probe of several targets, each with its own λ, streamed over episodes.

        Args:
            features: feature rows.
            kind: input form.
            train: n training windows.
            targets: ``(n, ·)`` each.
            lambdas: penalties, those of the settings by default.
            endpoints: shuffle the windows' endpoints, within blocks of episodes.
        """
        stops = np.cumsum([target.shape[1] for target in targets]).tolist()
        groups = [list(range(start, stop)) for start, stop in zip([0, *stops], stops, strict=False)]
        probe = RidgeProbe(
            lambdas or self.lambdas,
            folds=self._folds(features, train),
            device=self.device,
            search="climb",
            scale_floor=SCALE_FLOOR,
            fold_floor=FOLD_FLOOR,
            target_groups=groups,
        ).plan_folds(train.episode)
        stacked, first = np.concatenate(targets, axis=1), 0
        for block in train.blocks():
            rows = features.rows(block, kind, shuffled_rows(block, self.seed) if endpoints else None)
            probe.partial_fit(rows, stacked[first : first + len(block)], block.episode)
            first += len(block)
        return probe.finalize()

    def _folds(self, features: WindowFeatures, train: Windows) -> int:
        if features.single.dim > _NARROW:
            return self.folds
        return max(self.folds, min(_NARROW_FOLDS, len(np.unique(train.episode))))

    def predict_ridge(
        self, probe: RidgeProbe, features: WindowFeatures, kind: Input, windows: Windows, *, endpoints: bool = False
    ) -> list[NDArray[np.float64]]:
        """Predictions of each of the probe's targets on ``windows``; ``endpoints`` as in :meth:`fit_ridge`."""
        blocks = []
        for block in windows.blocks():
            rows = features.rows(block, kind, shuffled_rows(block, self.seed) if endpoints else None)
            blocks.append(probe.predict(rows))
        predicted = np.concatenate(blocks)
        assert probe.target_groups is not None
        return [predicted[:, list(group)] for group in probe.target_groups]
