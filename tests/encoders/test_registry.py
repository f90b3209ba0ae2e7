from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from latentgym.encoders import (
    Encoder,
    EncoderSpec,
    Latents,
    PixelEncoder,
    check_encoder,
    describe_encoder,
    encoder_names,
    find_encoders,
    list_encoders,
    load_encoder,
    register_encoder,
)
from latentgym.errors import LatentGymError, UnknownNameError

_NAMES = (f"test-encoder-{number}" for number in itertools.count())


class BrokenEncoder(Encoder):
    """Takes its answer from a function, to break the contract in every way."""

    def __init__(self, answer, **facts):
        self.spec = EncoderSpec(**{"name": "broken", "family": "test", "embed_dim": 2, "image_size": 8, **facts})
        self.answer = answer

    def forward(self, clip, layer):
        return self.answer(clip)


def tokens_of(clip: torch.Tensor) -> torch.Tensor:
    """Mean and first pixel of each frame: ``(B, T, 1, 2)``."""
    return torch.stack([clip.mean(dim=(2, 3, 4)), clip[:, :, 0, 0, 0]], dim=-1)[:, :, None]


def test_every_light_name_is_listed_and_keeps_the_contract():
    rows = {row["name"]: row for row in list_encoders()}
    for name in ("pixels", "proprio", "state", "random"):
        encoder = load_encoder(name, device="cpu")
        assert rows[name]["family"] == encoder.spec.family
        assert check_encoder(encoder) == []
    assert rows["timm"]["description"]
    assert {"masked_video", "Dinov2Model"} <= set(rows)
    assert describe_encoder("random")["parameters"] == load_encoder("random").spec.parameters


def test_random_takes_a_seed():
    first, again, other = (load_encoder(name).spec.weights_digest for name in ("random", "random:0", "random:1"))
    assert first == again != other
    with pytest.raises(LatentGymError, match="seed must be a whole number"):
        load_encoder("random:one")


def test_unknown_name_suggests_close_ones():
    with pytest.raises(UnknownNameError, match=r"unknown encoder 'pixel'; did you mean 'pixels'.*timm:<model>"):
        load_encoder("pixel")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("./no/such/folder", {}, "there is no encoder folder"),
        ("timm", {}, "needs a model"),
        ("pixels:3", {}, "takes no argument"),
        ("pixels", {"image_size": 0}, "at least 1"),
        ("random", {"image_size": 96}, "only takes frames of 64 pixels"),
        ("pixels", {"layer": 1}, r"layers 0 … 0 \(-1 is the last\), not 1"),
        ("random", {"layer": -2}, "not -2"),
        ("pixels", {"dtype": "bfloat16"}, "computes in float32 only"),
        ("pixels", {"dtype": "float8"}, "unknown dtype 'float8'"),
        ("pixels", {"device": "gpu"}, "unknown device 'gpu'"),
        ("pixels", {"device": "cuda:99"}, "CUDA devices"),
    ],
)
def test_bad_options_are_refused(source, options, message):
    with pytest.raises(LatentGymError, match=message):
        load_encoder(source, **options)


def test_folder_that_holds_no_encoder(tmp_path):
    with pytest.raises(LatentGymError, match=r"holds no encoder: expected encoder\.json .* or config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LatentGymError, match="is a file that is none of the state dicts known here"):
        load_encoder(tmp_path / "notes.txt")


def test_hub_id_without_network_says_which_files_to_put_where(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LatentGymError, match=r"config\.json, model\.safetensors .*huggingface\.co/owner/name"):
        load_encoder("owner/name@main")


def test_layer_becomes_the_default_with_its_own_width_and_grid():
    early = load_encoder("random", layer=0, device="cpu")
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), dtype=np.uint8)
    tokens = early.encode(clip).tokens
    assert torch.equal(tokens, load_encoder("random", device="cpu").encode(clip, 0).tokens)
    assert early.spec.layer == 0
    assert early.spec.embed_dim == tokens.shape[-1]
    assert early.spec.grid[0] * early.spec.grid[1] == tokens.shape[2]
    layers = early.spec.layers
    assert load_encoder("random", layer=layers - 1).spec == load_encoder("random").spec


