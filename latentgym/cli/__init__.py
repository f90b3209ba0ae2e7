"""The command line: one thin function per verb."""

from __future__ import annotations

import sys

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
    try:
        status = app(standalone_mode=False)
        if status != INTERRUPTED:
            return status if isinstance(status, int) else 0
    except LatentGymError as error:
        print(f"latentgym: {error}", file=sys.stderr)
        return 2
    except TyperException as error:
        print(f"latentgym: {error.format_message()}; see: latentgym --help", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        pass
    print("latentgym: interrupted; finished work is kept, run the same command again to continue", file=sys.stderr)
    return INTERRUPTED
