"""What verbs print: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentgym.errors import LatentGymError
from latentgym.results import Row


def print_table(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """The named columns of rows as a table."""
    # As text: square brackets in names are no markup.
    table = Table(*columns, title=Text(title, style="italic"), title_justify="left")
    for row in rows:
        table.add_row(*(Text(cell_text(row.get(column))) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def cell_text(value: object) -> str:
    """A value as a table shows it; numbers with three decimals."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def print_json(value: object) -> None:
    """Indented JSON with sorted keys."""
    print(json.dumps(value, indent=1, sort_keys=True))


def print_rows(title: str, rows: Sequence[Row], as_json: bool) -> None:
    """Every row as JSON, or the macro means as a table."""
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    shown = [row.to_dict() for row in rows if row.dimension == "macro"]
    columns = ["encoder", "family", "metric", "readout", "input", "k", "subset", "value", "low", "high", "n"]
    extra = [name for name in ("layer", "condition") if any(row[name] is not None for row in shown)]
    print_table(title, shown, columns[:3] + extra + columns[3:])


def report_problems(name: str, problems: list[str]) -> None:
    """Say that ``name`` keeps its contract.

    Raises:
        LatentGymError: if there are problems; it lists them.
    """
    if problems:
        raise LatentGymError(f"{name} breaks the contract:\n" + "\n".join(f"  - {problem}" for problem in problems))
    print(f"{name} keeps the contract")
