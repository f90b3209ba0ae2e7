"""Robustness: readouts fitted on clean clips, tested on corrupted ones and on clips whose time is out of joint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentgym.corruptions import CORRUPTIONS, Mode, checked_corruption, corrupt
from latentgym.errors import LatentGymError
from latentgym.probes.inverse_dynamics import check_names, open_cache, warn_of_seen_labels
from latentgym.probes.mlp import MLPProbe
from latentgym.probes.report import ProbeResult, Scorer, Scores
from latentgym.probes.ridge import DEFAULT_LAMBDAS
from latentgym.probes.scores import Estimate, estimate, resamples
from latentgym.probes.settings import SCALE_FLOOR, ProbeSettings
from latentgym.probes.windows import WindowFeatures, Windows, read_actions
from latentgym.seeding import derive_seed, numpy_generator
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.encoders.cache import FeatureCache
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

Floats = NDArray[np.float32]
Predictor = Callable[[WindowFeatures, Windows], NDArray[np.float64]]

DEFAULT_CONDITIONS = (
    "noise_015", "blur_11", *(f"{name}:{severity}" for name in ("gaussian_noise", "gaussian_blur", "brightness")
    for severity in (1, 3, 5)),
)  # fmt: skip
STRESSES = ("shuffle", "reverse", "freeze")
READOUTS = ("ridge", "mlp")


def robustness(
    dataset: Dataset,
    encoder: Encoder | str,
    *,
    split: Split | None = None,
    k: int = 1,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    stresses: Sequence[str] = STRESSES,
    readouts: Sequence[str] = ("ridge",),
    mode: Mode = "static",
    seed: int = 0,
    cache: FeatureCache | None = None,
    replicates: int = 1000,
    lambdas: Sequence[float] = DEFAULT_LAMBDAS,
    folds: int = 5,
    mlp_steps: int = 3000,
    mlp_seeds: int = 3,
    device: str = "auto",
) -> ProbeResult:
    """Score readouts of clean latents on corrupted test clips and under temporal stress.

    Corruption: each test episode's frames are corrupted with a seed of that episode, the same for every encoder. Rows
    ``corrupted_r2``, ``corrupted_pearson_r``, ``corrupted_clipped_r2``; ``r2_drop``, clean minus corrupted R²;
    ``r2_retention``, corrupted over clean clipped R²; and ``latent_cosine_similarity`` between the clip's clean and
    corrupted features: similarity is not use.

    Stress: the frames o_t … o_t+k of each window are permuted, reversed, or all replaced by o_t (``stress_r2``).
    ``reverse_negated_r2`` scores minus the prediction on the reversed window, which for actions that displace is as
    good as the clean one if the readout uses motion.

    Resamples are those of :func:`latentgym.probe`, so that replicates (of ``r2_drop``, say) of two encoders, such as a
    frozen one and its inverse-dynamics-adapted twin, can be subtracted.

    Args:
        dataset: recorded episodes.
        encoder: an encoder, or the source of one.
        split: episodes of each part; :func:`latentgym.trajectories.split_episodes` with ``seed`` by default.
        k: horizon.
        conditions: ``"<corruption>:<severity>"``, or the corruption alone for severity 3 or the only one; see
            :data:`latentgym.corruptions.CORRUPTIONS`.
        stresses: of ``"shuffle"``, ``"reverse"``, ``"freeze"``.
        readouts: of ``"ridge"`` and ``"mlp"``, fitted on clean pairs in the encoder's default pooling.
        mode: ``"static"`` or ``"per_frame"`` randomness of the corruptions.
        seed: seed of the split, corruptions, shuffles and MLP.
        cache: clean features are read from and kept in it; a temporary one by default.
        replicates: number of bootstrap resamples.
        lambdas: ridge penalties.
        folds: folds of training episodes that choose the penalty.
        mlp_steps: Adam steps of the MLP.
        mlp_seeds: MLPs trained; their scores are averaged.
        device: torch device of readouts and corruptions.

    Raises:
        LatentGymError: on unknown options, an encoder that reads no pixels, or what :func:`latentgym.probe` refuses.
    """
    conditions = tuple(dict.fromkeys(map(named_condition, conditions)))
    check_names("stress", stresses, STRESSES)
    check_names("readout", readouts, READOUTS)
    if isinstance(encoder, str):
        from latentgym.encoders.registry import load_encoder

        encoder = load_encoder(encoder, device=device)
    if conditions and encoder.spec.modality != "pixels":
        raise LatentGymError(
            f"encoder {encoder.spec.name!r} reads no pixels to corrupt; choose one that does "
            "(in Python, conditions=() leaves the temporal stress alone)"
        )
    split = split or split_episodes(dataset, seed=seed)
    warn_of_seen_labels(dataset, encoder, split)
    actions = read_actions(dataset, (*split.train, *split.validation, *split.test))
    trained = {"mlp": {"steps": mlp_steps, "members": mlp_seeds, "device": device}}
    layer = None if encoder.spec.layer == -1 else encoder.spec.layer
    identity = {"env": dataset.env_id, "encoder": encoder.spec.name, "family": encoder.spec.family, "layer": layer}
    scorer = Scorer(identity, dataset.action_spec, dataset.key, replicates)
    with open_cache(cache) as opened:
        settings = ProbeSettings(
            dataset, encoder, split, actions, opened, ("pair",), ("mean",), (), tuple(lambdas), folds, trained, seed,
            device,
        )  # fmt: skip
        run = _Run(settings, scorer, k, mode)
        predictors = {readout: run.fit(readout) for readout in readouts}
        clean = {readout: run.add(run.clean, predictor, readout) for readout, predictor in predictors.items()}
        for condition in conditions:
            corrupted = run.corrupted(condition)
            run.add_similarity(corrupted, condition)
            for readout, predictor in predictors.items():
                run.add_corrupted(corrupted, predictor, readout, condition, clean[readout])
        for stress in stresses:
            stressed = run.stressed(stress)
            for readout, predictor in predictors.items():
                run.add_stressed(stressed, predictor, readout, stress)
    return scorer.result


def named_condition(text: str) -> str:
    """One name for one corruption at one severity: ``"<corruption>:<severity>"``, or the name where there is only one.

    Severity 3 where none is given, as in closed loop; see :func:`latentgym.corruptions.checked_corruption`.

    Raises:
        UnknownNameError: if there is no such corruption.
        LatentGymError: if there is no such severity.

    >>> named_condition("snow"), named_condition("snow:1"), named_condition("noise_015:1")
    ('snow:3', 'snow:1', 'noise_015')
    """
    name, severity = checked_corruption(text)
    return name if len(CORRUPTIONS[name].severities) == 1 else f"{name}:{severity}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Feature rows of the test episodes, in memory."""

    by_episode: dict[int, Floats]

    @property
    def dim(self) -> int:
        """Number of features."""
        return int(next(iter(self.by_episode.values())).shape[1])

    def episode(self, index: int) -> Floats:
        """Features ``(n, F)`` of one episode."""
        return self.by_episode[index]


