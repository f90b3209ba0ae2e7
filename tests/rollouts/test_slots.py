from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from latentgym.errors import LatentGymError
from latentgym.rollouts.slots import NOWHERE, Layout, Slots

SPACE = spaces.Dict(
    {
        "pixels": spaces.Box(0, 255, (5, 7, 3), np.uint8),
        "state": spaces.Box(-1, 1, (3,), np.float32),
        "instruction": spaces.Text(20),
    }
)


def observation(value: int) -> dict[str, object]:
    return {
        "pixels": np.full((5, 7, 3), value, np.uint8),
        "state": np.full(3, value, np.float64),
        "instruction": f"go to {value}",
    }


def test_what_is_put_in_one_place_is_found_in_the_other() -> None:
    layout = Layout.of(SPACE, 2, slots=4, workers=2)
    ours = Slots.share(layout)
    try:
        theirs = Slots.attach(layout, ours.name)
        assert ours.current.tolist() == [NOWHERE] * 2
        texts = theirs.put(2, observation(7))
        ours.put_texts(2, texts)
        batch = ours.gather([2, 0, 2])
        assert batch["pixels"].shape == (3, 5, 7, 3)
        assert batch["pixels"][:, 0, 0, 0].tolist() == [7, 0, 7]
        assert batch["state"].dtype == np.float32
        assert batch["instruction"].tolist() == ["go to 7", "", "go to 7"]
        theirs.put(2, observation(9))
        assert batch["state"][0, 0] == 7  # a batch is a copy
        ours.action[3] = [1, 2]
        assert theirs.action[3].tolist() == [1, 2]
        theirs.detach()
    finally:
        ours.close()
    with pytest.raises(FileNotFoundError):
        Slots.attach(layout, "no-such-memory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros(4, np.float32)}, r"'state'.*\(3,\) float32, found \(4,\) float32"),
        ({"pixels": np.zeros((5, 7, 3), np.float32)}, r"'pixels'.*uint8, found \(5, 7, 3\) float32"),
    ],
)
def test_observations_outside_their_space_are_refused(change: dict[str, object], message: str) -> None:
    slots = Slots(Layout.of(SPACE, 2, slots=1))
    with pytest.raises(LatentGymError, match=message):
        slots.put(0, observation(1) | change)
    with pytest.raises(LatentGymError, match=r"'state'.*found nothing"):
        slots.put(0, {"pixels": np.zeros((5, 7, 3), np.uint8)})
