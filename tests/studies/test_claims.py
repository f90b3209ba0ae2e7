"""The verdicts on studies whose truth is known: latents with planted action information, without it, and confounds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentgym.errors import LatentGymError
from latentgym.probes.ridge import RidgeProbe
from latentgym.probes.scores import action_scores, resamples
from latentgym.results import Row
from latentgym.studies import claims
from latentgym.studies.claims import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, SUPPORTED, Claim, claims_of, evaluate
from latentgym.studies.effects import Effect, effect_of_runs, ratio_interval
from latentgym.studies.evidence import REPLICATES_NAME, Benchmark, Evidence, replicate_name
from latentgym.trajectories.episode import ActionSpec

TABLETOP = Benchmark("tabletop", "tabletop", ("latentgym/TabletopReach-v0",), ("noisy-expert", 0.5))
METAWORLD = Benchmark("metaworld", "metaworld", ("metaworld/reach-v3",), ("noisy-expert", 0.5))
CALVIN = Benchmark("calvin", "calvin", ("latentgym/CalvinD-v0",), ("noisy-expert", 0.5))
PLACES = (TABLETOP, METAWORLD, CALVIN)
FAMILIES = (
    "pixel_autoencoder", "masked_image", "image_ssl", "masked_video", "masked_video_latent", "next_latent",
    "diffusion", "inverse_dynamics",
)  # fmt: skip
REPLICATES, TRAIN, TEST, STEPS, WIDTH, ACTIONS = 200, 24, 24, 16, 8, 3
SPREAD = 0.01


@dataclasses.dataclass
class Truth:
    """What is planted: share of the action in each family's latents, PSNR, and what corruption takes away."""

    information: dict[str, float]
    psnr_db: dict[str, float] = dataclasses.field(default_factory=dict)
    kept: dict[str, float] = dataclasses.field(default_factory=dict)
    by_place: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    runs: int = 3

    def share(self, place: Benchmark, family: str) -> float:
        return self.by_place.get(place.name, {}).get(family, self.information[family])


def latents(
    rng: np.random.Generator, action: np.ndarray, share: float, mixing: np.ndarray, context: np.ndarray
) -> np.ndarray:
    """Latents of which a linear readout gets about R² = ``share`` of the action; the rest is noise and the episode."""
    hidden = np.sqrt(share) * action + np.sqrt(1 - share) * rng.normal(size=action.shape)
    rest = rng.normal(size=(len(action), WIDTH - ACTIONS - 1))
    return np.concatenate([hidden, rest, context[:, None]], axis=1) @ mixing


