"""The stage synthesize: a teacher attempts problems with the tool. Every attempt is kept, right or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aster.chat import Qwen3Dialect, ToolSchemas
from aster.checkpoints import until_finished
from aster.config import ColdStart
from aster.config.recipe import Recipe
from aster.engines import Sampler
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.engines.opening import open_engine
from aster.environments.opening import make_environment
from aster.environments.problems import LAB, teaching_problems
from aster.errors import UserError
from aster.rollout import Decoding, Job, RolloutContext, make_jobs
from aster.rollout.attempts import synthesize_attempts
from aster.run import RunFolder
from aster.seeds import derive
from aster.teacher import ScriptedTeacher
from aster.teacher.attempts import teach
from aster.teacher.lab_experts import EXPERTS

CHUNK = 64
"""Attempts per file, in the order of the jobs."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Let the teacher attempt every problem. Resumes after the last complete file."""
    asyncio.run(until_finished(folder, "synthesize", lambda: _run(recipe, folder)))


async def _run(recipe: Recipe, folder: RunFolder) -> None:
    settings = recipe.synthesize
    first = folder.recipe["synthesize"]["problems"]
    problems = teaching_problems(recipe.problems, settings.problems, recipe.seed, first)
    folder.remember_problems(problems)
    jobs = make_jobs(problems, settings.attempts, recipe.seed, "synthesize")
    here = settings.teacher == "policy" and recipe.policy.samples_here
    environment = make_environment(recipe.environment, recipe.tools, recipe.sandbox, beside_sampler=here)
    if settings.teacher == "endpoint":
        source = recipe.problems.teach or recipe.problems.train
        await teach(settings, folder, jobs, environment, recipe.model.path, source)
        return
    async with environment, _teacher(recipe, environment.schemas) as (sampler_for, dialect):
        context = RolloutContext(sampler_for, dialect, environment, recipe.rollout.slots, recipe.rollout.deterministic)
        made = await synthesize_attempts(folder, jobs, context, settings.limits.budget(), Decoding(), chunk=CHUNK)
    correct = calls = 0
    for trajectory in made:
        correct += trajectory.reward == 1.0
        calls += trajectory.tool_calls
    folder.finish(
        "synthesize",
        {
            "attempts": len(jobs),
            "correct": correct,
            "tool_calls": calls / max(1, len(jobs)),
        },
    )


@asynccontextmanager
async def _teacher(recipe: Recipe, tools: ToolSchemas) -> AsyncIterator[tuple[Callable[[Job], Sampler], Qwen3Dialect]]:
    """The sampler that writes the turns of a job, and its dialect. Raises UserError where there is no expert for the
    problems."""
    if recipe.synthesize.teacher == "policy":
        async with open_engine(recipe.engine, capacity=recipe.synthesize.limits.context_tokens) as policy:
            yield (lambda _: policy), policy.dialect
        return
    source = recipe.problems.teach or recipe.problems.train
    if source != LAB:
        raise UserError(
            f"problems.teach: the scripted experts can teach only lab problems, not {source}; set problems.teach=lab, "
            "synthesize.teacher=endpoint or synthesize.teacher=policy"
        )
    expert = EXPERTS[ColdStart(recipe.cold_start)]
    tokenizer = load_tokenizer(resolve(recipe.model.path, weights=recipe.policy.needs_weights))
    dialect = make_dialect(tokenizer).with_tools(tools)
    yield (lambda job: ScriptedTeacher(expert, job.problem, derive(job.seed, "expert"), dialect)), dialect
