"""Language annotations of a CALVIN folder: which steps carry out which instruction."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import CorruptDataError
from latentgym.trajectories.formats.calvin_index import PlayRange
from latentgym.trajectories.formats.restricted_pickle import load_npy

ANNOTATION_FOLDER = "lang_annotations"
ANNOTATION_FILE = "auto_lang_ann.npy"
EMBEDDING_FILE = "embeddings.npy"


@dataclasses.dataclass(frozen=True)
class Span:
    """One annotated stretch of play.

    Attributes:
        first: number of its first step.
        last: number of its last step, included.
        task: name of the task, such as ``"open_drawer"``.
        instruction: sentence that a person wrote for it.
        row: row of its embedding.
    """

    first: int
    last: int
    task: str
    instruction: str
    row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """The annotated spans of one split folder.

    Attributes:
        spans: by first step.
        embeddings: ``(N, D)`` float32 sentence embeddings as they were published; ``None`` where there are none.
    """

    spans: tuple[Span, ...] = ()
    embeddings: NDArray[np.float32] | None = None

    def overlapping(self, first: int, last: int) -> list[Span]:
        """Spans that share a transition with the steps ``first`` … ``last``."""
        # Spans are short (at most 64 steps in CALVIN), so few that begin earlier reach this far.
        longest = max((span.last - span.first for span in self.spans), default=0)
        low = bisect.bisect_left(self.spans, first - longest, key=lambda span: span.first)
        high = bisect.bisect_left(self.spans, last, key=lambda span: span.first)
        return [span for span in self.spans[low:high] if span.last > first]


def read_annotations(folder: Path, ranges: Sequence[PlayRange], name: str = ANNOTATION_FOLDER) -> Annotations:
    """Annotations of a split folder; empty where it has none.

    Args:
        folder: the split folder.
        ranges: its play ranges.
        name: folder of the annotations inside it; some data sets carry several.

    Raises:
        CorruptDataError: if the file is damaged, holds anything but arrays and plain containers, or points outside the
            play ranges.
    """
    path = folder / name / ANNOTATION_FILE
    if not path.is_file():
        if name != ANNOTATION_FOLDER:
            raise CorruptDataError(f"{path} is missing; expected CALVIN's language annotations there")
        return Annotations()
    content = load_npy(path)
    try:
        language, bounds = content["language"], content["info"]["indx"]
        texts, tasks = list(language["ann"]), list(language["task"])
        spans = [
            Span(int(first), int(last), str(task), str(text), row)
            for row, ((first, last), task, text) in enumerate(zip(bounds, tasks, texts, strict=True))
        ]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise CorruptDataError(
            f"{path}: expected language/ann, language/task and info/indx of one length; {type(error).__name__}: {error}"
        ) from error
    for span in spans:
        if not any(play.first <= span.first < span.last <= play.last for play in ranges):
            raise CorruptDataError(
                f"{path}: annotation {span.row} ({span.task}) spans the steps {span.first} to {span.last}, which lie "
                "in no play range"
            )
    return Annotations(tuple(sorted(spans, key=lambda span: (span.first, span.row))), _embeddings(language, path))


def read_task_embeddings(folder: Path, name: str = ANNOTATION_FOLDER) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Task to its validation sentence and embedding ``(D,)``, from ``embeddings.npy``; empty where there is none.

    Raises:
        CorruptDataError: if the file is damaged or holds anything but arrays and plain containers.
    """
    path = folder / name / EMBEDDING_FILE
    if not path.is_file():
        return {}
    try:
        return {
            str(task): (str(entry["ann"][0]), np.asarray(entry["emb"], np.float32).reshape(-1))
            for task, entry in load_npy(path).items()
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptDataError(f"{path}: expected task → ann, emb ({type(error).__name__}: {error})") from error


def _embeddings(language: dict[str, Any], path: Path) -> NDArray[np.float32] | None:
    if "emb" not in language:
        return None
    try:
        rows = np.asarray(language["emb"])
    except ValueError:  # rows of different lengths
        rows = np.empty(0)
    if rows.dtype.kind != "f" or rows.ndim < 2 or len(rows) != len(language["ann"]):
        raise CorruptDataError(f"{path}: language/emb: expected one row of floats per sentence, found {rows.shape}")
    return rows.reshape(len(rows), math.prod(rows.shape[1:])).astype(np.float32)
