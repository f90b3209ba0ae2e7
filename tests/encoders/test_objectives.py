from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders.objectives import OBJECTIVES, Batch
from latentgym.encoders.objectives.diffusion import MIN_DISTANCE, READ_TAU, NoisyStillNetwork, corrupt
from latentgym.encoders.objectives.dynamics import DEPTH, K_MAX, LATENT_CHANNELS, Dynamics, rotary_angles, rotate
from latentgym.encoders.objectives.image_ssl import augment
from latentgym.encoders.objectives.pixels import hide, masked_error, random_mask, to_pixels
from latentgym.encoders.objectives.shortcut_forcing import ShortcutForcing, draw_levels, shortcut_loss
from latentgym.encoders.objectives.vicreg import covariance_term, variance_term, vicreg
from latentgym.encoders.trunk import initialise, still
from latentgym.errors import LatentGymError

FAMILIES = sorted(OBJECTIVES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(seed=0, rows=8):
    """Blocky random frames that drift, and standardised actions."""
    source = generator(seed)
    coarse = torch.rand(rows, 1, 3, 8, 8, generator=source).repeat_interleave(8, -1).repeat_interleave(8, -2)
    frames = torch.cat([torch.roll(coarse, shift, -1) for shift in range(4)], dim=1)
    return Batch(2 * frames - 1, torch.randn(rows, 3, 2, generator=source))


def make_objective(family, seed=0):
    objective = OBJECTIVES[family](action_size=2)
    objective.initialise(seed)
    return objective


def test_there_is_one_objective_per_family_with_a_source():
    assert set(OBJECTIVES) == {
        "pixel_autoencoder",
        "masked_image",
        "image_ssl",
        "masked_video",
        "masked_video_latent",
        "next_latent",
        "diffusion",
        "shortcut_forcing",
        "inverse_dynamics",
    }
    assert all(kind.source for kind in OBJECTIVES.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_depends_on_its_arguments_alone_and_trains_everything(family):
    objective = make_objective(family)
    loss = objective.loss(make_batch(), generator())
    assert loss.ndim == 0 and bool(torch.isfinite(loss))
    assert torch.equal(loss, objective.loss(make_batch(), generator()))
    loss.backward()
    silent = {
        name
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    }
    assert silent == set()


# Shortcut forcing divides its losses by their running size, so their sum stays near two however well it learns.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "shortcut_forcing"])
def test_a_few_steps_on_one_batch_lower_the_loss(family):
    objective = make_objective(family)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        loss = objective.loss(make_batch(), generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_a_few_steps_lower_both_losses_of_shortcut_forcing():
    objective = make_objective("shortcut_forcing")
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        objective.loss(make_batch(), generator()).backward()
        optimizer.step()
        losses.append(objective._latest)
        objective.after_step(step / 12)
    assert bool((losses[-1] < 0.97 * losses[0]).all())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "inverse_dynamics"])
def test_actions_are_read_by_the_supervised_reference_alone(family):
    objective, batch = make_objective(family), make_batch()
    with_actions = objective.loss(batch, generator())
    assert torch.equal(with_actions, objective.loss(Batch(batch.frames), generator()))
    assert not objective.trained_on_actions


def test_inverse_dynamics_without_actions_says_so():
    with pytest.raises(LatentGymError, match="needs a batch with actions"):
        make_objective("inverse_dynamics").loss(Batch(make_batch().frames), generator())
    with pytest.raises(LatentGymError, match="at least one dimension"):
        OBJECTIVES["inverse_dynamics"](action_size=0)


@given(ratio=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_masks_hide_exactly_the_asked_share(ratio, seed):
    mask = random_mask(3, ratio, generator(seed))
    assert mask.shape == (3, 1, 8, 8)
    assert mask.sum(dim=(1, 2, 3)).tolist() == [round(ratio * 64)] * 3


def test_masks_of_different_ratios_per_row():
    assert random_mask(3, torch.tensor([0.0, 0.5, 1.0]), generator()).sum(dim=(1, 2, 3)).tolist() == [0, 32, 64]


def test_hidden_pixels_are_grey_and_alone_in_the_error():
    mask = random_mask(2, 0.25, generator())
    frame = torch.randn(2, 3, 64, 64, generator=generator(1))
    hidden = hide(frame, mask)
    inside = to_pixels(mask).bool().expand_as(frame)
    assert bool((hidden[inside] == 0).all()) and torch.equal(hidden[~inside], frame[~inside])
    error = masked_error(hidden, frame, mask)
    torch.testing.assert_close(error, frame[inside].square().mean())
    assert masked_error(torch.where(inside, frame, 9.0), frame, mask) == 0


def test_tube_masking_hides_the_same_places_of_both_frames_and_leaks_nothing():
    objective = make_objective("masked_video")
    batch = make_batch()
    mask = to_pixels(random_mask(len(batch.frames), 0.5, generator()))[:, None]
    tampered = Batch(batch.frames + 5.0 * mask)
    # Only the target differs: with the target's own places hidden, the trunk's input is the same.
    seen = []
    handle = objective.network.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective.loss(batch, generator())
    objective.loss(tampered, generator())
    handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_augmented_views_differ_and_stay_near_the_frame():
    frame = make_batch().frames[:, 1]
    source = generator()
    first, second = augment(frame, source), augment(frame, source)
    assert first.shape == frame.shape and not torch.equal(first, second)
    assert float(first.abs().max()) <= 1.3 + 0.3


def test_vicreg_terms_against_numpy():
    x, y = torch.randn(2, 12, 5, generator=generator(), dtype=torch.float64)
    covariance = np.cov(x.numpy().T)
    off = covariance - np.diag(np.diag(covariance))
    assert covariance_term(x).item() == pytest.approx((off**2).sum() / 5)
    expected = np.maximum(0, 1 - np.sqrt(x.numpy().var(axis=0, ddof=1) + 1e-4)).mean()
    assert variance_term(x).item() == pytest.approx(expected)
    total = (
        25 * np.mean((x - y).numpy() ** 2)
        + 25 * (variance_term(x) + variance_term(y)).item()
        + (covariance_term(x) + covariance_term(y)).item()
    )
    assert vicreg(x, y).item() == pytest.approx(total / 25)


def test_collapsed_embeddings_cost_more_than_spread_ones():
    constant = torch.ones(32, 8)
    spread = torch.randn(32, 8, generator=generator())
    assert vicreg(constant, constant) > 5 * vicreg(spread, spread)


def test_the_target_network_starts_as_a_copy_gets_no_gradient_and_follows_slowly():
    objective = make_objective("masked_video_latent")
    trunk, target = objective.network.trunk, objective.target
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), target.parameters(), strict=True))
    objective.loss(make_batch(), generator()).backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(1.0)
    start = [parameter.clone() for parameter in target.parameters()]
    objective.after_step(0.5)
    for slow, before in zip(target.parameters(), start, strict=True):
        torch.testing.assert_close(slow, before + 0.01)
    moved = [parameter.clone() for parameter in target.parameters()]
    objective.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), moved, strict=True))


