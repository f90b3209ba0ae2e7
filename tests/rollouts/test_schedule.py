from __future__ import annotations

from pathlib import Path

from latentgym.rollouts.records import EpisodeRecord
from latentgym.rollouts.schedule import Schedule


def ended(seed: int, success: bool) -> EpisodeRecord:
    return EpisodeRecord(seed, success, 5, 5 if success else None, 1.0)


def test_lost_episodes_come_first_and_the_guilty_only_twice() -> None:
    told: list[tuple[int, int]] = []
    schedule = Schedule([10, 11, 12], progress=lambda done, total: told.append((done, total)))
    assert [schedule.take(), schedule.take()] == [0, 1]
    schedule.lose(1, "crashed")
    schedule.lose(0, None)
    assert [schedule.take(), schedule.take(), schedule.take(), schedule.take()] == [0, 1, 2, None]
    schedule.lose(1, "crashed again")
    assert schedule.take() is None
    assert schedule.records == (EpisodeRecord(11, False, 0, None, 0.0, "crashed again"),)
    for _ in range(5):
        schedule.lose(0, None)
        assert schedule.take() == 0
    schedule.finish(2, ended(12, True))
    assert not schedule.finished
    schedule.finish(0, ended(10, False))
    assert schedule.finished
    assert [record.seed for record in schedule.records] == [10, 11, 12]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_first_of_each_outcome_are_filmed_whatever_ends_first(tmp_path: Path) -> None:
    schedule = Schedule(range(6), videos=(1, 1), folder=tmp_path)
    assert all(schedule.may_film(episode) for episode in range(6))
    schedule.finish(4, ended(4, True))
    assert schedule.video(1, ended(1, True)) == tmp_path / "success-1.mp4"
    assert schedule.video(5, ended(5, True)) is None
    assert schedule.video(5, ended(5, False)) == tmp_path / "failure-5.mp4"
    schedule.finish(0, ended(0, False))
    assert not schedule.may_film(5)
    assert schedule.may_film(3)
    assert not any(Schedule(range(3), videos=(1, 1)).may_film(episode) for episode in range(3))
