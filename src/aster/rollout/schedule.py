"""The order of RL's work: which batch is sampled with which weights, and what runs beside what.

``max_staleness`` 0 is strictly on-policy: sample, train, sample, train. With S, the next batch is sampled while this one is
trained on, at most S steps ahead: a batch's staleness is the number of steps between the weights that sampled it and those it
is trained on. Weights change between batches alone, so that a batch is sampled with one version of them (but for trajectories
that are carried over).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

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


async def overlap(
    plan: list[Place],
    done: int,
    max_staleness: int,
    *,
    sample: Callable[[Place, int], Awaitable[Made]],
    train: Callable[[Made], Awaitable[None]],
    refresh: Callable[[], Awaitable[None]],
) -> None:
    """Sample and train all steps of the plan after the first ``done``.

    ``sample(place, version)`` makes a batch with weights that were trained for ``version`` steps; ``train(batch)`` takes one
    step; ``refresh()`` gives the sampler the present weights. One of each runs at a time, and ``refresh`` beside neither. A
    stage's first batch is sampled when all steps before it are trained. What one raises ends the others.
    """
    version = upcoming = done
    sampling: asyncio.Future[Made] | None = None
    training: asyncio.Future[None] | None = None
    ready: deque[Made] = deque()
    try:
        while done < len(plan):
            if sampling is None and upcoming < len(plan) and upcoming - done <= max_staleness:
                place = plan[upcoming]
                if training is None and version < done:
                    await refresh()
                    version = done
                if upcoming - version <= max_staleness and place.stage_index == plan[done].stage_index:
                    sampling = asyncio.ensure_future(sample(place, version))
                    upcoming += 1
            if training is None and ready:
                training = asyncio.ensure_future(train(ready.popleft()))
            await asyncio.wait([task for task in (sampling, training) if task is not None], return_when=asyncio.FIRST_COMPLETED)
            if training is not None and training.done():
                training.result()
                training = None
                done += 1
            if sampling is not None and sampling.done():
                ready.append(sampling.result())
                sampling = None
    finally:
        left = [task for task in (sampling, training) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
