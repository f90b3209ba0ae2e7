"""Encoders that a study loads: each comes with its architecture at random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentgym.artifacts import read_json
from latentgym.encoders import load_encoder
from latentgym.encoders.small import random_small, save_small_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.studies.config import LoadedEncoder, load_config, parse_config
from latentgym.studies.plan import plan_study
from latentgym.studies.study import _preflight, run_study


def test_a_loaded_encoder_brings_its_random_weight_twin(tmp_path: Path) -> None:
    save_small_encoder(random_small(3), tmp_path / "mine")
    given = load_config("smoke").model_dump(exclude_unset=True)
    given["weights"] = {"mine": {"source": str(tmp_path / "mine"), "layer": 1}, "raw": "pixels"}
    config, digests = _preflight(parse_config(given, "smoke"))
    assert set(digests) == {"mine", "mine-random", "raw"}, "raw pixels have no weights"
    assert len(set(digests.values())) == 3
    (plan,) = plan_study(config, digests)
    uses = {use.name: use for use in plan.uses}
    mine, twin = uses["mine"], uses["mine-random"]
    assert (twin.layer, twin.image_size) == (mine.layer, mine.image_size) == (1, 64)
    opened = load_encoder(twin.source or "", image_size=twin.image_size, layer=twin.layer)
    assert opened.spec.family == "random"
    assert opened.spec.weights_digest != load_encoder(mine.source or "").spec.weights_digest


@pytest.mark.slow
def test_policies_on_a_loaded_encoder_and_its_twin_are_rolled_out(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ensure_torchvision()
    config = transformers.Dinov2Config(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "weights" / "mine")
    smoke = load_config("smoke")
    changes = {
        "objectives": ("pixel_autoencoder",),
        "floors": ("random",),
        "references": ("state",),
        "suites": (smoke.suites[0].model_copy(update={"checkpoints": ()}),),
        "weights": {"mine": LoadedEncoder(source=str(tmp_path / "weights" / "mine"), image_size=64)},
    }
    run_study(smoke.model_copy(update=changes), tmp_path / "study", workers=1)
    rows = read_json(tmp_path / "study" / "results.json")["rows"]
    assert {"mine", "mine-random"} <= {row["encoder"] for row in rows if row["metric"] == "success_rate"}
    assert {"mine", "mine-random"} <= {row["encoder"] for row in rows if row["metric"] == "action_r2"}
