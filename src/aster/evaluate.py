"""The stage evaluate: avg@k on held-out problems, for the base model and each checkpoint of the run.

Each policy has an evaluation folder in the run folder (:mod:`aster.evaluation.folder`): ``evaluate/base``, ``evaluate/sft`` and
``evaluate/rl``. ``summary.json`` has their main numbers side by side.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aster.checkpoints import final_checkpoint, until_finished
from aster.config.recipe import Recipe
from aster.data.benchmarks import checksum
from aster.environments.problems import evaluation_problems
from aster.evaluation.folder import EvaluationFolder, refuse_former_layout
from aster.evaluation.run import Request, make_evaluation
from aster.evaluation.settings import Settings
from aster.report.evaluation_page import write_evaluation_page
from aster.run import RunFolder, write_json
from aster.types import Problem

SHOWN = ("accuracy", "low", "high", "k", "problems", "tool_calls")
"""Numbers of a policy in ``summary.json``."""


def run(recipe: Recipe, folder: RunFolder) -> None:
    """Evaluate every checkpoint the recipe names and the run has. The stage is finished when it has them all."""
    problems = evaluation_problems(recipe.problems, recipe.evaluate.problems)
    folder.remember_problems(problems)
    expected = [name for name in recipe.evaluate.policies if name == "base" or name in recipe.stages]
    summaries: dict[str, dict[str, Any]] = {}
    for name in expected:
        checkpoint = None if name == "base" else final_checkpoint(folder, name)
        if name != "base" and checkpoint is None:
            continue
        stage = f"evaluate/{name}"
        path = folder.path / stage
        if folder.summary(stage) is None:
            refuse_former_layout(path)
            (path / "report.html").unlink(missing_ok=True)
            asyncio.run(until_finished(folder, stage, functools.partial(_evaluate, recipe, folder, problems, name, checkpoint)))
        if (path / "evaluation.json").exists() and not (path / "report.html").exists():
            write_evaluation_page(EvaluationFolder.load(path))
        summaries[name] = folder.summary(stage) or {}
    write_json(folder.path / "summary.json", {name: {key: s[key] for key in SHOWN} for name, s in summaries.items()})
    if len(summaries) == len(expected):
        folder.finish("evaluate", {"policies": list(summaries)})


async def _evaluate(recipe: Recipe, folder: RunFolder, problems: Sequence[Problem], name: str, checkpoint: Path | None) -> None:
    settings = settings_of(recipe, problems, "" if checkpoint is None else str(checkpoint.relative_to(folder.path)))
    request = Request(folder.path / "evaluate" / name, recipe.rollout, label=name, root=folder.path)
    await make_evaluation(settings, problems, request)


def settings_of(recipe: Recipe, problems: Sequence[Problem], checkpoint: str) -> Settings:
    """The settings of the evaluation of one ``checkpoint``, named from the run folder; empty for the base model."""
    asked, limits = recipe.evaluate, recipe.evaluate.limits
    return Settings(
        policy=recipe.model.path,
        checkpoint=checkpoint,
        benchmark=recipe.problems.evaluate,
        problems=len(problems),
        checksum=checksum(list(problems)),
        prompt_suffix=recipe.problems.prompt_suffix,
        k=asked.k,
        temperature=asked.temperature,
        top_p=asked.top_p,
        context_tokens=limits.context_tokens,
        turn_tokens=limits.turn_tokens,
        tool_calls=limits.tool_calls,
        turns=limits.turns,
        wall_seconds=limits.wall_seconds,
        environment=recipe.environment,
        toolset=recipe.tools,
        demand=recipe.demand,
        # All policies are asked with the same seeds.
        seed=recipe.seed,
        model=recipe.model,
        engine=recipe.policy,
        sandbox=recipe.sandbox,
    )


def reopen_faulty(folder: RunFolder) -> None:
    """Make a finished stage one that goes on, to repeat the attempts that failed because of an engine, a sandbox or an
    environment."""
    for path in sorted((folder.path / "evaluate").glob("*/evaluation.json")):
        stage = f"evaluate/{path.parent.name}"
        if (folder.summary(stage) or {}).get("faults"):
            for reopened in (stage, "evaluate", "report"):
                folder.reopen(reopened)
