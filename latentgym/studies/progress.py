"""One progress display for a whole study; nothing where there is no terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from latentgym.studies.engine import Cell, CellRecord


class StudyProgress:
    """Shows how many cells are finished and which are running.

    Args:
        study: name of the study.
        total: number of cells.
    """

    def __init__(self, study: str, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("[bold]{task.fields[study]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal
        )
        self._task: TaskID = self._bar.add_task("starting", total=total, study=study)
        self._running: dict[str, str] = {}
        self._reused = 0

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, cell: Cell) -> None:
        """A cell was handed to a worker."""
        self._running[cell.key] = cell.name
        self._describe()

    def done(self, cell: Cell, record: CellRecord) -> None:
        """A cell is finished, or was found finished."""
        self._running.pop(cell.key, None)
        self._reused += record.cached
        self._bar.advance(self._task)
        self._describe()

    def message(self, text: str) -> None:
        """Say what is going on between cells."""
        self._bar.update(self._task, description=text)

    def _describe(self) -> None:
        reused = f"[dim]({self._reused} reused)[/dim] " if self._reused else ""
        self.message(reused + " · ".join(self._running.values()))
