"""The order of RL's work: which batch is sampled with which weights, and what runs beside what.

``max_staleness`` 0 is strictly on-policy: sample, train, sample, train. With S, the next batch is sampled while this one is
trained on, at most S steps ahead: a batch's staleness is the number of steps between the weights that sampled it and those it
is trained on. Weights change between batches alone, so that a batch is sampled with one version of them (but for trajectories
that are carried over).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aster.config import Rl

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands."""

    step: int
    """Counted from 1 over all stages."""
    stage_index: int
    stage_step: int
    """Counted from 0 within the stage."""
    last: bool
    """The stage ends with it."""


def places(settings: Rl) -> list[Place]:
    """All steps of all stages."""
    found: list[Place] = []
    for index, stage in enumerate(settings.stages):
        steps = stage.steps or settings.steps
        found += [Place(len(found) + 1 + i, index, i, i == steps - 1) for i in range(steps)]
    return found


async def run_pipelined(
    plan: list[Place],
    done: int,
    max_staleness: int,
    *,
    sample: Callable[[Place, int], Awaitable[Made]],
    refresh: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Made]:
    """The batches of the plan's steps after the first ``done``, each when it is sampled. What the caller does with a batch
    before it asks for the next one is the training on it.

    ``sample(place, version)`` makes a batch with weights that were trained for ``version`` steps; ``refresh()`` gives the
    sampler the present weights. One sampling runs at a time, with ``max_staleness`` also beside the training, and ``refresh``
    beside neither. A stage's first batch is sampled when all steps before it are trained. Close the iterator where you leave
    it early (``contextlib.aclosing``): that ends a sampling under way."""
    pipeline = _Pipeline(plan, done, max_staleness, sample, refresh)
    try:
        while pipeline.done < len(plan):
            await pipeline.begin_sampling(may_refresh=True)
            if not pipeline.ready:
                await pipeline.finish_sampling()
                continue
            batch = pipeline.ready.popleft()
            meanwhile = asyncio.ensure_future(pipeline.keep_sampling())
            try:
                yield batch
            finally:
                meanwhile.cancel()
                await asyncio.gather(meanwhile, return_exceptions=True)
            pipeline.done += 1
    finally:
        await pipeline.close()


@dataclass(slots=True)
class _Pipeline(Generic[Made]):
    plan: list[Place]
    done: int
    max_staleness: int
    sample: Callable[[Place, int], Awaitable[Made]]
    refresh: Callable[[], Awaitable[None]]
    version: int = 0
    """Steps for which the sampler's weights were trained."""
    upcoming: int = 0
    """Batches of which the sampling was begun."""
    sampling: asyncio.Future[Made] | None = None
    ready: deque[Made] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.version = self.upcoming = self.done

    async def begin_sampling(self, *, may_refresh: bool) -> None:
        """Begin with the next batch where its weights may be as old as they are. ``may_refresh``: nothing is trained now."""
        if self.sampling is not None or self.upcoming >= len(self.plan) or self.upcoming - self.done > self.max_staleness:
            return
        if may_refresh and self.version < self.done:
            await self.refresh()
            self.version = self.done
        place = self.plan[self.upcoming]
        if self.upcoming - self.version <= self.max_staleness and place.stage_index == self.plan[self.done].stage_index:
            self.sampling = asyncio.ensure_future(self.sample(place, self.version))
            self.upcoming += 1

    async def finish_sampling(self) -> None:
        """Wait for the batch under way; raises what ended it."""
        assert self.sampling is not None
        await asyncio.wait([self.sampling])
        batch, self.sampling = self.sampling, None
        self.ready.append(batch.result())

    async def keep_sampling(self) -> None:
        """During the training: one batch after the other, as far as their weights may be old. What ends a sampling is raised
        when the training has ended."""
        while self.sampling is not None:
            await asyncio.wait([self.sampling])
            if self.sampling.exception() is not None:
                return
            await self.finish_sampling()
            await self.begin_sampling(may_refresh=False)

    async def close(self) -> None:
        """End a sampling under way."""
        if self.sampling is not None:
            self.sampling.cancel()
            await asyncio.gather(self.sampling, return_exceptions=True)
