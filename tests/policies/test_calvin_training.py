"""Policies trained on CALVIN's published data fit its environments, and say where those look different."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest

from latentgym.envs import make_env
from latentgym.envs.contract import EnvContract, contract_of
from latentgym.policies.checkpoint import Training
from latentgym.trajectories import open_dataset
from latentgym.trajectories.formats.calvin_conversion import convert


def contract(shared: Path, **options: Any) -> EnvContract:
    env = make_env("latentgym/CalvinD-v0", assets=shared / "calvin_assets", **options)
    env.close()
    return contract_of(env)


@pytest.mark.parametrize(("space", "mode"), [("rel_actions", "relative"), ("actions", "absolute")])
def test_both_action_spaces_of_the_data_fit_the_environment(shared: Path, space: str, mode: str) -> None:
    training = Training.of(open_dataset(shared / "calvin_debug" / "validation", actions=space))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.check(contract(shared, pixels=False, action_mode=mode), "mine")


def test_another_renderer_than_the_data_s_is_said(shared: Path) -> None:
    training = Training.of(open_dataset(shared / "calvin_debug" / "validation"))
    tiny = contract(shared, renderer="tiny")
    with pytest.warns(UserWarning, match=r"frames of renderer 'egl' and is evaluated under 'tiny'"):
        training.check(tiny, "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.check(dataclasses.replace(tiny, settings={**tiny.settings, "renderer": "egl"}), "mine")
        told = Training.of(open_dataset(shared / "calvin_debug" / "validation", renderer="tiny"))
        told.check(tiny, "mine")
    assert training.env_options() == {"renderer": "auto"} and told.env_options() == {"renderer": "tiny"}


def test_the_renderer_survives_conversion(shared: Path, tmp_path: Path) -> None:
    convert(shared / "calvin_debug" / "validation", tmp_path / "native")
    assert open_dataset(tmp_path / "native").settings["renderer"] == "egl"
