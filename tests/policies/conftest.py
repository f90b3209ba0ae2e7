from __future__ import annotations

from pathlib import Path

import pytest

from latentgym.envs.recording import record
from latentgym.trajectories import Dataset

ENV_ID = "latentgym/TabletopReach-v0"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty short episodes of Reach, a quarter of them random."""
    folder: Path = tmp_path_factory.mktemp("policies") / "reach"
    return record(ENV_ID, folder, episodes=20, policy="noisy-expert", seed=0, random_fraction=0.25)
