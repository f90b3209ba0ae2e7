"""One door to every environment, and a clear message where there is none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from latentgym.envs.behaviours import make_behaviour
from latentgym.envs.contract import contract_of
from latentgym.envs.make import TABLETOP_IDS, _legal_id, make_env, make_expert
from latentgym.errors import LatentGymError, UnknownNameError


@pytest.mark.parametrize("env_id", [*TABLETOP_IDS, "metaworld/reach-v3", "robosuite/Lift-v0", "Reacher-v5"])
def test_every_suite_is_dispatched(env_id: str) -> None:
    if env_id.startswith(("metaworld", "robosuite")):
        pytest.importorskip(env_id.partition("/")[0])
    env = make_env(env_id, pixels=False)
    assert contract_of(env).env_id == env_id
    observation, info = env.reset(seed=0)
    assert {"proprio", "state"} <= set(observation)
    assert isinstance(info["is_success"], bool)
    env.close()


def test_tabletop_is_registered_with_gymnasium() -> None:
    env = gymnasium.make("latentgym/TabletopPush-v0", pixels=False)
    assert contract_of(env).suite == "tabletop"
    assert env.spec is not None and env.spec.id == "latentgym/TabletopPush-v0"


@pytest.mark.parametrize(
    "env_id", ["latentgym/TabletopReech-v0", "latentgym/Nothing", "NoSuchEnv-v0", "", "metaworld/x"]
)
def test_unknown_ids(env_id: str) -> None:
    with pytest.raises(LatentGymError):
        make_env(env_id)


def test_unknown_options_and_near_misses() -> None:
    with pytest.raises(UnknownNameError, match="TabletopReach-v0"):
        make_env("latentgym/TabletopReech-v0")
    with pytest.raises(UnknownNameError, match="distractor"):
        make_env("latentgym/TabletopReach-v0", distracter="static")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixels": "no"}, "pixels must be true or false"),
        ({"goal": 1}, "goal must be true or false"),
        ({"corruption": 5}, "corruption must be a name"),
    ],
)
def test_options_of_the_wrong_type_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LatentGymError, match=words):
        make_env("latentgym/TabletopReach-v0", **options)


def test_cameras_are_names() -> None:
    pytest.importorskip("metaworld")
    for wrong in (5, [3]):
        with pytest.raises(LatentGymError, match="cameras must be a list of names"):
            make_env("metaworld/reach-v3", cameras=wrong)
    env = make_env("metaworld/reach-v3", cameras="gripperPOV")
    assert contract_of(env).cameras == ("pixels", "pixels_gripperPOV")
    env.close()


@pytest.mark.parametrize("env_id", ["libero/libero_goal_swap/turn_on_the_stove", "my.module:mine/Toy-v0"])
def test_ids_that_gymnasium_would_refuse_get_a_legal_one_in_the_spec(env_id: str) -> None:
    spec = gymnasium.envs.registration.EnvSpec(_legal_id(env_id), entry_point="somewhere:else")
    assert spec.id != env_id and _legal_id("my_module:mine/Toy-v0") == "my_module:mine/Toy-v0"


def test_ids_of_dotted_modules_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "envs.py").write_text(
        "import gymnasium\ngymnasium.register('pack/Toy-v0', 'gymnasium.envs.classic_control:PendulumEnv', "
        "max_episode_steps=3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make_env("pack.envs:pack/Toy-v0", pixels=False)
    assert contract_of(env).env_id == "pack.envs:pack/Toy-v0"
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert contract_of(again).env_id == "pack.envs:pack/Toy-v0"
    gymnasium.registry.pop("pack/Toy-v0")


def test_no_expert_is_said() -> None:
    env = make_env("Reacher-v5", pixels=False)
    with pytest.raises(LatentGymError, match="no expert"):
        make_expert(env)
    with pytest.raises(LatentGymError, match="no expert"):
        make_behaviour("noisy-expert", env)
    env.reset(seed=0)
    behaviour = make_behaviour("random", env)
    behaviour.reset(env, np.random.default_rng(0))
    decision = behaviour.act(env, {})
    assert decision.random and decision.expert_action is None
    assert env.action_space.contains(decision.action)


def test_noisy_expert_is_smooth_around_the_expert() -> None:
    env = make_env("latentgym/TabletopReach-v0", pixels=False)
    behaviour = make_behaviour("noisy-expert", env)
    observation: dict[str, Any]
    noise = []
    for seed in range(40):
        observation, _ = env.reset(seed=seed)
        behaviour.reset(env, np.random.default_rng(seed))
        for _ in range(30):
            decision = behaviour.act(env, observation)
            assert decision.expert_action is not None and not decision.random
            noise.append(decision.action - decision.expert_action)
            observation, *_ = env.step(decision.action)
    series = np.array(noise).reshape(40, 30, 3)[:, 10:]
    assert 0.2 < series.std() < 0.35
    assert np.corrcoef(series[:, 1:].ravel(), series[:, :-1].ravel())[0, 1] > 0.6


def test_random_episodes_are_smooth_or_independent() -> None:
    env = make_env("latentgym/TabletopReach-v0", pixels=False)
    observation, _ = env.reset(seed=0)
    behaviour = make_behaviour("random", env)
    correlations = []
    for seed in range(60):
        behaviour.reset(env, np.random.default_rng(seed))
        actions = np.array([behaviour.act(env, observation).action for _ in range(200)])
        correlations.append(np.corrcoef(actions[1:, 0], actions[:-1, 0])[0, 1])
    independent = np.array(correlations) < 0.3
    assert 0.1 < independent.mean() < 0.5
