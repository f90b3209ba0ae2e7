"""Data sets of other projects that are read where they lie, and how each is recognised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentgym.errors import UnknownNameError
from latentgym.trajectories.dataset import CheckReport, Dataset
from latentgym.trajectories.formats.calvin import CalvinOptions, open_calvin
from latentgym.trajectories.formats.calvin_check import check_calvin
from latentgym.trajectories.formats.calvin_index import is_calvin
from latentgym.trajectories.formats.libero import LiberoOptions, is_hdf5, open_libero
from latentgym.trajectories.formats.libero_check import check_libero

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ForeignFormat:
    """One format.

    Attributes:
        title: what its data are called in errors.
        recognises: whether a path holds such data; reads names only.
        opener: opens them, with options as keyword arguments.
        checker: reads everything; called with the path, a progress callback, and options.
        options: dataclass whose fields are the options.
    """

    title: str
    recognises: Callable[[Path], bool]
    opener: Callable[..., Dataset]
    checker: Callable[..., CheckReport]
    options: type[Any]

    def open(self, path: Path, options: Mapping[str, Any]) -> Dataset:
        """Open ``path``.

        Raises:
            UnknownNameError: if there is no such option.
        """
        return self.opener(path, **self._known(options))

    def inspect(self, path: Path, progress: Progress | None, options: Mapping[str, Any]) -> CheckReport:
        """Read everything under ``path``.

        Raises:
            UnknownNameError: if there is no such option.
        """
        return self.checker(path, progress, **self._known(options))

    def _known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = [field.name for field in dataclasses.fields(self.options)]
        for name in options:
            if name not in known:
                raise UnknownNameError(f"option of {self.title}", name, known)
        return dict(options)


_FORMATS = (
    ForeignFormat("a CALVIN folder", is_calvin, open_calvin, check_calvin, CalvinOptions),
    ForeignFormat("HDF5 demonstrations", is_hdf5, open_libero, check_libero, LiberoOptions),
)


def foreign_format(path: Path) -> ForeignFormat | None:
    """The format that ``path`` holds data in, ``None`` if it is none of these."""
    return next((candidate for candidate in _FORMATS if candidate.recognises(path)), None)
