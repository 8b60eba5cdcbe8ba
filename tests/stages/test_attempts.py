"""Synthesis: its attempts in the order of the jobs, and what it asks of the sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from aster.config.data import Limits
from aster.config.recipe import Recipe
from aster.data.rendering import transcribe
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.environments.lab import Walk
from aster.environments.opening import make_environment
from aster.environments.problems import teaching_problems
from aster.rollout import Decoding, Job, RolloutContext, make_jobs
from aster.rollout.attempts import next_part, part_files, synthesize_attempts
from aster.run import RunFolder, read_trajectories, write_trajectories
from aster.teacher.lab_experts import Script
from aster.teacher.scripted import ScriptedTeacher
from aster.types import StopReason, Trajectory
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


CHUNK = 3


class Synthesis:
    """Synthesis of four problems with two attempts each, in chunks of three."""

    def __init__(self, path: Path) -> None:
        recipe = Recipe.model_validate(SETTINGS)
        self.folder = RunFolder.open(path, recipe, [])
        self.place = path / "synthesize" / "trajectories"
        self.environment = make_environment(recipe.environment, recipe.tools, recipe.sandbox)
        self.dialect = make_dialect(load_tokenizer(resolve("lab")))
        self.jobs = make_jobs(teaching_problems(recipe.problems, 4, recipe.seed), 2, "seed")
        self.made: list[tuple[str, int]] = []

    def run(self, slots: int = 8, *, deterministic: bool = False) -> list[Trajectory]:
        """Run the stage; ``made`` then has the attempts that were not on disk."""

        def sampler_for(job: Job) -> ScriptedTeacher:
            self.made.append((job.problem.id, job.sample))
            return ScriptedTeacher(looking, job.problem, 0, self.dialect)

        async def work() -> list[Trajectory]:
            async with self.environment:
                context = RolloutContext(sampler_for, self.dialect, self.environment, slots, deterministic)
                return list(
                    await synthesize_attempts(self.folder, self.jobs, context, Limits().budget(), Decoding(), chunk=CHUNK)
                )

        self.made.clear()
        return asyncio.run(work())

    def part(self, *attempts: Trajectory) -> None:
        """Write a part, as a stage that was killed later leaves it."""
        write_trajectories(next_part(self.place), attempts)

    @property
    def chunks(self) -> list[list[tuple[str, int]]]:
        """The attempts in the files that later stages read. There must be no other files."""
        files = sorted(self.place.iterdir())
        assert [file.name for file in files] == [f"chunk_{number:05d}.jsonl.gz" for number in range(3)]
        return [keys(read_trajectories(file)) for file in files]


def keys(attempts: Iterable[Trajectory]) -> list[tuple[str, int]]:
    return [(each.problem_id, each.sample) for each in attempts]


@pytest.fixture
def synthesis(tmp_path: Path) -> Synthesis:
    return Synthesis(tmp_path / "run")


@pytest.mark.parametrize(("slots", "deterministic"), [(8, False), (3, True)])
def test_files_and_trajectories_have_the_order_of_the_jobs(slots: int, deterministic: bool, synthesis: Synthesis) -> None:
    first = synthesis.run(slots, deterministic=deterministic)
    asked = [(job.problem.id, job.sample) for job in synthesis.jobs]
    assert keys(first) == asked
    assert synthesis.chunks == [asked[:3], asked[3:6], asked[6:]]
    assert sorted(synthesis.made) == sorted(asked)
    assert synthesis.run(slots, deterministic=deterministic) == first
    assert synthesis.made == []


@pytest.mark.parametrize(
    "killed", ["before the first chunk", "after the first chunk", "with a part deleted", "in an old version"]
)
def test_a_stage_that_was_killed_ends_as_one_that_was_not(killed: str, synthesis: Synthesis) -> None:
    """Its attempts ended in another order than they began in, and some of them failed."""
    whole = synthesis.run()
    chunks = sorted(synthesis.place.iterdir())
    failed = dataclasses.replace(whole[1], stop_reason=StopReason.ENGINE_ERROR, error="gone", reward=0.0)
    missing: list[Trajectory] = []
    if killed == "in an old version":  # which wrote no parts
        chunks[2].unlink()
        missing = whole[6:]
    elif killed == "with a part deleted":
        synthesis.part(*whole[7:2:-1])
    else:
        synthesis.part(whole[7], whole[0], failed)
        synthesis.part(whole[4], whole[3], whole[6])
        synthesis.part(whole[1], whole[5])
        missing = [whole[2]]
        for chunk in chunks[killed == "after the first chunk" :]:
            chunk.unlink()
        if killed == "after the first chunk":
            missing = []
    again = synthesis.run()
    assert sorted(synthesis.made) == sorted(keys(missing))
    assert [(*key, each.token_ids, each.reward) for key, each in zip(keys(again), again, strict=True)] == [
        (*key, each.token_ids, each.reward) for key, each in zip(keys(whole), whole, strict=True)
    ]
    assert synthesis.chunks == [keys(whole[:3]), keys(whole[3:6]), keys(whole[6:])]
    assert part_files(synthesis.place) == []


def test_an_attempt_that_failed_is_made_again(synthesis: Synthesis) -> None:
    whole = synthesis.run()
    for chunk in synthesis.place.iterdir():
        chunk.unlink()
    failed = dataclasses.replace(whole[4], stop_reason=StopReason.SANDBOX_ERROR, error="gone", reward=0.0)
    synthesis.part(*whole[:4], failed, *whole[5:])
    again = synthesis.run()
    assert synthesis.made == keys(whole[4:5])
    assert again[4].stop_reason is StopReason.ANSWERED