class _Run:
    """Readouts, features and rows of one encoder and horizon."""

    def __init__(self, settings: ProbeSettings, scorer: Scorer, k: int, mode: Mode) -> None:
        self.settings, self.scorer, self.k, self.mode = settings, scorer, k, mode
        self.clean = settings.features(k, None)
        self.test = settings.windows("test", k)

    def fit(self, readout: str) -> Predictor:
        """A readout of clean pairs, as a function of features and windows."""
        settings = self.settings
        train = settings.windows("train", self.k)
        if readout == "ridge":
            ridge = settings.fit_ridge(self.clean, "pair", train, [train.mean])
            self.scorer.result.lambdas[f"ridge|pair|{self.k}"] = ridge.lambda_
            return lambda features, windows: settings.predict_ridge(ridge, features, "pair", windows)[0]
        held = settings.windows("validation", self.k)
        x, x_held = (self.clean.rows(windows, "pair_difference") for windows in (train, held))
        training = {"seed": derive_seed(settings.seed, "mlp", self.k), **settings.trained["mlp"]}
        mlp = MLPProbe(scale_floor=SCALE_FLOOR, **training).fit(x, train.mean, validation=(x_held, held.mean))
        return lambda features, windows: mlp.predict_members(features.rows(windows, "pair_difference"))

    def _observations(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Test episodes that have a window, and their observations."""
        dataset, modality = self.settings.dataset, self.settings.encoder.spec.modality
        for index in np.unique(self.test.episode).tolist():
            cameras = dataset.cameras[:1] if modality == "pixels" else ()
            episode = dataset.episode(index, cameras=cameras)
            yield index, episode.frames[cameras[0]] if modality == "pixels" else getattr(episode, modality)

    def corrupted(self, condition: str) -> WindowFeatures:
        """Features of the test episodes with corrupted frames."""
        from latentgym.encoders.features import View, canonical_view, encode_view

        name, severity = checked_corruption(condition)
        encoder, settings = self.settings.encoder, self.settings
        single, clip = {}, {}
        for index, frames in self._observations():
            seed = derive_seed(settings.seed, "corruption", settings.dataset.seeds[index], index)
            changed = corrupt(frames[None], name, severity, seed=seed, mode=self.mode, device=str(encoder.device))
            observed = np.asarray(changed)[0]
            single[index] = encode_view(encoder, observed, View("single"))
            if canonical_view(View("clip", self.k), encoder.spec) == (View("single"), self.k):
                clip[index] = single[index][self.k :]
            else:
                clip[index] = encode_view(encoder, observed, View("clip", self.k))
        return WindowFeatures(_Rows(single), _Rows(clip))

    def stressed(self, stress: str) -> WindowFeatures:
        """Features of the test windows with their frames in another order; row t is the window at t."""
        from latentgym.encoders.features import View, encode_clips, window_indices

        view, encoder = View("clip", self.k), self.settings.encoder
        inside = window_indices(self.k + 1, view, encoder.spec.clip_length)[0]
        single, clip = {}, {}
        for index, observed in self._observations():
            start = np.arange(len(observed) - self.k)[:, None]
            rng = numpy_generator(self.settings.seed, "stress", self.settings.dataset.seeds[index], index)
            order = start + _order(stress, len(start), self.k + 1, rng)
            single[index] = self.clean.single.episode(index)[order[:, 0]]
            clip[index] = encode_clips(encoder, observed[order[:, inside]], view)
        return WindowFeatures(_Rows(single), _Rows(clip))

    def add(self, features: WindowFeatures, predictor: Predictor, readout: str) -> dict[str, Scores]:
        """Rows of the clean scores."""
        return self.scorer.add(self.test, predictor(features, self.test), readout=readout, input="pair")

    def add_corrupted(
        self,
        features: WindowFeatures,
        predictor: Predictor,
        readout: str,
        condition: str,
        clean: dict[str, Scores],
    ) -> None:
        """Rows of the scores under one corruption, and what is left of the clean ones."""
        names = {"r2": "corrupted_r2", "pearson_r": "corrupted_pearson_r", "clipped_r2": "corrupted_clipped_r2"}
        prediction = predictor(features, self.test)
        found = self.scorer.add(self.test, prediction, readout=readout, input="pair", names=names, condition=condition)
        for subset, scores in found.items():
            count = len(np.unique(self.test.episode if subset == "all" else self.test.episode[self.test.random]))
            where = {"readout": readout, "input": "pair", "k": self.k, "subset": subset, "n": count}
            where |= {"condition": condition}
            before = clean[subset]
            self.scorer.row("r2_drop", before["r2", "macro"] - scores["r2", "macro"], "macro", where)
            kept = _quotient(scores["clipped_r2", "macro"], before["clipped_r2", "macro"])
            self.scorer.row("r2_retention", kept, "macro", where)

    def add_similarity(self, features: WindowFeatures, condition: str) -> None:
        """Row of the mean cosine similarity between clean and corrupted features of the clip."""
        assert self.clean.clip is not None and features.clip is not None
        sums, counts = [], []
        for index in np.unique(self.test.episode).tolist():
            clean, changed = (source.episode(index).astype(np.float64) for source in (self.clean.clip, features.clip))
            norms = np.linalg.norm(clean, axis=1) * np.linalg.norm(changed, axis=1)
            sums.append(((clean * changed).sum(1) / np.maximum(norms, 1e-12)).sum())
            counts.append(len(clean))
        weights = resamples(self.scorer.dataset_key, "all", len(sums), self.scorer.replicates)
        found = estimate((weights @ np.array(sums)) / (weights @ np.array(counts, dtype=np.float64)))
        where = {"readout": None, "input": None, "k": self.k, "subset": "all", "n": len(sums), "condition": condition}
        self.scorer.row("latent_cosine_similarity", found, "macro", where)

    def add_stressed(self, features: WindowFeatures, predictor: Predictor, readout: str, stress: str) -> None:
        """Rows of the scores under one temporal stress."""
        prediction = predictor(features, self.test)
        where: dict[str, Any] = {"readout": readout, "input": "pair", "condition": stress}
        self.scorer.add(self.test, prediction, names={"r2": "stress_r2"}, **where)
        if stress == "reverse":
            self.scorer.add(self.test, -prediction, names={"r2": "reverse_negated_r2"}, **where)


def _order(stress: str, windows: int, frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``(windows, frames)`` which frame of its window stands where."""
    order = np.tile(np.arange(frames), (windows, 1))
    if stress == "shuffle":
        return rng.permuted(order, axis=1)
    return order[:, ::-1] if stress == "reverse" else np.zeros_like(order)


def _quotient(part: Estimate, whole: Estimate) -> Estimate:
    """Share of ``whole`` that ``part`` is, undefined where ``whole`` is zero."""
    tiny = 1e-6
    replicates = np.divide(
        part.replicates, whole.replicates, out=np.full_like(whole.replicates, np.nan), where=whole.replicates > tiny
    )
    defined = part.value is not None and whole.value is not None and whole.value > tiny
    return Estimate(part.value / whole.value if defined else None, replicates)  # type: ignore[operator]
