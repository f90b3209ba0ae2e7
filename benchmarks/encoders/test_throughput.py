"""Frames per second of encoding uint8 frames, beside two peers on one thread or on a GPU.

``ours``: features of episodes as every data set is encoded, batches on their way to the device while others are
computed. ``call``: ``Encoder.encode`` of one batch after the other. ``bare``: the model's own forward on batches that
are loaded and normalised already, the floor; ours resizes, normalises, checks and pools besides. ``processor``: a loop
over the library's own processor and forward, one frame at a time, as its documentation shows, and the same on batches.
Run

    OMP_NUM_THREADS=1 pytest benchmarks/encoders/test_throughput.py --benchmark-only

A tiny ViT with random weights is always measured; ``BENCH_ENCODER`` names a folder of transformers' Dinov2Model, such
as real weights, to measure beside it. ``BENCH_FRAMES`` (64) frames of ``BENCH_SIDE`` (the encoder's own) pixels, in
batches of ``BENCH_BATCH`` (8). ``BENCH_DEVICE=cuda`` measures on a GPU and ``BENCH_DTYPE`` (float32) in another
precision, all peers alike; frames start in the CPU's memory, for the floor in the GPU's. ``BENCH_LAYER`` (the last)
is the block that is read, by the peers through the library's ``output_hidden_states``. ``extra_info`` holds frames per
second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgym.encoders import Encoder, load_encoder
from latentgym.encoders.features import View, encode_episodes
from latentgym.encoders.torchvision_fallback import ensure_torchvision

ensure_torchvision()
transformers = pytest.importorskip("transformers")

FRAMES = int(os.environ.get("BENCH_FRAMES", "64"))
EPISODE = 100
BATCH = int(os.environ.get("BENCH_BATCH", "8"))
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
DTYPE = os.environ.get("BENCH_DTYPE", "float32")
LAYER = int(os.environ.get("BENCH_LAYER", "-1"))
PLACES = {"tiny-vit": "", "given": os.environ.get("BENCH_ENCODER", "")}
Case = tuple[Encoder, Any, Any, np.ndarray]


@pytest.fixture(scope="module", params=[name for name, place in PLACES.items() if place or name == "tiny-vit"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Our encoder, the library's model and processor, and frames ``(FRAMES, S, S, 3)`` uint8."""
    torch.set_num_threads(1)
    folder = Path(PLACES[request.param] or _tiny_vit(tmp_path_factory.mktemp("tiny-vit")))
    encoder = load_encoder(folder, device=DEVICE, dtype=DTYPE, layer=LAYER)
    side = int(os.environ.get("BENCH_SIDE", encoder.spec.image_size))
    if side != encoder.spec.image_size:
        encoder = load_encoder(folder, device=DEVICE, dtype=DTYPE, layer=LAYER, image_size=side)
    model = transformers.Dinov2Model.from_pretrained(folder, dtype=getattr(torch, DTYPE)).eval().to(DEVICE)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=list(encoder.spec.mean), image_std=list(encoder.spec.std),
    )  # fmt: skip
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)
    return encoder, model, processor, frames


def _tiny_vit(folder: Path) -> Path:
    """192 × 6 at 64 pixels in patches of 8."""
    config = transformers.Dinov2Config(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, image_size=64, patch_size=8
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def read(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The block's output as the library's documentation reads it."""
    inner = LAYER != -1
    output = model(pixel_values=pixels, output_hidden_states=inner)
    return output.hidden_states[LAYER + 1] if inner else output.last_hidden_state


def measure(benchmark: Any, run: Callable[[], None]) -> None:
    start = time.process_time()

    def whole() -> None:
        run()
        if DEVICE != "cpu":
            torch.cuda.synchronize()

    benchmark.pedantic(whole, rounds=5, warmup_rounds=1)
    best = benchmark.stats.stats.min
    benchmark.extra_info.update(frames_per_s=round(FRAMES / best, 1), cpu_s=round(time.process_time() - start, 2))
    print(f"{benchmark.name}: {benchmark.extra_info}")


def batches(frames: Any) -> list[Any]:
    return [frames[start : start + BATCH] for start in range(0, FRAMES, BATCH)]


def test_ours(benchmark: Any, case: Case) -> None:
    encoder, _, _, frames = case
    episodes = [frames[start : start + EPISODE] for start in range(0, FRAMES, EPISODE)]
    single = View("single")
    measure(
        benchmark, lambda: list(encode_episodes(encoder, episodes, single, pooling="mean", batch_size=BATCH)) and None
    )


def test_call(benchmark: Any, case: Case) -> None:
    encoder, _, _, frames = case
    clips = batches(frames[:, None])
    measure(benchmark, lambda: [encoder.encode(clip) for clip in clips] and None)


def test_bare(benchmark: Any, case: Case) -> None:
    encoder, model, _, frames = case
    prepared = [encoder.prepare(torch.as_tensor(clip))[:, 0].to(model.dtype) for clip in batches(frames[:, None])]

    def run() -> None:
        with torch.inference_mode():
            for pixels in prepared:
                read(model, pixels)

    measure(benchmark, run)


@pytest.mark.parametrize("size", [1, BATCH])
def test_processor(benchmark: Any, case: Case, size: int) -> None:
    _, model, processor, frames = case

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, FRAMES, size):
                inputs = processor(images=list(frames[start : start + size]), return_tensors="pt")
                read(model, inputs["pixel_values"].to(DEVICE, model.dtype))

    measure(benchmark, run)
