"""Hypotheses about pretraining signals, declared before the ``paper`` study ran, and what a study says about each.

Replicates are pretraining runs; families are the study's objectives. An interval is 95 % and takes in the spread
between runs and the test episodes that runs share. A verdict is ``supported`` or ``contradicted`` where the whole
interval lies on one side of what was declared, ``inconclusive`` where it does not, and ``not tested`` where the study
lacks what the claim needs. The constants below were fixed before that study, but after PSNR and action R² of an
unfinished ``standard`` study had been seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from latentgym.statistics import spearman
from latentgym.studies.config import ADAPTED_SUFFIX
from latentgym.studies.effects import Effect, mean_effect, ratio_interval
from latentgym.studies.evidence import Benchmark, Evidence, Runs, read_evidence

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = "supported", "contradicted", "inconclusive", "not tested"
SMALL_SCALE, NATURAL_VIDEO = "small scale, domain video", "natural video"

VIDEO = ("masked_video", "masked_video_latent", "next_latent")
IMAGE = ("image_ssl", "masked_image")
RECONSTRUCTION = ("pixel_autoencoder",)
SUPERVISED = "inverse_dynamics"
NOT_RANKED = (SUPERVISED, "random", "pixels", "proprio", "state", "constant", "previous_action", "pixel_pca")
# (a) Fidelity is equal where mean PSNRs differ by no more than this.
EQUAL_PSNR_DB = 1.0
# (b) PSNR is high where its lower limit is this far above the mean image's: half of the squared error or less.
HIGH_PSNR_GAIN_DB = 3.0
NEAR_ZERO_R2 = 0.1
# (d) Families that a rank correlation needs.
MIN_RANKED = 5
# (f) R² is unbounded below; a readout that is twice as bad as the mean action is not told from a worse one.
WORST_R2 = -1.0

STATEMENTS = {
    "a": "Temporal video pretraining beats pixel reconstruction at equal fidelity.",
    "b": "High PSNR can go with near-zero action R².",
    "c": "Most of the gain of video pretraining is temporal context; latent prediction adds a little.",
    "d": "Rankings of encoders transfer between benchmarks.",
    "e": "CALVIN's static scenes compress the gap between image and video encoders.",
    "f": "Inverse-dynamics supervision improves robustness to corruption.",
}
STATISTICS = {
    "a": f"action R², video families − pixel autoencoder, among those within {EQUAL_PSNR_DB:g} dB of its PSNR",
    "b": f"action R² of the pixel autoencoder where its PSNR is ≥ {HIGH_PSNR_GAIN_DB:g} dB above the mean image's",
    "c": "[masked video, pixel − masked image] − [masked video, latent − masked video, pixel], action R²",
    "d": "Spearman ρ of the families' action R² across benchmarks",
    "e": "gap in action R², video − image, CALVIN : Meta-World, same behaviour and share of random actions",
    "f": "drop in action R² under corruption, video families − inverse dynamics",
}

# What (f) becomes in a study that adapts encoders: the encoder is its own control.
ADAPTED_STATISTIC = "drop in action R² under corruption, frozen encoder − the same trained further by inverse dynamics"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What a study says about one claim.

    Attributes:
        claim: letter of the hypothesis, ``"a"`` … ``"f"``.
        statement: the hypothesis.
        statistic: what was computed.
        scope: ``"small scale, domain video"`` or ``"natural video"``.
        benchmark: ``"all"`` for the claim's own verdict, else what one benchmark (or pair) says by itself.
        part: ``None`` for the statistic, else the term of it that the row holds; parts carry no verdict.
        value: the statistic.
        low: lower end of its 95 % interval; ``None`` where the interval is open or unknown.
        high: upper end.
        n_runs: pretraining runs per family behind it.
        verdict: ``"supported"``, ``"contradicted"``, ``"inconclusive"``, ``"not tested"``; ``None`` for parts.
        reason: why it reads as it does.
    """

    claim: str
    statement: str
    statistic: str
    scope: str = SMALL_SCALE
    benchmark: str = "all"
    part: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n_runs: int = 0
    verdict: str | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The claim as a mapping of JSON types."""
        return dataclasses.asdict(self)


def claims_of(*folders: Path | str) -> list[Claim]:
    """Evaluate the claims on one or more finished studies, each benchmark taken from the first study that has it."""
    found = [read_evidence(Path(folder)) for folder in folders]
    return evaluate(*found)


def evaluate(*studies: Evidence) -> list[Claim]:
    """Every claim, its parts and what each benchmark says, in order; then the claims that need natural-video weights.

    Args:
        studies: evidence; of benchmarks of one name the first counts.
    """
    places: dict[str, tuple[Evidence, Benchmark]] = {}
    for study in studies:
        for benchmark in study.benchmarks:
            places.setdefault(benchmark.name, (study, benchmark))
    rules: dict[str, Callable[[Places], Iterator[Claim]]] = {
        "a": _equal_fidelity, "b": _near_zero, "c": _context, "d": _transfer, "e": _compression, "f": _robustness,
    }  # fmt: skip
    claims = [claim for rule in rules.values() for claim in rule(tuple(places.values()))]
    weights = "needs encoders pretrained on natural video, several runs of each; published weights are one run each"
    return claims + [_claim(letter, verdict=NOT_TESTED, scope=NATURAL_VIDEO, reason=weights) for letter in STATEMENTS]


Places = Sequence[tuple[Evidence, Benchmark]]


def _claim(letter: str, **fields: Any) -> Claim:
    return Claim(claim=letter, statement=STATEMENTS[letter], statistic=STATISTICS[letter], **fields)


def judge(low: float, high: float, null: float = 0.0) -> str:
    """Verdict on "greater than ``null``" from an interval."""
    return SUPPORTED if low > null else CONTRADICTED if high < null else INCONCLUSIVE


def _group(place: tuple[Evidence, Benchmark], names: Sequence[str], metric: str = "action_r2") -> Runs | None:
    """Mean over the families that the benchmark has, run by run."""
    evidence, benchmark = place
    found = [runs for name in names if (runs := evidence.runs(metric, name, benchmark)) is not None]
    return _mean(found)


def _mean(found: Sequence[Runs]) -> Runs | None:
    if not found:
        return None
    total = found[0]
    for runs in found[1:]:
        total = total + runs
    return total * (1 / len(found))


def _usable(runs: Runs | None) -> bool:
    return runs is not None and len(runs.seeds) >= 2


def _row(letter: str, effect: Effect, runs: int, **fields: Any) -> Claim:
    low, high = effect.interval()
    return _claim(letter, value=effect.value, low=low, high=high, n_runs=runs, **fields)


def _over_benchmarks(
    letter: str, found: Sequence[tuple[str, Runs]], missing: str, notes: str = "", null: float = 0.0
) -> Iterator[Claim]:
    """The claim's verdict from the mean over benchmarks, then each benchmark's own."""
    tested = [(name, runs) for name, runs in found if len(runs.seeds) >= 2]
    if not tested:
        yield _claim(letter, verdict=NOT_TESTED, reason="needs at least 2 pretraining runs" if found else missing)
        return
    pooled = mean_effect([runs.effect for _, runs in tested])
    fewest = min(len(runs.seeds) for _, runs in tested)
    yield _row(letter, pooled, fewest, verdict=judge(*pooled.interval(), null), reason=notes)
    for name, runs in tested:
        verdict = judge(*runs.effect.interval(), null)
        yield _row(letter, runs.effect, len(runs.seeds), benchmark=name, verdict=verdict)


def _equal_fidelity(places: Places) -> Iterator[Claim]:
    found, notes, compared = [], [], False
    for place in places:
        evidence, benchmark = place
        rebuilt, sharpness = _group(place, RECONSTRUCTION), _group(place, RECONSTRUCTION, "psnr_db")
        matched = []
        for name in VIDEO:
            runs, psnr = (evidence.runs(metric, name, benchmark) for metric in ("action_r2", "psnr_db"))
            if rebuilt is None or sharpness is None or runs is None or psnr is None:
                continue
            compared = True
            if abs(float(psnr.values.mean() - sharpness.values.mean())) <= EQUAL_PSNR_DB:
                matched.append(runs - rebuilt)
                notes.append(f"{name} on {benchmark.name}")
        mean = _mean(matched)
        if mean is not None:
            found.append((benchmark.name, mean))
    missing = "no video family has the pixel autoencoder's PSNR" if compared else "needs both kinds of encoder and PSNR"
    yield from _over_benchmarks("a", found, missing, "at equal fidelity: " + ", ".join(notes))


def _solvable(place: tuple[Evidence, Benchmark]) -> bool:
    """Whether some readout gets the action at all, so that a score near zero is the encoder's."""
    evidence, benchmark = place
    for name in (SUPERVISED, "state", "proprio"):
        runs = evidence.runs("action_r2", name, benchmark)
        if runs is not None and runs.values.mean() > 2 * NEAR_ZERO_R2:
            return True
    return False


