"""The doctor's findings about this machine, and about machines where something is missing."""

from __future__ import annotations

import json
import os

from latentgym.envs.doctor import EXTRAS, diagnose, probe_backend


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
    monkeypatch.setitem(EXTRAS, "hf", ("transformers", "no_such_module"))
    monkeypatch.setattr("latentgym.envs.doctor._BACKENDS", ("glfw",))
    monkeypatch.delenv("DISPLAY", raising=False)
    report = diagnose()
    assert report["extras"]["hf"]["missing"] == ["no_such_module"]
    assert "latentgym[hf]" in report["extras"]["hf"]["mend"]
    assert report["chosen_gl"] is None
    assert "no GL backend renders" in report["warnings"][0]
