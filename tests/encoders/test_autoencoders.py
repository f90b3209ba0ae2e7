from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgym.encoders import check_encoder, find_encoders, list_encoders, load_encoder
from latentgym.encoders.autoencoders import CLASSES
from latentgym.encoders.published import PUBLISHED, REVISIONS
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError

ensure_torchvision()
diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", CLASSES)
def test_equals_the_library_and_keeps_the_contract(folders, name):
    encoder = load_encoder(folders / name, device="cpu", image_size=64)
    shape = (2, encoder.spec.clip_length, 64, 64, 3)
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    latents = encoder.encode(clip)
    pixels = torch.from_numpy(clip).float().permute(0, 4, 1, 2, 3) / 127.5 - 1
    model = getattr(diffusers, name).from_pretrained(folders / name).eval()
    with torch.inference_mode():
        output = model.encode(pixels if CLASSES[name] else pixels[:, :, 0])
    maps = output.latents if name == "AutoencoderTiny" else output.latent_dist.mode()
    maps = maps if CLASSES[name] else maps[:, :, None]
    expected = torch.stack([maps[:, :, t].flatten(2).transpose(1, 2) for t in range(maps.shape[2])], dim=1)
    torch.testing.assert_close(latents.tokens, expected, atol=1e-4, rtol=0)
    if CLASSES[name]:
        assert latents.times.tolist() == [0, 4, 8]
        first = encoder.encode(clip[:, :1])
        assert first.times.tolist() == [0]
        with pytest.raises(LatentGymError, match="or of 1 and any multiple of 4, found 3"):
            encoder.encode(clip[:, :3])
    assert check_encoder(encoder) == []


def test_sizes_and_damage(folders, tmp_path):
    assert load_encoder(folders / "AutoencoderKL").spec.image_size == 32
    assert load_encoder(folders / "AutoencoderTiny").spec.image_size == 256
    with pytest.raises(LatentGymError, match="no multiple of its spatial stride of 2"):
        load_encoder(folders / "AutoencoderKL", image_size=33)
    found, skipped = find_encoders(folders)
    assert set(CLASSES) <= set(found) and not skipped
    config = json.loads((folders / "AutoencoderKL" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match=r"expected diffusion_pytorch_model\.safetensors"):
        load_encoder(tmp_path)
    state = load_file(folders / "AutoencoderKL" / "diffusion_pytorch_model.safetensors")
    del state["encoder.conv_in.weight"]
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LatentGymError, match=r"weights of AutoencoderKL are missing .*encoder\.conv_in\.weight"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(LatentGymError, match="class VQModel of diffusers is not supported"):
        load_encoder(tmp_path)


def test_published_names_are_listed_with_classes_that_can_be_opened():
    rows = {row["name"]: row for row in list_encoders()}
    for name, entry in PUBLISHED.items():
        assert entry.model_class in rows, entry
        assert rows[name]["licence"] and rows[name]["parameters"] > 0
        assert rows[name]["weights"] in ("here", "to download")


def test_pinned_revisions_are_commits_of_published_encoders():
    assert set(REVISIONS) <= {entry.hub_id for entry in PUBLISHED.values()}
    assert all(re.fullmatch(r"[0-9a-f]{40}|refs/pr/\d+", revision) for revision in REVISIONS.values())


def test_a_published_name_opens_its_pinned_revision_from_the_hub_cache(folders, tmp_path, monkeypatch):
    pinned, repository = REVISIONS["madebyollin/taesd"], tmp_path / "models--madebyollin--taesd"
    for revision in (pinned, "0123abcd"):
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        (repository / "snapshots" / revision).symlink_to(folders / "AutoencoderTiny")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = load_encoder("taesd").spec
    assert (spec.name, spec.source, spec.revision, spec.licence) == ("taesd", "madebyollin/taesd", pinned, "MIT")
    row = next(row for row in list_encoders() if row["name"] == "taesd")
    assert (row["weights"], row["revision"]) == ("here", pinned)
    (repository / "snapshots" / pinned).unlink()
    assert load_encoder("madebyollin/taesd").spec.revision == "0123abcd"
    with pytest.raises(LatentGymError, match="'madebyollin/taesd' opens another revision that is here"):
        load_encoder("taesd")
    with pytest.raises(LatentGymError, match=r"could not be downloaded.*put them into one folder"):
        load_encoder("sd-vae")
