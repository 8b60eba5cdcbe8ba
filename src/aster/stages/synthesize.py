"""Synthesize: a teacher attempts problems with the tool; every attempt is kept, good or bad."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aster.chat import Qwen3Dialect
from aster.core.errors import UserError
from aster.core.progress import Progress, say
from aster.core.recipe import Recipe
from aster.core.run import RunFolder, read_trajectories, write_trajectories
from aster.core.seeds import derive
from aster.core.types import Trajectory
from aster.lab.experts import EXPERTS
from aster.policy import Sampler
from aster.policy.loading import load_tokenizer, make_dialect, resolve
from aster.policy.local import LocalPolicy
from aster.rollout import Decoding, Job, Workshop, rollout_batch
from aster.sandbox import make_sandbox
from aster.stages.common import LAB, make_jobs, note_faults, teaching_problems
from aster.teacher import ScriptedTeacher

CHUNK = 64
"""Attempts per file: an interrupt loses at most so many."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Attempt every problem; resumes after the last whole chunk."""
    asyncio.run(_run(recipe, folder))


async def _run(recipe: Recipe, folder: RunFolder) -> None:
    settings = recipe.synthesize
    problems = teaching_problems(recipe, settings.problems)
    folder.remember_problems(problems)
    sampler_for, dialect = _teacher(recipe)
    jobs = make_jobs(problems, settings.attempts, recipe.seed, "synthesize")
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    files = [folder.trajectory_file("synthesize", f"chunk_{index:05d}") for index in range(len(chunks))]
    before = sum(len(chunk) for chunk, file in zip(chunks, files, strict=True) if file.exists())
    if before:
        say(f"synthesize: resuming after attempt {before} of {len(jobs)}")
    trajectories: list[Trajectory] = []
    with Progress("synthesize", len(jobs), "attempt", done=before) as progress:
        async with make_sandbox(recipe.sandbox) as sandbox:
            workshop = Workshop(sampler_for, dialect, sandbox, recipe.rollout.slots, recipe.rollout.deterministic)
            for chunk, file in zip(chunks, files, strict=True):
                if not file.exists():
                    made = await rollout_batch(
                        chunk, workshop, settings.limits.budget(), Decoding(), lambda t: progress.advance(calls=t.tool_calls)
                    )
                    note_faults("synthesize", made)
                    write_trajectories(file, made)
                trajectories += read_trajectories(file)
    folder.finish(
        "synthesize",
        {
            "attempts": len(trajectories),
            "correct": sum(t.reward == 1.0 for t in trajectories),
            "tool_calls": sum(t.tool_calls for t in trajectories) / max(1, len(trajectories)),
        },
    )


def _teacher(recipe: Recipe) -> tuple[Callable[[Job], Sampler], Qwen3Dialect]:
    """Who writes the turns of a job, and in which dialect."""
    if recipe.synthesize.teacher == "policy":
        policy = LocalPolicy(recipe, capacity=recipe.synthesize.limits.context_tokens)
        return (lambda _: policy), policy.dialect
    source = recipe.problems.teach or recipe.problems.train
    if source != LAB:
        raise UserError(
            f"problems.teach: the scripted experts can teach lab problems alone, not {source}; set problems.teach=lab "
            "or synthesize.teacher=policy"
        )
    expert = EXPERTS[recipe.cold_start]
    dialect = make_dialect(load_tokenizer(resolve(recipe.model.path)))
    return (lambda job: ScriptedTeacher(expert, job.problem, derive(job.seed, "expert"), dialect)), dialect