def test_registered_factory_gets_argument_and_size():
    name = next(_NAMES)

    @register_encoder(name)
    def factory(argument, *, image_size):
        return PixelEncoder(image_size or int(argument))

    assert load_encoder(f"{name}:5").spec.image_size == 5
    assert load_encoder(f"{name}:5", image_size=6).spec.image_size == 6
    assert name in encoder_names()
    with pytest.raises(LatentGymError, match="registered already"):
        register_encoder(name)(factory)
    with pytest.raises(LatentGymError, match="letters, digits"):
        register_encoder("a:b")


def test_entry_points_of_other_distributions(tmp_path):
    """A real installed distribution on the path, in a process of its own because entry points are read once."""
    (tmp_path / "other_package.py").write_text(
        "from latentgym.encoders import PixelEncoder\n"
        "def make(argument, *, image_size):\n    return PixelEncoder(image_size or 7)\n"
    )
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[latentgym.encoders]\nother = other_package:make\nbroken = other_package:nothing\n"
    )
    code = """
        from latentgym.encoders import encoder_names, load_encoder
        from latentgym.errors import LatentGymError
        assert "other" in encoder_names()
        assert load_encoder("other").spec.image_size == 7
        try:
            load_encoder("broken")
        except LatentGymError as error:
            assert "other_package:nothing" in str(error), error
        else:
            raise AssertionError("the broken entry point was loaded")
    """
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_find_encoders_says_why_the_others_are_left_out(tmp_path, shared):
    shutil.copytree(shared / "weights" / "dinov2_small_saliency", tmp_path / "dinov2")
    (tmp_path / "empty").mkdir()
    found, skipped = find_encoders(tmp_path)
    assert found == {"dinov2": str(tmp_path / "dinov2")}
    assert "config.json" in skipped["empty"]
    with pytest.raises(LatentGymError, match="no folder of encoders"):
        find_encoders(tmp_path / "nowhere")


def _latents(tokens, times=None):
    return Latents(tokens, torch.arange(tokens.shape[1]) if times is None else times)


@pytest.mark.parametrize(
    ("answer", "facts", "message"),
    [
        (lambda clip: _latents(tokens_of(clip)[:, :, 0]), {}, "returned tokens of shape"),
        (lambda clip: _latents(tokens_of(clip)[:1]), {}, "expected .3, T', N, D"),
        (lambda clip: _latents(tokens_of(clip) / 0), {}, "NaN or infinite"),
        (lambda clip: _latents(tokens_of(clip).log() * torch.nan), {}, "NaN or infinite"),
        (lambda clip: _latents(tokens_of(clip)), {"embed_dim": 3}, "2 wide"),
        (lambda clip: _latents(tokens_of(clip)), {"grid": (2, 2)}, "spec.grid"),
        (lambda clip: _latents(tokens_of(clip), torch.tensor([4])), {}, "increasing frame indices"),
        (lambda clip: _latents(tokens_of(clip), torch.arange(2)), {}, "times has 2 entries"),
        (lambda clip: _latents(tokens_of(clip) + torch.rand(1)), {}, "second time"),
        (lambda clip: _latents(tokens_of(clip) - tokens_of(clip).mean(0)), {}, "other clips"),
        (lambda clip: _latents(tokens_of(clip)), {"pooling": "cls"}, "no CLS token"),
        (lambda clip: _latents(tokens_of(clip).flip(1)), {}, "each frame's own tokens"),
        (
            lambda clip: _latents(tokens_of(clip).mean(1, keepdim=True), torch.tensor([1])),
            {"clip_length": 2, "tubelet": 2, "temporal": True},
            "reversed clip",
        ),
        (
            lambda clip: _latents(tokens_of(clip).mean(1, keepdim=True), torch.tensor([1])),
            {"clip_length": 2, "tubelet": 2},
            "depends on earlier frames",
        ),
        (lambda clip: None, {}, "encode failed"),
    ],
)
def test_conformance_names_each_break(answer, facts, message):
    problems = check_encoder(BrokenEncoder(answer, **facts))
    assert any(re.search(message, problem) for problem in problems), problems


def test_conformance_sees_gradients_and_training_mode():
    encoder = BrokenEncoder(lambda clip: _latents(tokens_of(clip)))
    assert check_encoder(encoder) == []
    encoder.network = torch.nn.Linear(1, 1)
    assert [problem for problem in check_encoder(encoder) if "gradient" in problem]
    assert [problem for problem in check_encoder(encoder) if "training mode" in problem]
