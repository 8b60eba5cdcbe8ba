"""Many attempts at problems, kept file by file."""

from __future__ import annotations

from aster.checkpoints import note_faults
from aster.rollout.batch import Job, RolloutContext, rollout_batch
from aster.rollout.loop import Decoding
from aster.run import RunFolder, read_trajectories, write_trajectories
from aster.terminal import Progress, say
from aster.types import Budget, Trajectory


async def attempt_all(
    folder: RunFolder, stage: str, jobs: list[Job], context: RolloutContext, budget: Budget, decoding: Decoding, *, chunk: int
) -> list[Trajectory]:
    """Make every attempt, ``chunk`` of them a file of the stage. Files that are there are read instead: an interrupt loses one.

    UserError where every attempt of a file fails because of an engine, a sandbox or an environment.
    """
    label = stage.replace("/", " ")
    chunks = [jobs[start : start + chunk] for start in range(0, len(jobs), chunk)]
    files = [folder.trajectory_file(stage, f"chunk_{index:05d}") for index in range(len(chunks))]
    before = sum(len(part) for part, file in zip(chunks, files, strict=True) if file.exists())
    if before:
        say(f"{label}: resuming after attempt {before} of {len(jobs)}")
    trajectories: list[Trajectory] = []
    with Progress(label, len(jobs), "attempt", done=before) as progress:
        for part, file in zip(chunks, files, strict=True):
            if not file.exists():
                made = await rollout_batch(part, context, budget, decoding, lambda t: progress.advance(calls=t.tool_calls))
                note_faults(label, made)
                write_trajectories(file, made)
            trajectories += read_trajectories(file)
    return trajectories
