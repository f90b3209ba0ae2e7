"""The two cameras, and which renderer draws for them."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.client import Client
from latentgym.errors import LatentGymError

Renderer = Literal["egl", "tiny"]
RENDERERS = ("auto", "egl", "tiny")
NATIVE_SIZE = {"static": 200, "gripper": 84}
"""Side of the frames of the published data set, in pixels."""

_PROBE_TIMEOUT_S = 60
_GRIPPER_CAMERA_LINK = 14
_LOOK_FROM = (2.871459009488717, -2.166602199425597, 2.555159848480571)
_LOOK_AT = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)

# A driver may take the process down, so another one tries first. Its report is the last line that it prints.
_PROBE = """
import importlib.util, json, pybullet
client = pybullet.connect(pybullet.DIRECT, options="--width=32 --height=32")
plugin = importlib.util.find_spec("eglRenderer")
name = "eglRendererPlugin" if plugin is None else plugin.origin
loaded = pybullet.loadPlugin(name, "_eglRendererPlugin") >= 0
shape = pybullet.createVisualShape(pybullet.GEOM_BOX, halfExtents=[.1, .1, .1], rgbaColor=[1, 0, 0, 1])
pybullet.createMultiBody(baseVisualShapeIndex=shape)
view = pybullet.computeViewMatrix([.5, .5, .5], [0, 0, 0], [0, 0, 1])
frame = pybullet.getCameraImage(32, 32, view, pybullet.computeProjectionMatrixFOV(60, 1, .01, 2))[2]
print("\\n" + json.dumps({"ok": bool(loaded and frame.max() > frame[..., :3].min())}), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class _Lens:
    """Field of view in degrees, near and far plane in metres."""

    fov: float
    near: float
    far: float


_LENSES = {"static": _Lens(10, 0.01, 10), "gripper": _Lens(75, 0.01, 2)}


class Cameras:
    """The two cameras of one physics client; frames come upright.

    Args:
        client: what to render.
        sizes: camera (``"static"``, ``"gripper"``) to side of its frames in pixels.
    """

    def __init__(self, client: Client, sizes: Mapping[str, int]) -> None:
        self._client, self._sizes = client, sizes
        bullet = client.pybullet
        self._projections = {
            name: bullet.computeProjectionMatrixFOV(fov=lens.fov, aspect=1, nearVal=lens.near, farVal=lens.far)
            for name, lens in _LENSES.items()
        }
        self._static_view = bullet.computeViewMatrix(
            cameraEyePosition=_LOOK_FROM, cameraTargetPosition=_LOOK_AT, cameraUpVector=_UP
        )

    def render(self, camera: str, robot: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Frame ``(S, S, 3)`` uint8 and depth ``(S, S)`` float32 in metres; ``robot`` carries the gripper's camera."""
        size = self._sizes[camera]
        view = self._static_view if camera == "static" else self._gripper_view(robot)
        image = self._client.getCameraImage(
            width=size,
            height=size,
            viewMatrix=view,
            projectionMatrix=self._projections[camera],
            # The mask, which nobody asks for, costs EGL a pass of its own; frame and depth are the same without it.
            flags=self._client.pybullet.ER_NO_SEGMENTATION_MASK,
        )
        frame = np.ascontiguousarray(np.reshape(image[2], (size, size, 4))[:, :, :3], np.uint8)
        lens, buffer = _LENSES[camera], np.reshape(image[3], (size, size))
        return frame, lens.far * lens.near / (lens.far - (lens.far - lens.near) * buffer)

    def _gripper_view(self, robot: int) -> tuple[float, ...]:
        """The hand's camera looks along its link's y axis, with the image's up along minus z."""
        bullet = self._client.pybullet
        position, orientation = self._client.getLinkState(robot, _GRIPPER_CAMERA_LINK)[:2]
        rotation = np.array(bullet.getMatrixFromQuaternion(orientation)).reshape(3, 3)
        view: tuple[float, ...] = bullet.computeViewMatrix(position, position + rotation[:, 1], -rotation[:, 2])
        return view


@functools.cache
def probe_egl() -> dict[str, str]:
    """Whether PyBullet's EGL plugin draws, tried in a child process.

    Returns:
        ``vendor``, ``renderer`` and ``version`` of the GL implementation if it does, else ``error``.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no frame within {_PROBE_TIMEOUT_S} s"}
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not any(_is_report(line) for line in lines):
        return {"error": f"the process that tried it ended with status {child.returncode}"}
    strings = dict(line.partition("=")[::2] for line in lines if line.startswith("GL_"))
    found = {name: strings.get(f"GL_{name.upper()}", "").strip() for name in ("vendor", "renderer", "version")}
    return found if found["renderer"] else {"error": "the context names no GL renderer"}


def _is_report(line: str) -> bool:
    try:
        report: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(report, dict) and report.get("ok") is True


def choose_renderer(wanted: str) -> Renderer:
    """The renderer to use.

    Args:
        wanted: ``"egl"``, ``"tiny"``, or ``"auto"``: EGL where a child process draws with it, else TinyRenderer.

    Raises:
        LatentGymError: if the name is unknown, or EGL is asked for and does not draw.
    """
    if wanted not in RENDERERS:
        raise LatentGymError(f"renderer: expected 'auto', 'egl' or 'tiny', found {wanted!r}")
    if wanted == "tiny":
        return "tiny"
    error = probe_egl().get("error")
    if error is None:
        return "egl"
    if wanted == "egl":
        raise LatentGymError(
            f"renderer='egl' cannot be used here ({error}); use renderer='tiny', or install EGL with: "
            "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
        )
    return "tiny"


def renderer_strings(renderer: str) -> dict[str, str]:
    """What draws, for provenance: the backend and, for EGL, the GL implementation's names."""
    return {"backend": "pybullet-egl", **probe_egl()} if renderer == "egl" else {"backend": "pybullet-tiny"}
