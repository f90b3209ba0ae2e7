"""One door to every environment: :func:`make_env` by id, and :func:`make_expert` for what it made.

After ``import latentgym``, ``gymnasium.make("latentgym/TabletopReach-v0")`` works too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
from gymnasium.envs.registration import ENV_ID_RE, EnvSpec

from latentgym.envs.contract import Expert, contract_of
from latentgym.envs.gl import choose_gl_backend
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.registration import CALVIN_IDS, TABLETOP_IDS

_TABLETOP_OPTIONS = ("distractor", "horizon")
_CALVIN_OPTIONS = ("task", "action_mode", "renderer", "cameras", "depth", "horizon", "assets", "backend")


def default_image_size(env_id: str) -> int:
    """Side of the frames in pixels where none is asked for: 64, but for CALVIN the 200 of its published data."""
    return 200 if str(env_id) in CALVIN_IDS else 64


def check_options(options: Mapping[str, Any]) -> None:
    """Check that an environment's options leave the size of frames to the argument of its own.

    Raises:
        LatentGymError: if they do not.
    """
    if "image_size" in options:
        raise LatentGymError("image_size is no option of an environment; give it as image_size beside the options")


def make_env(
    env_id: str,
    *,
    image_size: int | None = None,
    render: Literal["fast", "stock"] = "fast",
    pixels: bool = True,
    corruption: str | None = None,
    goal: bool = False,
    **options: Any,
) -> gymnasium.Env[Any, Any]:
    """Make an environment that keeps the suite's contract.

    Chooses MuJoCo's GL backend where ``MUJOCO_GL`` is not set.

    Args:
        env_id: ``"latentgym/TabletopReach-v0"`` (also ``Push``, ``Intercept``), ``"metaworld/<task>"`` such as
            ``"metaworld/reach-v3"``, ``"robosuite/<Task>-v0"`` such as ``"robosuite/Lift-v0"``,
            ``"latentgym/CalvinD-v0"`` (also ``A``, ``B``, ``C``), ``"Fetch<Task>-v4"`` such as ``"FetchPush-v4"``,
            ``"libero/<task>"`` (in a virtual environment of its own), or any other id that Gymnasium knows.
        image_size: height and width of the frames in pixels; see :func:`default_image_size`.
        render: ``"fast"`` leaves out shadows, reflections and multisampling; ``"stock"`` is the simulator's own look.
        pixels: whether frames are observed; without them steps are much faster.
        corruption: corruption of every observed frame, such as ``"snow:3"``; see
            :class:`~latentgym.envs.wrappers.CorruptObservation`.
        goal: whether to observe what success looks like, under ``"goal_<key>"``; see
            :class:`~latentgym.envs.wrappers.GoalObservation`.
        **options: options of the suite: tabletop takes ``distractor="none" | "static" | "moving"`` and ``horizon`` in
            steps; CALVIN's are those of :class:`~latentgym.envs.calvin.env.CalvinEnv`.

    Returns:
        An environment that observes a ``Dict`` of ``"pixels"`` ``(H, W, 3)`` uint8 (or the cameras that its contract
        names), ``"proprio"`` and ``"state"`` float32, states ``contract``, and puts ``is_success`` into every info.

    Raises:
        UnknownNameError: if the id or an option is unknown.
        MissingExtraError: if the simulator is not installed.
        LatentGymError: if an option has a bad value, or frames are wanted and GL cannot be used.

    >>> env = make_env("latentgym/TabletopReach-v0", pixels=False)
    >>> observation, info = env.reset(seed=0)
    >>> observation["proprio"].shape, info["is_success"]
    ((6,), False)
    """
    _check_common(pixels, goal, corruption)
    image_size = default_image_size(env_id) if image_size is None else image_size
    arguments = {"image_size": image_size, "render": render, "pixels": pixels, **options}
    env = _make(str(env_id), arguments)
    if env.spec is None:
        # As gymnasium.make does for registered ids: wrappers are written down in the spec, and rebuilt from it.
        env.unwrapped.spec = EnvSpec(
            _legal_id(str(env_id)), entry_point=f"{__name__}:make_from_spec",
            kwargs={"env_id": str(env_id), **arguments}, disable_env_checker=True, order_enforce=False,
        )  # fmt: skip
    if goal:
        from latentgym.envs.wrappers.goal_observation import GoalObservation

        env = GoalObservation(env)
    if corruption is None:
        return env
    from latentgym.envs.wrappers.corrupt_observation import CorruptObservation

    return CorruptObservation(env, corruption)


def _legal_id(env_id: str) -> str:
    """An id that Gymnasium accepts; what is made from the spec goes by its arguments."""
    return env_id if ENV_ID_RE.fullmatch(env_id) else re.sub(r"[^\w.-]", "-", env_id)


def _check_common(pixels: Any, goal: Any, corruption: Any) -> None:
    for name, value in (("pixels", pixels), ("goal", goal)):
        if not isinstance(value, bool):
            raise LatentGymError(f"{name} must be true or false, got {value!r}")
    if corruption is not None and not isinstance(corruption, str):
        raise LatentGymError(f"corruption must be a name such as 'snow:3', got {corruption!r}")


def make_from_spec(*, render_mode: str | None = None, **arguments: Any) -> gymnasium.Env[Any, Any]:
    """:func:`make_env` as ``gymnasium.make`` calls it; every environment of the suite renders ``"rgb_array"``."""
    if render_mode not in (None, "rgb_array"):
        raise LatentGymError(f"render_mode: expected 'rgb_array' or None, found {render_mode!r}")
    return make_env(**arguments)


def _make(env_id: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    suite = env_id.partition("/")[0]
    if suite == "latentgym":
        return _make_own(env_id, **options)
    if suite == "metaworld":
        choose_gl_backend(pixels=options["pixels"])
        from latentgym.envs.metaworld import make_metaworld

        return make_metaworld(env_id, **options)
    if suite == "robosuite":
        choose_gl_backend(pixels=options["pixels"])
        from latentgym.envs.robosuite import make_robosuite

        return make_robosuite(env_id, **options)
    if suite == "libero":
        choose_gl_backend(pixels=options["pixels"])
        from latentgym.envs.libero import make_libero

        return make_libero(env_id, **options)
    if suite.startswith("Fetch"):
        choose_gl_backend(pixels=options["pixels"])
        from latentgym.envs.fetch import make_fetch

        return make_fetch(env_id, **options)
    from latentgym.envs.generic import make_generic

    return make_generic(env_id, **options)


def make_expert(env: gymnasium.Env[Any, Any]) -> Expert:
    """The scripted expert of an environment made by :func:`make_env`.

    Raises:
        LatentGymError: if it has none.
    """
    try:
        make = env.get_wrapper_attr("make_expert")
    except AttributeError:
        raise LatentGymError(
            f"{contract_of(env).env_id} has no expert; record it with policy='random', or give the environment a "
            "method make_expert()"
        ) from None
    expert: Expert = make()
    return expert


def _make_own(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    if env_id not in {*TABLETOP_IDS, *CALVIN_IDS}:
        raise UnknownNameError("environment", env_id, (*TABLETOP_IDS, *CALVIN_IDS))
    known = _CALVIN_OPTIONS if env_id in CALVIN_IDS else _TABLETOP_OPTIONS
    for name in options:
        if name not in (*known, "image_size", "render", "pixels"):
            raise UnknownNameError(f"option of {env_id}", name, known)
    # Gymnasium's passive checker costs time in every step; check_env (latentgym.envs.conformance) checks more, once.
    return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **options)