def test_the_flow_matching_weight_is_the_velocity_error():
    frame, noise, guess = torch.randn(3, 4, 3, 8, 8, generator=generator(), dtype=torch.float64)
    tau = torch.tensor([0.0, 0.3, 0.6, 1 - MIN_DISTANCE], dtype=torch.float64).view(4, 1, 1, 1)
    noisy = corrupt(frame, noise, tau)
    velocity_error = ((guess - noisy) / (1 - tau) - (frame - noise)).square()
    torch.testing.assert_close(velocity_error, (guess - frame).square() / (1 - tau).square())


def test_diffusion_reads_with_one_fixed_noise():
    network = NoisyStillNetwork()
    clip = torch.randn(1, 2, 3, 64, 64, generator=generator())
    expected = network.trunk(still(0.9 * clip[:, 1] + 0.1 * network.noise))
    assert READ_TAU == 0.9
    torch.testing.assert_close(network(clip), expected)
    assert torch.equal(network.noise, NoisyStillNetwork().noise)


def affine_denoiser(latents, tau, step):
    """A denoiser with a dependence on every argument, simple enough for pencil and paper."""
    return 0.5 * latents + tau[..., None, None] - 2 * step[..., None, None]


def test_shortcut_loss_by_hand_at_the_smallest_step():
    tau, step = torch.tensor([[0.5]]), torch.tensor([[1 / 8]])
    noise, clean = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 1.0)
    # z̃ = 0.5·2 + 0.5·1 = 1.5; ẑ₁ = 0.75 + 0.5 − 0.25 = 1; the error is 0.
    assert shortcut_loss(affine_denoiser, clean, noise, tau, step).item() == pytest.approx(0.0, abs=1e-12)
    # With τ = 0: z̃ = 2, ẑ₁ = 1 + 0 − 0.25 = 0.75, error 0.0625, weight 0.1.
    loss = shortcut_loss(affine_denoiser, clean, noise, torch.zeros(1, 1), step)
    assert loss.item() == pytest.approx(0.1 * 0.0625)


