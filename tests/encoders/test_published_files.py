from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentgym.encoders import check_encoder, describe_encoder, find_encoders, list_encoders, load_encoder
from latentgym.encoders.adapted import BASE_NAME, copy_base
from latentgym.encoders.published_files import FILES, KINDS
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.vjepa21 import VJEPA21
from latentgym.errors import CorruptDataError, LatentGymError

ensure_torchvision()
pytest.importorskip("timm")
pytest.importorskip("transformers")

# Tiny checkpoints of every kind, and the side of the frames where any will do.
SIDES = {
    "vjepa2_1": 64,
    "videomaev2_distilled": None,
    "videomaev2_pretrained": None,
    "r3m_18": 64,
    "r3m_50": 64,
    "vc1": None,
    "laq_4": None,
    "laq_1": None,
}


def kind_of(name):
    return next(kind for kind in KINDS if name.startswith(kind))


@pytest.fixture(scope="module")
def folders(save_published, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: save_published(root / name, name) for name in SIDES}


def opened(folders, name, **options):
    return load_encoder(folders[name], image_size=SIDES[name], device="cpu", **options)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_vjepa21_equals_the_public_code(folders, golden):
    expected, _ = golden("vjepa2_1")
    encoder = opened(folders, "vjepa2_1")
    clip = expected["frames"].numpy()
    for layer, key in ((-1, "video.last"), (0, "video.block0"), (7, "video.block7")):
        latents = encoder.encode(clip, layer)
        close(latents.tokens.flatten(1, 2), expected[key])
        assert latents.times.tolist() == [1, 3] and latents.prefix is None
    one = encoder.encode_layers(clip[:, :1], (-1, 7))
    close(one[0].tokens[:, 0], expected["image.last"])
    close(one[1].tokens[:, 0], expected["image.block7"])
    assert one[0].times.tolist() == [0]


def test_vjepa21_of_single_frames_reads_each_as_an_image(folders, tmp_path, golden, save_published):
    folder = save_published(tmp_path / "image", "vjepa2_1", config=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "vjepa2_1", "num_frames": 1}))
    encoder = load_encoder(folder, image_size=64, device="cpu")
    assert (encoder.spec.clip_length, encoder.spec.tubelet, encoder.spec.temporal) == (1, 1, False)
    frames = golden("vjepa2_1")[0]["frames"].numpy()
    tokens = encoder.encode(frames).tokens
    assert tokens.shape[1] == 4
    close(tokens[:, 0], golden("vjepa2_1")[0]["image.last"])
    close(tokens[:, 2:3], opened(folders, "vjepa2_1").encode(frames[:, 2:3]).tokens)
    assert check_encoder(encoder) == []
    assert encoder.spec.weights_digest != opened(folders, "vjepa2_1").spec.weights_digest


def test_videomaev2_equals_the_public_code(folders, golden):
    expected, state = golden("videomaev2_distilled")
    latents = opened(folders, "videomaev2_distilled").encode_layers(expected["frames"].numpy(), (0, -1))
    close(latents[0].tokens.flatten(1, 2), expected["block0"])
    close(latents[1].tokens.flatten(1, 2), expected["block2"])
    # The published feature is the normalised mean over every token.
    norm = (state["fc_norm.weight"], state["fc_norm.bias"])
    close(torch.nn.functional.layer_norm(latents[1].tokens.mean((1, 2)), (128,), *norm, 1e-6), expected["pooled"])
    expected, _ = golden("videomaev2_pretrained")
    latents = opened(folders, "videomaev2_pretrained").encode_layers(expected["frames"].numpy(), (1, -1))
    close(latents[0].tokens.flatten(1, 2), expected["block1"])
    close(latents[1].tokens.flatten(1, 2), expected["last"])


@pytest.mark.parametrize("name", ["r3m_18", "r3m_50"])
def test_r3m_equals_the_public_code(folders, name, golden):
    expected, _ = golden(name)
    encoder = opened(folders, name)
    clip = expected["frames"].numpy()
    close(encoder.encode(clip).pooled[:, 0], expected["pooled"])
    for layer, every in ((1, 8), (3, 16)):
        tokens = encoder.encode(clip, layer).tokens[:, 0, :, ::every]
        close(tokens.transpose(1, 2), expected[f"layer{layer}"].flatten(2))
    assert encoder.spec.grid == (2, 2) and encoder.spec.family == "time_contrastive"


def test_vc1_equals_the_public_code(folders, golden):
    expected, _ = golden("vc1")
    encoder = opened(folders, "vc1")
    latents = encoder.encode_layers(expected["frames"].numpy(), (-1, 0))
    close(latents[0].prefix[:, 0, 0], expected["cls"])
    for one, key in zip(latents, ("last", "block0"), strict=True):
        close(torch.cat([one.prefix, one.tokens], dim=2)[:, 0], expected[key])
    assert (encoder.spec.pooling, encoder.spec.licence) == ("cls", "CC-BY-NC-4.0")
    assert load_encoder(folders["vc1"], image_size=64).spec.grid == (4, 4)


