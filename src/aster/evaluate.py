"""Evaluate: avg@k on held-out problems with an interval bootstrapped over problems, for each checkpoint of the run."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from aster.checkpoints import final_checkpoint, until_finished
from aster.config.recipe import Recipe
from aster.engines.opening import open_engine
from aster.environments.opening import make_environment
from aster.environments.problems import evaluation_problems
from aster.evaluation import outcome, summarize
from aster.rollout import Decoding, RolloutContext, make_jobs
from aster.rollout.attempts import attempt_all
from aster.run import RunFolder, write_json, write_trajectories
from aster.telemetry import tool_use
from aster.types import Problem

CHUNK = 256
"""Attempts per file: an interrupt loses at most so many."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Evaluate every checkpoint the recipe names and the run has. The stage is finished when it has them all."""
    problems = evaluation_problems(recipe.problems, recipe.evaluate.problems)
    folder.remember_problems(problems)
    summaries: dict[str, dict[str, object]] = {}
    expected = [name for name in recipe.evaluate.policies if name == "base" or name in recipe.stages]
    for name in expected:
        checkpoint = None if name == "base" else final_checkpoint(folder, name)
        if name != "base" and checkpoint is None:
            continue
        stage = f"evaluate/{name}"
        if folder.summary(stage) is None:
            attempt = functools.partial(_evaluate, recipe, folder, problems, name, checkpoint)
            asyncio.run(until_finished(folder, stage, attempt))
        for file in folder.trajectory_file(stage, "all").parent.glob("chunk_*"):
            file.unlink()
        summaries[name] = folder.summary(stage) or {}
    keys = ("accuracy", "low", "high", "k", "problems", "tool_calls")
    write_json(folder.path / "summary.json", {name: {key: s[key] for key in keys} for name, s in summaries.items()})
    if len(summaries) == len(expected):
        folder.finish("evaluate", {"policies": list(summaries)})


async def _evaluate(recipe: Recipe, folder: RunFolder, problems: list[Problem], name: str, checkpoint: Path | None) -> None:
    settings = recipe.evaluate
    stage = f"evaluate/{name}"
    # The seeds do not depend on the policy: all are asked with the same random numbers.
    jobs = make_jobs(problems, settings.k, recipe.seed, "evaluate")
    environment = make_environment(
        recipe.environment, recipe.tools, recipe.sandbox, recipe.demand, beside_sampler=recipe.policy.samples_here
    )
    async with (
        open_engine(recipe.engine, checkpoint, capacity=settings.limits.context_tokens) as engine,
        environment,
    ):
        context = RolloutContext(
            lambda _: engine, engine.dialect, environment, recipe.rollout.slots, recipe.rollout.deterministic
        )
        decoding = Decoding(settings.temperature, settings.top_p)
        trajectories = await attempt_all(folder, stage, jobs, context, settings.limits.budget(), decoding, chunk=CHUNK)
    write_trajectories(folder.trajectory_file(stage, "all"), trajectories)
    found = summarize([outcome(trajectory) for trajectory in trajectories], recipe.seed)
    use = tool_use(trajectories)
    folder.finish(
        stage,
        {
            **found,
            "tool_use": use,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "limits": settings.limits.model_dump(),
        },
    )
