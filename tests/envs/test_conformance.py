"""Every adapted environment conforms, and every way of breaking the contract is found and named."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

from latentgym.envs.conformance import check_env
from latentgym.envs.fetch import fetch_ids
from latentgym.envs.generic import make_generic
from latentgym.envs.make import make_env
from latentgym.envs.robosuite import robosuite_tasks

CONFORMING = {
    "latentgym/TabletopReach-v0": {},
    "latentgym/TabletopPush-v0": {},
    "latentgym/TabletopIntercept-v0": {},
    "metaworld/reach-v3": {},
    "metaworld/drawer-open-v3": {},
    "robosuite/Lift-v0": {"horizon": 20},
    "FetchReach-v4": {"horizon": 20},
    "FetchPickAndPlace-v4": {"horizon": 20},
    "Reacher-v5": {},
}
HEAVY = {
    **{f"robosuite/{task}-v0": {"horizon": 12} for task in robosuite_tasks()},
    **{env_id: {"horizon": 20} for env_id in fetch_ids()},
    "PointMaze_UMaze-v3": {"horizon": 20},
    "AntMaze_UMaze-v5": {"horizon": 20},
    "HandReach-v3": {"horizon": 20},
    "AdroitHandDoor-v1": {"horizon": 20},
    "FrankaKitchen-v1": {"horizon": 8},  # a frame takes a second
    "HalfCheetah-v5": {"horizon": 20},
}
# One robot and two: the others differ in their objects alone.
TWO_ROBOSUITE = ("robosuite/Door-v0", "robosuite/TwoArmLift-v0")


@pytest.mark.parametrize("env_id", CONFORMING)
def test_shipped_environments_conform(env_id):
    assert check_env(env_id, **CONFORMING[env_id]) == []


@pytest.mark.slow
@pytest.mark.parametrize("env_id", HEAVY)
def test_all_families_conform(env_id):
    assert check_env(env_id, **HEAVY[env_id]) == []


@pytest.mark.parametrize("env_id", CONFORMING)
def test_gymnasium_accepts_shipped_environments(env_id):
    _pass_gymnasium(env_id, CONFORMING[env_id])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [*(env_id for env_id in HEAVY if "/" not in env_id), *TWO_ROBOSUITE])
def test_gymnasium_accepts_all_families(env_id):
    _pass_gymnasium(env_id, HEAVY[env_id])


def _pass_gymnasium(env_id, options):
    env = make_env(env_id, **options)
    # It closes the environment itself and makes it again from its spec.
    env_checker.check_env(env)


@pytest.mark.slow
@pytest.mark.parametrize("scene", "AD")
def test_calvin_conforms(scene, shared, monkeypatch):
    monkeypatch.setenv("CALVIN_ENV_ROOT", str(shared / "calvin_assets"))
    assert check_env(f"latentgym/Calvin{scene}-v0", horizon=8) == []
    _pass_gymnasium(f"latentgym/Calvin{scene}-v0", {"horizon": 8})


class Broken(gymnasium.Wrapper):
    """Reacher with one rule broken."""

    def __init__(self, fault):
        super().__init__(make_generic("Reacher-v5", image_size=16, horizon=12))
        self.fault = fault
        self.episodes = 0

    @property
    def contract(self):
        contract = self.env.contract
        return None if self.fault == "no contract" else contract

    def _spoil(self, observation, info):
        observation = dict(observation)
        if self.fault == "upside down":
            observation["pixels"] = np.ascontiguousarray(observation["pixels"][::-1])
        if self.fault == "float frames":
            observation["pixels"] = observation["pixels"].astype(np.float32)
        if self.fault == "blank":
            observation["pixels"] = np.zeros_like(observation["pixels"])
        if self.fault == "nan state":
            observation["state"] = np.full_like(observation["state"], np.nan)
        if self.fault == "no proprio":
            observation.pop("proprio")
        if self.fault == "history":
            observation["proprio"] = observation["proprio"] + np.float32(self.episodes)
        if self.fault == "no success":
            info = {}
        if self.fault == "float success":
            info = {"is_success": 1.0}
        return observation, info

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        observation, info = self.env.reset(seed=0 if self.fault == "ignores seed" else seed)
        return self._spoil(observation, info)

    def step(self, action):
        if self.fault == "crash":
            raise ZeroDivisionError("division by zero")
        action = np.zeros_like(action) if self.fault == "ignores seed" else action
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._spoil(observation, info)
        return observation, reward, terminated, truncated and self.fault != "endless", info


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("no contract", "states no EnvContract"),
        ("upside down", "upside down"),
        ("float frames", "'pixels' must be uint8"),
        ("blank", "is it rendered"),
        ("nan state", "'state' holds NaN"),
        ("no proprio", "expected an observation with the keys"),
        ("history", "'proprio' differs at reset"),
        ("no success", "must hold 'is_success'"),
        ("float success", "must be a bool"),
        ("ignores seed", "two different seeds give the same episode"),
        ("endless", "not truncated after the contract's horizon"),
        ("crash", "raised ZeroDivisionError"),
    ],
)
def test_each_fault_is_found(fault, finding):
    env = Broken(fault)
    problems = check_env(env)
    env.close()
    assert any(finding in problem for problem in problems), problems


def test_several_faults_are_reported_at_once():
    env = Broken("no success")
    problems = check_env(env)
    env.close()
    assert len(problems) >= 2
    assert check_env(make_generic("Reacher-v5", image_size=16, horizon=12)) == []
