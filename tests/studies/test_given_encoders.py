"""Encoders that a study loads: each comes with its architecture at random weights."""

from __future__ import annotations

from pathlib import Path

from latentgym.encoders import load_encoder
from latentgym.encoders.small import random_small, save_small_encoder
from latentgym.studies.config import load_config, parse_config
from latentgym.studies.plan import plan_study
from latentgym.studies.study import _preflight


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