def study(truth: Truth, action_spec: ActionSpec, seed: int, places: tuple[Benchmark, ...] = PLACES) -> Evidence:
    """Probe planted latents of every family, run and benchmark with the readout and the scores of real studies."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    replicates: dict[str, np.ndarray] = {}

    def add(value: float, drawn: np.ndarray, **columns: Any) -> None:
        low, high = np.quantile(drawn, [0.025, 0.975])
        row = Row(family=columns["encoder"], value=value, low=float(low), high=float(high), n=TEST, **columns).to_dict()
        rows.append(row)
        replicates[replicate_name(row)] = drawn

    for place in places:
        episode = np.repeat(np.arange(TRAIN + TEST), STEPS)
        level = rng.normal(size=(TRAIN + TEST, 1)).repeat(STEPS, axis=0)
        action = rng.normal(size=(len(episode), ACTIONS)) * np.exp(0.3 * level)
        train, test = episode < TRAIN, episode >= TRAIN
        counts = resamples(f"{place.name}-{seed}", "all", TEST, REPLICATES)
        for family in truth.information:
            for run in range(truth.runs):
                share = np.clip(truth.share(place, family) + SPREAD * rng.normal(), 0.0, 0.97)
                mixing = rng.normal(size=(WIDTH, WIDTH))
                state = rng.bit_generator.state
                clean = latents(rng, action, share, mixing, level[:, 0])
                rng.bit_generator.state = state
                kept = truth.kept.get(family, 1.0)
                noisy = kept * clean + 2 * (1 - kept) * np.random.default_rng(run).normal(size=clean.shape) * clean.std(
                    0
                )
                probe = RidgeProbe((1.0,), device="cpu").fit(clean[train], action[train], episode[train])
                common = {"env": place.envs[0], "encoder": family, "seed": run}
                where = {"readout": "ridge", "input": "pair", "k": 1, "subset": "all", "dimension": "macro"}
                for metric, x, condition in (("action_r2", clean, None), ("corrupted_r2", noisy, "noise_015")):
                    predicted = probe.predict(x[test])[None]
                    score = action_scores(action[test], predicted, episode[test], action_spec, counts)["r2", "macro"]
                    assert score.value is not None
                    add(score.value, score.replicates, metric=metric, condition=condition, **common, **where)
                psnr = truth.psnr_db.get(family, 25.0) + 0.1 * rng.normal()
                common |= {"env": place.suite, "readout": "decoder"}
                add(psnr, psnr + 0.2 * rng.normal(size=REPLICATES), metric="psnr_db", **common)
                add(20.0, np.full(REPLICATES, 20.0), metric="psnr_mean_image_db", **common)
    return Evidence(rows, places, replicates)


@pytest.fixture(scope="module")
def spec() -> ActionSpec:
    return ActionSpec(
        names=("x", "y", "grip"), frame="world", mode="delta", units=("m",) * 3, scale=(1.0,) * 3, low=(-1.0,) * 3,
        high=(1.0,) * 3, translation=(0, 1), gripper=(2,),
    )  # fmt: skip


def verdict(found: list[Claim], letter: str, benchmark: str = "all") -> Claim:
    (claim,) = [
        one
        for one in found
        if (one.claim, one.benchmark, one.part, one.scope) == (letter, benchmark, None, claims.SMALL_SCALE)
    ]
    return claim


def informed(**changes: float) -> dict[str, float]:
    """The paper's picture: little in images, much in video, most in the supervised reference."""
    known = dict(zip(FAMILIES, (0.02, 0.12, 0.2, 0.55, 0.6, 0.65, 0.3, 0.85), strict=True))
    return known | changes