def _near_zero(places: Places) -> Iterator[Claim]:
    """The reconstruction families decide, declared beforehand; other families with a high PSNR stand beside them."""
    high = [item for place in places if _solvable(place) for item in _sharp(place)]
    decisive = [item for item in high if item[1] in RECONSTRUCTION]
    if not decisive:
        reason = f"no pixel autoencoder with 2 runs and a PSNR {HIGH_PSNR_GAIN_DB:g} dB above the mean image's"
        yield _claim("b", verdict=NOT_TESTED, reason=f"{reason}, on a benchmark where R² can be had")
        return
    # "Can" is shown by one benchmark, so the error rate of looking at all of them is shared out (Bonferroni).
    error = 0.05 / len(decisive)
    place, name, runs = min(decisive, key=lambda item: item[2].effect.interval(error)[1])
    low, top = runs.effect.interval(error)
    above = all(runs.effect.interval()[0] >= NEAR_ZERO_R2 for *_, runs in decisive)
    verdict = SUPPORTED if top < NEAR_ZERO_R2 else CONTRADICTED if above else INCONCLUSIVE
    reason = f"{name} on {place}, of {len(decisive)} benchmarks; near zero is an upper limit below {NEAR_ZERO_R2:g}"
    count = len(runs.seeds)
    yield _claim("b", value=runs.effect.value, low=low, high=top, n_runs=count, verdict=verdict, reason=reason)
    for place, name, runs in high:
        yield _row("b", runs.effect, len(runs.seeds), benchmark=place, part=name)


