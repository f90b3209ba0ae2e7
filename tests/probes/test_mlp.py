from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from latentgym.errors import LatentGymError
from latentgym.probes.members import MemberProbe, draw_linear
from latentgym.probes.mlp import MLPProbe
from latentgym.seeding import torch_generator


def problem(rows: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A target that no linear readout can see: the sign of a product."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)) * 30 + 100
    z = (x - 100) / 30
    return x, np.stack([z[:, 0] * z[:, 1], z[:, 2]], axis=1) * 7 - 3, np.repeat(np.arange(rows // 20), 20)


def test_learns_what_is_not_linear() -> None:
    x, y, groups = problem(3000)
    probe = MLPProbe((64, 32), steps=800, members=2).fit(x[:2000], y[:2000], groups[:2000])
    assert probe.score(x[2000:], y[2000:]) > 0.8


def test_members_trained_together_equal_members_trained_alone() -> None:
    x, y, _ = problem()
    validation = (x[500:], y[500:])
    together = MLPProbe((16,), steps=60, members=3).fit(x[:500], y[:500], validation=validation)
    alone = MLPProbe((16,), steps=60, members=1).fit(x[:500], y[:500], validation=validation)
    np.testing.assert_allclose(together.predict_members(x)[0], alone.predict_members(x)[0], rtol=1e-3, atol=1e-3)
    members = together.predict_members(x)
    assert np.abs(members[0] - members[1]).max() > 0.1
    np.testing.assert_allclose(together.predict(x), members.mean(0))


@pytest.mark.parametrize("hidden", [(), (5,), (7, 4)])
def test_gradients_by_hand_are_autograds(hidden: tuple[int, ...]) -> None:
    probe = MLPProbe(hidden, members=3)
    generator = torch.Generator().manual_seed(0)
    weights = probe._initial((6,), 2, torch.device("cpu"))
    weights.flat.copy_(torch.randn(weights.flat.shape, generator=generator))
    x, y = (torch.randn(3, 20, width, generator=generator) for width in (6, 2))
    found, wanted = weights.zeros(), weights.zeros()
    probe._gradients(weights.views(), found.views(), x, y)
    MemberProbe._gradients(probe, weights.views(), wanted.views(), x, y)
    torch.testing.assert_close(found.flat, wanted.flat)


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_every_fit_is_that_of_a_loop_in_plain_torch(rate: float) -> None:
    x, y, _ = problem()
    scale = [(v[:500].mean(0), v[:500].std(0)) for v in (x, y)]
    inputs, targets = (
        torch.from_numpy((v - mean) / deviation).float() for v, (mean, deviation) in zip((x, y), scale, strict=True)
    )
    found = MLPProbe((16, 8), steps=30, members=2, learning_rate=[1e-4, rate], batch_size=32, evaluate_every=10)
    found.fit(x[:500], y[:500], validation=(x[500:], y[500:]))
    for seed in range(2):
        generator, layers = torch_generator(0, "mlp-weights", seed), []
        for sizes in itertools.pairwise((6, 16, 8, 2)):
            layer, drawn = nn.Linear(*sizes), draw_linear("layer", *sizes, generator)
            layer.load_state_dict({"weight": drawn["layer.weight"].T, "bias": drawn["layer.bias"][0]})
            layers += [layer, nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        optimizer, batches = torch.optim.Adam(model.parameters(), lr=rate), torch_generator(0, "mlp-batches", seed)
        best = nn.functional.mse_loss(model(inputs[500:]), targets[500:]).item()
        for step in range(1, 31):
            rows = torch.randint(500, (32,), generator=batches)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            if step % 10 == 0:
                best = min(best, nn.functional.mse_loss(model(inputs[500:]), targets[500:]).item())
        assert found.validation_losses_[1, seed] == pytest.approx(best, rel=1e-4)


def test_the_best_validation_step_is_kept() -> None:
    """On pure noise, training only makes the held-out error worse, so an early step must win."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 50)), rng.normal(size=(200, 2))
    probe = MLPProbe((64,), steps=400, members=2, learning_rate=1e-2, evaluate_every=10)
    probe.fit(x[:100], y[:100], validation=(x[100:], y[100:]))
    assert (probe.best_step_ < 100).all()
    scaled = (probe.predict_members(x[100:]) - y[100:]) / y[:100].std(0)
    np.testing.assert_allclose(np.square(scaled).mean((1, 2)), probe.validation_loss_, rtol=1e-4)


def test_same_seed_same_bits_and_another_seed_other_bits() -> None:
    x, y, groups = problem()
    first, second, other = (
        MLPProbe((8,), steps=20, members=2, seed=seed).fit(x, y, groups).predict(x) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_constant_columns_do_no_harm() -> None:
    x, y, groups = problem()
    x[:, 5], y[:, 1] = 3.0, -2.0
    prediction = MLPProbe((8,), steps=20).fit(x, y, groups).predict(x)
    assert np.isfinite(prediction).all()
    assert np.abs(prediction[:, 1] + 2).max() < 1.5


def test_bad_input_is_named() -> None:
    x, y, groups = problem()
    with pytest.raises(LatentGymError, match="at least 1 feature, found 0"):
        MLPProbe(steps=1).fit(x[:, :0], y, groups)
    with pytest.raises(LatentGymError, match="at least 2 groups"):
        MLPProbe(steps=1).fit(x, y, np.zeros(len(x)))
    with pytest.raises(LatentGymError, match="600 and 3 rows"):
        MLPProbe(steps=1).fit(x, y[:3], groups)
    with pytest.raises(LatentGymError, match="do not match"):
        MLPProbe(steps=1).fit(x, y, validation=(x[:, :2], y))
    with pytest.raises(LatentGymError, match="NaN or infinite"):
        MLPProbe(steps=1).fit(np.where(x > 150, np.inf, x), y, groups)
    with pytest.raises(LatentGymError, match="at least 1"):
        MLPProbe(steps=0)
    with pytest.raises(LatentGymError, match="not fitted"):
        MLPProbe().predict(x)
    with pytest.raises(LatentGymError, match="expected 6 features, found 2"):
        MLPProbe((8,), steps=1).fit(x, y, groups).predict(x[:, :2])