@pytest.mark.parametrize("name", ["laq_4", "laq_1"])
def test_laq_equals_the_public_code(folders, name, golden):
    expected, _ = golden(name)
    encoder = opened(folders, name)
    clip = expected["frames"].numpy()
    close(encoder.encode(clip).tokens[:, 0], expected["action"])
    assert torch.equal(encoder.codes(clip), expected["codes"])
    if name == "laq_4":
        for layer, key in ((0, "spatial0"), (3, "temporal1")):
            close(encoder.encode(clip, layer).tokens[:, 0], torch.cat(expected[key].unbind(1), dim=-1))
        assert (encoder.spec.pooling, encoder.spec.grid, encoder.spec.layers) == ("grid:2", (2, 2), 5)


def test_laq_compares_the_first_and_the_last_of_a_longer_clip(folders, tmp_path, golden, save_published):
    folder = save_published(tmp_path / "wide", "laq_4", config=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "laq", "image_size": 64, "num_frames": 4}))
    encoder = load_encoder(folder, device="cpu")
    pair = golden("laq_4")[0]["frames"].numpy()
    clip = np.concatenate([pair[:, :1], 255 - pair, pair[:, 1:]], axis=1)
    latents = encoder.encode(clip)
    close(latents.tokens[:, 0], golden("laq_4")[0]["action"])
    assert latents.times.tolist() == [3] and encoder.spec.clip_length == encoder.spec.tubelet == 4


@pytest.mark.parametrize("name", ["vjepa2_1", "videomaev2_distilled", "r3m_18", "vc1", "laq_4"])
def test_a_random_twin_has_other_weights(folders, name, golden):
    encoder = opened(folders, name)
    assert encoder.spec.source == str(folders[name]) and encoder.spec.parameters > 0
    twin = load_encoder(f"twin:{folders[name]}", image_size=SIDES[name], device="cpu")
    clip = golden(name)[0]["frames"].numpy()
    assert not torch.equal(twin.encode(clip).tokens, encoder.encode(clip).tokens)


def test_a_file_and_its_folder_are_the_same_encoder(folders):
    file = next(folders["vc1"].glob("*.pth"))
    digest = load_encoder(folders["vc1"]).spec.weights_digest
    assert load_encoder(file).spec.weights_digest == digest and load_encoder(file).spec.name == "vc1_vitb"


def test_what_weights_are_called_tells_the_kind(tmp_path, golden):
    for name in ("vjepa2_1", "videomaev2_distilled", "r3m_50", "vc1", "laq_4"):
        _, state = golden(name)
        state |= {"mask_token": torch.zeros(1, 1, 8)} if name == "vc1" else {}
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "weights.safetensors")
    found, skipped = find_encoders(tmp_path)
    assert len(found) == 5 and not skipped
    assert load_encoder(found["r3m_50"], image_size=64).spec.licence == ""