def _sharp(place: tuple[Evidence, Benchmark]) -> Iterator[tuple[str, str, Runs]]:
    """Families pretrained without action labels whose PSNR is high: benchmark, name, action R²."""
    evidence, benchmark = place
    for name in sorted(_ranked(evidence)):
        metrics = ("action_r2", "psnr_db", "psnr_mean_image_db")
        runs, psnr, floor = (evidence.runs(metric, name, benchmark) for metric in metrics)
        if runs is None or psnr is None or floor is None or not (_usable(runs) and _usable(psnr)):
            continue
        if (psnr - floor).effect.interval()[0] >= HIGH_PSNR_GAIN_DB:
            yield benchmark.name, name, runs


def _context(places: Places) -> Iterator[Claim]:
    whole, gains, steps = [], [], []
    for place in places:
        image, pixel, latent = (
            _group(place, (name,)) for name in ("masked_image", "masked_video", "masked_video_latent")
        )
        if image is not None and pixel is not None and latent is not None:
            gain, step = pixel - image, latent - pixel
            whole.append((place[1].name, gain - step))
            gains.append(gain)
            steps.append(step)
    rows = list(_over_benchmarks("c", whole, "needs masked_image, masked_video and masked_video_latent"))
    parts = [runs for runs in gains if _usable(runs)]
    if not parts:
        yield from rows
        return
    context = mean_effect([runs.effect for runs in parts])
    if rows[0].verdict == SUPPORTED and context.interval()[0] <= 0:
        # More than the latent step is not yet a gain: both may be losses.
        rows[0] = dataclasses.replace(rows[0], verdict=INCONCLUSIVE, reason="temporal context itself shows no gain")
    yield rows[0]
    latent_target = mean_effect([runs.effect for runs in steps if _usable(runs)])
    yield _row("c", context, rows[0].n_runs, part="temporal context: masked video, pixel − masked image")
    yield _row("c", latent_target, rows[0].n_runs, part="latent target: masked video, latent − masked video, pixel")
    yield from rows[1:]


