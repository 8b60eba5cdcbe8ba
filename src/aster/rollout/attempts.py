"""The one runner of many attempts, for evaluation and for synthesis with any teacher.

It starts the attempts, writes them part by part as they end, and stops where nothing but faults comes. An attempt is on disk at
the latest when :data:`PART` attempts or :data:`PART_SECONDS` have passed since it ended. Where an exception ends the work
(Ctrl-C is one), the attempts that have ended are written first. Given again, the command makes the attempts that are missing,
and repeats those that failed because of an engine, a sandbox or an environment.

A deterministic run makes its attempts in waves, and a wave is written when all of it has ended. A resumed run then has the same
waves, so that the same trajectories are decoded together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aster.errors import UserError, one_line
from aster.rollout.batch import Job, RolloutContext, Rollouts
from aster.rollout.loop import Decoding
from aster.run import RunFolder, iterate_trajectories, write_trajectories
from aster.terminal import Progress, say
from aster.transcript import Transcript
from aster.types import FAULTS, Budget, Trajectory

Attempt = Trajectory | Transcript

PART = 16
"""Attempts in a file."""
PART_SECONDS = 60.0
"""The longest that an attempt that has ended waits for others to share its file."""
HOPELESS = 16
"""So many faults in a row, at more than one problem, stop the work: a server that is gone must not pass for a policy that is
wrong. Where only one problem fails, or the last few attempts of a resumed stage do, they are recorded as faults. Otherwise the
stage could never be finished."""


@dataclass(slots=True)
class _Faults:
    """Counts attempts that failed because of an engine, a sandbox or an environment."""

    total: int = 0
    in_a_row: int = 0
    problems: set[str] = field(default_factory=set)
    """Problems of those in a row."""
    last: str = ""
    """How the last one failed."""

    def count(self, attempt: Attempt) -> None:
        if attempt.stop_reason in FAULTS:
            self.total += 1
            self.in_a_row += 1
            self.problems.add(attempt.problem_id)
            self.last = f"{attempt.stop_reason}: {one_line(attempt.error, None)}"
        else:
            self.in_a_row = 0
            self.problems.clear()


async def run_attempts(
    jobs: Sequence[Job],
    start: Callable[[Job], asyncio.Task[Attempt | None]],
    keep: Callable[[Sequence[Attempt]], None],
    *,
    label: str,
    seen: Callable[[Attempt], None] = lambda _: None,
    wave: int | None = None,
    first: bool = True,
    part: int = PART,
    hopeless: int | None = HOPELESS,
) -> None:
    """Make an attempt for each job. Reports at the end how many failed.

    ``start`` begins an attempt as soon as there is room; its task gives None where the attempt was not begun. ``seen`` is
    called for each attempt when it has ended. ``keep`` writes attempts, in the order in which they ended, ``part`` of them at a
    time or after :data:`PART_SECONDS`. Attempts that are written are not held in memory.

    ``wave``: so many attempts are made at a time, and ``keep`` gets them together, in the order of the jobs. None: all are
    started at once. ``first``: no attempt is on disk yet. ``hopeless``: see :data:`HOPELESS`; None: all faults are recorded,
    and the caller reports them.

    UserError where only faults come. What an attempt or ``keep`` raises is passed on. When this returns or raises, no attempt
    is under way.
    """
    faults = _Faults()
    size = wave or max(1, len(jobs))
    for begin in range(0, len(jobs), size):
        batch = jobs[begin : begin + size]
        finished: asyncio.Queue[asyncio.Task[Attempt | None]] = asyncio.Queue()
        under_way: set[asyncio.Task[Attempt | None]] = set()
        ended: list[Attempt] = []
        write_at = 0.0  # where some have ended
        stopped = False
        try:
            for job in batch:
                task = start(job)
                under_way.add(task)
                task.add_done_callback(finished.put_nowait)
            while under_way:
                done = await _next(finished, write_at if ended and wave is None else None)
                if done is not None:
                    under_way.discard(done)
                    attempt = done.result()
                    if attempt is None:
                        continue
                    if not ended:
                        write_at = time.monotonic() + PART_SECONDS
                    ended.append(attempt)
                    faults.count(attempt)
                    seen(attempt)
                if hopeless is not None and (
                    (faults.in_a_row >= hopeless and len(faults.problems) > 1) or (first and faults.in_a_row == len(jobs))
                ):
                    stopped = True
                    raise UserError(
                        f"{label}: {faults.in_a_row} attempts in a row failed, the last with {faults.last}; correct that and "
                        "give the same command again: it resumes"
                    )
                if wave is None and ended and (len(ended) >= part or time.monotonic() >= write_at):
                    written, ended = ended, []
                    keep(written)
            if wave is not None and ended:
                place = {(job.problem.id, job.sample): number for number, job in enumerate(batch)}
                keep(sorted(ended, key=lambda each: place[each.problem_id, each.sample]))
        finally:
            try:
                if wave is None:
                    ended += [made for task in under_way if (made := _result(task)) is not None]
                    # Where it is hopeless, the faults are left out: they would be repeated anyway.
                    rest = [each for each in ended if not (stopped and each.stop_reason in FAULTS)]
                    if rest:
                        keep(rest)
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)
    if faults.total and hopeless is not None:
        say(f"{label}: {faults.total} of {len(jobs)} attempts failed, the last with {faults.last}")


async def _next(
    finished: asyncio.Queue[asyncio.Task[Attempt | None]], until: float | None
) -> asyncio.Task[Attempt | None] | None:
    """The next task that has finished; None where there is none at ``until`` (on the monotonic clock)."""
    try:
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            return await finished.get()
    except TimeoutError:
        return None


def _result(task: asyncio.Task[Attempt | None]) -> Attempt | None:
    """What a task gave; None where it is under way or failed."""
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


def next_part(folder: Path) -> Path:
    """Where the next part of the attempts in a folder goes."""
    found = part_files(folder)
    number = int(found[-1].name.removeprefix("part_").removesuffix(".jsonl.gz")) + 1 if found else 1
    return folder / f"part_{number:05d}.jsonl.gz"


def part_files(folder: Path) -> list[Path]:
    """The parts in a folder, oldest first."""
    return sorted(folder.glob("part_*.jsonl.gz"))


async def synthesize_attempts(
    folder: RunFolder, jobs: Sequence[Job], context: RolloutContext, budget: Budget, decoding: Decoding, *, chunk: int
) -> Iterator[Trajectory]:
    """Make the attempts of the stage ``synthesize``, then rewrite them as files of ``chunk`` attempts in the order of the jobs,
    for the stages that follow. Returns the attempts in that order, read one by one."""
    place = folder.trajectory_file("synthesize", "any").parent
    made = {
        (each.problem_id, each.sample)
        for file in place.glob("*.jsonl.gz")
        for each in iterate_trajectories(file)
        if each.stop_reason not in FAULTS
    }
    missing = [job for job in jobs if (job.problem.id, job.sample) not in made]
    if made and missing:
        say(f"synthesize: resuming after attempt {len(jobs) - len(missing)} of {len(jobs)}")
    if missing:
        with Progress("synthesize", len(jobs), "attempt", done=len(jobs) - len(missing)) as progress:
            async with Rollouts(context) as rollouts:
                await run_attempts(
                    missing,
                    lambda job: rollouts.start(job, budget, decoding),
                    lambda part: write_trajectories(next_part(place), (each for each in part if isinstance(each, Trajectory))),
                    label="synthesize",
                    seen=lambda attempt: progress.advance(calls=attempt.tool_calls),
                    wave=context.concurrency if context.deterministic else None,
                    first=not made,
                )
    return _in_order(place, jobs, chunk)


def _in_order(place: Path, jobs: Sequence[Job], chunk: int) -> Iterator[Trajectory]:
    """Rewrite the parts as chunks in the order of the jobs. No more than one chunk of attempts is in memory at a time.

    A kill at any point loses nothing: the parts are deleted when all chunks are written."""
    parts = part_files(place)
    newest: dict[tuple[str, int], Path] = {}
    for file in parts:
        newest |= {(each.problem_id, each.sample): file for each in iterate_trajectories(file)}
    chunks = [place / f"chunk_{index:05d}.jsonl.gz" for index in range(-(-len(jobs) // chunk))]
    for index, file in enumerate(chunks):
        keys = [(job.problem.id, job.sample) for job in jobs[index * chunk : (index + 1) * chunk]]
        sources = {newest[key] for key in keys if key in newest}
        if not sources:
            continue  # the chunk was written by an earlier start
        # Parts hold what is newer than the chunk of an earlier start.
        found = {(each.problem_id, each.sample): each for each in iterate_trajectories(file)} if file.exists() else {}
        wanted = set(keys)
        for source in sources:
            for each in iterate_trajectories(source):
                key = each.problem_id, each.sample
                if key in wanted and newest.get(key) == source:
                    found[key] = each
        write_trajectories(file, [found[key] for key in keys])
    for file in parts:
        file.unlink()
    return (trajectory for file in chunks for trajectory in iterate_trajectories(file))
