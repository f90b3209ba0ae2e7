"""Trajectories: episodes, the crash-safe store that holds them, and splits by episode."""

from latentgym.trajectories.dataset import Dataset
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance
from latentgym.trajectories.frames import decode_frames, encode_frames
from latentgym.trajectories.splits import Split, split_episodes, split_tasks
from latentgym.trajectories.store import Store, check_dataset, create_store, inspect_dataset, open_dataset

__all__ = [
    "ActionSpec",
    "Dataset",
    "Episode",
    "Provenance",
    "Split",
    "Store",
    "check_dataset",
    "create_store",
    "decode_frames",
    "encode_frames",
    "inspect_dataset",
    "open_dataset",
    "split_episodes",
    "split_tasks",
]