def test_shortcut_loss_by_hand_for_a_bootstrap_row():
    tau, step = torch.tensor([[0.5]]), torch.tensor([[0.5]])
    noise, clean = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 1.0)
    # z̃ = 1.5; ẑ₁ = 0.75 + 0.5 − 1 = 0.25; velocity (0.25 − 1.5)/0.5 = −2.5.
    # d/2 = 0.25: f = 0.75 + 0.5 − 0.5 = 0.75, b′ = (0.75 − 1.5)/0.5 = −1.5, z′ = 1.5 − 1.5·0.25 = 1.125.
    # f(z′, 0.75, 0.25) = 0.5625 + 0.75 − 0.5 = 0.8125, b″ = (0.8125 − 1.125)/0.25 = −1.25.
    # Target (−1.5 − 1.25)/2 = −1.375; error 0.25·(−2.5 + 1.375)² = 0.31640625; weight 0.9·0.5 + 0.1 = 0.55.
    loss = shortcut_loss(affine_denoiser, clean, noise, tau, step)
    assert loss.item() == pytest.approx(0.55 * 0.31640625)


def test_shortcut_loss_mixes_rows_by_their_mean():
    noise, clean = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), 1.0)
    tau, step = torch.tensor([[0.5], [0.0]]), torch.tensor([[0.5], [1 / 8]])
    loss = shortcut_loss(affine_denoiser, clean, noise, tau, step)
    assert loss.item() == pytest.approx((0.55 * 0.31640625 + 0.1 * 0.0625) / 2)


def test_the_bootstrap_target_carries_no_gradient():
    weight = torch.tensor(0.5, requires_grad=True)

    def denoise(latents, tau, step):
        return weight * latents

    tau, step = torch.tensor([[0.5]]), torch.tensor([[0.5]])
    noise, clean = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 1.0)
    shortcut_loss(denoise, clean, noise, tau, step).backward()
    # error = 0.25 (v − t)², v = (1.5 w − 1.5)/0.5, so d error / dw = 0.5 (v − t)·3, with t held fixed.
    first = (0.75 - 1.5) / 0.5
    moved = 1.5 + first * 0.25
    target = (first + (0.5 * moved - moved) / 0.25) / 2
    assert weight.grad.item() == pytest.approx(0.55 * 0.5 * (-1.5 - target) * 3, rel=1e-5)


def test_an_exact_denoiser_has_no_loss_at_any_step_size():
    clean, noise = torch.randn(2, 8, 4, 5, 3, generator=generator())
    step, tau = draw_levels(8, 4, generator())
    size = {"calls": 0}

    def exact(latents, tau, step):
        size["calls"] += 1
        return clean[: len(latents)]

    assert shortcut_loss(exact, clean, noise, tau, step).item() == pytest.approx(0.0, abs=1e-9)
    assert size["calls"] == 3


@given(seed=st.integers(0, 500), rows=st.integers(4, 16))
@settings(max_examples=30, deadline=None)
def test_levels_lie_on_the_grid_of_their_step(seed, rows):
    step, tau = draw_levels(rows, 4, generator(seed))
    bootstrap = math.ceil(rows / 4)
    assert bool((step[bootstrap:] == 1 / K_MAX).all())
    assert set(step[:bootstrap].flatten().tolist()) <= {1.0, 0.5, 0.25}
    assert bool((tau >= 0).all()) and bool((tau + step <= 1).all())
    assert bool(((tau / step) % 1 == 0).all())


def make_dynamics():
    dynamics = Dynamics()
    initialise(dynamics, generator())
    return dynamics


