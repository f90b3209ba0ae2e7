"""Videos of rollouts that any browser plays: H.264, yuv420p, enlarged without blurring."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from latentgym.artifacts import atomic_write
from latentgym.errors import LatentGymError

MIN_SIDE = 256


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float, *, min_side: int = MIN_SIDE) -> None:
    """Write an MP4; it appears whole or not at all.

    Args:
        path: file to write or replace.
        frames: ``(H, W, 3)`` uint8 RGB each, all of one size, at least one.
        fps: frames per second, positive.
        min_side: the shorter side is repeated a whole number of times to reach at least this many pixels.

    Raises:
        LatentGymError: on no frames, frames of different or wrong shape, or a disk that cannot be written.
    """
    shapes = {frame.shape for frame in frames}
    dtypes = {frame.dtype for frame in frames}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 3 or shape[-1] != 3 or dtypes != {np.dtype(np.uint8)}:
        raise LatentGymError(f"{path}: expected frames of one shape (H, W, 3) and dtype uint8, found {sorted(shapes)}")
    if not (fps > 0 and math.isfinite(fps)):
        raise LatentGymError(f"{path}: frames per second must be positive, found {fps}")
    repeat = max(1, math.ceil(min_side / min(shape[:2])))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # One thread: the bytes must not depend on the number of cores.
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        height, width = (side * repeat + side * repeat % 2 for side in shape[:2])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(_enlarged(frame, repeat), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    atomic_write(path, buffer.getvalue())


def _enlarged(frame: NDArray[np.uint8], repeat: int) -> NDArray[np.uint8]:
    """Pixels repeated; an odd side gets its last row or column twice, since 4:2:0 needs even sides."""
    large = np.repeat(np.repeat(frame, repeat, axis=0), repeat, axis=1)
    padding = [(0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0)]
    return np.ascontiguousarray(np.pad(large, padding, mode="edge"))
