"""The one runner of many attempts, used by synthesis and evaluation: started, written as they end, resumed with what is
missing.

An attempt is on disk at the latest when :data:`PART` attempts or :data:`PART_SECONDS` have passed since it ended. Whatever ends
the process by an exception, Ctrl-C among them, writes the rest first. Given again, the command makes what is missing, and again
what failed because of an engine, a sandbox or an environment.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from aster.errors import UserError, one_line
from aster.rollout.batch import Job, RolloutContext, Rollouts
from aster.rollout.loop import Decoding
from aster.run import RunFolder, iterate_trajectories, write_trajectories
from aster.terminal import Progress, say
from aster.transcript import Transcript
from aster.types import FAULTS, Budget, Trajectory

Attempt = Trajectory | Transcript
Start = Callable[[Job], "asyncio.Task[Trajectory] | asyncio.Task[Transcript] | asyncio.Task[Transcript | None]"]
"""Begins an attempt as soon as there is room. None instead of an attempt: it was not begun."""

PART = 16
"""Attempts in a file."""
PART_SECONDS = 60.0
"""An attempt waits no longer for the others of its file."""
HOPELESS = 16
"""So many faults in a row, at more than one problem, end the work: a server that is gone must not pass for a policy that is
wrong. Where only one problem fails, or the last few attempts of a resumed stage do, they are recorded as faults: else the
stage could never be finished."""


async def run_attempts(
    jobs: Sequence[Job],
    start: Start,
    keep: Callable[[list[Attempt]], None],
    *,
    label: str,
    seen: Callable[[Attempt], None] = lambda _: None,
    wave: int | None = None,
    first: bool = True,
    part: int = PART,
    hopeless: int | None = HOPELESS,
) -> None:
    """Make all attempts. ``keep`` writes those that have ended, ``seen`` is called for each.

    ``wave``: so many at a time, written together in the jobs' order (a deterministic run). ``first``: no attempt is on disk
    yet. ``hopeless``: faults in a row that end the work; None: never. UserError where only faults come."""
    ended: list[Attempt] = []
    faults = in_a_row = 0
    failing: set[str] = set()  # problems of the faults in a row
    written = time.monotonic()
    try:
        for begin in range(0, len(jobs), wave or max(1, len(jobs))):
            tasks = [start(job) for job in jobs[begin : begin + (wave or len(jobs))]]
            waiting: set[asyncio.Task[object]] = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=PART_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    attempt = task.result()
                    if not isinstance(attempt, Trajectory | Transcript):
                        continue
                    ended.append(attempt)
                    faulty = attempt.stop_reason in FAULTS
                    faults, in_a_row = faults + faulty, in_a_row + 1 if faulty else 0
                    failing = {*failing, attempt.problem_id} if faulty else set()
                    seen(attempt)
                if hopeless is not None and ((in_a_row >= hopeless and len(failing) > 1) or (first and in_a_row == len(jobs))):
                    last = ended[-1]
                    # They would be made again all the same.
                    ended = [each for each in ended if each.stop_reason not in FAULTS]
                    raise UserError(
                        f"{label}: {in_a_row} attempts in a row failed, the last with {last.stop_reason}: "
                        f"{one_line(last.error, None)}; correct that and give the same command again: it resumes"
                    )
                if wave is None and ended and (len(ended) >= part or time.monotonic() - written > PART_SECONDS):
                    keep(ended)
                    ended, written = [], time.monotonic()
            if wave is not None:
                keep([each for task in tasks if (each := task.result()) is not None])
                ended = []
    finally:
        if ended and wave is None:
            keep(ended)
    if faults and hopeless is not None:
        say(f"{label}: {faults} of {len(jobs)} attempts failed because of an engine, a sandbox or an environment")


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
    """Make the attempts of the stage ``synthesize``, then put them into files of ``chunk``, in the order of the jobs, which
    is what later stages read. Returns them in that order, read one by one."""
    place = folder.trajectory_file("synthesize", "any").parent
    made = {key for file in place.glob("*.jsonl.gz") for key in _healthy_keys(iterate_trajectories(file))}
    missing = [job for job in jobs if (job.problem.id, job.sample) not in made]
    if made and missing:
        say(f"synthesize: resuming after attempt {len(jobs) - len(missing)} of {len(jobs)}")
    if missing:
        with Progress("synthesize", len(jobs), "attempt", done=len(jobs) - len(missing)) as progress:
            async with Rollouts(context) as rollouts:
                await run_attempts(
                    missing,
                    lambda job: rollouts.start(job, budget, decoding),
                    lambda part: write_trajectories(next_part(place), [t for t in part if isinstance(t, Trajectory)]),
                    label="synthesize",
                    seen=lambda attempt: progress.advance(calls=attempt.tool_calls),
                    wave=context.concurrency if context.deterministic else None,
                    first=not made,
                )
    return _in_order(place, jobs, chunk)


def _healthy_keys(trajectories: Iterable[Trajectory]) -> Iterator[tuple[str, int]]:
    return ((t.problem_id, t.sample) for t in trajectories if t.stop_reason not in FAULTS)


def _in_order(place: Path, jobs: Sequence[Job], chunk: int) -> Iterator[Trajectory]:
    """Rewrite the parts as chunks in the jobs' order; about a chunk of trajectories is in memory at once, for attempts end
    nearly in the order in which they begin."""
    parts = part_files(place)
    newest: dict[tuple[str, int], Path] = {}
    for file in parts:
        newest |= {(t.problem_id, t.sample): file for t in iterate_trajectories(file)}
    chunks = [place / f"chunk_{index:05d}.jsonl.gz" for index in range(-(-len(jobs) // chunk))]
    for index, file in enumerate(chunks):
        keys = [(job.problem.id, job.sample) for job in jobs[index * chunk : (index + 1) * chunk]]
        if not any(key in newest for key in keys):
            continue  # of an earlier start, which ended before the parts were deleted
        wanted = Counter(newest[key] for key in keys if key in newest)
        sources = [*([file] if file.exists() else []), *sorted(wanted)]
        found = {
            (t.problem_id, t.sample): t
            for source in sources
            for t in iterate_trajectories(source)
            if source == file or newest.get((t.problem_id, t.sample)) == source
        }
        write_trajectories(file, [found[key] for key in keys])
    for file in parts:
        file.unlink()
    return (trajectory for file in chunks for trajectory in iterate_trajectories(file))
