"""Evaluate: avg@k on held-out problems, for each checkpoint of the run. Each is an evaluation folder like any other.

run/evaluate/base, sft, rl    :mod:`aster.evaluation.folder`
run/summary.json              their main numbers side by side
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
from aster.errors import UserError
from aster.evaluation.run import Request, make_evaluation
from aster.evaluation.settings import Settings
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
        if folder.summary(stage) is None:
            _refuse_former_layout(folder.path / stage)
            asyncio.run(until_finished(folder, stage, functools.partial(_evaluate, recipe, folder, problems, name, checkpoint)))
        summaries[name] = folder.summary(stage) or {}
    write_json(folder.path / "summary.json", {name: {key: s[key] for key in SHOWN} for name, s in summaries.items()})
    if len(summaries) == len(expected):
        folder.finish("evaluate", {"policies": list(summaries)})


async def _evaluate(recipe: Recipe, folder: RunFolder, problems: Sequence[Problem], name: str, checkpoint: Path | None) -> None:
    settings = settings_of(recipe, problems, checkpoint)
    await make_evaluation(settings, problems, Request(folder.path / "evaluate" / name, recipe.rollout, label=name))


def settings_of(recipe: Recipe, problems: Sequence[Problem], checkpoint: Path | None) -> Settings:
    """The settings of the evaluation of one checkpoint (None: the base model)."""
    asked, limits = recipe.evaluate, recipe.evaluate.limits
    return Settings(
        policy=recipe.model.path,
        checkpoint=str(checkpoint or ""),
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
        # The seeds do not depend on the policy: all are asked with the same random numbers.
        seed=recipe.seed,
        model=recipe.model,
        engine=recipe.policy,
        sandbox=recipe.sandbox,
    )


def _refuse_former_layout(path: Path) -> None:
    """UserError where an earlier version began the evaluation: its attempts are kept in another way."""
    if (path / "trajectories").exists():
        raise UserError(f"{path}: was begun by an earlier version; delete this folder, and the evaluation is made again")
