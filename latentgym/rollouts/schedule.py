"""The list of episodes: which comes next, which must be repeated, and what became of each."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

from latentgym.rollouts.records import EpisodeRecord

_ATTEMPTS = 2
Progress = Callable[[int, int], None]


class Schedule:
    """Hands out every seed of a list once, lost episodes again, and ends when each has a record.

    Args:
        seeds: the seeds.
        videos: how many successes and failures to film, the first of each in the order of ``seeds``.
        folder: where videos go; nothing is filmed without it.
        progress: called with (episodes done, episodes in all).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        videos: tuple[int, int] = (0, 0),
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._seeds = seeds
        self._videos, self._folder, self._progress = videos if folder else (0, 0), folder, progress
        self._waiting = list(range(len(seeds)))
        self._failures = [0] * len(seeds)
        self._records: list[EpisodeRecord | None] = [None] * len(seeds)
        self._done = 0

    def __len__(self) -> int:
        return len(self._seeds)

    @property
    def finished(self) -> bool:
        """Whether every episode has a record."""
        return self._done == len(self._seeds)

    @property
    def records(self) -> tuple[EpisodeRecord, ...]:
        """The records so far, in the order of the seeds."""
        return tuple(record for record in self._records if record is not None)

    def seed(self, episode: int) -> int:
        """The seed of an episode."""
        return self._seeds[episode]

    def take(self) -> int | None:
        """The next episode, the first of those that wait; ``None`` if none does."""
        return heapq.heappop(self._waiting) if self._waiting else None

    def finish(self, episode: int, record: EpisodeRecord) -> None:
        """Keep the record of an episode."""
        assert self._records[episode] is None
        self._records[episode] = record
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, len(self._seeds))

    def lose(self, episode: int, blame: str | None) -> None:
        """An episode did not come to its end: it waits again, or is reported if it was to blame twice.

        Args:
            episode: the episode.
            blame: what it did; ``None`` if it was only beside the one that did.
        """
        if blame is not None:
            self._failures[episode] += 1
            if self._failures[episode] == _ATTEMPTS:
                return self.finish(episode, EpisodeRecord.crashed(self._seeds[episode], blame))
        heapq.heappush(self._waiting, episode)

    def may_film(self, episode: int) -> bool:
        """Whether the episode may be among the first successes or failures."""
        return any(self._earlier(episode, success) < self._videos[not success] for success in (True, False))

    def video(self, episode: int, record: EpisodeRecord) -> Path | None:
        """Where the video of an episode belongs; ``None`` if enough earlier ones ended alike."""
        if self._folder is None or self._earlier(episode, record.success) >= self._videos[not record.success]:
            return None
        return self._folder / f"{'success' if record.success else 'failure'}-{record.seed}.mp4"

    def _earlier(self, episode: int, success: bool) -> int:
        ended = (record for record in self._records[:episode] if record is not None and record.error is None)
        return sum(record.success == success for record in ended)