def _ranked(evidence: Evidence) -> set[str]:
    """Encoders pretrained without action labels."""
    names = evidence.encoders - set(NOT_RANKED) - evidence.labelled
    return {name for name in names if ADAPTED_SUFFIX not in name}


def _transfer(places: Places) -> Iterator[Claim]:
    pairs: list[tuple[str, float, float]] = []
    fewest = 0
    for one, two in itertools.combinations(places, 2):
        names = sorted(_ranked(one[0]) & _ranked(two[0]))
        scores = [(a, b) for name in names if (a := _group(one, (name,))) and (b := _group(two, (name,)))]
        if len(scores) < MIN_RANKED:
            continue
        rho = float(spearman([a.values.mean() for a, _ in scores], [b.values.mean() for _, b in scores]))
        if math.isfinite(rho):
            pairs.append((f"{one[1].name} : {two[1].name}", rho, _rank_error(rho, len(scores))))
            fewest = min(len(runs.seeds) for pair in scores for runs in pair)
    if not pairs:
        reason = f"needs two benchmarks with {MIN_RANKED} families each, trained without action labels"
        yield _claim("d", verdict=NOT_TESTED, reason=reason)
        return
    if fewest < 2:
        yield _claim("d", verdict=NOT_TESTED, reason="needs at least 2 pretraining runs")
        return
    # The same families rank in every pair, so pairs are not independent: the mean keeps one pair's error.
    depth = float(np.mean([_atanh(rho) for _, rho, _ in pairs]))
    yield _correlation(depth, max(error for *_, error in pairs), fewest, "all")
    for name, rho, error in pairs:
        yield _correlation(_atanh(rho), error, fewest, name)


def _atanh(rho: float) -> float:
    return float(np.arctanh(np.clip(rho, -0.999, 0.999)))


def _rank_error(rho: float, count: int) -> float:
    """Standard error of Fisher's z of Spearman's ρ (Bonett and Wright 2000), families as units."""
    return math.sqrt((1 + rho**2 / 2) / (count - 3))


def _correlation(depth: float, error: float, runs: int, benchmark: str) -> Claim:
    half = float(scipy.stats.norm.ppf(0.975)) * error
    value, low, high = (math.tanh(z) for z in (depth, depth - half, depth + half))
    verdict = judge(low, high)
    return _claim("d", value=value, low=low, high=high, n_runs=runs, benchmark=benchmark, verdict=verdict)


def _compression(places: Places) -> Iterator[Claim]:
    by_name = {place[1].name: place for place in places}
    if not {"calvin", "metaworld"} <= set(by_name):
        yield _claim("e", verdict=NOT_TESTED, reason="needs a CALVIN and a Meta-World suite")
        return
    calvin, metaworld = by_name["calvin"], by_name["metaworld"]
    if calvin[1].mixture != metaworld[1].mixture:
        yield _claim("e", verdict=NOT_TESTED, reason="the suites' action mixtures differ: policy or random_fraction")
        return
    gaps = []
    for place in (calvin, metaworld):
        video, image = _group(place, VIDEO), _group(place, IMAGE)
        gap = video - image if video is not None and image is not None else None
        if gap is None or not _usable(gap):
            reason = "needs video and image families, at least 2 pretraining runs of each"
            yield _claim("e", verdict=NOT_TESTED, reason=reason)
            return
        gaps.append(gap)
    ours, theirs = (gap.effect for gap in gaps)
    runs = min(len(gap.seeds) for gap in gaps)
    low, high = ratio_interval(ours, theirs)
    open_gap = theirs.interval()[0] > 0
    verdict, reason = INCONCLUSIVE, "" if open_gap else "no gap on Meta-World to compare with"
    if open_gap and low is not None and high is not None:
        verdict = SUPPORTED if high < 1 else CONTRADICTED if low > 1 else INCONCLUSIVE
    value = ours.value / theirs.value if theirs.value else None
    yield _claim("e", value=value, low=low, high=high, n_runs=runs, verdict=verdict, reason=reason)
    for name, effect in (("calvin", ours), ("metaworld", theirs)):
        yield _row("e", effect, runs, benchmark=name, part="gap: video − image")