def test_hub_configuration_of_videomaev2_is_read(tmp_path, golden):
    _, state = golden("videomaev2_distilled")
    save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / "model.safetensors")
    config = {"model_type": "VideoMAEv2_Base", "model_config": {"img_size": 32, "num_frames": 4, "num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = golden("videomaev2_distilled")[0]
    close(load_encoder(tmp_path).encode(expected["frames"].numpy()).tokens.flatten(1, 2), expected["block2"])


def test_an_encoder_adapted_from_it_keeps_a_copy(folders, tmp_path):
    kept = copy_base(folders["laq_4"], tmp_path)
    assert set(kept) == {"config.json", "laq_openx.pt"}
    assert load_encoder(tmp_path / BASE_NAME).spec.weights_digest == opened(folders, "laq_4").spec.weights_digest


def test_averaged_weights_are_preferred(tmp_path, golden, save_published):
    _, state = golden("vjepa2_1")
    other = {f"module.backbone.{name}": value + 1 for name, value in state.items()}
    folder = save_published(tmp_path, "vjepa2_1", extra={"encoder": other, "target_encoder": other, "opt": {"lr": 1.0}})
    expected = golden("vjepa2_1")[0]
    tokens = load_encoder(folder, image_size=64).encode(expected["frames"].numpy()).tokens
    close(tokens.flatten(1, 2), expected["video.last"])


@pytest.mark.parametrize("name", SIDES)
def test_a_missing_weight_is_named(tmp_path, name, golden, save_published):
    _, state = golden(name)
    lost = next(
        key
        for key in state
        if key.endswith(
            ("blocks.1.norm1.weight", "layer2.0.bn1.weight", "enc_spatial_transformer.layers.1.1.to_q.weight")
        )
    )
    del state[lost]
    with pytest.raises(LatentGymError, match=r"weights? of .* missing from the checkpoint and would be random: "):
        load_encoder(save_published(tmp_path, name, state))


def test_weights_of_another_architecture(tmp_path, golden, save_published):
    _, state = golden("vc1")
    folder = tmp_path / "wrong"
    folder.mkdir()
    torch.save(state, folder / "vjepa2_1_vitb_dist_vitG_384.pt")
    with pytest.raises(LatentGymError, match=r"is not of V-JEPA 2\.1: it has no patch_embed_img"):
        load_encoder(folder)
    (folder / "vjepa2_1_vitb_dist_vitG_384.pt").rename(folder / "other.pt")
    with pytest.raises(LatentGymError, match="holds no encoder"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "laq"}))
    with pytest.raises(LatentGymError, match=r"is not of LAPA's LAQ: it has no vq\.codebooks"):
        load_encoder(folder)
    _, state = golden("vjepa2_1")
    state["registers"] = torch.zeros(1)
    with pytest.raises(LatentGymError, match=r"has no place for, so it is of another architecture: registers"):
        load_encoder(save_published(tmp_path / "more", "vjepa2_1", state))
    _, state = golden("vjepa2_1")
    state["blocks.3.attn.qkv.weight"] = torch.zeros(3, 128)
    with pytest.raises(LatentGymError, match=r"do not have the shapes of V-JEPA 2\.1: .*blocks\.3\.attn\.qkv"):
        load_encoder(save_published(tmp_path / "shape", "vjepa2_1", state))


@pytest.mark.parametrize("name", ["vjepa2_1", "laq_1"])
def test_partial_download(tmp_path, name, save_published):
    folder = save_published(tmp_path / "one", name)
    path = next(path for path in folder.iterdir() if path.name != "config.json")
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CorruptDataError, match="truncated or is not a plain state dict"):
            load_encoder(folder)
    path.unlink()
    with pytest.raises(CorruptDataError, match="lacks its weights: expected one file that ends in"):
        load_encoder(folder)
    torch.save({"epoch": 3}, path.with_suffix(".pt"))
    with pytest.raises(CorruptDataError, match="holds no state dict"):
        load_encoder(folder)
    (folder / "config.json").unlink()
    assert "holds no state dict" in find_encoders(tmp_path)[1]["one"]


def test_several_checkpoints_in_a_folder(tmp_path, save_published):
    folder = save_published(tmp_path, "vc1")
    (folder / "other.pth").write_bytes(b"")
    assert load_encoder(folder).spec.embed_dim == 128
    (folder / "vc1_vitb.pth").rename(folder / "mine.pth")
    save_published(folder, "laq_4", config=False)
    with pytest.raises(LatentGymError, match=r"several checkpoints, laq_openx\.pt, mine\.pth; put each"):
        load_encoder(folder)


