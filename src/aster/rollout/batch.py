"""Many trajectories at once: bounded, in any order, each finished one handed over as soon as it is done."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from aster.chat import Qwen3Dialect
from aster.engines import Sampler
from aster.environments.base import Environment
from aster.rollout.loop import Decoding, rollout
from aster.seeds import derive
from aster.types import Budget, Problem, Trajectory

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to make."""

    problem: Problem
    sample: int
    seed: int


@dataclass(frozen=True, slots=True)
class RolloutContext:
    """What rollouts share."""

    sampler_for: Callable[[Job], Sampler]
    """Who writes the turns of a job: the policy for all, or a scripted expert for each."""
    dialect: Qwen3Dialect
    environment: Environment
    """What is asked, with which tools, and what an attempt is worth. It is open."""
    concurrency: int
    """Trajectories under way at once."""
    deterministic: bool = False
    """Waves instead of a stream: which trajectories are decoded together never depends on how long a tool took."""

    def waves(self, items: list[Item]) -> Iterator[list[Item]]:
        """Everything at once; or, deterministic, as many as fit at a time."""
        size = self.concurrency if self.deterministic else len(items)
        for start in range(0, len(items), max(1, size)):
            yield items[start : start + size]


class Rollouts:
    """Trajectories under way, over any number of batches; no more than the context's concurrency at once.

    An asynchronous context manager: at its end, whatever still runs is cancelled and waited for."""

    def __init__(self, context: RolloutContext) -> None:
        self.context = context
        self._dialect = context.dialect.with_tools(context.environment.schemas)
        self._slots = asyncio.Semaphore(context.concurrency)
        self._count = itertools.count()
        self._tasks: set[asyncio.Task[Trajectory]] = set()

    async def __aenter__(self) -> Rollouts:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(
        self, job: Job, budget: Budget, decoding: Decoding, done: Callable[[Trajectory], None] = lambda _: None
    ) -> asyncio.Task[Trajectory]:
        """Begin a trajectory as soon as there is room; ``done`` sees it as it finishes."""
        # The number keeps names unique and sorts them in the order of the jobs.
        sequence = f"{next(self._count):08d}/{job.problem.id}/{job.sample}"
        task = asyncio.create_task(self._run(sequence, job, budget, decoding, done))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Trajectory]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # What ends one may end all of them, and nobody waits for the rest: asyncio would write a traceback for each.
            task.exception()

    async def _run(
        self, sequence: str, job: Job, budget: Budget, decoding: Decoding, done: Callable[[Trajectory], None]
    ) -> Trajectory:
        async with self._slots:
            sampler = self.context.sampler_for(job)
            sampler.open(sequence)
            trajectory = await rollout(
                job.problem,
                job.sample,
                job.seed,
                sequence=sequence,
                sampler=sampler,
                dialect=self._dialect,
                environment=self.context.environment,
                budget=budget,
                decoding=decoding,
            )
            done(trajectory)
            return trajectory


async def rollout_batch(
    jobs: Iterable[Job],
    context: RolloutContext,
    budget: Budget,
    decoding: Decoding,
    done: Callable[[Trajectory], None] = lambda _: None,
) -> list[Trajectory]:
    """Run all jobs; returns their trajectories in the jobs' order. ``done`` sees each as it finishes."""
    finished: list[Trajectory] = []
    async with Rollouts(context) as rollouts:
        for wave in context.waves(list(jobs)):
            finished += await asyncio.gather(*(rollouts.start(job, budget, decoding, done) for job in wave))
    return finished


def make_jobs(problems: list[Problem], samples: int, *seed_parts: int | str) -> list[Job]:
    """``samples`` attempts at each problem; a seed belongs to (parts, problem, sample), never to an order."""
    return [Job(p, k, derive(*seed_parts, p.id, k)) for p in problems for k in range(samples)]
