"""Lossless codec for the frames of one episode: QuickTime Animation (RLE, RGB24) in a ``.mov`` file.

Data sets are recorded once and read many times, so decoding decides. Of the lossless codecs measured (see
``docs/storage.md``) this one decodes fastest at a size that is small for rendered scenes; players built on FFmpeg show
the files as they are. Only the first frame is a key frame: an episode is always decoded from its start.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError, LatentGymError

EXTENSION = "mov"
_MAX_SIDE = 16384
_KEY_FRAME_INTERVAL = 10**6


def encode_frames(frames: NDArray[np.uint8], control_hz: float = 10.0) -> bytes:
    """Encode frames; equal frames give equal bytes, whatever the FFmpeg version's name.

    Args:
        frames: ``(N, H, W, 3)`` uint8 RGB, N ≥ 1, sides from 1 to 16384.
        control_hz: playback rate written into the file; it does not affect the frames.

    Returns:
        The content of a ``.mov`` file.

    Raises:
        LatentGymError: on another shape or dtype, or a rate that is not positive.

    >>> frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    >>> bool((decode_frames(encode_frames(frames), frames.shape) == frames).all())
    True
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise LatentGymError(f"frames: expected (N, H, W, 3) uint8, not empty, found {frames.shape} {frames.dtype}")
    if max(frames.shape[1:3]) > _MAX_SIDE:
        raise LatentGymError(f"frames: expected sides up to {_MAX_SIDE} px, found {frames.shape[1:3]}")
    if not 0 < control_hz < float("inf"):
        raise LatentGymError(f"control_hz: expected a positive number, found {control_hz}")
    buffer = io.BytesIO()
    # bitexact: no version strings in the file, so its digest depends on the frames alone.
    with av.open(buffer, "w", format="mov", options={"fflags": "+bitexact"}) as container:
        rate = max(Fraction(control_hz).limit_denominator(1000), Fraction(1, 1000))
        stream = container.add_stream("qtrle", rate=rate, options={"g": str(_KEY_FRAME_INTERVAL)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= Flags.bitexact
        for frame in np.ascontiguousarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_frames(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode what :func:`encode_frames` made.

    The codec carries no checksums: a flipped bit usually gives a wrong picture and no error. Callers that read from
    disk compare the file's SHA-256 first, as :meth:`latentgym.trajectories.store.Dataset.episode` does.

    Args:
        data: content of the file.
        shape: ``(N, H, W, 3)`` that the file must hold.

    Raises:
        CorruptDataError: if ``data`` is no such video or holds frames of another number or size.
    """
    count, height, width, _ = shape
    frames: NDArray[np.uint8] = np.empty(shape, np.uint8)
    decoded = 0
    try:
        with av.open(io.BytesIO(data), "r", format="mov") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if decoded == count or (frame.height, frame.width, frame.format.name) != (height, width, "rgb24"):
                    raise CorruptDataError(
                        f"video: expected {count} frames of {height} × {width} rgb24, found frame {decoded} "
                        f"of {frame.height} × {frame.width} {frame.format.name}"
                    )
                plane = frame.planes[0]
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
                frames[decoded] = rows[:, : 3 * width].reshape(height, width, 3)
                decoded += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise CorruptDataError(f"video cannot be decoded: {error}") from error
    if decoded != count:
        raise CorruptDataError(f"video: expected {count} frames, found {decoded}")
    return frames
