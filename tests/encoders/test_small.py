from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.small import (
    RECORD_NAME,
    WEIGHTS_NAME,
    build_network,
    is_small_encoder,
    load_small_encoder,
    random_small,
    save_small_encoder,
    small_encoder,
)
from latentgym.encoders.trunk import Trunk, initialise, initialise_trunk, pair, still
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.seeding import torch_generator

FAMILIES = sorted(OBJECTIVES)


def make_encoder(family, seed=0):
    network = build_network(family)
    initialise(network, torch_generator(seed, family))
    initialise_trunk(network.trunk, seed)
    return small_encoder(network, family, seed=seed, step=7)


def make_clip(seed=0, batch=3):
    return np.random.default_rng(seed).integers(0, 256, (batch, 2, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_spec_of_every_family(family):
    encoder = make_encoder(family)
    latents = encoder.encode(make_clip())
    assert latents.tokens.shape == (3, 1, 64, 64)
    assert latents.tokens.dtype == torch.float32
    assert latents.times.tolist() == [1]
    spec = encoder.spec
    assert (spec.grid, spec.embed_dim, spec.pooling) == ((8, 8), 64, "grid:4")
    assert (spec.clip_length, spec.tubelet, spec.image_size) == (2, 2, 64)
    assert spec.trained_on_actions == (family == "inverse_dynamics")
    assert spec.parameters == sum(parameter.numel() for parameter in encoder.network.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_gpu_agrees_with_cpu_at_every_layer(family):
    on_cpu, on_gpu = make_encoder(family), make_encoder(family).to("cuda")
    layers = [*range(on_cpu.spec.layers), -1]
    for cpu, gpu in zip(*(encoder.encode_layers(make_clip(), layers) for encoder in (on_cpu, on_gpu)), strict=True):
        assert gpu.tokens.device.type == "cuda"
        # Convolutions on GPUs round their inputs to TF32, 10 bits, by default.
        torch.testing.assert_close(gpu.tokens.cpu(), cpu.tokens, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_temporal_families_look_at_the_older_frame(family):
    encoder = make_encoder(family)
    clip = make_clip()
    repeated = clip[:, [1, 1]]
    same = torch.equal(encoder.encode(clip).tokens, encoder.encode(repeated).tokens)
    assert same == (not encoder.spec.temporal)


def test_image_families_are_those_of_single_frames():
    still_families = {family for family in FAMILIES if not make_encoder(family).spec.temporal}
    assert still_families == {"pixel_autoencoder", "masked_image", "image_ssl", "diffusion"}


@pytest.mark.parametrize("family", ["next_latent", "shortcut_forcing"])
def test_every_layer_is_readable_on_the_same_grid_and_the_last_is_the_default(family):
    encoder = make_encoder(family)
    clip = make_clip()
    layers = [encoder.encode(clip, layer).tokens for layer in range(encoder.spec.layers)]
    assert all(tokens.shape[:3] == (3, 1, 64) for tokens in layers)
    assert [tokens.shape[3] for tokens in layers[:5]] == [24, 48, 64, 64, 64]
    assert torch.equal(layers[-1], encoder.encode(clip).tokens)
    assert not torch.equal(layers[-1], layers[-2])
    order = [encoder.spec.layers - 1, 0, -1, *range(1, encoder.spec.layers - 1)]
    blocks = []
    handles = [module.register_forward_hook(lambda *_: blocks.append(1)) for module in encoder.network.trunk.blocks]
    together = encoder.encode_layers(clip, order)
    for handle in handles:
        handle.remove()
    # The stem is no call of a block; shortcut forcing reads the trunk on all frames for what comes after it.
    assert len(blocks) == 4 * (2 if family == "shortcut_forcing" else 1)
    assert all(torch.equal(latents.tokens, layers[layer]) for layer, latents in zip(order, together, strict=True))
    with pytest.raises(LatentGymError, match="layers 0 to"):
        encoder.encode(clip, encoder.spec.layers)


def test_early_layers_are_block_averages_of_the_finer_grid():
    trunk = Trunk()
    initialise_trunk(trunk, 0)
    stack = torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    read = trunk(stack, 0)
    older, newer = stack.chunk(2, dim=1)
    fine = trunk.blocks[0](torch.cat([newer, 2 * (newer - older)], dim=1))
    torch.testing.assert_close(read, fine.view(2, 24, 8, 4, 8, 4).mean(dim=(3, 5)))


def test_tokens_are_row_major():
    encoder = make_encoder("masked_video")
    clip = make_clip()
    with torch.inference_mode():
        features = encoder.network(encoder.prepare(torch.as_tensor(clip)))
    assert torch.equal(encoder.encode(clip).tokens[:, 0, 3 * 8 + 5], features[:, :, 3, 5])


def test_stacks_hold_the_older_frame_first():
    older, newer = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert pair(older, newer)[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(still(newer), pair(newer, newer))


def test_channels_last_frames_survive_a_backward_pass():
    trunk = Trunk()
    initialise_trunk(trunk, 0)
    frames = torch.randn(2, 64, 64, 6).permute(0, 3, 1, 2)
    trunk(frames).square().mean().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in trunk.parameters())


def test_random_twins_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = random_small(5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    second, other = random_small(5), random_small(6)
    assert first.spec == second.spec
    assert torch.equal(first.encode(make_clip()).tokens, second.encode(make_clip()).tokens)
    assert first.spec.weights_digest != other.spec.weights_digest
    assert first.spec.family == "random"


def test_every_family_starts_from_the_random_twins_trunk():
    twin = random_small(2).network.trunk.state_dict()
    for kind in OBJECTIVES.values():
        objective = kind(action_size=2)
        objective.initialise(2)
        trunk = objective.network.trunk.state_dict()
        assert all(torch.equal(trunk[name], twin[name]) for name in twin)


@pytest.mark.parametrize("family", [*FAMILIES, "random"])
def test_saving_and_loading_keeps_spec_and_bits(family, tmp_path):
    encoder = random_small(1) if family == "random" else make_encoder(family)
    save_small_encoder(encoder, tmp_path / "e", {"steps": 7})
    assert is_small_encoder(tmp_path / "e")
    loaded = load_small_encoder(str(tmp_path / "e"))
    assert loaded.spec == encoder.spec
    assert torch.equal(loaded.encode(make_clip()).tokens, encoder.encode(make_clip()).tokens)


def test_other_folders_are_no_small_encoders(tmp_path):
    assert not is_small_encoder(tmp_path)
    assert not is_small_encoder(tmp_path / "absent")
    (tmp_path / RECORD_NAME).write_text("[]")
    assert not is_small_encoder(tmp_path)
    with pytest.raises(CorruptDataError, match="not the record"):
        load_small_encoder(tmp_path)


def saved(tmp_path):
    save_small_encoder(random_small(0), tmp_path)
    return tmp_path / WEIGHTS_NAME


def test_truncated_weights_are_refused(tmp_path):
    weights = saved(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match=r"weights\.safetensors cannot be read"):
        load_small_encoder(tmp_path)


def test_a_flipped_bit_is_refused(tmp_path):
    weights = saved(tmp_path)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(CorruptDataError, match="digest"):
        load_small_encoder(tmp_path)


def test_missing_weights_and_bad_records_are_refused(tmp_path):
    saved(tmp_path).unlink()
    with pytest.raises(CorruptDataError, match="cannot be read"):
        load_small_encoder(tmp_path)
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    (tmp_path / RECORD_NAME).write_text(json.dumps(record | {"spec": {"nam": 1}}))
    with pytest.raises(CorruptDataError, match="no valid encoder spec"):
        load_small_encoder(tmp_path)


def test_weights_of_another_family_are_refused(tmp_path):
    saved(tmp_path)
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    record["spec"]["family"] = "shortcut_forcing"
    (tmp_path / RECORD_NAME).write_text(json.dumps(record))
    with pytest.raises(CorruptDataError, match="cannot be read"):
        load_small_encoder(tmp_path)


def test_unknown_objectives_are_named_with_close_matches():
    with pytest.raises(UnknownNameError, match="did you mean 'next_latent'"):
        build_network("next_latents")


def test_clips_of_other_lengths_are_refused():
    with pytest.raises(LatentGymError, match="clips of 2 frames, found 1"):
        random_small().encode(make_clip()[:, :1])


def test_the_digest_covers_names_shapes_and_values():
    encoder = random_small(0)
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    assert encoder.spec.weights_digest == digest.hexdigest()