def drop(evidence: Evidence, encoder: str, benchmark: Benchmark) -> Runs | None:
    """Clean minus corrupted R², neither counted below −1, averaged over the conditions that were scored."""
    clean = evidence.runs("action_r2", encoder, benchmark)
    found = []
    for condition in evidence.conditions():
        corrupted = evidence.runs("corrupted_r2", encoder, benchmark, condition)
        if clean is not None and corrupted is not None:
            found.append(clean.floored(WORST_R2) - corrupted.floored(WORST_R2))
    return _mean(found)


def _robustness(places: Places) -> Iterator[Claim]:
    """Each frozen encoder against the same one trained further on actions, where a study has them; else as declared."""
    if any(name.endswith(ADAPTED_SUFFIX) for evidence, _ in places for name in evidence.encoders):
        return _adapted_robustness(places)
    return _supervised_robustness(places)


def _adapted_robustness(places: Places) -> Iterator[Claim]:
    found = []
    for place in places:
        evidence, benchmark = place
        gains = []
        for name in sorted(evidence.encoders):
            base = name.removesuffix(ADAPTED_SUFFIX)
            if base != name and _has_something_to_lose(place, name) and _has_something_to_lose(place, base):
                frozen, adapted = drop(evidence, base, benchmark), drop(evidence, name, benchmark)
                if frozen is not None and adapted is not None:
                    gains.append(frozen - adapted)
        gain = _mean(gains)
        if gain is not None:
            found.append((benchmark.name, gain))
    missing = (
        f"needs corrupted scores of a frozen encoder and of its adapted one, both with clean R² ≥ {NEAR_ZERO_R2:g}"
    )
    for claim in _over_benchmarks("f", found, missing):
        yield dataclasses.replace(claim, statistic=ADAPTED_STATISTIC)


def _supervised_robustness(places: Places) -> Iterator[Claim]:
    found, frozen_drops, adapted_drops = [], [], []
    for place in places:
        evidence, benchmark = place
        adapted = drop(evidence, SUPERVISED, benchmark)
        able = [name for name in (SUPERVISED, *VIDEO) if _has_something_to_lose(place, name)]
        frozen = _mean([runs for name in VIDEO if name in able and (runs := drop(evidence, name, benchmark))])
        if adapted is not None and frozen is not None and SUPERVISED in able:
            found.append((benchmark.name, frozen - adapted))
            frozen_drops.append(frozen)
            adapted_drops.append(adapted)
    missing = f"needs corrupted scores of inverse dynamics and of a video family, both with clean R² ≥ {NEAR_ZERO_R2:g}"
    rows = list(_over_benchmarks("f", found, missing))
    yield rows[0]
    for name, drops in (("video families", frozen_drops), ("inverse dynamics", adapted_drops)):
        tested = [runs.effect for runs in drops if _usable(runs)]
        if tested:
            yield _row("f", mean_effect(tested), rows[0].n_runs, part=f"drop of {name}")
    yield from rows[1:]


def _has_something_to_lose(place: tuple[Evidence, Benchmark], name: str) -> bool:
    """Whether the clean score leaves room for a drop: an encoder that knows nothing loses nothing."""
    runs = place[0].runs("action_r2", name, place[1])
    return runs is not None and float(runs.values.mean()) >= NEAR_ZERO_R2