def test_dynamics_is_causal_in_time():
    dynamics = make_dynamics()
    latents = torch.randn(2, 4, 64, LATENT_CHANNELS, generator=generator(1))
    tau, step = torch.full((2, 4), 0.5), torch.full((2, 4), 1 / K_MAX)
    changed = latents.clone()
    changed[:, 2] += 1
    before, after = dynamics(latents, tau, step).detach(), dynamics(changed, tau, step).detach()
    torch.testing.assert_close(before[:, :2], after[:, :2])
    for frame in (2, 3):
        assert float((before[:, frame] - after[:, frame]).abs().max()) > 1e-4


def test_dynamics_hears_signal_level_step_and_null_action():
    dynamics = make_dynamics()
    latents = torch.randn(1, 2, 64, LATENT_CHANNELS, generator=generator(1))
    tau, step = torch.full((1, 2), 0.5), torch.full((1, 2), 0.25)
    base = dynamics(latents, tau, step)
    assert not torch.equal(base, dynamics(latents, tau + 0.25, step))
    assert not torch.equal(base, dynamics(latents, tau, step / 2))
    with torch.no_grad():
        dynamics.null_action += 1
    assert not torch.equal(base, dynamics(latents, tau, step))


def test_every_admissible_level_has_its_own_embedding():
    dynamics = make_dynamics()
    latents = torch.zeros(1, 1, 64, LATENT_CHANNELS)
    steps = [1.0, 0.5, 0.25, 0.125]
    levels = [(0.0, step) for step in steps] + [(i / K_MAX, 1 / K_MAX) for i in range(1, K_MAX)]
    outputs = [dynamics(latents, torch.full((1, 1), tau), torch.full((1, 1), step)) for tau, step in levels]
    assert len({output.sum().item() for output in outputs}) == len(outputs)


def test_rotation_keeps_norms_and_makes_products_depend_on_distance():
    query, key = torch.randn(2, 1, 8, generator=generator())

    def turned(x, row, column):
        return rotate(x, rotary_angles(torch.tensor([[float(row)], [float(column)]]), 8))

    def product(first, second):
        return (turned(query, *first) * turned(key, *second)).sum().item()

    assert turned(query, 5, 2).norm().item() == pytest.approx(query.norm().item(), rel=1e-5)
    assert product((1, 2), (3, 5)) == pytest.approx(product((4, 1), (6, 4)), rel=1e-4)
    assert product((1, 2), (3, 5)) != pytest.approx(product((1, 2), (4, 5)), rel=1e-3)
    assert product((1, 2), (3, 5)) != pytest.approx(product((1, 2), (3, 6)), rel=1e-3)


def test_the_scale_of_the_first_step_is_its_own_loss_and_then_a_running_average():
    objective = make_objective("shortcut_forcing")
    assert isinstance(objective, ShortcutForcing)
    first = objective.loss(make_batch(), generator())
    assert first.item() == pytest.approx(2.0, rel=1e-4)
    objective.after_step(0.0)
    squares = objective._latest.square()
    objective.loss(make_batch(1), generator(1))
    expected = (0.99 * 0.01 * squares + 0.01 * objective._latest.square()) / (1 - 0.99**2)
    torch.testing.assert_close(objective._scale(), expected.sqrt(), rtol=1e-4, atol=1e-7)


def test_the_tokenizer_gets_no_gradient_from_the_dynamics():
    objective = make_objective("shortcut_forcing")
    objective._dynamics_loss(make_batch(), generator()).backward()
    assert objective.network.bottleneck.weight.grad is None
    assert all(parameter.grad is None for parameter in objective.network.trunk.parameters())
    assert objective.network.dynamics.inputs.weight.grad is not None


def test_shortcut_features_are_read_at_the_last_noise_level_from_the_last_frame():
    network = make_objective("shortcut_forcing").network
    clip = make_batch().frames[:, :2]
    clean = network.sequence(clip)
    assert float(clean.detach().abs().max()) < 1
    corrupted = network.noise / 8 + 7 / 8 * clean
    hidden = network.dynamics.hidden(corrupted, torch.full((8, 2), 7 / 8), torch.full((8, 2), 1 / 8))
    torch.testing.assert_close(network(clip), hidden[:, -1].transpose(1, 2).reshape(8, 64, 8, 8))
    assert network.layers == 5 + DEPTH
