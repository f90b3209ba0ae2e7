"""Which OpenGL context is current: PyBullet's EGL plugin makes its own so once, and never again.

Two such clients in one process, or one beside MuJoCo, would draw into each other's contexts. So each client keeps its
context's handles, makes it current around everything that touches it, and leaves the one before current again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

_DRAW, _READ = 0x3059, 0x305A


class Context(NamedTuple):
    """Handles of what is current in this thread; all ``None`` where nothing is."""

    display: int | None
    draw: int | None
    read: int | None
    context: int | None


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL("libEGL.so.1")
    for name in ("eglGetCurrentDisplay", "eglGetCurrentSurface", "eglGetCurrentContext"):
        getattr(library, name).restype = ctypes.c_void_p
    library.eglMakeCurrent.argtypes = [ctypes.c_void_p] * 4
    return library


def current_context() -> Context:
    """What is current in this thread."""
    egl = _library()
    surfaces = egl.eglGetCurrentSurface(_DRAW), egl.eglGetCurrentSurface(_READ)
    return Context(egl.eglGetCurrentDisplay(), *surfaces, egl.eglGetCurrentContext())


@contextlib.contextmanager
def made_current(context: Context | None) -> Iterator[None]:
    """Make ``context`` current for the length of a block; ``None`` does nothing."""
    if context is None:
        yield
        return
    before = current_context()
    _library().eglMakeCurrent(*context)
    try:
        yield
    finally:
        restore(before, context.display)


def restore(before: Context, display: int | None) -> None:
    """Make ``before`` current again, or nothing on ``display`` where nothing was."""
    _library().eglMakeCurrent(before.display or display, before.draw, before.read, before.context)
