"""A PyBullet client that no call can miss: several worlds live in one process, and it prints nothing."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from latentgym.envs.calvin.egl import Context, current_context, made_current, restore
from latentgym.errors import LatentGymError, require

_EGL_PLUGIN = "_eglRendererPlugin"
_FRAMES_WITHOUT_SHADOWS = 2  # the first of every window; a scene must not look different for being the first


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Send what C code prints to nowhere: PyBullet and its EGL plugin announce themselves on standard output."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered would come out later
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)


@functools.cache
def import_pybullet() -> Any:
    """The module ``pybullet``, without the line that it prints.

    Raises:
        MissingExtraError: if it is not installed.
    """
    with silenced():
        return require("pybullet", "calvin")


# Closing one EGL window ends the display for every other GL context of the process, so windows are kept and used again.
_parked: dict[int, list[tuple[int, Context]]] = {}


def _release(client: int, egl_size: int | None, context: Context | None) -> None:
    pybullet = import_pybullet()
    if not pybullet.isConnected(client):
        return
    if egl_size is None or context is None:
        pybullet.disconnect(client)
        return
    with made_current(context):
        pybullet.resetSimulation(physicsClientId=client)
    _parked.setdefault(egl_size, []).append((client, context))


class Client:
    """One physics server in this process; every function of ``pybullet`` as a method that names this client.

    Args:
        egl_size: width and height in pixels of the EGL window to render into; ``None`` leaves TinyRenderer, a software
            rasteriser, in charge.

    Attributes:
        pybullet: the module, for constants and functions that need no client.
        id: PyBullet's number of the client.
        close: gives the client back; called at the latest when the object is collected.

    Raises:
        LatentGymError: if the EGL plugin does not load.
        MissingExtraError: if PyBullet is not installed.
    """

    def __init__(self, egl_size: int | None = None) -> None:
        self.pybullet: Any = import_pybullet()
        self._context: Context | None = None
        if egl_size is None:
            self.id: int = self.pybullet.connect(self.pybullet.DIRECT)
        elif _parked.get(egl_size):
            self.id, self._context = _parked[egl_size].pop()
        else:
            self.id, self._context = _open_window(self.pybullet, egl_size)
        self.close = weakref.finalize(self, _release, self.id, egl_size, self._context)
        self.close.atexit = False  # the end of the process frees everything

    def drawing(self) -> contextlib.AbstractContextManager[None]:
        """Around everything that loads, changes or renders what is seen."""
        return made_current(self._context)

    def __getattr__(self, name: str) -> Any:
        function = functools.partial(getattr(self.pybullet, name), physicsClientId=self.id)
        setattr(self, name, function)  # looked up once
        return function


def _open_window(pybullet: Any, size: int) -> tuple[int, Context]:
    before = current_context()
    with silenced():
        client = int(pybullet.connect(pybullet.DIRECT, options=f"--width={size} --height={size}"))
        plugin = importlib.util.find_spec("eglRenderer")
        name = "eglRendererPlugin" if plugin is None else plugin.origin
        loaded = pybullet.loadPlugin(name, _EGL_PLUGIN, physicsClientId=client) >= 0
        context = current_context()
        for _ in range(_FRAMES_WITHOUT_SHADOWS * loaded):
            pybullet.getCameraImage(8, 8, physicsClientId=client)
    restore(before, context.display)
    _say_no_farewell()
    if not loaded:
        raise LatentGymError(
            "PyBullet's EGL plugin did not load; use renderer='tiny', or install EGL with: "
            "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
        )
    return client, context


@functools.cache
def _say_no_farewell() -> None:
    """Windows that are closed by the end of the process report it on standard output, after everything else."""

    def mute() -> None:
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    atexit.register(mute)
