"""From an episode's observations to one feature vector per step: views, pooling, batching.

A *view* says which observations a feature may see. Probing and closed-loop control use the same code, so that a policy
meets in control exactly the features that it was trained on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder, EncoderSpec, Latents
from latentgym.encoders.pipeline import ahead, gathered
from latentgym.errors import LatentGymError

# Pixels in one batch: a CPU gains nothing from more, a GPU wants to be filled.
BATCH_PIXELS = {"cpu": 2**19, "cuda": 2**24}
MAX_BATCH = {"cpu": 64, "cuda": 1024}


@dataclasses.dataclass(frozen=True)
class View:
    """Which observations row t of a feature matrix may see; L is the encoder's clip length.

    Attributes:
        kind: ``"single"``: o_t in place of every frame of the clip. ``"causal"``: the clip o_t-L+1 … o_t, the first
            observation repeated on the left, read at the last token time; what control sees. ``"clip"``: o_t … o_t+k
            and nothing else: the last L of them if L ≤ k + 1, otherwise the k + 1 duplicated evenly to fill L.
            ``"single"`` and ``"clip"`` average over token times; pooling ``"tokens"`` keeps them all.
        k: horizon in steps of ``"clip"``; 0 otherwise.
    """

    kind: Literal["single", "causal", "clip"]
    k: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("single", "causal", "clip"):
            raise LatentGymError(f"view: kind must be 'single', 'causal' or 'clip', found {self.kind!r}")
        if self.k < 0 or (self.k and self.kind != "clip"):
            raise LatentGymError(f"view {self.kind!r}: k = {self.k}; a horizon is for 'clip' and is not negative")

    @classmethod
    def parse(cls, text: str) -> View:
        """A view from ``"single"``, ``"causal"`` or ``"clip:<k>"``.

        Raises:
            LatentGymError: if ``text`` is none of these.

        >>> View.parse("clip:4")
        View(kind='clip', k=4)
        """
        kind, _, horizon = text.partition(":")
        if kind in ("single", "causal") and not horizon:
            return cls("single" if kind == "single" else "causal")
        if kind == "clip" and horizon.isdecimal():
            return cls("clip", int(horizon))
        raise LatentGymError(f"unknown view {text!r}; expected 'single', 'causal' or 'clip:<k>' such as 'clip:4'")


def canonical_view(view: View, spec: EncoderSpec) -> tuple[View, int]:
    """The view that holds ``view``'s rows, and how many of its leading rows to drop.

    Row t of ``view`` equals row t + drop of the view returned. An encoder that uses one distinct frame sees the same
    in every view; one token time makes the last token time the mean one; a clip of one observation is a single frame.

    >>> canonical_view(View("clip", 4), EncoderSpec("a", "b", clip_length=2, tubelet=2, temporal=True))
    (View(kind='causal', k=0), 4)
    """
    if not spec.temporal or view == View("clip", 0):
        return View("single"), view.k
    if view.kind == "clip" and spec.clip_length <= view.k + 1 and spec.clip_length == spec.tubelet:
        return View("causal"), view.k
    return view, 0


def row_count(observations: int, view: View) -> int:
    """Number of rows of ``view`` for an episode of that many observations."""
    return max(0, observations - view.k)


def window_indices(observations: int, view: View, clip_length: int) -> NDArray[np.int64]:
    """Indices ``(n, L)`` of the observations that make the clip of each row; see :class:`View`.

    >>> window_indices(3, View("causal"), 2).tolist()
    [[0, 0], [0, 1], [1, 2]]
    >>> window_indices(3, View("clip", 1), 4).tolist()
    [[0, 0, 1, 1], [1, 1, 2, 2]]
    """
    start = np.arange(row_count(observations, view), dtype=np.int64)[:, None]
    frame = np.arange(clip_length, dtype=np.int64)[None, :]
    if view.kind == "single":
        return start + 0 * frame
    if view.kind == "causal":
        return np.maximum(start + frame - clip_length + 1, 0)
    if clip_length <= view.k + 1:
        return start + view.k + 1 - clip_length + frame
    return start + frame * (view.k + 1) // clip_length


def pool(latents: Latents, pooling: str, *, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """One vector per token time.

    Args:
        latents: tokens ``(B, T', N, D)``.
        pooling: ``"mean"`` over patch tokens; ``"cls"``, the first prefix token; ``"grid:G"``, patch tokens averaged
            onto a G × G grid and flattened row by row (F = G · G · D); ``"tokens"``, every patch token, flattened.
        grid: rows and columns of the patch tokens; a square by default.

    Returns:
        ``(B, T', F)``.

    Raises:
        LatentGymError: if ``pooling`` is unknown or does not fit the tokens.
    """
    if pooling == "mean":
        return latents.pooled
    if pooling == "tokens":
        return latents.tokens.flatten(2)
    if pooling == "cls":
        if latents.prefix is None or latents.prefix.shape[2] == 0:
            raise LatentGymError("pooling 'cls': this encoder has no CLS token; use 'mean' or 'grid:G'")
        return latents.prefix[:, :, 0]
    kind, _, side = pooling.partition(":")
    if kind != "grid" or not side.isdecimal() or int(side) == 0:
        raise LatentGymError(
            f"unknown pooling {pooling!r}; expected 'mean', 'cls', 'tokens' or 'grid:G' with G at least 1"
        )
    return _pool_grid(latents.tokens, int(side), grid)


def _pool_grid(tokens: torch.Tensor, side: int, grid: tuple[int, int] | None) -> torch.Tensor:
    batch, times, count, width = tokens.shape
    if grid is None or grid[0] * grid[1] != count:
        grid = (round(count**0.5), round(count**0.5))
    if grid[0] * grid[1] != count or side > min(grid):
        raise LatentGymError(f"pooling 'grid:{side}' does not fit {count} patch tokens; use 'mean' or a smaller grid")
    if grid == (side, side):
        return tokens.reshape(batch, times, -1)
    maps = tokens.reshape(batch * times, *grid, width).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, side)
    return pooled.permute(0, 2, 3, 1).reshape(batch, times, -1)


def default_batch_size(encoder: Encoder) -> int:
    """Clips per batch: as many as hold :data:`BATCH_PIXELS` pixels and have been seen to fit, at least one."""
    kind = encoder.device.type if encoder.device.type in BATCH_PIXELS else "cpu"
    pixels = max(1, encoder.spec.clip_length * encoder.spec.image_size**2)
    limit = min(MAX_BATCH[kind], encoder.batch_limit or MAX_BATCH[kind])
    return max(1, min(limit, BATCH_PIXELS[kind] // pixels))


def encode_clips(
    encoder: Encoder, clips: NDArray[Any], view: View, *, pooling: str | None = None, batch_size: int | None = None
) -> NDArray[np.float32]:
    """Features of clips, in padded batches of one fixed size.

    Matrix products may round differently for other batch sizes; padding makes a row's bits depend on its clip alone.

    Args:
        encoder: the encoder.
        clips: ``(n, L, H, W, 3)`` uint8 or ``(n, L, P)`` floats, n at least 1.
        view: only says which token time is read.
        pooling: see :func:`pool`; the encoder's default if left out.
        batch_size: clips per batch; :func:`default_batch_size` if left out.

    Returns:
        ``(n, F)`` float32.
    """
    layers = (encoder.spec.layer,)
    return encode_clips_layers(encoder, clips, view, layers, pooling=pooling, batch_size=batch_size)[0]


def encode_clips_layers(
    encoder: Encoder,
    clips: NDArray[Any] | torch.Tensor,
    view: View,
    layers: Sequence[int],
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
) -> list[NDArray[np.float32]]:
    """Features of clips at several blocks, from one pass; arguments as in :func:`encode_clips`.

    Returns:
        ``(n, F)`` float32 per layer.

    Raises:
        LatentGymError: as :func:`encode_view`, or if a single clip does not fit the device's memory. Batches that do
            not fit are halved, and the encoder remembers.
    """
    pooling = pooling or encoder.spec.pooling
    batch_size = batch_size or default_batch_size(encoder)
    batch_size = min(batch_size, encoder.batch_limit or batch_size)
    clips = torch.as_tensor(clips)
    rows: list[list[NDArray[np.float32]]] = [[] for _ in layers]
    start = 0
    while start < len(clips):
        batch = clips[start : start + batch_size]
        count = len(batch)
        if count < batch_size:
            batch = torch.cat([batch, batch[-1:].expand(batch_size - count, *batch.shape[1:])])
        try:
            found = encoder.encode_layers(batch, layers)
        except torch.OutOfMemoryError as error:
            batch_size = _halve(encoder, batch_size, error)
            continue
        start += count
        for kept, latents in zip(rows, found, strict=True):
            kept.append(_features(latents, encoder.spec, view, pooling)[:count].float().cpu().numpy())
    return [np.concatenate(parts) for parts in rows]


def _features(latents: Latents, spec: EncoderSpec, view: View, pooling: str) -> torch.Tensor:
    """One row per clip."""
    pooled = pool(latents, pooling, grid=spec.grid if latents.tokens.shape[2] > 1 else None)
    if view.kind == "causal":
        return pooled[:, -1]
    # Tokens of all times stay apart: a readout of tokens finds out itself which time matters.
    return pooled.flatten(1) if pooling == "tokens" else pooled.mean(dim=1)


def _halve(encoder: Encoder, batch_size: int, error: torch.OutOfMemoryError) -> int:
    """Half the batch size, remembered by the encoder."""
    if batch_size == 1:
        raise LatentGymError(
            f"encoder {encoder.spec.name!r}: one clip does not fit the memory of {encoder.device}; use a smaller "
            "image_size, dtype 'bfloat16' or device 'cpu'"
        ) from error
    encoder.batch_limit = batch_size // 2
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
    return encoder.batch_limit


def encode_episodes(
    encoder: Encoder,
    episodes: Iterable[NDArray[Any]],
    view: View,
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Features of one episode after the other; batches are filled across episodes, only the last one is padded.

    Args:
        encoder: the encoder.
        episodes: observations of each episode, as for :func:`encode_view`, all of one shape per step.
        view: what each row may see.
        pooling: see :func:`pool`; the encoder's default if left out.
        batch_size: clips per batch; :func:`default_batch_size` if left out.

    Yields:
        ``(n, F)`` float32 per episode, as :func:`encode_view` returns it.

    Raises:
        LatentGymError: as :func:`encode_view`.
    """
    layers = (encoder.spec.layer,)
    for (features,) in encode_episodes_layers(encoder, episodes, view, layers, pooling=pooling, batch_size=batch_size):
        yield features


def encode_episodes_layers(
    encoder: Encoder,
    episodes: Iterable[NDArray[Any]],
    view: View,
    layers: Sequence[int],
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
) -> Iterator[list[NDArray[np.float32]]]:
    """Features of one episode after the other at several blocks, from one pass; otherwise :func:`encode_episodes`.

    Yields:
        ``(n, F)`` float32 per layer, for each episode.
    """
    stored, drop = canonical_view(view, encoder.spec)
    batch_size = batch_size or default_batch_size(encoder)
    counts: deque[int] = deque()
    encoded: list[list[NDArray[np.float32]]] = []
    last: NDArray[Any] | None = None

    def windows() -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        nonlocal last
        for observations in episodes:
            if len(observations) == 0:
                raise LatentGymError(f"encoder {encoder.spec.name!r}: no observations to encode")
            last = observations
            indices = window_indices(len(observations), stored, encoder.spec.clip_length)[drop:]
            counts.append(len(indices))
            yield observations, indices

    def encode(clips: NDArray[Any] | torch.Tensor, size: int) -> list[NDArray[np.float32]]:
        return encode_clips_layers(encoder, clips, stored, layers, pooling=pooling, batch_size=size)

    on_gpu = encoder.device.type == "cuda"
    batches = _moved(gathered(windows(), batch_size, pinned=on_gpu), encoder.device)
    # A CPU that computes has no time for another thread, which would hold up its many small steps besides.
    for batch in ahead(batches) if on_gpu else batches:
        encoded.append(encode(batch, batch_size))
        yield from _finished(counts, encoded)
    if last is not None and not encoded:
        # No episode has a row, but the width is only known from a pass.
        clip = np.repeat(last[:1], encoder.spec.clip_length, axis=0)
        encoded.append([rows[:0] for rows in encode(clip[None], 1)])
    yield from _finished(counts, encoded)


def _moved(batches: Iterable[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Each batch on ``device``; copies to a GPU run beside what it computes."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        moved = batch
        # A batch that does not fit stays where it is, to be halved when it is encoded.
        with contextlib.suppress(torch.OutOfMemoryError), torch.cuda.stream(stream):
            moved = batch.to(device, non_blocking=True)
        stream.synchronize()
        yield moved


def _finished(counts: deque[int], encoded: list[list[NDArray[np.float32]]]) -> Iterator[list[NDArray[np.float32]]]:
    """Take whole episodes off the front of what is encoded, as long as there are any."""
    while counts and encoded and sum(len(part[0]) for part in encoded) >= counts[0]:
        count = counts.popleft()
        rows = [np.concatenate(parts) for parts in zip(*encoded, strict=True)]
        encoded[:] = [[layer[count:] for layer in rows]]
        yield [layer[:count] for layer in rows]


def encode_view(
    encoder: Encoder,
    observations: NDArray[Any],
    view: View,
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Features of one episode.

    Args:
        encoder: the encoder.
        observations: ``(T+1, H, W, 3)`` uint8 frames for pixel encoders, ``(T+1, P)`` floats for vector encoders.
        view: what each row may see.
        pooling: see :func:`pool`; the encoder's default if left out.
        batch_size: clips per batch; :func:`default_batch_size` if left out. The last batch is padded.

    Returns:
        ``(n, F)`` float32; n is T + 1, for ``"clip"`` T + 1 - k (no rows for a shorter episode).

    Raises:
        LatentGymError: if there are no observations, if they do not fit the encoder, or if a latent is not finite.
    """
    (features,) = encode_episodes(encoder, [observations], view, pooling=pooling, batch_size=batch_size)
    return features
