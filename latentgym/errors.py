"""Errors that a user can act on.

Every error raised on purpose by the suite derives from :class:`LatentGymError`; the command line prints its message
without a traceback and exits with status 2.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LatentGymError(Exception):
    """Bad input or a bad environment: the message says what was expected, what was found and what to do."""


class MissingExtraError(LatentGymError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class UnknownNameError(LatentGymError):
    """A name is not registered; the message lists close matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        suggestion = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {suggestion}{' ' + hint if hint else ''}")


class CorruptDataError(LatentGymError):
    """A file on disk is truncated, altered or not of the expected format."""


def rephrased(error: LatentGymError, text: str) -> LatentGymError:
    """An error that says more than ``error``; damage stays damage."""
    return CorruptDataError(text) if isinstance(error, CorruptDataError) else LatentGymError(text)


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or raise an error that names the extra to install.

    Args:
        module: dotted module name, such as ``"metaworld"``.
        extra: the extra of this distribution that installs it.

    Raises:
        MissingExtraError: if ``module`` (or something that it imports) is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({error}); install it with: pip install 'latentgym[{extra}]'"
        ) from error
