"""The sentence encoder knows meanings, which hashed words do not; a policy keeps the one that it was trained with."""

from __future__ import annotations

import numpy as np
import pytest

from latentgym.errors import LatentGymError
from latentgym.policies.conditions import instruction_features
from latentgym.policies.sentences import DEFAULT_SENTENCE_ENCODER, sentence_features, sentence_size


def test_meanings_lie_closer_than_words() -> None:
    texts = ["pull the handle to open the drawer", "slide out the desk compartment", "turn off the light bulb"]
    rows = instruction_features(texts, DEFAULT_SENTENCE_ENCODER)
    assert rows.shape == (3, sentence_size()) == (3, 384) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1


def test_a_row_does_not_depend_on_its_batch_and_nothing_said_is_zero() -> None:
    alone = instruction_features(["open the drawer"], DEFAULT_SENTENCE_ENCODER)
    among = instruction_features(
        ["", "open the drawer", "a much longer sentence about a red block"], "all-MiniLM-L6-v2"
    )
    np.testing.assert_array_equal(alone[0], among[1])
    assert not among[0].any()


def test_unknown_sentence_encoders_are_named(tmp_path) -> None:
    with pytest.raises(LatentGymError, match="sentence encoder"):
        sentence_features("open", str(tmp_path / "nothing"))
