"""The doctor's findings about this machine, and about machines where something is missing."""

from __future__ import annotations

import json
import os

from latentgym.envs.doctor import describe, diagnose, probe_backend
from latentgym.envs.extras import EXTRAS, Extra, examine


def test_diagnosis_is_json_and_finds_a_working_backend():
    report = diagnose()
    assert json.loads(json.dumps(report)) == report
    assert report["chosen_gl"] == os.environ["MUJOCO_GL"]
    chosen = report["gl"][report["chosen_gl"]]
    assert chosen["ok"] and chosen["frames_per_s"] > 10 and chosen["renderer"]
    assert any("software" in warning for warning in report["warnings"]) == chosen["software"]
    assert set(report["extras"]) == set(EXTRAS)
    for name, extra in report["extras"].items():
        assert extra["ok"] == (not extra["mend"]), name


def test_unusable_backend_says_why_and_what_to_do(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    finding = probe_backend("glfw")
    assert not finding["ok"]
    assert finding["error"] and "display" in finding["mend"]


def test_machine_without_gl_and_with_a_missing_extra(monkeypatch):
    modules = {"transformers": "transformers", "no_such_module": "no-such-module"}
    monkeypatch.setitem(EXTRAS, "hf", Extra("encoders", modules))
    monkeypatch.setattr("latentgym.envs.doctor._BACKENDS", ("glfw",))
    monkeypatch.delenv("DISPLAY", raising=False)
    report = diagnose()
    assert report["extras"]["hf"]["missing"] == ["no_such_module"]
    assert "latentgym[hf]" in report["extras"]["hf"]["mend"]
    assert report["chosen_gl"] is None
    assert "no GL backend renders" in report["warnings"][0]
    assert any("without a GL backend" in sentence for sentence in report["extras"]["metaworld"]["cannot"])


def test_text_names_strings_speed_extras_and_what_they_cannot_do(monkeypatch):
    monkeypatch.setattr("latentgym.envs.doctor._BACKENDS", ("glfw",))
    monkeypatch.setitem(EXTRAS, "rl", Extra("learning", {"no_such_module": "none"}))
    monkeypatch.setitem(
        EXTRAS, "hdf5", Extra("reading", {"json": "numpy"}, limits=lambda: ["reads nothing: try again"])
    )
    report = diagnose()
    report["gl"]["egl"] = {
        "ok": True, "software": True, "frames_per_s": 7, "vendor": "Mesa", "renderer": "llvmpipe", "version": "4.5",
    }  # fmt: skip
    text = describe(report)
    for part in ("7 frames/s", "software rendering", "vendor: Mesa", "version: 4.5", "glfw: does not work"):
        assert part in text, part
    assert "rl: missing; pip install 'latentgym[rl]'" in text and "for learning" in text
    assert "cannot: reads nothing: try again" in text


def test_versions_that_do_not_work_together_are_named(monkeypatch):
    known = {"mujoco": "3.10.1", "robosuite": "1.4.0", "numpy": "2.1.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: known.get(name, "1.0"))
    found = examine("robosuite", gl=True)["cannot"]
    assert [any(part in sentence for sentence in found) for part in ("mujoco>=3.3,<3.10", "1.5.2", "numpy<2")] == [
        True
    ] * 3
    monkeypatch.setitem(known, "mujoco", "3.3.0")
    monkeypatch.setitem(known, "robosuite", "1.5.2")
    limits = EXTRAS["libero"].limits()
    assert len(limits) == 1 and "virtual environment of its own" in limits[0]


def test_libero_is_never_installed_beside_robosuite(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = examine("libero", gl=True)
    assert not found["ok"] and "environment of its own" in found["mend"] and "libero/bin/pip" in found["mend"]
    assert examine("timm", gl=True)["mend"] == "pip install 'latentgym[timm]'"


def test_missing_assets_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CALVIN_ENV_ROOT", str(tmp_path / "none"))
    assert "latentgym assets calvin" in examine("calvin", gl=True)["cannot"][0]
