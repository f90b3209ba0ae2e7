from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from latentgym.errors import LatentGymError
from latentgym.probes import AttentiveProbe, MLPProbe, RidgeProbe, TransformerProbe
from latentgym.probes.members import MemberProbe

SMALL: dict[str, Any] = {"steps": 200, "members": 2, "evaluate_every": 20, "learning_rate": 2e-3, "batch_size": 32}


def problem(rows: int = 500, tokens: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One token is marked; the target is its second channel, which no mean over tokens shows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, tokens, 4))
    marked = rng.integers(tokens, size=rows)
    x[:, :, 0] = -1.0
    x[np.arange(rows), marked, 0] = 3.0
    y = np.stack([x[np.arange(rows), marked, 1], -x[np.arange(rows), marked, 2]], axis=1)
    return x * 5 + 40, y, np.repeat(np.arange(rows // 10), 10)


@pytest.mark.parametrize(
    "probe",
    [AttentiveProbe(2, 16, 2, **SMALL), TransformerProbe(2, 2, 16, 2, **SMALL)],
    ids=["attentive", "transformer"],
)
def test_finds_the_token_that_matters(probe: MemberProbe) -> None:
    x, y, groups = problem()
    probe.fit(x[:400], y[:400], groups[:400])
    assert probe.score(x[400:], y[400:]) > 0.5
    mean = RidgeProbe().fit(x[:400].mean(1), y[:400], groups[:400])
    assert probe.score(x[400:], y[400:]) > mean.score(x[400:].mean(1), y[400:]) + 0.2


def test_members_trained_together_equal_members_trained_alone() -> None:
    x, y, _ = problem(120)
    held, few = (x[100:], y[100:]), {**SMALL, "steps": 12}
    for kind in (AttentiveProbe, TransformerProbe):
        together = kind(depth=2, width=8, **{**few, "members": 3}).fit(x[:100], y[:100], validation=held)
        alone = kind(depth=2, width=8, **{**few, "members": 1}).fit(x[:100], y[:100], validation=held)
        np.testing.assert_allclose(together.predict_members(x)[0], alone.predict_members(x)[0], rtol=1e-3, atol=1e-3)
        assert np.abs(together.predict_members(x)[0] - together.predict_members(x)[1]).max() > 1e-3


def test_a_block_equals_torchs_own() -> None:
    probe = TransformerProbe(depth=1, width=8, heads=2)
    parameters = {name: value[None] for name, value in probe._block("0", 8, torch.Generator().manual_seed(0)).items()}
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    wanted = {
        "self_attn.in_proj": "qkv", "self_attn.out_proj": "project", "linear1": "expand", "linear2": "contract",
    }  # fmt: skip
    state = {}
    for theirs, ours in wanted.items():
        joint = "_" if theirs.endswith("in_proj") else "."
        state[f"{theirs}{joint}weight"] = parameters[f"0.{ours}.weight"][0].T
        state[f"{theirs}{joint}bias"] = parameters[f"0.{ours}.bias"][0, 0] + 0.1
        parameters[f"0.{ours}.bias"] += 0.1
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            state[f"{norm}.{part}"] = parameters[f"0.{norm}.{part}"][0]
    layer.load_state_dict(state)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(probe._self_attention(parameters, "0", x[None])[0], layer.eval()(x))


def test_hyper_parameters_share_seeds_and_the_best_on_validation_is_kept() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), rng.normal(size=(200, 2))
    y[:, 0] += 2 * x[:, 0]
    held, settings = (x[150:], y[150:]), {"steps": 40, "members": 2, "evaluate_every": 10}
    rates = [1e-6, 1e-2]
    swept = MLPProbe((8,), learning_rate=rates, weight_decay=[0.0, 0.1], **settings).fit(x, y, validation=held)
    assert swept.validation_losses_.shape == (4, 2) and swept.learning_rate_ == 1e-2
    for index, (rate, decay) in enumerate((rate, decay) for rate in rates for decay in (0.0, 0.1)):
        alone = MLPProbe((8,), learning_rate=rate, weight_decay=decay, **settings).fit(x, y, validation=held)
        np.testing.assert_allclose(alone.validation_loss_, swept.validation_losses_[index], rtol=1e-4)
    assert swept.validation_loss_.mean() == swept.validation_losses_.mean(1).min()
    assert swept.predict_members(x).shape == (2, 200, 2)


@pytest.mark.parametrize(
    "probe",
    [RidgeProbe([1.0, 2.0]), MLPProbe((4,), steps=3), AttentiveProbe(2, steps=3), TransformerProbe(2, steps=3)],
    ids=["ridge", "mlp", "attentive", "transformer"],
)
def test_one_interface(probe: Any) -> None:
    assert probe.get_params() == clone(probe).get_params()
    assert type(probe)(**probe.get_params()).get_params() == probe.get_params()


def test_constant_channels_do_no_harm_and_bits_repeat() -> None:
    x, y, groups = problem(100)
    x[:, :, 3], y[:, 1] = 7.0, 2.0
    runs = [AttentiveProbe(2, **{**SMALL, "steps": 5}).fit(x, y, groups).predict(x) for _ in range(2)]
    assert np.isfinite(runs[0]).all() and np.array_equal(*runs)


def test_bad_input_is_named() -> None:
    x, y, groups = problem(100)
    probe = AttentiveProbe(1, **{**SMALL, "steps": 1})
    with pytest.raises(LatentGymError, match="tokens, channels"):
        probe.fit(x[:, 0], y, groups)
    with pytest.raises(LatentGymError, match="row 0, token 0"):
        probe.fit(np.full_like(x, np.nan), y, groups)
    with pytest.raises(LatentGymError, match="float16"):
        probe.fit(np.where(x > 40, np.inf, x).astype(np.float16), y, groups)
    with pytest.raises(LatentGymError, match="not fitted"):
        probe.predict(x)
    with pytest.raises(LatentGymError, match="expected 6 × 4 features, found 5 × 4"):
        probe.fit(x, y, groups).predict(x[:, :5])
    with pytest.raises(LatentGymError, match="do not divide 2 targets"):
        TransformerProbe(3, 1, 8, steps=1).fit(x, y, groups)
    with pytest.raises(LatentGymError, match="at least 1"):
        TransformerProbe(0)
    with pytest.raises(LatentGymError, match="at least 2 groups"):
        probe.fit(x, y, np.zeros(100))
    with pytest.raises(LatentGymError, match="100 and 99 rows"):
        probe.fit(x, y, groups[:-1])
    with pytest.raises(LatentGymError, match="must be positive"):
        MLPProbe(learning_rate=[])
