"""A PyBullet client that no call can miss: several worlds live in one process, and it prints nothing."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from latentgym.errors import LatentGymError, require

_BULLET_PLUGIN = "_eglRendererPlugin"


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


def _disconnect(client: int) -> None:
    pybullet = import_pybullet()
    if pybullet.isConnected(client):
        with silenced():
            pybullet.disconnect(client)


class Client:
    """One physics server in this process; every function of ``pybullet`` as a method that names this client.

    Args:
        egl_size: width and height in pixels of the EGL window to render into; ``None`` leaves TinyRenderer, a software
            rasteriser, in charge.

    Raises:
        LatentGymError: if the EGL plugin does not load.
        MissingExtraError: if PyBullet is not installed.
    """

    def __init__(self, egl_size: int | None = None) -> None:
        self.pybullet: Any = import_pybullet()
        options = "" if egl_size is None else f"--width={egl_size} --height={egl_size}"
        with silenced():
            self.id: int = self.pybullet.connect(self.pybullet.DIRECT, options=options)
            loaded = egl_size is None or self._load_egl()
        # Freed at the latest at interpreter exit, in silence.
        self.close = weakref.finalize(self, _disconnect, self.id)
        if not loaded:
            self.close()
            raise LatentGymError(
                "PyBullet's EGL plugin did not load; use renderer='tiny', or install EGL with: "
                "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
            )

    def __getattr__(self, name: str) -> Any:
        function = functools.partial(getattr(self.pybullet, name), physicsClientId=self.id)
        setattr(self, name, function)  # looked up once
        return function

    def _load_egl(self) -> bool:
        plugin = importlib.util.find_spec("eglRenderer")
        name = "eglRendererPlugin" if plugin is None else plugin.origin
        return bool(self.pybullet.loadPlugin(name, _BULLET_PLUGIN, physicsClientId=self.id) >= 0)
