"""Many trajectories at once: bounded, in any order, each finished one handed over as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from aster.chat import Qwen3Dialect
from aster.core.types import Budget, Problem, Trajectory
from aster.policy import Sampler
from aster.rollout.loop import Decoding, rollout
from aster.sandbox import AnySandbox


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to make."""

    problem: Problem
    sample: int
    seed: int


@dataclass(frozen=True, slots=True)
class Workshop:
    """What rollouts share."""

    sampler_for: Callable[[Job], Sampler]
    """Who writes the turns of a job: the policy for all, or a scripted expert for each."""
    dialect: Qwen3Dialect
    sandbox: AnySandbox
    concurrency: int
    """Trajectories under way at once."""
    deterministic: bool = False
    """Waves instead of a stream: which trajectories are decoded together never depends on how long a tool took."""


async def rollout_batch(
    jobs: Iterable[Job],
    workshop: Workshop,
    budget: Budget,
    decoding: Decoding,
    done: Callable[[Trajectory], None] = lambda _: None,
) -> list[Trajectory]:
    """Run all jobs; returns their trajectories in the jobs' order. ``done`` sees each as it finishes."""
    jobs = list(jobs)
    slots = asyncio.Semaphore(workshop.concurrency)

    async def one(index: int, job: Job) -> Trajectory:
        async with slots:
            sampler = workshop.sampler_for(job)
            # The index keeps names unique and sorts them in the order of the jobs.
            sequence = f"{index:08d}/{job.problem.id}/{job.sample}"
            sampler.open(sequence)
            trajectory = await rollout(
                job.problem,
                job.sample,
                job.seed,
                sequence=sequence,
                sampler=sampler,
                dialect=workshop.dialect,
                sandbox=workshop.sandbox,
                budget=budget,
                decoding=decoding,
            )
            done(trajectory)
            return trajectory

    finished: list[Trajectory] = []
    for wave in _waves(list(enumerate(jobs)), workshop):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, job)) for index, job in wave]
        finished += [task.result() for task in tasks]
    return finished


def _waves(jobs: list[tuple[int, Job]], workshop: Workshop) -> Iterator[list[tuple[int, Job]]]:
    """Everything at once; or, deterministic, as many as fit at a time."""
    if not workshop.deterministic:
        yield jobs
        return
    for start in range(0, len(jobs), workshop.concurrency):
        yield jobs[start : start + workshop.concurrency]
