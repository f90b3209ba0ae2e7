"""The command line: one thin function per verb."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import typer
from typer.exceptions import TyperException

from latentgym.cli import data, encoders, policies, probes, studies, system
from latentgym.cli.app import app
from latentgym.errors import LatentGymError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

__all__ = ["INTERRUPTED", "app", "data", "encoders", "main", "policies", "probes", "studies", "system"]


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit status 2."""
    sys.exit(_run())


def _run() -> int:
    with _heeding_interrupts() as interrupts:
        try:
            status = app(standalone_mode=False)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except Exception as error:
            # What was interrupted may raise an error of its own: ctypes does, in the middle of a call of the renderer.
            status = INTERRUPTED if interrupts or isinstance(error, typer.Abort) else _explained(error)
    if status == INTERRUPTED:
        print("latentgym: interrupted; finished work is kept, run the same command again to continue", file=sys.stderr)
    return status if isinstance(status, int) else 0


@contextlib.contextmanager
def _heeding_interrupts() -> Iterator[list[int]]:
    """Note every Ctrl-C, whatever becomes of its :class:`KeyboardInterrupt`."""
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _explained(error: Exception) -> int:
    """Say in one line what is wrong with the input; the exit status. Raises ``error`` if it is of another kind."""
    if isinstance(error, LatentGymError):
        print(f"latentgym: {error}", file=sys.stderr)
        return 2
    if isinstance(error, TyperException):
        print(f"latentgym: {error.format_message()}; see: latentgym --help", file=sys.stderr)
        return error.exit_code
    raise error
