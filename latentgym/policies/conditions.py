"""What a conditioned policy is told beside what it sees: a goal, or an instruction in words."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import UnknownNameError
from latentgym.policies.sentences import sentence_features, sentence_size

CONDITIONS = ("none", "goal", "instruction")
WORDS = "words"
"""The instruction encoder that needs nothing installed."""
_WORDS_SIZE = 64


def check_condition(condition: str) -> None:
    """Raise :class:`UnknownNameError` if there is no such condition."""
    if condition not in CONDITIONS:
        raise UnknownNameError("condition", condition, CONDITIONS)


def instruction_features(texts: Sequence[str], encoder: str = WORDS) -> NDArray[np.float32]:
    """Instructions as ``(B, D)`` float32 rows of length 1, an empty text as a row of zeros.

    Args:
        texts: B instructions.
        encoder: a sentence encoder of :func:`~latentgym.policies.sentences.sentence_features`, or ``"words"``.

    Raises:
        LatentGymError: if there is no such encoder here.
    """
    if encoder == WORDS:
        return _word_features(texts)
    rows = np.zeros((len(texts), sentence_size(encoder)), np.float32)
    for index, text in enumerate(texts):
        if text.strip():
            rows[index] = sentence_features(text.strip(), encoder)
    return rows


def _word_features(texts: Sequence[str]) -> NDArray[np.float32]:
    """Hashed words and pairs of words, ``(B, 64)``.

    Different words give different rows; unlike a language model's, the rows say nothing about what words mean, so that
    a policy understands the sentences that it was trained on and mixtures of their words, and no others. An empty text
    is a row of zeros.

    >>> rows = _word_features(["open the drawer", "Open the drawer!", ""])
    >>> bool((rows[0] == rows[1]).all()), float(rows[2].sum())
    (True, 0.0)
    """
    rows = np.zeros((len(texts), _WORDS_SIZE), np.float32)
    for index, text in enumerate(texts):
        words = re.findall(r"[a-z0-9]+", text.lower())
        for term in (*words, *map(" ".join, itertools.pairwise(words))):
            digest = hashlib.sha256(term.encode()).digest()
            rows[index, digest[0] % _WORDS_SIZE] += 1.0 if digest[1] % 2 else -1.0
    found: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-6))
    return found
