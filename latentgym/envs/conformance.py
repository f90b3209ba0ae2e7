"""Does an environment fit the suite? One call lists everything that does not, in the environment author's terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.envs.contract import EnvContract, contract_of
from latentgym.errors import LatentGymError

_TWIN_STEPS = 8
_LONGEST_HORIZON = 500
_FRAME_DIMENSIONS = 3
_CHANNELS = 3
_SEED, _OTHER_SEED = 20, 21

Env = gymnasium.Env[Any, Any]
Transition = tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]


def check_env(env_or_id: Env | str, **options: Any) -> list[str]:
    """Check an environment against the contract.

    Checked are: a stated contract that agrees with the spaces; observations inside the observation space; upright
    uint8 frames that are not blank; a boolean ``is_success`` in every info; bitwise equal episodes for equal seeds, in
    a fresh and in a used environment, and different ones for different seeds; truncation at the horizon (where that is
    at most 500 steps). Frames count as upside down when they are the mirror image of what ``render()`` returns.

    Args:
        env_or_id: an environment, which is reset and stepped but not closed; or an id for ``make_env``, which allows
            the twin to be a fresh environment.
        **options: with an id: options of ``make_env``.

    Returns:
        The problems found, one sentence each; empty if the environment conforms.
    """
    if isinstance(env_or_id, str):
        from latentgym.envs.make import make_env  # make imports the adapters, which an outside environment never needs

        env: Env = make_env(env_or_id, **options)
        twin: Env = make_env(env_or_id, **options)
        try:
            return _problems(env, twin)
        finally:
            env.close()
            twin.close()
    return _problems(env_or_id, env_or_id)


def _problems(env: Env, twin: Env) -> list[str]:
    try:
        contract = contract_of(env)
    except LatentGymError as error:
        return [str(error)]
    problems = [*_space_problems(env, contract)]
    if problems:
        return problems  # the rest would fail for the same reason
    try:
        problems += _episode_problems(env, contract)
        problems += _seeding_problems(env, twin)
    except Exception as error:  # an environment under test may raise anything, and that is a finding
        problems.append(f"reset or step raised {type(error).__name__}: {error}")
    return problems


def _space_problems(env: Env, contract: EnvContract) -> Iterator[str]:
    action, spec = env.action_space, contract.action_spec
    if not isinstance(action, spaces.Box) or action.shape != (spec.size,):
        yield f"action space: expected a Box of shape ({spec.size},) as the action spec says, found {action}"
    elif not np.allclose(action.low, spec.low) or not np.allclose(action.high, spec.high):
        yield (
            f"action space: bounds {action.low} to {action.high} disagree with the action spec's "
            f"{spec.low} to {spec.high}"
        )
    space = env.observation_space
    if not isinstance(space, spaces.Dict):
        yield f"observation space: expected a Dict with cameras, 'proprio' and 'state', found {space}"
        return
    for camera in contract.cameras:
        frame = space.get(camera)
        if (
            not isinstance(frame, spaces.Box)
            or len(frame.shape) != _FRAME_DIMENSIONS
            or frame.shape[2] != _CHANNELS
            or frame.dtype != np.uint8
        ):
            yield f"observation space: camera {camera!r} must be a uint8 Box of shape (H, W, 3), found {frame}"
    proprio = space.get("proprio")
    for name, vector in (("proprio", proprio), ("state", space.get("state", proprio))):
        if not isinstance(vector, spaces.Box) or len(vector.shape) != 1 or vector.dtype != np.float32:
            yield f"observation space: {name!r} must be a one-dimensional float32 Box, found {vector}"
    if contract.horizon < 1 or contract.control_hz <= 0:
        yield f"contract: horizon and control_hz must be positive, found {contract.horizon} and {contract.control_hz}"


def _episode_problems(env: Env, contract: EnvContract) -> Iterator[str]:
    observation, info = env.reset(seed=_OTHER_SEED)
    yield from _observation_problems(env, observation, "reset")
    yield from _success_problems(info, "reset")
    yield from _frame_problems(env, contract, observation)
    env.action_space.seed(_SEED)
    steps = 0
    for steps in range(1, min(contract.horizon, _LONGEST_HORIZON) + 1):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        problems = [
            *_observation_problems(env, observation, f"step {steps}"),
            *_success_problems(info, f"step {steps}"),
        ]
        if not np.isfinite(float(reward)):
            problems.append(f"step {steps}: reward is {reward}")
        yield from problems
        if problems or terminated:
            return
        if truncated and steps < contract.horizon:
            yield f"truncated after {steps} steps, before the contract's horizon of {contract.horizon}"
            return
    if steps == contract.horizon and not truncated:
        yield f"not truncated after the contract's horizon of {contract.horizon} steps"


def _observation_problems(env: Env, observation: Any, moment: str) -> Iterator[str]:
    space = env.observation_space
    assert isinstance(space, spaces.Dict)
    if not isinstance(observation, dict) or set(observation) != set(space):
        found = sorted(observation) if isinstance(observation, dict) else type(observation).__name__
        yield f"{moment}: expected an observation with the keys {sorted(space)}, found {found}"
        return
    for name, subspace in space.items():
        value = observation[name]
        if isinstance(subspace, spaces.Text):
            if not subspace.contains(value):
                yield f"{moment}: {name!r} must be a text of {subspace}, found {value!r}"
        elif not isinstance(value, np.ndarray) or value.shape != subspace.shape or value.dtype != subspace.dtype:
            found = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
            yield f"{moment}: {name!r} must be {subspace.dtype} of shape {subspace.shape}, found {found}"
        elif not np.isfinite(value).all():
            yield f"{moment}: {name!r} holds NaN or infinite values"


def _success_problems(info: dict[str, Any], moment: str) -> Iterator[str]:
    if "is_success" not in info:
        yield f"{moment}: info must hold 'is_success'; found the keys {sorted(info)}"
    elif not isinstance(info["is_success"], bool | np.bool_):
        yield f"{moment}: info['is_success'] must be a bool, found {info['is_success']!r}"


def _frame_problems(env: Env, contract: EnvContract, observation: dict[str, NDArray[Any]]) -> Iterator[str]:
    for camera in contract.cameras:
        if np.ptp(observation[camera]) == 0:
            yield f"camera {camera!r}: every pixel of the first frame is {observation[camera].flat[0]}; is it rendered?"
    if not contract.cameras or env.render_mode != "rgb_array":
        return
    frame, rendered = observation[contract.cameras[0]], env.render()
    if isinstance(rendered, np.ndarray) and rendered.shape == frame.shape and not np.array_equal(frame, rendered):
        for name, flipped in (("upside down", rendered[::-1]), ("turned by 180°", rendered[::-1, ::-1])):
            if np.array_equal(frame, flipped):
                yield f"camera {contract.cameras[0]!r} is {name} compared with render()"


def _seeding_problems(env: Env, twin: Env) -> Iterator[str]:
    """``env`` has played an episode before; ``twin`` may be fresh."""
    first, second = _play(env, _SEED), _play(twin, _SEED)
    for step, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        where = f"step {step}" if step else "reset"
        for name in ours[0]:
            if not np.array_equal(ours[0][name], theirs[0][name]):
                yield f"seeding: {name!r} differs at {where} between two episodes of one seed and the same actions"
        if ours[1:4] != theirs[1:4] or ours[4]["is_success"] != theirs[4]["is_success"]:
            yield f"seeding: reward, end or success differ at {where} between two episodes of one seed"
        if not all(np.array_equal(ours[0][name], theirs[0][name]) for name in ours[0]):
            return
    other = _play(env, _OTHER_SEED)
    if all(np.array_equal(first[-1][0][name], other[-1][0][name]) for name in first[-1][0]):
        yield "seeding: two different seeds give the same episode"


def _play(env: Env, seed: int) -> list[Transition]:
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    transitions: list[Transition] = [(_copy(observation), 0.0, False, False, info)]
    for _ in range(_TWIN_STEPS):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        transitions.append((_copy(observation), float(reward), terminated, truncated, info))
        if terminated or truncated:
            break
    return transitions


def _copy(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(value) for name, value in observation.items()}