STILL = {"masked_image": 0.55, "image_ssl": 0.57}
TRUE = Truth(
    informed(),
    kept={"masked_video": 0.6, "masked_video_latent": 0.6, "next_latent": 0.6, "inverse_dynamics": 0.97},
    by_place={"calvin": STILL},
)
FALSE = Truth(
    informed(pixel_autoencoder=0.8, masked_image=0.3, masked_video=0.2, masked_video_latent=0.7, next_latent=0.3),
    kept={"inverse_dynamics": 0.5},
    by_place={
        "metaworld": {"masked_video": 0.5, "next_latent": 0.52, "masked_image": 0.4, "image_ssl": 0.4,
                      "masked_video_latent": 0.45, "pixel_autoencoder": 0.6},
        "calvin": {"masked_image": 0.05, "image_ssl": 0.05, "masked_video": 0.3, "next_latent": 0.8,
                   "pixel_autoencoder": 0.9},
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def true_study(spec: ActionSpec) -> Evidence:
    return study(TRUE, spec, seed=1)


@pytest.fixture(scope="module")
def true_claims(true_study: Evidence) -> list[Claim]:
    return evaluate(true_study)


@pytest.fixture(scope="module")
def false_claims(spec: ActionSpec) -> list[Claim]:
    return evaluate(study(FALSE, spec, seed=2))


@pytest.mark.parametrize("letter", "abcdef")
def test_true_claims_are_supported(letter: str, spec: ActionSpec, true_claims: list[Claim]) -> None:
    # Planted still scenes rank CALVIN's encoders otherwise, so transfer is tested on the other two.
    claim = verdict(evaluate(study(TRUE, spec, 1, PLACES[:2])) if letter == "d" else true_claims, letter)
    assert claim.verdict == SUPPORTED, claim
    assert claim.n_runs == 3 and claim.low is not None and claim.high is not None


@pytest.mark.parametrize("letter", "abcef")
def test_false_claims_are_contradicted(letter: str, false_claims: list[Claim]) -> None:
    assert verdict(false_claims, letter).verdict == CONTRADICTED


def test_loaded_encoders_that_labels_trained_are_not_ranked(true_study: Evidence) -> None:
    rows = [row for found in true_study._rows.values() for row in found.values()]
    told = Evidence(rows, true_study.benchmarks, true_study.replicates, labelled={"next_latent"})
    assert claims._ranked(true_study) - claims._ranked(told) == {"next_latent"}
    assert "inverse_dynamics" not in claims._ranked(told)


def test_reversed_rankings_contradict_transfer(spec: ActionSpec) -> None:
    shares = dict(zip(FAMILIES[:-1], np.linspace(0.05, 0.85, 7), strict=True))
    turned = dict(zip(FAMILIES[:-1], np.linspace(0.85, 0.05, 7), strict=True))
    truth = Truth(shares, by_place={"metaworld": turned})
    claim = verdict(evaluate(study(truth, spec, 3, PLACES[:2])), "d")
    assert claim.verdict == CONTRADICTED and claim.value is not None and claim.value < -0.9


def test_no_information_anywhere_supports_nothing(spec: ActionSpec) -> None:
    """Latents without action: nothing is better, nothing can be lost, and a score near zero shows nothing."""
    found = evaluate(study(Truth(dict.fromkeys(FAMILIES, 0.0)), spec, seed=4))
    verdicts = {letter: verdict(found, letter).verdict for letter in "abcdef"}
    assert SUPPORTED not in verdicts.values()
    assert verdicts["b"] == verdicts["f"] == NOT_TESTED


@pytest.mark.parametrize(
    ("letter", "truth", "expected"),
    [
        # Video has more action and a much better picture: the comparison is not at equal fidelity.
        ("a", Truth(informed(), psnr_db=dict.fromkeys(claims.VIDEO, 31.0)), NOT_TESTED),
        # The blurriest encoder has no action: that says nothing of high PSNR.
        ("b", Truth(informed(), {"pixel_autoencoder": 21.0}), NOT_TESTED),
        # Both steps lose, the latent one more: no gain that temporal context could be most of.
        ("c", Truth(informed(masked_image=0.7, masked_video=0.6, masked_video_latent=0.2)), INCONCLUSIVE),
        # An encoder that knows nothing loses nothing: it is no evidence against supervision.
        ("f", Truth(informed(**dict.fromkeys(claims.VIDEO, 0.0)), kept={"inverse_dynamics": 0.7}), NOT_TESTED),
    ],
)  # fmt: skip
def test_confounds_do_not_pass_for_evidence(letter: str, truth: Truth, expected: str, spec: ActionSpec) -> None:
    assert verdict(evaluate(study(truth, spec, seed=5)), letter).verdict == expected


def test_other_action_mixtures_leave_the_gap_untested(true_study: Evidence) -> None:
    found = true_study
    mixed = [dataclasses.replace(p, mixture=("random", 0.9)) if p is CALVIN else p for p in PLACES]
    changed = Evidence([], mixed)
    changed._rows, changed.encoders, changed.replicates = found._rows, found.encoders, found.replicates
    claim = verdict(evaluate(changed), "e")
    assert claim.verdict == NOT_TESTED and "mixtures" in claim.reason


def test_one_run_is_no_replicate(spec: ActionSpec) -> None:
    found = evaluate(study(dataclasses.replace(TRUE, runs=1), spec, 7))
    assert {claim.verdict for claim in found if claim.part is None} == {NOT_TESTED}


@pytest.mark.slow
@pytest.mark.parametrize("letter", "ac")
def test_wrong_verdicts_are_rare_and_doubt_is_common_where_nothing_differs(letter: str, spec: ActionSpec) -> None:
    truth = Truth(dict.fromkeys(FAMILIES, 0.4))
    seen = Counter(verdict(evaluate(study(truth, spec, seed, (TABLETOP,))), letter).verdict for seed in range(30))
    assert seen[INCONCLUSIVE] >= 26
    assert set(seen) <= {INCONCLUSIVE, SUPPORTED, CONTRADICTED}


def simulated(rng: np.random.Generator, runs: int, spread: float, shared: float, effect: float) -> Effect:
    """A difference whose runs and whose test episodes both vary by a known amount."""
    error = shared * rng.normal()
    values = effect + error + spread * rng.normal(size=runs)
    return effect_of_runs(values, values[:, None] + shared * rng.normal(size=(1, 200)), episodes=30)


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize(("spread", "shared"), [(0.1, 0.0), (0.1, 0.1), (0.02, 0.1)])
def test_intervals_cover_and_verdicts_err_at_the_nominal_rate(runs: int, spread: float, shared: float) -> None:
    rng = np.random.default_rng(0)
    null = [simulated(rng, runs, spread, shared, 0.0).interval() for _ in range(2000)]
    verdicts = Counter(claims.judge(*interval) for interval in null)
    # 2.5 % of each wrong verdict, plus four standard errors of 2,000 simulations.
    assert verdicts[SUPPORTED] <= 80 and verdicts[CONTRADICTED] <= 80
    assert verdicts[INCONCLUSIVE] >= 1840
    large = Counter(claims.judge(*simulated(rng, runs, spread, shared, 1.0).interval()) for _ in range(300))
    assert large[SUPPORTED] >= 285


def test_rank_correlations_err_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    for count in (7, 9):
        wrong = 0
        for _ in range(1000):
            rho = float(claims.spearman(*rng.normal(size=(2, count))))
            wrong += (
                claims._correlation(claims._atanh(rho), claims._rank_error(rho, count), 3, "all").verdict
                != INCONCLUSIVE
            )
        assert wrong <= 80


def test_fiellers_interval_covers_and_opens_without_a_denominator() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(1000):
        parts = [simulated(rng, 3, 0.02, 0.02, effect) for effect in (0.1, 0.4)]
        low, high = ratio_interval(*parts)
        inside += low is None or high is None or low <= 0.25 <= high
    assert inside >= 930
    assert ratio_interval(Effect(0.1, ((0.01, 2),)), Effect(0.01, ((0.01, 2),))) == (None, None)


def test_natural_video_is_never_tested_without_its_weights(true_claims: list[Claim]) -> None:
    natural = [claim for claim in true_claims if claim.scope == claims.NATURAL_VIDEO]
    assert [claim.claim for claim in natural] == list("abcdef")
    assert {claim.verdict for claim in natural} == {NOT_TESTED}
    assert {claim.scope for claim in true_claims} == {"small scale, domain video", "natural video"}
    assert all(np.isfinite(claim.value) for claim in true_claims if claim.value is not None)


def written(folder: Path, evidence: Evidence, replicates: bool) -> Path:
    rows = [row for table in evidence._rows.values() for row in table.values()]
    suites = [
        {"name": p.suite, "envs": p.envs, "policy": p.mixture[0], "random_fraction": p.mixture[1]} for p in PLACES
    ]
    (folder / "results.json").write_text(json.dumps({"schema": 1, "study": "s", "rows": rows, "link": []}))
    (folder / "run.json").write_text(json.dumps({"config": {"suites": suites}}))
    if replicates:
        save_file(dict(evidence.replicates), folder / REPLICATES_NAME)
    return folder


def test_claims_of_a_folder_are_those_of_its_evidence(tmp_path: Path, true_study: Evidence) -> None:
    assert claims_of(written(tmp_path, true_study, replicates=True)) == evaluate(true_study)


def test_without_replicates_intervals_stand_in(tmp_path: Path, true_study: Evidence) -> None:
    found = claims_of(written(tmp_path, true_study, replicates=False))
    assert verdict(found, "a").verdict == SUPPORTED
    assert found == claims_of(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda p: p.joinpath("run.json").unlink(), lambda p: p.joinpath("run.json").write_text("{}")]
)
def test_unfinished_or_damaged_studies_are_named(
    tmp_path: Path, spec: ActionSpec, damage: Callable[[Path], Any]
) -> None:
    damage(written(tmp_path, study(dataclasses.replace(TRUE, runs=2), spec, 1, PLACES[:1]), replicates=False))
    with pytest.raises(LatentGymError, match=r"run\.json"):
        claims_of(tmp_path)
