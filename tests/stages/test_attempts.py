"""What the stages that make attempts ask of the sandbox."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from aster.config.data import Limits
from aster.config.recipe import Recipe
from aster.data.rendering import transcribe
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.environments.lab import Walk
from aster.environments.opening import make_environment
from aster.environments.problems import teaching_problems
from aster.rollout import Decoding, RolloutContext, make_jobs
from aster.rollout.attempts import synthesize_attempts
from aster.run import RunFolder
from aster.teacher.lab_experts import Script
from aster.teacher.scripted import ScriptedTeacher
from aster.types import Trajectory
from tests.stages.runs import SETTINGS


def looking(_walk: Walk, _rng: random.Random) -> Script:
    """Says on which processors cells run."""
    output = yield "Where am I?", "import os\nsorted(os.sched_getaffinity(0))"
    return f"There: {output}", "1"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor is not divided")
@pytest.mark.parametrize("sampled_here", [True, False])
def test_cells_leave_a_processor_to_a_policy_that_is_sampled_here(tmp_path: Path, sampled_here: bool) -> None:
    recipe = Recipe.model_validate(SETTINGS)
    dialect = make_dialect(load_tokenizer(resolve("lab")))
    problems = teaching_problems(recipe.problems, 1, recipe.seed)

    async def main(folder: RunFolder) -> list[Trajectory]:
        environment = make_environment(recipe.environment, recipe.tools, recipe.sandbox, beside_sampler=sampled_here)
        async with environment:
            context = RolloutContext(
                lambda job: ScriptedTeacher(looking, job.problem, 0, dialect), dialect, environment, concurrency=1
            )
            jobs = make_jobs(problems, 1, "seed")
            return list(await synthesize_attempts(folder, jobs, context, Limits().budget(), Decoding(), chunk=1))

    with RunFolder.open(tmp_path / "run", recipe) as folder:
        folder.begin()
        made = asyncio.run(main(folder))
    processors = sorted(os.sched_getaffinity(0))
    transcript = transcribe(made[0], problems[0], dialect)
    assert [call.output for step in transcript.steps for call in step.calls] == [str(processors[sampled_here:])]
