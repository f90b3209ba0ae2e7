"""Visual fidelity: how well one small decoder, equal for every encoder, redraws o_t from its latents."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentgym.artifacts import content_key
from latentgym.errors import LatentGymError
from latentgym.probes.decoder import TARGET_PIXELS, GridDecoder, psnr, ssim
from latentgym.probes.perceptual import Lpips, gmsd
from latentgym.probes.scores import estimate, resamples
from latentgym.results import Row
from latentgym.seeding import numpy_generator, torch_generator

if TYPE_CHECKING:
    from latentgym.encoders.contract import Encoder
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

Distance = Callable[[Tensor, Tensor], Tensor]
_LEARNING_RATE = 3e-3
_EVALUATION_BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class FidelityResult:
    """What the decoder recovered.

    Attributes:
        rows: ``psnr_db``, ``ssim``, ``gmsd``, ``lpips_alex`` and ``psnr_mean_image_db`` (the floor), means over test
            frames with intervals from a bootstrap over test episodes.
        replicates: ``"psnr_db|decoder"`` and alike to ``(R,)`` bootstrap replicates, paired across encoders.
        examples: ``(n, 2, 64, 64, 3)`` uint8, test frame and reconstruction.
        decoder_parameters: trainable parameters of the decoder; they differ by 64 per channel of a token.
        latent_floats_per_frame: numbers in the latents of one frame.
    """

    rows: list[Row]
    replicates: dict[str, NDArray[np.float64]]
    examples: NDArray[np.uint8]
    decoder_parameters: int
    latent_floats_per_frame: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Frames:
    """``(n, N, D)`` float16 tokens, ``(n, 3, 64, 64)`` uint8 images, ``(n,)`` episode labels."""

    tokens: Tensor
    images: Tensor
    episode: NDArray[np.int64]


def fidelity(
    datasets: Sequence[tuple[Dataset, Split]],
    encoder: Encoder,
    *,
    steps: int = 600,
    batch_size: int = 32,
    seed: int = 0,
    replicates: int = 1000,
    train_frames: int = 1024,
    test_frames: int = 512,
    examples: int = 8,
    lpips: Path | str | None = None,
) -> FidelityResult:
    """Train the decoder on training frames and measure it on test frames, all data sets together.

    o_t stands in every frame of the encoder's clip. Tokens of the frames used are held in float16, standardised per
    channel with training statistics; images are compared at 64 × 64 pixels. Frames, minibatches and initial weights
    depend on ``seed`` and not on the encoder.

    Args:
        datasets: data sets with their splits.
        encoder: the encoder.
        steps: Adam steps (learning rate 3e-3 with warm-up over a tenth of them and cosine decay to zero).
        batch_size: frames per step.
        seed: root seed.
        replicates: number of bootstrap resamples.
        train_frames: training frames, spread evenly over the training episodes.
        test_frames: test frames, spread evenly over the test episodes.
        examples: reconstructions returned.
        lpips: folder of LPIPS weights (:class:`latentgym.probes.perceptual.Lpips`), for rows ``lpips_alex``; without
            it the perceptual distance is ``gmsd`` alone.

    Raises:
        LatentGymError: if there is no data set or no frame, or the latents are not finite.
    """
    if not datasets:
        raise LatentGymError("fidelity needs at least one data set")
    distances: dict[str, Distance] = {"gmsd": gmsd, **({"lpips_alex": Lpips(lpips)} if lpips is not None else {})}
    train = _encode(datasets, encoder, "train", train_frames, seed)
    test = _encode(datasets, encoder, "test", test_frames, seed)
    deviation, mean = torch.std_mean(train.tokens.float(), dim=(0, 1), correction=0)
    scale = torch.where(deviation > 1e-6 * mean.abs().clamp_min(1e-6), deviation, 1.0)
    train, test = (
        dataclasses.replace(part, tokens=((part.tokens.float() - mean) / scale).clamp_(-30, 30).half())
        for part in (train, test)
    )
    decoder = GridDecoder(
        train.tokens.shape[2],
        _grid(encoder, train.tokens.shape[1]),
        train.images.float().mean(0) / 255,
        torch_generator(seed, "decoder"),
    )
    decoder.to(encoder.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _train(decoder, train, steps, batch_size, seed)
    images = _decode(decoder, test.tokens)
    return _measure(datasets, encoder, decoder, test, images, distances, replicates, examples)


def _grid(encoder: Encoder, tokens: int) -> tuple[int, int]:
    rows, columns = encoder.spec.grid
    return (rows, columns) if rows * columns == tokens else (1, tokens)


def _episodes(datasets: Sequence[tuple[Dataset, Split]], part: str) -> list[tuple[Dataset, int]]:
    return [(dataset, index) for dataset, split in datasets for index in getattr(split, part)]


def _encode(datasets: Sequence[tuple[Dataset, Split]], encoder: Encoder, part: str, count: int, seed: int) -> _Frames:
    """Tokens and images of about ``count`` frames, one random frame in each of equal stretches of an episode."""
    episodes = _episodes(datasets, part)
    if not episodes:
        raise LatentGymError(f"fidelity: the split has no {part} episodes")
    share = max(1, round(count / len(episodes)))
    tokens, images, labels = [], [], []
    for label, (dataset, index) in enumerate(episodes):
        camera = dataset.cameras[0]
        episode = dataset.episode(index, cameras=(camera,))
        length = len(episode) + 1
        wanted = min(share, length)
        jitter = numpy_generator(seed, "fidelity-frames", dataset.key, index).random(wanted)
        steps = ((np.arange(wanted) + jitter) * length / wanted).astype(np.int64)
        frames = episode.frames[camera][steps]
        observed = frames if encoder.spec.modality == "pixels" else getattr(episode, encoder.spec.modality)[steps]
        tokens.append(_tokens(encoder, observed))
        images.append(_resized(frames))
        labels.append(np.full(wanted, label))
    shapes = {tuple(part.shape[1:]) for part in tokens}
    if len(shapes) > 1:
        raise LatentGymError(
            f"encoder {encoder.spec.name!r} has latents of different shapes on these data sets: {sorted(shapes)}; "
            "measure each data set by itself"
        )
    return _Frames(torch.cat(tokens), torch.cat(images), np.concatenate(labels))


def _tokens(encoder: Encoder, observed: NDArray[Any]) -> Tensor:
    """``(n, N, D)`` float32 tokens of the last token time, each frame filling the clip by itself."""
    from latentgym.encoders.features import default_batch_size

    size, parts = default_batch_size(encoder), []
    for start in range(0, len(observed), size):
        clip = np.repeat(observed[start : start + size, None], encoder.spec.clip_length, axis=1)
        parts.append(encoder.encode(clip).tokens[:, -1].float().cpu())
    tokens = torch.cat(parts)
    if not bool(torch.isfinite(tokens).all()):
        raise LatentGymError(f"encoder {encoder.spec.name!r} returned NaN or infinite latents")
    return tokens


def _resized(frames: NDArray[np.uint8]) -> Tensor:
    """``(n, 3, 64, 64)`` uint8, by antialiased bilinear interpolation."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    if images.shape[-2:] == (TARGET_PIXELS, TARGET_PIXELS):
        return images
    size = (TARGET_PIXELS, TARGET_PIXELS)
    resized = functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _train(decoder: GridDecoder, train: _Frames, steps: int, batch_size: int, seed: int) -> None:
    """Adam on the mean squared error, minibatches without replacement within each pass."""
    device = decoder.position.device
    optimizer = torch.optim.Adam(decoder.parameters(), lr=_LEARNING_RATE)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for rows in itertools.islice(_batches(len(train.images), batch_size, seed), steps):
        optimizer.zero_grad(set_to_none=True)
        target = train.images[rows].to(device).float() / 255
        functional.mse_loss(decoder(train.tokens[rows].to(device).float()), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    generator, size = torch_generator(seed, "decoder-batches"), min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].view(-1, size)


