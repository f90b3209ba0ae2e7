"""Lossless frame codecs beside ours: CPU time to encode and decode one episode, and bytes per frame.

Every candidate is a standard file type and is decoded into one ``(N, H, W, 3)`` uint8 array, exactly. Video candidates
are read by the same loop as ours: planes straight into NumPy, one thread. ``extra_info`` holds the figures per frame;
``docs/storage.md`` shows them. Run with ``pytest benchmarks/trajectories --benchmark-only``.
"""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import av
import mujoco
import numpy as np
import pytest
from PIL import Image

from latentgym.trajectories.frames import decode_frames, encode_frames

FRAMES = 41
SCENE = """
<mujoco>
  <visual><global offwidth="256" offheight="256"/><quality offsamples="0"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="main" pos="0 -0.9 0.8" xyaxes="1 0 0 0 0.66 0.75"/>
    <geom type="plane" size="1 1 .1" rgba=".6 .6 .55 1"/>
    <body pos="0 0 .1">
      <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 .2" size=".03" rgba=".2 .2 .25 1"/>
      <geom type="box" pos=".03 0 -.02" size=".01 .02 .04" rgba=".1 .1 .1 1"/>
    </body>
    <geom type="cylinder" pos=".2 .1 .03" size=".05 .03" rgba=".8 .2 .2 1"/>
    <geom type="box" pos="-.2 .2 .05" size=".05 .05 .05" rgba=".2 .4 .8 1"/>
    <geom type="box" pos=".25 -.2 .001" size=".06 .06 .001" rgba=".2 .7 .3 1"/>
  </worldbody>
</mujoco>
"""


