"""Many attempts at problems, kept file by file: what synthesis and evaluation share."""

from __future__ import annotations

from collections.abc import Callable

from aster.chat import Qwen3Dialect
from aster.checkpoints import note_faults
from aster.config import Limits
from aster.config.recipe import Recipe
from aster.engines import Sampler
from aster.rollout import Decoding, Job, Workshop, rollout_batch
from aster.run import RunFolder, read_trajectories, write_trajectories
from aster.terminal import Progress, say
from aster.types import Trajectory
from aster_sandbox import make_sandbox


async def attempt_all(
    recipe: Recipe,
    folder: RunFolder,
    stage: str,
    jobs: list[Job],
    *,
    chunk: int,
    limits: Limits,
    decoding: Decoding,
    sampler_for: Callable[[Job], Sampler],
    dialect: Qwen3Dialect,
    sampled_here: bool,
) -> list[Trajectory]:
    """Make every attempt, ``chunk`` of them a file of the stage. Files that are there are read instead: an interrupt loses one.

    ``sampled_here``: this process computes the turns.

    UserError where every attempt of a file fails through no doing of the policy.
    """
    label = stage.replace("/", " ")
    chunks = [jobs[start : start + chunk] for start in range(0, len(jobs), chunk)]
    files = [folder.trajectory_file(stage, f"chunk_{index:05d}") for index in range(len(chunks))]
    before = sum(len(part) for part, file in zip(chunks, files, strict=True) if file.exists())
    if before:
        say(f"{label}: resuming after attempt {before} of {len(jobs)}")
    trajectories: list[Trajectory] = []
    with Progress(label, len(jobs), "attempt", done=before) as progress:
        async with make_sandbox(recipe.sandbox, beside_sampler=sampled_here) as sandbox:
            workshop = Workshop(
                sampler_for,
                dialect,
                sandbox,
                recipe.rollout.slots,
                recipe.rollout.deterministic,
                recipe.demand.system,
                recipe.demand.prompt,
            )
            for part, file in zip(chunks, files, strict=True):
                if not file.exists():
                    made = await rollout_batch(
                        part, workshop, limits.budget(), decoding, lambda t: progress.advance(calls=t.tool_calls)
                    )
                    note_faults(label, made)
                    write_trajectories(file, made)
                trajectories += read_trajectories(file)
    return trajectories