def test_pickled_code_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('the pickle ran')",))

    torch.save({"model": Trap()}, tmp_path / "vc1_vitb.pth")
    with pytest.raises(CorruptDataError):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("vjepa2_1", 8, "image_size 8 does not fit: expected a multiple of its patches of 16 pixels, two at least"),
        ("vjepa2_1", 16, "two at least"),
        ("vjepa2_1", 40, "image_size 40 does not fit"),
        ("videomaev2_distilled", 64, "only takes frames of 32 pixels"),
        ("r3m_18", 8, "image_size 8 is too small"),
        ("vc1", 8, "image_size 8 does not fit: expected a multiple of its patches of 16 pixels"),
        ("laq_4", 128, "only takes frames of 64 pixels"),
    ],
)
def test_sizes_that_do_not_fit(folders, name, image_size, message):
    with pytest.raises(LatentGymError, match=message):
        load_encoder(folders[name], image_size=image_size)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vjepa2_1", {"num_frames": 3}, "clips of 3 frames do not fit: expected 1 or a multiple of 2"),
        ("videomaev2_distilled", {"img_size": 8, "num_frames": 4}, "do not fit tubelets of 2 frames and 16 pixels"),
        ("videomaev2_distilled", {"img_size": 32, "num_frames": 1}, "clips of 1 frames of 32 pixels do not fit"),
        ("laq_4", {"image_size": 64, "num_frames": 1}, "compares two frames; clips of 1 frames are too short"),
        ("laq_4", {"image_size": 8}, "frames of 8 pixels are too small"),
        ("laq_4", {"image_size": 64, "code_seq_len": 5}, "code_seq_len 5 is not supported"),
    ],
)
def test_stated_sizes_that_do_not_fit(tmp_path, name, options, message, save_published):
    folder = save_published(tmp_path, name, config=False)
    (folder / "config.json").write_text(json.dumps({"model_type": kind_of(name), **options}))
    with pytest.raises(LatentGymError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("vjepa2_1", 3, "one frame or a multiple of its tubelet of 2 frames, found 3"),
        ("videomaev2_distilled", 1, "expected clips of 4 frames, found 1"),
        ("laq_4", 1, "expected clips of 2 frames, found 1"),
    ],
)
def test_clips_that_do_not_fill_a_tubelet(folders, name, frames, message, golden):
    clip = golden(name)[0]["frames"].numpy()[:, :frames]
    with pytest.raises(LatentGymError, match=message):
        opened(folders, name).encode(clip)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Empty caches and no network; the folder of the caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))

    def refuse(url, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "file", "place"),
    [
        ("vjepa2.1-b-384", "vjepa2_1_vitb_dist_vitG_384.pt", "dl.fbaipublicfiles.com/vjepa2/"),
        ("videomaev2-b", "model.safetensors", "huggingface.co/OpenGVLab/VideoMAEv2-Base/resolve/0e826d7e"),
        ("OpenGVLab/VideoMAEv2-Base@main", "model.safetensors", "VideoMAEv2-Base/resolve/main"),
        ("r3m-50", "pytorch_model.bin", "huggingface.co/surajnair/r3m-50/resolve/main"),
        ("facebook/vc1-large", "pytorch_model.bin", "huggingface.co/facebook/vc1-large/resolve/8a47f311"),
        ("laq-openx:5", "laq_openx.pt", "LAPA-7B-openx/resolve/main/laq_openx.pt"),
    ],
)
def test_no_network_says_which_file_to_put_where(offline, source, file, place):
    with pytest.raises(LatentGymError) as error:
        load_encoder(source)
    message = str(error.value)
    assert f"{file} " in message and place in message and f"put {file} into a folder of its own" in message


def test_names_that_stand_for_nothing(offline):
    with pytest.raises(LatentGymError, match="holds several encoders; name one of them: videomaev2-s-distilled"):
        load_encoder("OpenGVLab/VideoMAE2")
    with pytest.raises(LatentGymError, match=r"expected laq-openx:<frames of a clip>"):
        load_encoder("laq-openx:many")
    with pytest.raises(LatentGymError, match="did you mean 'vjepa2"):
        load_encoder("vjepa2.1-b")


def test_a_file_that_is_in_the_cache_is_opened(offline, save_published):
    """The real architecture of ViT-B, every weight alike, from where ``torch.hub`` keeps downloads."""
    with torch.device("meta"):
        model = VJEPA21(width=768, depth=12, heads=12, hidden=3072, patch=16, tubelet=2, norms=4)
    state = {f"module.{name}": torch.ones(()).expand(value.shape) for name, value in model.state_dict().items()}
    (offline / "checkpoints").mkdir()
    path = offline / "checkpoints" / "vjepa2_1_vitb_dist_vitG_384.pt"
    torch.save({"ema_encoder": state}, path)
    spec = load_encoder("vjepa2.1-b-384:1").spec
    assert (spec.name, spec.licence, spec.clip_length, spec.image_size) == ("vjepa2.1-b-384", "MIT", 1, 384)
    assert round(spec.parameters / 1e6, 1) == FILES["vjepa2.1-b-384"].parameters_m
    assert describe_encoder("vjepa2.1-b-384")["weights"] == "here"
    save_published(offline, "vjepa2_1", config=False).joinpath(path.name).replace(path)
    with pytest.raises(CorruptDataError, match=r"is not vjepa2\.1-b-384: expected 86\.8 million parameters, found"):
        load_encoder("vjepa2.1-b-384")


def test_a_file_that_is_in_the_hub_cache_is_opened(offline, golden):
    _, state = golden("r3m_18")
    snapshot = offline / "models--surajnair--r3m-18" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    torch.save(state, snapshot / "pytorch_model.bin")
    for source in ("r3m-18", "surajnair/r3m-18"):
        spec = load_encoder(source, image_size=64).spec
        assert (spec.name, spec.source, spec.revision) == ("r3m-18", "surajnair/r3m-18", "0123abcd")
    assert describe_encoder("r3m-18")["weights"] == "here"


def test_every_file_is_listed_and_explained():
    rows = {row["name"]: row for row in list_encoders()}
    for name, entry in FILES.items():
        assert rows[name]["licence"] and rows[name]["parameters"] > 1e6 and rows[name]["family"]
        explained = describe_encoder(name)
        assert explained["url"].startswith("https://") and explained["url"].endswith(entry.file)
        for key in ("revision", "preprocessing", "tokens", "clip", "code", "folder"):
            assert explained[key]
    assert {kind.title for kind in KINDS.values()} <= set(rows)