@torch.inference_mode()
def _decode(decoder: GridDecoder, tokens: Tensor) -> Tensor:
    device = decoder.position.device
    parts = [decoder(batch.to(device).float()).clamp_(0, 1).cpu() for batch in torch.split(tokens, _EVALUATION_BATCH)]
    return torch.cat(parts)


def _measure(
    datasets: Sequence[tuple[Dataset, Split]],
    encoder: Encoder,
    decoder: GridDecoder,
    test: _Frames,
    images: Tensor,
    distances: Mapping[str, Distance],
    replicates: int,
    examples: int,
) -> FidelityResult:
    target = test.images.float() / 255
    pairs = list(zip(torch.split(images, _EVALUATION_BATCH), torch.split(target, _EVALUATION_BATCH), strict=True))
    per_frame = {
        "psnr_db": psnr(images, target),
        "ssim": ssim(images, target),
        **{name: torch.cat([distance(*pair) for pair in pairs]) for name, distance in distances.items()},
        "psnr_mean_image_db": psnr(decoder.mean_image.cpu().expand_as(target), target),
    }
    counts = np.bincount(test.episode).astype(np.float64)
    key = content_key([dataset.key for dataset, _ in datasets])
    weights = resamples(key, "fidelity", len(counts), replicates)
    envs = {dataset.env_id for dataset, _ in datasets}
    columns: dict[str, Any] = {
        "env": envs.pop() if len(envs) == 1 else "all",
        "encoder": encoder.spec.name,
        "family": encoder.spec.family,
        "layer": None if encoder.spec.layer == -1 else encoder.spec.layer,
        "readout": "decoder",
        "n": len(counts),
    }
    rows, kept = [], {}
    for metric, values in per_frame.items():
        sums = np.bincount(test.episode, weights=values.double().numpy())
        found = estimate((weights @ sums) / (weights @ counts))
        low, high = found.interval
        rows.append(Row(**columns, metric=metric, value=found.value, low=low, high=high))
        kept[f"{metric}|decoder"] = found.replicates
    shown = np.linspace(0, len(target) - 1, min(examples, len(target))).round().astype(np.int64)
    shown_pairs = torch.stack([target[shown], images[shown]], dim=1).permute(0, 1, 3, 4, 2)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    pictures: NDArray[np.uint8] = (shown_pairs * 255).round().to(torch.uint8).numpy()
    return FidelityResult(rows, kept, pictures, parameters, test.tokens.shape[1] * test.tokens.shape[2])


def reconstruction_sheet(results: Mapping[str, FidelityResult], columns: int = 8) -> NDArray[np.uint8]:
    """One picture of every encoder's reconstructions of the same frames: the frames on top, one encoder per row.

    Args:
        results: encoder's name to its result; all of the same data sets and seed.
        columns: frames shown at most.

    Returns:
        ``((1 + encoders) * 66 - 2, columns * 66 - 2, 3)`` uint8, with white gaps of two pixels.

    Raises:
        LatentGymError: if there is no result, or the results show different frames.
    """
    if not results:
        raise LatentGymError("a sheet of reconstructions needs at least one result")
    shown = [result.examples[:columns] for result in results.values()]
    if any(not np.array_equal(one[:, 0], shown[0][:, 0]) for one in shown):
        raise LatentGymError("these results show different frames: run fidelity with the same data sets and seed")
    gap = 2
    rows = [shown[0][:, 0], *(one[:, 1] for one in shown)]
    padded = [np.pad(row, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for row in rows]
    sheet: NDArray[np.uint8] = np.concatenate([np.concatenate(list(row), axis=1) for row in padded])[:-gap, :-gap]
    return sheet