def rendered(size: int) -> np.ndarray:
    """A gripper that sweeps over a table of primitives, fast flags: what the built-in tasks look like."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    frames = []
    with mujoco.Renderer(model, size, size) as renderer:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        for t in range(FRAMES):
            data.qpos[:] = 0.3 * np.sin(0.11 * t), 0.25 * np.cos(0.13 * t)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, "main")
            frames.append(renderer.render())
    return np.stack(frames)


def textured(size: int) -> np.ndarray:
    """Frames of CALVIN (textures, shading, many colours), at their 200 px or averaged down to ``size``."""
    shared = Path(os.environ.get("LATENTGYM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    paths = sorted((shared / "calvin_debug" / "training").glob("episode_*.npz"))[:FRAMES]
    if not paths:
        pytest.skip("shared test data not found; set LATENTGYM_SHARED to its folder")
    images = [Image.fromarray(np.load(path)["rgb_static"]) for path in paths]
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.BOX)) for image in images])


SOURCES = {
    "rendered-64": lambda: rendered(64),
    "rendered-200": lambda: rendered(200),
    "textured-64": lambda: textured(64),
    "textured-200": lambda: textured(200),
}


@dataclasses.dataclass(frozen=True)
class Codec:
    encode: Callable[[np.ndarray], bytes | list[bytes]]
    decode: Callable[[bytes | list[bytes], tuple[int, ...]], np.ndarray]


def video(codec: str, pix_fmt: str, container_format: str, **options: str) -> Codec:
    """A video codec in a container, through PyAV; ``bgr0`` frames are filled and read plane by plane."""

    def to_video_frame(frame: np.ndarray) -> av.VideoFrame:
        if pix_fmt != "bgr0":
            return av.VideoFrame.from_ndarray(frame, format=pix_fmt)
        height, width, _ = frame.shape
        video_frame = av.VideoFrame(width, height, pix_fmt)
        rows = np.zeros((height, video_frame.planes[0].line_size), np.uint8)
        rows[:, : 4 * width].reshape(height, width, 4)[..., :3] = frame[..., ::-1]
        video_frame.planes[0].update(rows)
        return video_frame

    def encode(frames: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container_format) as container:
            stream = container.add_stream(codec, rate=10, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pix_fmt
            stream.codec_context.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(to_video_frame(frame)))
            container.mux(stream.encode())
        return buffer.getvalue()

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        frames = np.empty(shape, np.uint8)
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for out, frame in zip(frames, container.decode(stream), strict=True):
                if frame.format.name in ("bgr0", "bgra"):
                    rows = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1)
                    out[:] = rows[:, : 4 * frame.width].reshape(frame.height, frame.width, 4)[..., 2::-1]
                else:
                    out[:] = frame.to_ndarray()
        return frames

    return Codec(encode, decode)


def images(image_format: str, *, animated: bool = False, stacked: bool = False, **options: object) -> Codec:
    """An image format of Pillow: one file per frame, one animation, or all frames stacked into one tall image."""

    def encode(frames: np.ndarray) -> bytes | list[bytes]:
        pictures = [
            Image.fromarray(frame) for frame in (frames.reshape(1, -1, *frames.shape[2:]) if stacked else frames)
        ]
        if animated:
            buffer = io.BytesIO()
            pictures[0].save(buffer, image_format, save_all=True, append_images=pictures[1:], **options)
            return buffer.getvalue()
        files = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, image_format, **options)
            files.append(buffer.getvalue())
        return files

    def decode(data: bytes | list[bytes], shape: tuple[int, ...]) -> np.ndarray:
        if isinstance(data, list):
            return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in data]).reshape(shape)
        animation = Image.open(io.BytesIO(data))
        frames = np.empty(shape, np.uint8)
        for t, out in enumerate(frames):
            animation.seek(t)
            out[:] = np.asarray(animation.convert("RGB"))
        return frames

    return Codec(encode, decode)


def numpy_file(save: Callable[..., None]) -> Codec:
    def encode(frames: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        save(buffer, frames)
        return buffer.getvalue()

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        content = np.load(io.BytesIO(data))
        return content if isinstance(content, np.ndarray) else content["arr_0"]

    return Codec(encode, decode)


CODECS = {
    "QuickTime RLE, .mov (ours)": Codec(encode_frames, decode_frames),
    "raw, .npy": numpy_file(np.save),
    "zlib, .npz": numpy_file(np.savez_compressed),
    "H.264 lossless RGB ultrafast, .mp4": video("libx264rgb", "rgb24", "mp4", qp="0", preset="ultrafast"),
    "H.264 lossless RGB medium, .mp4": video("libx264rgb", "rgb24", "mp4", qp="0", preset="medium"),
    "FFV1 bgr0 intra, .mkv": video("ffv1", "bgr0", "matroska", level="3", g="1"),
    "FFV1 bgr0 long GOP, .mkv": video("ffv1", "bgr0", "matroska", level="3", g="1000", coder="1", context="1"),
    "Ut Video gbrp, .avi": video("utvideo", "gbrp", "avi"),
    "HuffYUV RGB, .avi": video("huffyuv", "rgb24", "avi"),
    "PNG per frame": images("PNG"),
    "PNG stacked": images("PNG", stacked=True),
    "APNG": images("PNG", animated=True),
    "WebP lossless per frame": images("WEBP", lossless=True),
    "WebP lossless animated, fastest": images("WEBP", animated=True, lossless=True, quality=0, method=0),
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest) -> tuple[str, np.ndarray]:
    return request.param, SOURCES[request.param]()


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.benchmark(timer=time.process_time)
def test_codec(benchmark, source, name, direction):
    label, frames = source
    codec = CODECS[name]
    data = codec.encode(frames)
    # Two of the candidates would be inexact if fed the wrong pixel format; every figure below is of an exact codec.
    assert np.array_equal(codec.decode(data, frames.shape), frames)
    benchmark.group = f"{label} {direction}"
    call = (lambda: codec.encode(frames)) if direction == "encode" else (lambda: codec.decode(data, frames.shape))
    benchmark.pedantic(call, rounds=3, iterations=1)
    size = sum(map(len, data)) if isinstance(data, list) else len(data)
    benchmark.extra_info["codec"] = name
    benchmark.extra_info["source"] = label
    benchmark.extra_info["direction"] = direction
    benchmark.extra_info["bytes_per_frame"] = round(size / len(frames))
    if benchmark.stats is not None:
        benchmark.extra_info["ms_per_frame"] = round(1e3 * benchmark.stats.stats.median / len(frames), 4)
