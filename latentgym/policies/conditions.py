"""What a conditioned policy is told beside what it sees: a goal, or an instruction in words."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import UnknownNameError

CONDITIONS = ("none", "goal", "instruction")
INSTRUCTION_SIZE = 64


def check_condition(condition: str) -> None:
    """Raise :class:`UnknownNameError` if there is no such condition."""
    if condition not in CONDITIONS:
        raise UnknownNameError("condition", condition, CONDITIONS)


def instruction_features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Instructions as ``(B, 64)`` float32 rows of length 1: hashed words and pairs of words.

    Different words give different rows; unlike a language model's, the rows say nothing about what words mean, so that
    a policy understands the sentences that it was trained on and mixtures of their words, and no others. An empty text
    is a row of zeros.

    >>> rows = instruction_features(["open the drawer", "Open the drawer!", ""])
    >>> bool((rows[0] == rows[1]).all()), float(rows[2].sum())
    (True, 0.0)
    """
    rows = np.zeros((len(texts), INSTRUCTION_SIZE), np.float32)
    for index, text in enumerate(texts):
        words = re.findall(r"[a-z0-9]+", text.lower())
        for term in (*words, *map(" ".join, itertools.pairwise(words))):
            digest = hashlib.sha256(term.encode()).digest()
            rows[index, digest[0] % INSTRUCTION_SIZE] += 1.0 if digest[1] % 2 else -1.0
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-6))
