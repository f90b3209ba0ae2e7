"""Study configurations: shipped ones load, wrong ones are refused with one message that names the mistake."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.studies.config import StudyConfig, load_config, parse_config, shipped_studies

REACH = "latentgym/TabletopReach-v0"


def quickstart() -> dict[str, Any]:
    """The shipped quickstart as plain data, to be spoilt."""
    return tomllib.loads((resources.files("latentgym.studies") / "presets" / "quickstart.toml").read_text())


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_load(name: str) -> None:
    config = load_config(name)
    assert config.name == name


def test_quickstart_has_the_promised_size() -> None:
    config = load_config("quickstart")
    suite = config.suites[0]
    assert len(suite.envs) >= 3
    assert len({*config.objectives, *config.floors} - {"pixels"}) >= 8
    assert suite.rollouts >= 50


def test_unknown_study_suggests() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'quickstart'"):
        load_config("quickstrat")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="no such study file"):
        load_config(tmp_path / "mine.toml")


def test_invalid_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = [")
    with pytest.raises(LatentGymError, match="not valid TOML"):
        load_config(path)


def test_unknown_key_suggests() -> None:
    data = quickstart()
    data["suites"][0]["rolouts"] = 3
    with pytest.raises(LatentGymError, match=r"suites\.0\.rolouts: unknown key 'rolouts'; did you mean 'rollouts'"):
        parse_config(data, "mine.toml")


def test_every_bad_value_is_listed() -> None:
    data = quickstart()
    data["suites"][0]["rollouts"] = "many"
    data["probe"]["mlp_steps"] = 0
    with pytest.raises(LatentGymError) as caught:
        parse_config(data, "mine.toml")
    assert "suites.0.rollouts" in str(caught.value)
    assert "probe.mlp_steps" in str(caught.value)


@pytest.mark.parametrize("name", [n for n, f in StudyConfig.model_fields.items() if isinstance(f.default, BaseModel)])
def test_every_section_suggests_its_own_keys(name: str) -> None:
    with pytest.raises(LatentGymError, match=rf"{name}\.sttps: unknown key 'sttps'"):
        parse_config({**load_config("smoke").model_dump(mode="json"), name: {"sttps": 1}}, "mine.toml")


def test_unknown_objective_suggests() -> None:
    data = quickstart()
    data["objectives"] = ["pixel_autoencodr"]
    with pytest.raises(UnknownNameError, match="did you mean 'pixel_autoencoder'"):
        parse_config(data, "mine.toml")


def test_checkpoint_beyond_the_end() -> None:
    data = quickstart()
    data["suites"][0]["checkpoints"] = [10**9]
    with pytest.raises(LatentGymError, match="strictly between 0 and pretraining_steps"):
        parse_config(data, "mine.toml")


def test_environment_in_two_suites() -> None:
    data = quickstart()
    data["suites"].append(dict(data["suites"][0], name="again"))
    with pytest.raises(LatentGymError, match="one suite only"):
        parse_config(data, "mine.toml")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("weights",), {"my": {"source": "b", "siez": 3}}, r"weights\.my\.siez: unknown key 'siez'; known: image_size"),
        (("weights",), {"state": "somewhere"}, "found twice: state; rename those of weights"),
        (("weights",), {"previous_action": "somewhere"}, "found twice: previous_action"),
        (("weights",), {"vit": "a", "vit-random": "b"}, "found twice: vit-random"),
        (("robustness",), {"conditions": ["snow:1", "snow:1"]}, "found twice: snow:1"),
        (("robustness",), {"conditions": ["snow", "snow:3"]}, "found twice: snow:3"),
        (("suites", 0, "env_options"), {"image_size": 32}, "image_size is no option of an environment"),
        (("suites", 0, "policies"), {REACH: ["a/final", "b/final"]}, "needs a name of its own, found twice: final"),
        (("suites", 0, "policies"), {REACH: ["a/expert"]}, "found twice: expert"),
        (("suites", 0, "policy"), "exprt", "unknown behaviour policy 'exprt'; did you mean"),
        (("suites", 0, "pretraining_seeds"), [], r"suites\.0\.pretraining_seeds: .*at least 1"),
        (("suites", 0, "pretraining_seeds"), [0, 0], "may be listed once"),
        (("suites", 0, "policy_seeds"), [], r"suites\.0\.policy_seeds: .*at least 1"),
        (("objectives",), ["diffusion", "diffusion"], "found twice: diffusion"),
        (("probe", "horizons"), [], r"probe\.horizons: .*at least 1"),
        (("probe", "horizons"), [0], r"probe\.horizons\.0: .*greater than or equal to 1"),
        (("probe", "horizons"), [1, 1], "may be listed once"),
        (("probe", "mlp_horizons"), [7], r"must be among horizons \(1, 4\), found \[7\]"),
        (("policy", "head_options"), {"layer": 2}, "unknown option of head 'mlp' 'layer'"),
    ],
)
def test_a_bad_value_is_refused_before_any_work(place: tuple[Any, ...], value: Any, message: str) -> None:
    data = quickstart()
    section: Any = data
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    with pytest.raises(LatentGymError, match=message):
        parse_config(data, "mine.toml")


def test_suites_of_one_name() -> None:
    data = quickstart()
    data["suites"].append({"name": "tabletop", "envs": ["metaworld/reach-v3"]})
    with pytest.raises(LatentGymError, match="each suite needs a name of its own, found twice: tabletop"):
        parse_config(data, "mine.toml")


def test_horizons_without_the_default_of_the_mlp() -> None:
    data = quickstart()
    data["probe"] = {"horizons": [2]}
    assert parse_config(data, "mine.toml").probe.horizons == (2,)


def test_a_corruption_without_a_severity_is_the_same_offline_and_in_closed_loop() -> None:
    chosen = ["snow", "blur_11"]
    config = parse_config(
        {**quickstart(), "robustness": {"conditions": chosen}, "rollout": {"corruptions": chosen}}, "x"
    )
    assert config.robustness.conditions == ("snow:3", "blur_11")
    assert config.rollout.corruptions == ("snow:3", "blur_11:1")


def test_a_file_in_another_encoding_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b'name = "\xff"\n')
    with pytest.raises(LatentGymError, match="cannot be read as UTF-8"):
        load_config(tmp_path / "bad.toml")


def test_a_mistake_inside_a_suite_is_the_only_problem_named() -> None:
    with pytest.raises(LatentGymError) as raised:
        parse_config({**quickstart(), "suites": [{"name": "a", "envs": [REACH], "rollouts": -1}]}, "x")
    assert "rollouts" in str(raised.value) and "at least 1 item" not in str(raised.value)
