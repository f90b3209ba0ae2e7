from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgym.encoders import check_encoder, load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError

ensure_torchvision()
timm = pytest.importorskip("timm")

# One transformer with a CLS token, one without, two convolutional networks, one with channels last.
MODELS = ("test_vit", "test_vit3", "test_resnet", "test_efficientnet", "swin_tiny_patch4_window7_224")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random weights of each model; no network is needed."""
    root = tmp_path_factory.mktemp("timm")
    for name in MODELS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = timm.create_model(name, pretrained=False).state_dict()
        save_file(state, root / f"{name}.safetensors")
    return root


def source(checkpoints, name):
    return f"timm:{name}@{checkpoints / name}.safetensors"


def random_clip(side, frames=2):
    return np.random.default_rng(0).integers(0, 256, (2, frames, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_library(checkpoints, name):
    encoder = load_encoder(source(checkpoints, name), device="cpu")
    model = timm.create_model(name, pretrained=False, checkpoint_path=checkpoints / f"{name}.safetensors").eval()
    clip = random_clip(encoder.spec.image_size)
    latents = encoder.encode(clip)
    with torch.inference_mode():
        output = model.forward_features(encoder.prepare(torch.as_tensor(clip)).flatten(0, 1))
    if output.ndim == 4:
        expected = output.flatten(1, 2) if name.startswith("swin") else output.flatten(2).transpose(1, 2)
        assert latents.prefix is None
    else:
        count = model.num_prefix_tokens
        expected = output[:, count:]
        if count:
            torch.testing.assert_close(latents.prefix.flatten(0, 1), output[:, :count], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.tokens.flatten(0, 1), expected, atol=1e-4, rtol=1e-4)
    config = model.pretrained_cfg
    assert (encoder.spec.mean, encoder.spec.image_size) == (config["mean"], config["input_size"][-1])


@pytest.mark.parametrize("name", MODELS[:4])
def test_keeps_the_contract(checkpoints, name):
    assert check_encoder(load_encoder(source(checkpoints, name), device="cpu")) == []


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_intermediate_layers_and_other_sizes(checkpoints, name):
    encoder = load_encoder(source(checkpoints, name), image_size=96, layer=1, device="cpu")
    tokens = encoder.encode(random_clip(64)).tokens
    assert tokens.shape[2:] == (encoder.spec.grid[0] * encoder.spec.grid[1], encoder.spec.embed_dim)
    model = timm.create_model(name, pretrained=False, checkpoint_path=checkpoints / f"{name}.safetensors").eval()
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(96, 96))
    pixels = encoder.prepare(torch.as_tensor(random_clip(64))).flatten(0, 1)
    with torch.inference_mode():
        expected = model.forward_intermediates(pixels, indices=[1], intermediates_only=True)[0]
    torch.testing.assert_close(tokens.flatten(0, 1), expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    assert encoder.spec.weights_digest or pytest.fail("no digest")


def test_transformers_that_return_no_prefix_tokens_between_blocks(tmp_path):
    model = timm.create_model("cait_xxs24_224", pretrained=False)
    save_file(model.state_dict(), tmp_path / "cait.safetensors")
    encoder = load_encoder(f"timm:cait_xxs24_224@{tmp_path / 'cait.safetensors'}", device="cpu", layer=3)
    assert encoder.encode(np.zeros((1, 1, 224, 224, 3), np.uint8)).tokens.shape == (1, 1, 196, 192)


def test_a_model_whose_features_are_no_map_is_one_clear_error(tmp_path):
    model = timm.create_model("coat_tiny", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "coat.pth")  # its blocks share tensors
    with pytest.raises(LatentGymError, match="features of this model cannot be read"):
        load_encoder(f"timm:coat_tiny@{tmp_path / 'coat.pth'}")


def test_checkpoint_from_a_folder_and_as_a_state_dict(checkpoints, tmp_path):
    state = load_file(checkpoints / "test_resnet.safetensors")
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    digest = load_encoder(source(checkpoints, "test_resnet")).spec.weights_digest
    for place in (tmp_path, tmp_path / "model.pth"):
        assert load_encoder(f"timm:test_resnet@{place}").spec.weights_digest == digest


def test_names_and_places_that_do_not_exist(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown timm model 'resnet1'; did you mean"):
        load_encoder("timm:resnet1")
    with pytest.raises(LatentGymError, match="there is no checkpoint at"):
        load_encoder(f"timm:test_vit@{tmp_path / 'none.pth'}")
    with pytest.raises(LatentGymError, match=r"holds no checkpoint; expected model\.safetensors"):
        load_encoder(f"timm:test_vit@{tmp_path}")


def test_no_network_says_which_file_to_get(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        LatentGymError, match=r"fetch model\.safetensors of https://huggingface\.co/timm/test_vit\.r160_in1k"
    ):
        load_encoder("timm:test_vit")


def test_published_weights_come_from_the_hub_cache(checkpoints, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    shutil.copy(checkpoints / "test_vit.safetensors", snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = load_encoder("timm:test_vit").spec
    assert (spec.source, spec.revision, spec.family) == ("timm/test_vit.r160_in1k", "0123abcd", "supervised")
    assert spec.weights_digest == load_encoder(source(checkpoints, "test_vit")).spec.weights_digest
    with pytest.raises(LatentGymError, match="timm publishes no weights for mixer_s32_224"):
        load_encoder("timm:mixer_s32_224")


def test_weights_that_do_not_fit(checkpoints, tmp_path):
    state = load_file(checkpoints / "test_resnet.safetensors")
    with pytest.raises(LatentGymError, match=r"does not fit timm:test_vit: .* weights are missing and would be random"):
        load_encoder(f"timm:test_vit@{checkpoints / 'test_resnet.safetensors'}")
    state["conv1.0.weight"] = state["conv1.0.weight"][:1]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LatentGymError, match="does not fit timm:test_resnet"):
        load_encoder(f"timm:test_resnet@{tmp_path}")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_checkpoint(checkpoints, tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    state = load_file(checkpoints / "test_resnet.safetensors")
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptDataError, match="truncated or is not a plain state dict"):
            load_encoder(f"timm:test_resnet@{path}")


def test_pickled_code_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the pickle ran')",))

    torch.save({"conv1.0.weight": Trap()}, tmp_path / "model.pth")
    with pytest.raises(CorruptDataError):
        load_encoder(f"timm:test_resnet@{tmp_path}")


@pytest.mark.parametrize(
    ("name", "image_size"), [("test_vit", 8), ("test_vit", 90), ("swin_tiny_patch4_window7_224", 3)]
)
def test_sizes_that_do_not_fit(checkpoints, name, image_size):
    with pytest.raises(LatentGymError, match=f"cannot take frames of {image_size} pixels"):
        load_encoder(source(checkpoints, name), image_size=image_size)
