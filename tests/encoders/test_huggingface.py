from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgym.encoders import View, check_encoder, encode_view, load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError

ensure_torchvision()
transformers = pytest.importorskip("transformers")

NAMES = ("Dinov2Model", "Dinov2WithRegistersModel", "VideoMAEModel", "VJEPA2Model")


def clip_for(encoder, batch=2, seed=0):
    shape = (batch, encoder.spec.clip_length, encoder.spec.image_size, encoder.spec.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def library_output(model, pixels, layer=-1):
    """Tokens of the library's own forward on prepared ``(B, T, 3, S, S)`` pixels, blocks read by hooks."""
    kept = []
    if layer >= 0:
        blocks = model.encoder.layer
        blocks[layer].register_forward_hook(lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        if type(model).__name__ == "VJEPA2Model":
            last = model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        elif type(model).__name__ == "VideoMAEModel":
            last = model(pixel_values=pixels).last_hidden_state
        else:
            last = model(pixel_values=pixels[:, 0]).last_hidden_state
    return kept[0] if kept else last


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(folders, tiny, name, layer):
    encoder = load_encoder(folders / name, device="cpu")
    clip = clip_for(encoder)
    latents = encoder.encode(clip, layer)
    expected = library_output(tiny(name), encoder.prepare(torch.as_tensor(clip)), layer)
    ours = latents.tokens if latents.prefix is None else torch.cat([latents.prefix, latents.tokens], dim=2)
    torch.testing.assert_close(ours.flatten(1, 2), expected, atol=1e-4, rtol=0)
    prefix = {"Dinov2Model": 1, "Dinov2WithRegistersModel": 5}.get(name, 0)
    assert (0 if latents.prefix is None else latents.prefix.shape[2]) == prefix


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(folders, name):
    encoder = load_encoder(folders / name, device="cpu")
    assert check_encoder(encoder) == []
    assert encoder.spec.layers == 3
    assert encoder.spec.grid == ((3, 3) if name.startswith("Dino") else (2, 2))
    if encoder.spec.clip_length > 1:
        assert encoder.encode(clip_for(encoder)).times.tolist() == [1, 3]


def test_real_weights_equal_the_library_in_any_frame_size(shared):
    folder = shared / "weights" / "dinov2_small_saliency"
    encoder = load_encoder(folder, device="cpu")
    assert (encoder.spec.image_size, encoder.spec.grid, encoder.spec.dtype) == (224, (16, 16), "float32")
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 80, 3), dtype=np.uint8)
    model = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(encoder.prepare(torch.as_tensor(clip))[0]).last_hidden_state
    latents = encoder.encode(clip)
    torch.testing.assert_close(latents.tokens[0], expected[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.prefix[0], expected[:, :1], atol=1e-4, rtol=1e-4)


def test_reduced_precision_is_taken_only_within_tolerance(folders):
    encoder = load_encoder(folders / "Dinov2Model", device="cpu")
    assert encoder.spec.dtype == "float32"
    before = encoder.encode(clip_for(encoder)).tokens
    assert not encoder.try_bfloat16(min_cosine=1.1)
    assert torch.equal(encoder.encode(clip_for(encoder)).tokens, before)
    assert encoder.try_bfloat16(min_cosine=0.9)
    assert encoder.spec.dtype == "bfloat16"
    explicit = load_encoder(folders / "Dinov2Model", device="cpu", dtype="bfloat16")
    assert torch.equal(explicit.encode(clip_for(explicit)).tokens, encoder.encode(clip_for(encoder)).tokens)
    assert torch.equal(encoder.encode(clip_for(encoder), 1).tokens, explicit.encode(clip_for(explicit), 1).tokens)


def test_preprocessing_comes_from_the_folder(folders, tmp_path):
    folder = shutil.copytree(folders / "Dinov2Model", tmp_path / "model")
    preprocessor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    spec = load_encoder(folder).spec
    assert (spec.image_size, spec.mean, spec.std) == (28, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert load_encoder(folder, image_size=56).spec.grid == (4, 4)
    for key, value, message in [("image_std", [1], "three numbers"), ("rescale_factor", 1, "rescale_factor")]:
        (folder / "preprocessor_config.json").write_text(json.dumps({**preprocessor, key: value}))
        with pytest.raises(LatentGymError, match=message):
            load_encoder(folder)


def test_digest_follows_weights_and_architecture_but_not_place(folders, tmp_path):
    original = load_encoder(folders / "Dinov2Model").spec
    folder = shutil.copytree(folders / "Dinov2Model", tmp_path / "moved")
    assert load_encoder(folder).spec.weights_digest == original.weights_digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    assert load_encoder(folder).spec.weights_digest != original.weights_digest
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    state["layernorm.bias"][0] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(folder).spec.weights_digest != original.weights_digest


def test_a_head_in_the_checkpoint_is_left_aside(tiny, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = transformers.VideoMAEForVideoClassification(tiny("VideoMAEModel").config).eval()
    classifier.save_pretrained(tmp_path / "model")
    encoder = load_encoder(tmp_path / "model", device="cpu")
    expected = library_output(classifier.videomae, encoder.prepare(torch.as_tensor(clip_for(encoder))))
    torch.testing.assert_close(encoder.encode(clip_for(encoder)).tokens.flatten(1, 2), expected, atol=1e-4, rtol=0)


def test_long_vjepa_clips_are_read_as_sixteen_frames(tiny, tmp_path):
    tiny("VJEPA2Model", frames_per_clip=64).save_pretrained(tmp_path / "model")
    encoder = load_encoder(tmp_path / "model", device="cpu")
    assert (encoder.spec.clip_length, encoder.spec.parameters) == (16, _encoder_parameters(tmp_path / "model"))
    whole = np.random.default_rng(0).integers(0, 256, (1, 64, 32, 32, 3), dtype=np.uint8)
    expected = library_output(tiny("VJEPA2Model", frames_per_clip=64), encoder.prepare(torch.as_tensor(whole)))
    torch.testing.assert_close(encoder.encode(whole).tokens.flatten(1, 2), expected, atol=1e-4, rtol=0)
    frames = clip_for(encoder, batch=1)[0][:3]
    assert encode_view(encoder, frames, View("causal")).shape == (3, 24)


def _encoder_parameters(folder: Path) -> int:
    state = load_file(folder / "model.safetensors")
    return sum(tensor.numel() for name, tensor in state.items() if name.startswith("encoder."))


def test_a_fine_tuned_videomae_gives_its_trunk(tmp_path):
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, use_mean_pooling=True, num_labels=5, **settings
    )  # published ones pool the mean, and norm it in the classifier
    model = transformers.VideoMAEForVideoClassification(config).eval()
    model.save_pretrained(tmp_path / "kinetics")
    encoder = load_encoder(tmp_path / "kinetics", device="cpu")
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        expected = model.videomae(pixel_values=encoder.prepare(torch.from_numpy(clip))).last_hidden_state
    torch.testing.assert_close(encoder.encode(clip).tokens.flatten(1, 2), expected)


def test_a_hub_id_comes_from_the_hub_cache(folders, tmp_path, monkeypatch):
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folders / "Dinov2Model", repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = load_encoder("owner/name").spec
    assert (spec.source, spec.revision) == ("owner/name", "0123abcd")
    assert spec.weights_digest == load_encoder(folders / "Dinov2Model").spec.weights_digest


@pytest.mark.parametrize("name", ["VideoMAEModel", "VJEPA2Model"])
def test_fixed_size_and_length(folders, name):
    with pytest.raises(LatentGymError, match="only takes frames of 32 pixels"):
        load_encoder(folders / name, image_size=48)
    encoder = load_encoder(folders / name, device="cpu")
    for frames in (1, 3, 6):
        with pytest.raises(LatentGymError, match=f"expected clips of 4 frames, found {frames}"):
            encoder.encode(np.zeros((1, frames, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("image_size", [8, 30])
def test_frames_that_patches_do_not_fill(folders, image_size):
    with pytest.raises(LatentGymError, match=f"image_size {image_size} does not fit patches of 14 pixels"):
        load_encoder(folders / "Dinov2Model", image_size=image_size)


def test_non_finite_weights_are_seen(folders, tmp_path):
    folder = shutil.copytree(folders / "Dinov2Model", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(folder, device="cpu")
    with pytest.raises(LatentGymError, match="NaN or infinite latents"):
        encoder.encode(clip_for(encoder))


def test_unsupported_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(LatentGymError, match=r"architecture BertModel is not supported; supported are Dinov2Model"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CorruptDataError, match="not readable as JSON"):
        load_encoder(tmp_path)


def test_damaged_weights(folders, tmp_path):
    folder = shutil.copytree(folders / "Dinov2Model", tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for kept in (0, 4, 100, len(whole) - 1):
        weights.write_bytes(whole[:kept])
        with pytest.raises(CorruptDataError, match="truncated or is not a safetensors file"):
            load_encoder(folder)
    weights.unlink()
    with pytest.raises(CorruptDataError, match=r"lacks its weights: expected model\.safetensors"):
        load_encoder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"pytorch_model\.bin is not read: pickles can run code"):
        load_encoder(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes(whole)
    with pytest.raises(CorruptDataError, match=r"expected model-00002-of-00002\.safetensors"):
        load_encoder(folder)


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_are_never_random(folders, tmp_path, name):
    folder = shutil.copytree(folders / name, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    absent = next(key for key in sorted(state) if key.startswith("encoder.layer.1"))
    del state[absent]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LatentGymError, match=rf"1 weights of {name} are missing .* 'encoder\.layer\.1"):
        load_encoder(folder)


def test_weights_of_another_shape(folders, tmp_path):
    folder = shutil.copytree(folders / "Dinov2Model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(LatentGymError, match=r"cannot open .* as Dinov2Model"):
        load_encoder(folder)


def test_torchvision_is_patched_only_where_its_plain_import_fails():
    """In processes of their own, because an import happens once."""
    plain = _python("import torchvision")
    code = """
        import sys, torch
        from latentgym.encoders.torchvision_fallback import ensure_torchvision
        assert "torchvision" not in sys.modules
        outcome = ensure_torchvision()
        assert ensure_torchvision() == outcome
        from torchvision.transforms import v2
        print(outcome)
    """
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("native" if plain.returncode == 0 else "patched")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
