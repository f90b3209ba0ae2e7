"""What this machine can do: GL backends, rendering speed, and what each optional extra needs to work."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

from latentgym.envs.extras import EXTRAS, examine

_BACKENDS = ("egl", "osmesa", "glfw")
_TIMEOUT_S = 60
_MEND_GL = {
    "egl": "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0",
    "osmesa": "apt-get install libosmesa6",
    "glfw": "needs a display (an X server); headless machines use egl or osmesa",
}
_SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "software")

_PROBE = """
import json, time

def probe():
    import mujoco
    from OpenGL import GL
    xml = "<mujoco><worldbody><light pos='0 0 3'/><geom type='plane' size='1 1 .1'/>" \\
          "<body pos='0 0 .3'><geom size='.1' rgba='1 0 0 1'/></body></worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(xml)
    model.vis.quality.offsamples = 0
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 64, 64)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0
    renderer.update_scene(data)
    frame = renderer.render()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        renderer.update_scene(data)
        renderer.render()
        count += 1
    rate = round(count / (time.perf_counter() - start))
    names = {"vendor": GL.GL_VENDOR, "renderer": GL.GL_RENDERER, "version": GL.GL_VERSION}
    text = {name: (GL.glGetString(token) or b"").decode() for name, token in names.items()}
    return {"ok": bool(frame.max() > frame.min()), "frames_per_s": rate, **text}

try:
    result = probe()
except Exception as error:
    result = {"ok": False, "error": type(error).__name__ + ": " + str(error)}
print(json.dumps(result), flush=True)
"""


def diagnose() -> dict[str, Any]:
    """What this machine can do, and how to mend what it cannot.

    Each GL backend renders frames in a child process of its own, so that a crash there does no harm and this process
    creates no GL context.

    Returns:
        A mapping of JSON types: ``python``, ``platform``, ``cpus``; ``gl``, backend to ``ok``, ``frames_per_s`` (a
        small scene at 64 pixels), ``vendor``, ``renderer``, ``version``, ``software`` (no GPU used) or ``error`` and
        ``mend``; ``chosen_gl``, the first backend that works or the value of ``MUJOCO_GL`` (``None`` if none works);
        ``extras``, name to what :func:`latentgym.envs.extras.examine` finds; ``warnings``, a list of sentences.
    """
    gl = {backend: probe_backend(backend) for backend in _BACKENDS}
    working = [backend for backend in _BACKENDS if gl[backend]["ok"]]
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    chosen = wanted if wanted in working else (working[0] if working and not wanted else None)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gl": gl,
        "chosen_gl": chosen,
        "extras": {name: examine(name, gl=bool(working)) for name in EXTRAS},
        "warnings": _warnings(gl, working, wanted, chosen),
    }


def describe(findings: dict[str, Any]) -> str:
    """What :func:`diagnose` found, as text for people."""
    lines = [f"Python {findings['python']} on {findings['platform']}, {findings['cpus']} cores", "", "OpenGL backends"]
    for name, item in findings["gl"].items():
        if item["ok"]:
            software = ", software rendering" if item["software"] else ""
            lines.append(f"  {name}: {item['frames_per_s']} frames/s at 64 pixels{software}")
            lines += [f"    {key}: {item[key]}" for key in ("vendor", "renderer", "version")]
        else:
            lines.append(f"  {name}: does not work ({item['error']}); {item.get('mend', '')}")
    lines += [f"  chosen: {findings['chosen_gl'] or 'none'}", "", "Extras"]
    for name, item in findings["extras"].items():
        versions = ", ".join(f"{package} {version}" for package, version in item["versions"].items())
        lines.append(f"  {name}: {versions}" if item["ok"] else f"  {name}: missing; {item['mend']}")
        lines.append(f"    for {item['gives']}")
        lines += [f"    cannot: {sentence}" for sentence in item["cannot"]]
    return "\n".join([*lines, *(f"\nwarning: {warning}" for warning in findings["warnings"])])


def probe_backend(backend: str) -> dict[str, Any]:
    """Render with ``backend`` in a child process; see :func:`diagnose` for the result's keys."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend if backend != "glfw" else ""},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"no frame within {_TIMEOUT_S} s", "mend": _MEND_GL.get(backend, "")}
    try:
        result: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):  # a driver may take the process down
        result = {"ok": False, "error": f"the process ended with status {child.returncode}"}
    if result["ok"]:
        return result | {"software": any(name in result["renderer"].lower() for name in _SOFTWARE_RENDERERS)}
    error = result.setdefault("error", "the frame is blank")
    missing = "No module named" in error
    return result | {"mend": "pip install --force-reinstall latentgym" if missing else _MEND_GL.get(backend, "")}


def _warnings(gl: dict[str, dict[str, Any]], working: list[str], wanted: str, chosen: str | None) -> list[str]:
    warnings = []
    if not working:
        warnings.append(
            "no GL backend renders, so no frames can be recorded; mend one: "
            f"{_MEND_GL['egl']} (or {_MEND_GL['osmesa']})"
        )
    elif wanted and wanted not in working:
        warnings.append(f"MUJOCO_GL is {wanted!r}, which does not render here; unset it or use {working[0]!r}")
    elif chosen is not None and gl[chosen]["software"]:
        warnings.append(
            f"{chosen} renders in software ({gl[chosen]['renderer']}): frames cost CPU time; the fast look is 3 to 70 "
            "times faster than the stock look"
        )
    if chosen == "osmesa":
        warnings.append("OSMesa may give different images in two contexts of one process; EGL does not")
    return warnings
