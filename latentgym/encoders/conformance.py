"""Does an encoder keep its contract? Every problem is listed at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder, Latents
from latentgym.encoders.features import pool
from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator

BATCH = 3
VECTOR_SIZE = 5
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 5e-2}


def check_encoder(encoder: Encoder, seed: int = 0) -> list[str]:
    """Try an encoder on random clips.

    Checked are shapes and finiteness at every layer, determinism, independence of the other clips in a batch, the time
    axis, pooling, that nothing takes a gradient, and that the input is left as it was.

    Args:
        encoder: the encoder.
        seed: seed of the clips.

    Returns:
        One sentence per problem; an empty list means that the encoder conforms.

    Example:
        >>> from latentgym.encoders import load_encoder
        >>> check_encoder(load_encoder("pixels"))
        []
    """
    clip = _clips(encoder, seed)
    try:
        latents = encoder.encode(clip.copy())
        problems = list(_shape_problems(encoder, latents, clip.shape[1]))
    except LatentGymError as error:
        return [str(error)]
    # An encoder under test may fail in any way.
    except Exception as error:
        return [f"encode failed on a clip of shape {clip.shape}: {type(error).__name__}: {error}"]
    if problems:
        return problems
    checks: tuple[Callable[[Encoder, NDArray[np.generic], Latents], Iterator[str]], ...] = (
        _repeat_problems,
        _batch_problems,
        _time_problems,
        _gradient_problems,
        _layer_problems,
        _pooling_problems,
    )
    for check in checks:
        try:
            problems.extend(check(encoder, clip, latents))
        except Exception as error:
            problems.append(
                f"{check.__name__.strip('_').replace('_problems', '')} check: {type(error).__name__}: {error}"
            )
    return problems


def frames_per_second(encoder: Encoder, *, least_s: float = 0.5) -> float:
    """Frames encoded per second: batches of three clips, resized and read at the default layer, after one warm-up.

    Args:
        encoder: the encoder.
        least_s: seconds to go on for.
    """
    clip, passes = _clips(encoder, 0), 0
    encoder.encode(clip)
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < least_s:
        # Waits for the device, because the latents are checked for being finite.
        encoder.encode(clip)
        passes += 1
    return passes * clip.shape[0] * clip.shape[1] / elapsed


def _clips(encoder: Encoder, seed: int) -> NDArray[np.generic]:
    """Three clips; frames are neither square nor of the encoder's own size, which the suite must take care of."""
    rng = numpy_generator(seed, "conformance")
    length = encoder.spec.clip_length
    if encoder.spec.modality != "pixels":
        return rng.standard_normal((BATCH, length, VECTOR_SIZE)).astype(np.float32)
    height = encoder.spec.image_size + 4
    return rng.integers(0, 256, (BATCH, length, height, height + 3, 3), dtype=np.uint8)


def _shape_problems(encoder: Encoder, latents: Latents, frames: int) -> Iterator[str]:
    spec = encoder.spec
    if not isinstance(latents, Latents):
        yield f"encode returned {type(latents).__name__}, expected Latents"
        return
    _, times, count, width = latents.tokens.shape
    if not latents.tokens.is_floating_point():
        yield f"tokens have dtype {latents.tokens.dtype}, expected a floating-point type"
    if count != spec.grid[0] * spec.grid[1]:
        yield f"{count} patch tokens per token time, but spec.grid is {spec.grid}; CLS and registers belong in prefix"
    if spec.embed_dim not in (0, width):
        yield f"tokens are {width} wide, but spec.embed_dim is {spec.embed_dim}"
    ends = latents.times.tolist()
    if len(ends) != times:
        yield f"{times} token times, but times has {len(ends)} entries"
    elif ends != sorted(set(ends)) or not ends or ends[0] < 0 or ends[-1] != frames - 1:
        yield f"times are {ends}; expected increasing frame indices that end with the last frame, {frames - 1}"
    if latents.prefix is not None and (
        latents.prefix.shape[:2] != latents.tokens.shape[:2] or latents.prefix.ndim != 4
    ):
        yield f"prefix has shape {tuple(latents.prefix.shape)}, expected ({BATCH}, {times}, P, D)"


def _difference(encoder: Encoder, one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, in units of the tokens' spread."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max() / max(float(one.float().std()), 1e-6))


def _repeat_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    given = clip.copy()
    if not torch.equal(encoder.encode(given).tokens, latents.tokens):
        yield "the same clip gave different tokens the second time; turn off dropout, masking and sampling"
    if not np.array_equal(given, clip):
        yield "encode changed its input"


def _batch_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    alone = encoder.encode(clip[1:2]).tokens
    if _difference(encoder, latents.tokens[1:2], alone) > TOLERANCE.get(encoder.spec.dtype, 1e-3):
        yield "a clip's tokens depend on the other clips of its batch; use running statistics in normalisation layers"


def _time_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    tolerance = TOLERANCE.get(encoder.spec.dtype, 1e-3)
    if encoder.spec.temporal:
        other = encoder.encode(np.ascontiguousarray(clip[:, ::-1])).tokens
        if encoder.spec.clip_length > 1 and _difference(encoder, latents.tokens, other) <= tolerance:
            yield "spec.temporal is true, but a reversed clip gives the same tokens"
    elif encoder.spec.clip_length == 1:
        video = np.concatenate([clip[:1], clip[1:2]], axis=1)
        tokens = encoder.encode(video).tokens
        expected = latents.tokens[:2].transpose(0, 1)
        if _difference(encoder, expected, tokens) > tolerance:
            yield "spec.clip_length is 1, but a clip of two frames does not give each frame's own tokens"
    else:
        still = np.repeat(clip[:, -1:], clip.shape[1], axis=1)
        if _difference(encoder, encoder.encode(still).tokens[:, -1], latents.tokens[:, -1]) > tolerance:
            yield "spec.temporal is false, but the last token time depends on earlier frames"


def _gradient_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    if latents.tokens.requires_grad:
        yield "tokens take a gradient; encode must run without one"
    for name, module in vars(encoder).items():
        if not isinstance(module, torch.nn.Module):
            continue
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield f"parameters of {name!r} take a gradient; call requires_grad_(False)"
        if any(part.training for part in module.modules()):
            yield f"{name!r} is in training mode; call eval()"


def _layer_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    last = encoder.encode(clip[:1], -1).tokens
    if not torch.equal(encoder.encode(clip[:1], encoder.spec.layers - 1).tokens, last):
        yield f"layer {encoder.spec.layers - 1} is the last of spec.layers, but differs from layer -1"
    for layer in range(encoder.spec.layers):
        shape = encoder.encode(clip[:1], layer).tokens.shape
        if shape[1] % latents.tokens.shape[1]:
            yield (
                f"layer {layer} has {shape[1]} token times, which the default layer's {latents.tokens.shape[1]} do not "
                "divide"
            )


def _pooling_problems(encoder: Encoder, clip: NDArray[np.generic], latents: Latents) -> Iterator[str]:
    pooled = pool(latents, encoder.spec.pooling, grid=encoder.spec.grid)
    if pooled.ndim != 3 or pooled.shape[:2] != latents.tokens.shape[:2]:
        yield f"pooling {encoder.spec.pooling!r} gave shape {tuple(pooled.shape)}, expected (B, T', F)"
