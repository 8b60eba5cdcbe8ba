"""The runner of attempts: what is on disk when, what an exception leaves, when it stops. The attempts are made by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aster.rollout import Job
from aster.rollout.attempts import HOPELESS, PART, Attempt, next_part, part_files, run_attempts
from aster.run import read_trajectories, write_trajectories
from aster.types import Problem, StopReason, Trajectory
from tests.refusals import refused

Make = Callable[[Job], Awaitable[Trajectory | None]]


def jobs(count: int, problems: int = 3) -> list[Job]:
    return [Job(Problem(f"p{number % problems}", "", ""), number, 0) for number in range(count)]


def attempt(job: Job, reason: StopReason = StopReason.ANSWERED) -> Trajectory:
    error = "" if reason is StopReason.ANSWERED else "gone"
    return Trajectory(job.problem.id, job.sample, 0, stop_reason=reason, error=error)


class Kept(list[list[int]]):
    """The samples that were written, part by part."""

    def write(self, attempts: Sequence[Attempt]) -> None:
        self.append([each.sample for each in attempts])

    @property
    def samples(self) -> list[int]:
        return [sample for part in self for sample in part]


def run(asked: Sequence[Job], make: Make, keep: Callable[[Sequence[Attempt]], None], **options: Any) -> None:
    async def start_all() -> None:
        await run_attempts(asked, lambda job: asyncio.ensure_future(make(job)), keep, label="stage", **options)

    asyncio.run(start_all())


def test_parts_are_written_as_attempts_end_and_then_forgotten() -> None:
    kept, held = Kept(), []
    places = 4  # attempts that end at a time
    free: list[asyncio.Semaphore] = []

    def keep(attempts: Sequence[Attempt]) -> None:
        gc.collect()
        held.append(sum(type(each) is Trajectory for each in gc.get_objects()))
        kept.write(attempts)

    async def make(job: Job) -> Trajectory:
        if not free:
            free.append(asyncio.Semaphore(places))
        await free[0].acquire()
        return attempt(job)

    before = sum(type(each) is Trajectory for each in gc.get_objects())
    run(jobs(10 * PART), make, keep, seen=lambda _: free[0].release())
    assert kept.samples == list(range(10 * PART))
    assert all(len(part) == PART for part in kept)
    assert max(held) - before <= PART + places


def test_an_attempt_does_not_wait_long_for_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aster.rollout.attempts.PART_SECONDS", 0.01)
    kept = Kept()
    written: list[asyncio.Event] = []

    async def make(job: Job) -> Trajectory:
        if not written:
            written.append(asyncio.Event())
        if job.sample:
            await written[0].wait()  # for ever, if the first were not written before this one ends
        return attempt(job)

    def keep(attempts: Sequence[Attempt]) -> None:
        kept.write(attempts)
        written[0].set()

    run(jobs(3), make, keep)
    assert kept[0] == [0]
    assert sorted(kept.samples) == [0, 1, 2]


@pytest.mark.parametrize("interrupt", [RuntimeError, asyncio.CancelledError])
def test_what_has_ended_is_written_and_what_is_under_way_is_cancelled(interrupt: type[BaseException]) -> None:
    kept, cancelled = Kept(), []

    async def make(job: Job) -> Trajectory:
        if job.sample < 3:
            return attempt(job)
        try:
            await asyncio.sleep(0.05 if job.sample == 3 else 3600)
        except asyncio.CancelledError:
            cancelled.append(job.sample)
            raise
        raise interrupt

    with pytest.raises(interrupt):
        run(jobs(6), make, kept.write)
    assert kept == [[0, 1, 2]]
    assert sorted(cancelled) == [4, 5]


def test_an_attempt_that_ends_together_with_a_failure_is_written() -> None:
    kept = Kept()

    async def make(job: Job) -> Trajectory:
        if job.sample == 0:
            raise RuntimeError
        return attempt(job)

    with pytest.raises(RuntimeError):
        run(jobs(4), make, kept.write)
    assert sorted(kept.samples) == [1, 2, 3]


def test_a_wave_is_written_whole_and_in_the_order_of_the_jobs() -> None:
    kept, begun = Kept(), []

    async def make(job: Job) -> Trajectory:
        begun.append(job.sample)
        await asyncio.sleep(0.01 * (8 - job.sample))  # the last ends first
        if job.sample == 6:
            raise RuntimeError
        return attempt(job)

    with pytest.raises(RuntimeError):
        run(jobs(8), make, kept.write, wave=3)
    # The third wave had not ended: given again, it is made again, with the same attempts beside each other.
    assert kept == [[0, 1, 2], [3, 4, 5]]
    assert begun == list(range(8))


def test_attempts_that_were_not_begun_are_none() -> None:
    kept = Kept()

    async def make(job: Job) -> Trajectory | None:
        return attempt(job) if job.sample % 2 else None

    run(jobs(6), make, kept.write)
    assert kept.samples == [1, 3, 5]


@pytest.mark.parametrize(("good", "wave"), [(0, None), (5, None), (0, 4)])
def test_faults_in_a_row_stop_the_work(good: int, wave: int | None) -> None:
    kept, begun = Kept(), []

    async def make(job: Job) -> Trajectory:
        begun.append(job.sample)
        await asyncio.sleep(0)
        return attempt(job, StopReason.ANSWERED if job.sample < good else StopReason.ENGINE_ERROR)

    with refused("stage", "engine_error: gone"):
        run(jobs(3 * HOPELESS), make, kept.write, wave=wave)
    assert set(range(good)) <= set(kept.samples)
    assert wave is None or len(begun) == HOPELESS
    if good == 0 and wave is None:
        assert not kept  # so that other settings may have the folder


@pytest.mark.parametrize(
    ("problems", "good", "bad", "first"),
    [(1, 0, 2 * HOPELESS, False), (1, 1, 2 * HOPELESS, True), (2, 0, 2, False)],
    ids=["only one problem fails, resumed", "only one problem fails", "the last few of a resumed stage fail"],
)
def test_faults_that_would_keep_a_stage_from_its_end_are_recorded(
    problems: int, good: int, bad: int, first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept()

    async def make(job: Job) -> Trajectory:
        return attempt(job, StopReason.ANSWERED if job.sample < good else StopReason.SANDBOX_ERROR)

    run(jobs(good + bad, problems), make, kept.write, first=first)
    assert kept.samples == list(range(good + bad))
    assert f"stage: {bad} of {good + bad} attempts failed" in capsys.readouterr().err


def test_a_stage_of_which_nothing_is_good_is_refused_however_small(capsys: pytest.CaptureFixture[str]) -> None:
    async def make(job: Job) -> Trajectory:
        return attempt(job, StopReason.ENVIRONMENT_ERROR)

    with refused("stage"):
        run(jobs(2, problems=1), make, Kept().write)
    assert "of 2 attempts failed" not in capsys.readouterr().err


def test_parts_are_numbered_on_and_a_full_disk_is_passed_on(tmp_path: Path) -> None:
    def keep(attempts: Sequence[Attempt]) -> None:
        write_trajectories(next_part(tmp_path), [each for each in attempts if isinstance(each, Trajectory)])
        if len(part_files(tmp_path)) == 3:
            raise OSError("full")

    async def make(job: Job) -> Trajectory:
        return attempt(job)

    with pytest.raises(OSError, match="full"):
        run(jobs(5), make, keep, part=1)
    assert [path.name for path in part_files(tmp_path)] == [f"part_0000{n}.jsonl.gz" for n in (1, 2, 3, 4)]
    assert {each.sample for path in part_files(tmp_path) for each in read_trajectories(path)} == set(range(5))
