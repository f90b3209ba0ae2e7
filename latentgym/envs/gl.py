"""OpenGL for headless rendering: choose MuJoCo's backend, say which one is in use, and fail with one clear message."""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import os
import sys
import traceback
import weakref
from typing import Any

from latentgym.errors import LatentGymError

_LIBRARIES = {"egl": ("libEGL.so.1", "libEGL.so"), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}
_SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")
_KNOWN = ("egl", "osmesa", "glfw", "glx", "cgl", "wgl", "enable", "enabled", "on", "true", "1")
_live_renderers: weakref.WeakSet[Any] = weakref.WeakSet()
_PACKAGES = (
    "install them with: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri  (EGL, preferred), "
    "or: apt-get install libosmesa6  (OSMesa); or work without frames (pixels=False)"
)


def _loads(backend: str) -> bool:
    """Whether one of the backend's shared libraries can be loaded."""
    for library in _LIBRARIES[backend]:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def choose_gl_backend(*, pixels: bool = True) -> str:
    """Choose MuJoCo's GL backend, unless the user has, by setting ``MUJOCO_GL`` for this process and its children.

    EGL comes first because it gives bitwise equal images in every context; OSMesa serves where EGL is not installed.
    A MuJoCo that was imported before the choice is told of it.

    Args:
        pixels: whether frames will be rendered. If not, missing libraries are no error and ``MUJOCO_GL`` becomes
            ``"disable"``.

    Returns:
        The value of ``MUJOCO_GL``.

    Raises:
        LatentGymError: if frames are wanted and ``MUJOCO_GL`` holds an unknown or unusable value, or no GL library
            can be loaded; the message names the Debian packages.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen and chosen not in (*_KNOWN, *_SWITCHED_OFF):
        raise LatentGymError(f"MUJOCO_GL is {chosen!r}; expected one of egl, osmesa, glfw, or unset it")
    if chosen in _SWITCHED_OFF and pixels:
        raise LatentGymError(f"MUJOCO_GL is {chosen!r}, so no frame can be rendered; unset it, or use pixels=False")
    if chosen in _LIBRARIES and pixels and not _loads(chosen):
        raise LatentGymError(f"MUJOCO_GL is {chosen!r}, but its library cannot be loaded; {_PACKAGES}")
    if not chosen and sys.platform == "linux":
        usable = [backend for backend in _LIBRARIES if _loads(backend)]
        if not usable and pixels:
            raise LatentGymError(f"no GL library for headless rendering can be loaded (EGL or OSMesa); {_PACKAGES}")
        chosen = usable[0] if usable else "disable"
        os.environ["MUJOCO_GL"] = chosen
    context_module = sys.modules.get("mujoco.gl_context")
    if context_module is not None and getattr(context_module, "_MUJOCO_GL", chosen) != chosen:
        importlib.reload(context_module)
    return chosen


def import_mujoco(*, pixels: bool = True) -> Any:
    """The module ``mujoco``, imported after the GL backend was chosen.

    Raises:
        LatentGymError: if GL cannot be used.
    """
    backend = choose_gl_backend(pixels=pixels)
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise LatentGymError(
            f"MuJoCo is not installed whole ({error}); run: pip install --force-reinstall mujoco"
        ) from error
    except Exception as error:  # PyOpenGL raises AttributeError, ImportError or RuntimeError for a broken driver
        raise _unusable(backend, error) from error


def _unusable(backend: str, error: Exception) -> LatentGymError:
    return LatentGymError(f"GL backend {backend!r} cannot be used ({type(error).__name__}: {error}); {_PACKAGES}")


def make_renderer(model: Any, *, height: int, width: int, max_geom: int = 10000) -> Any:
    """A ``mujoco.Renderer`` for ``model``.

    Raises:
        LatentGymError: if no GL context can be created.
    """
    mujoco = import_mujoco()
    gl_strings()  # fails here, before a half-made renderer has to be torn down
    try:
        renderer = mujoco.Renderer(model, height, width, max_geom)
    except Exception as error:  # as above; also mujoco.FatalError
        raise _unusable(os.environ.get("MUJOCO_GL", ""), error) from error
    if not _live_renderers:
        atexit.register(_close_renderers)
    _live_renderers.add(renderer)
    return renderer


def _close_renderers() -> None:
    """Free the contexts of environments that nobody closed, while EGL is still there to do it."""
    for renderer in list(_live_renderers):
        renderer.close()


@functools.cache
def gl_strings() -> dict[str, str]:
    """Backend, vendor, renderer and version of the GL implementation in use, for provenance.

    Creates a GL context: in a program that forks workers, call it in a worker.

    Raises:
        LatentGymError: if no GL context can be created.
    """
    backend = choose_gl_backend()
    context = _open_context(backend)
    try:
        gl = importlib.import_module("OpenGL.GL")
        names = {"vendor": gl.GL_VENDOR, "renderer": gl.GL_RENDERER, "version": gl.GL_VERSION}
        values = {name: gl.glGetString(token) for name, token in names.items()}
    except Exception as error:
        raise _unusable(backend, error) from error
    finally:
        context.free()
    if not values["renderer"]:
        raise _unusable(backend, RuntimeError("the context names no renderer"))
    return {"backend": backend} | {name: value.decode() if value else "" for name, value in values.items()}


def _open_context(backend: str) -> Any:
    """A small current GL context.

    MuJoCo's half-made contexts complain on standard error when they are collected, so that is done here, in silence.
    """
    import_mujoco()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        # Not mujoco.GLContext, which stays what it was when MuJoCo was imported before the backend was chosen.
        context = importlib.import_module("mujoco.gl_context").GLContext(8, 8)
        context.make_current()
        return context
    except Exception as error:
        failure = _unusable(backend, error)
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook
    raise failure
